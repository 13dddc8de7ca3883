"""``nestrt update``: other limits for a live container, on its limit group, and the guest's locked files follow."""

from __future__ import annotations

import os
import sys

from nestrt import jsontext
from nestrt.act import containers
from nestrt.act.update import Update, known, remark
from nestrt.cli.engine import lower, one_id, warn, words
from nestrt.cli.options import Option
from nestrt.controllers.table import ignored, missing
from nestrt.controllers.update import merge
from nestrt.errors import NO_CONTAINER, HostError, InputError, NotFound, StateError
from nestrt.level.limits import from_mark
from nestrt.level.units import shown
from nestrt.oci.document import load_resources
from nestrt.oci.resources import BlockIo, Cpu, Memory, Resources
from nestrt.plan import narrow
from nestrt.plan.narrow import within
from nestrt.plan.update import as_json, marked, taken_back
from nestrt.probe.facts import read_hierarchies
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.act.containers import Container
    from nestrt.cli.engine import Globals
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.facts import Hierarchy

FILE_LIMIT = 1 << 20
PATIENCE = 10.0  # s
OPTIONS = (
    Option("resources", "FILE", "linux.resources as JSON, - for standard input; other options are ignored then", "r"),
    Option("blkio-weight", "N", "I/O weight, 10 to 1000"),
    Option("cpu-period", "US", "period of the CPU quota"),
    Option("cpu-quota", "US", "CPU time in each period, -1 for no limit"),
    Option("cpu-burst", "US", "CPU time that may be saved up"),
    Option("cpu-share", "N", "CPU shares, beside other containers"),
    Option("cpu-rt-period", "US", "period of realtime processes (cgroup v1)"),
    Option("cpu-rt-runtime", "US", "realtime CPU time in each period (cgroup v1)"),
    Option("cpu-idle", "N", "1: only when nothing else wants to run"),
    Option("cpuset-cpus", "LIST", "CPUs, like 0-1,3"),
    Option("cpuset-mems", "LIST", "memory nodes"),
    Option("memory", "SIZE", "memory limit: bytes, 512M, or -1 for none"),
    Option("memory-reservation", "SIZE", "memory that is kept in a shortage"),
    Option("memory-swap", "SIZE", "memory and swap together, or -1 for no limit"),
    Option("pids-limit", "N", "processes and threads, -1 for no limit"),
    Option("kernel-memory", "SIZE", "does nothing"),
    Option("kernel-memory-tcp", "SIZE", "does nothing"),
    Option("l3-cache-schema", "TEXT", "Intel RDT: cache"),
    Option("mem-bw-schema", "TEXT", "Intel RDT: memory bandwidth"),
)
USAGE = """usage: nestrt update [OPTION …] ID

Change a container's limits while it runs."""
SIZES = ("memory", "memory-reservation", "memory-swap", "kernel-memory", "kernel-memory-tcp")
SIGNED = ("cpu-quota", "cpu-rt-runtime", "cpu-idle", "pids-limit", "blkio-weight")
UNSIGNED = ("cpu-period", "cpu-burst", "cpu-share", "cpu-rt-period")
RDT = ("l3-cache-schema", "mem-bw-schema")
INT64, UINT64 = 2**63 - 1, 2**64 - 1


def main(flags: Globals, argv: list[str]) -> int:
    """Carry out ``nestrt update``. Raises NestrtError; the container then has what it had before."""
    given = words("update", OPTIONS, argv, USAGE)
    if given is None:
        return 0
    single, _, operands = given
    container = containers.load(flags.root, one_id("update", operands))
    new = from_file(single["resources"]) if single.get("resources") else from_flags(single)
    container.require("update", "running", "created", "paused")
    for schema in RDT:
        if single.get(schema):
            reason = "updating a non-existent Intel RDT configuration is not supported"
            raise HostError("use", f"--{schema}", reason, "give linux.intelRdt at create")
    for field in ignored(new):
        warn(flags, f"{field} is ignored: kernel memory settings do nothing on this kernel")
    if not container.cgroup:
        raise HostError("update", f"container {container.id}", "it was made without groups", "create it with groups")
    lock = locked(container)
    try:
        # What it was before the lock another update may have changed, or delete and create.
        container = containers.load(flags.root, container.id)
        container.require("update", "running", "created", "paused")
        apply(container, fixed(new))
    finally:
        os.close(lock)
    return 0


def locked(container: Container) -> int:
    """The container's directory, locked. Raises NotFound, StateError where another keeps it for PATIENCE."""
    try:
        return containers.lock(container.directory, PATIENCE)
    except FileNotFoundError as error:
        obj = f"container {container.id}"
        raise NotFound("find", obj, NO_CONTAINER, "nestrt list shows all") from error
    except BlockingIOError:
        reason = "it is being created, updated or removed"
        raise StateError("update", f"container {container.id}", reason, "try again") from None


def fixed(new: Resources) -> Resources:
    """*new* as runc completes it: memory without limit, and no word about swap, is swap without limit."""
    if new.memory.limit == -1 and new.memory.swap is None:
        return replace(new, memory=replace(new.memory, swap=-1))
    return new


def apply(container: Container, new: Resources, then: Callable[[Resources], object] | None = None) -> None:
    """Make the container have *new* beside what it has, and write that to its state file.

    *then* is done with what was written once the groups have it. The caller has the container's lock since
    before it was loaded. Raises NestrtError, OSError, what *then* raises; then nothing has changed.
    """
    hierarchies = read_hierarchies()
    v2 = next((h.controllers for h in hierarchies if h.version == 2), None)
    absent = missing(new, {name for h in hierarchies for name in h.controllers}, v2)
    if absent:
        raise HostError("set", absent[0], "no cgroup hierarchy here has its controller", "leave it out")
    document, nodes = known(container)
    old = load_resources(jsontext.dumps(document), f"container {container.id}")
    merged = merge(old, new)
    rules = device_rules(new, nodes) if new.devices and new.devices != old.devices else None
    before = () if rules is None else device_rules(old, nodes)
    if bound := container.document.get("bound"):
        # The policy's own limits hold whatever an engine asks for later.
        limit = from_mark(bound)
        old = within(limit, old)
        new = merged = within(limit, merged)
        rules = None if rules is None else narrow.device_rules(limit, rules)
        before = narrow.device_rules(limit, before)
    unit = container.driver == "systemd"
    wanted = systemd(container, hierarchies, merged, new, rules) if unit else new
    change = Update(container, hierarchies, old, wanted)
    try:
        change.carry_out(rules, before)
        if then is not None:
            then(wanted)
        container.document["resources"] = as_json(merged)
        container.save()
    except BaseException:
        change.back()
        if unit:
            systemd(container, hierarchies, taken_back(old, new), old, None if rules is None else before)
        raise
    finally:
        change.close()
    limits = marked(merged)
    if rules is not None:
        limits["devices"] = device_lines(rules)
    remark(container, hierarchies, limits)


def device_rules(new: Resources, nodes: tuple[str, ...]) -> tuple[DeviceRule, ...]:
    """The rules of *new* and those that every container has."""
    from nestrt.controllers import oci_devices
    from nestrt.oci.model import Device

    return oci_devices.with_defaults(new.devices, tuple(Device(path, "c") for path in nodes))


def device_lines(rules: tuple[DeviceRule, ...]) -> list[str]:
    """*rules* as marks have them, an allow-list; where it takes an exception, the parts that it gives whole."""
    from nestrt.controllers import oci_devices
    from nestrt.level.devices import format_rule

    listed = oci_devices.as_allow_list(rules)
    cells = oci_devices.effective(rules) if listed is None else listed
    return [format_rule(rule) for rule in cells if rule.access]


def systemd(
    container: Container,
    hierarchies: tuple[Hierarchy, ...],
    whole: Resources,
    new: Resources,
    rules: tuple[DeviceRule, ...] | None,
) -> Resources:
    """Tell systemd the *whole* of the limits, so that it keeps them; returns *new* with the quota that it makes.

    *rules* are all device rules where they change: systemd's own program and ours must both allow an access.
    """
    from nestrt.act.freeze import freeze, frozen, thaw
    from nestrt.act.scope import Manager
    from nestrt.plan import systemd as plan

    unified = all(h.version == 2 for h in hierarchies)
    # On v1 systemd takes all devices away for a moment whenever it writes a unit's limits.
    stop = any("devices" in h.controllers for h in hierarchies if h.version == 1) and not frozen(container)
    with Manager() as manager:
        properties = plan.properties(whole, unified, manager.version(), rules)
        if stop:
            freeze(container)
        try:
            manager.set_properties(container.unit, properties)
        finally:
            if stop:
                thaw(container)
    if not new.cpu.quota:
        return new
    return replace(new, cpu=replace(new.cpu, quota=plan.settled(whole).cpu.quota))


def from_file(path: str) -> Resources:
    """linux.resources from a file, or from standard input for "-". Raises NotFound, InputError."""
    if path == "-":
        data, where = sys.stdin.buffer.read(FILE_LIMIT + 1), "standard input"
    else:
        where = path
        try:
            with open(path, "rb") as file:
                data = file.read(FILE_LIMIT + 1)
        except OSError as error:
            raise NotFound("read", path, lower(error), "name a file with linux.resources, or -") from error
    if len(data) > FILE_LIMIT:
        raise InputError("read", where, f"it is longer than {FILE_LIMIT >> 20} MiB", "shorten it")
    return load_resources(data.decode("utf-8", "replace"), where)


def from_flags(single: dict[str, str]) -> Resources:
    """What the flags say; an empty value says nothing, as under runc. Raises InputError."""
    values: dict[str, int | None] = {}
    for names, convert in ((SIZES, size), (SIGNED, signed), (UNSIGNED, unsigned)):
        for name in names:
            text = single.get(name, "")
            values[name] = convert(name, text) if text else None
    weight = values["blkio-weight"]
    if weight and not 10 <= weight <= 1000:
        raise InputError("use", f"--blkio-weight {weight}", "out of range", "use 10 to 1000")
    return Resources(
        memory=Memory(
            values["memory"],
            values["memory-reservation"],
            values["memory-swap"],
            values["kernel-memory"],
            values["kernel-memory-tcp"],
        ),
        cpu=Cpu(
            shares=values["cpu-share"],
            quota=values["cpu-quota"],
            burst=values["cpu-burst"],
            period=values["cpu-period"],
            realtime_runtime=values["cpu-rt-runtime"],
            realtime_period=values["cpu-rt-period"],
            cpus=single.get("cpuset-cpus", ""),
            mems=single.get("cpuset-mems", ""),
            idle=values["cpu-idle"],
        ),
        pids=values["pids-limit"],
        block_io=BlockIo(weight=weight or None),
    )


def _integer(name: str, text: str, low: int, high: int) -> int:
    plain = text.removeprefix("-")
    if not (plain.isascii() and plain.isdigit() and len(plain) < 21) or not low <= int(text) <= high:
        raise InputError("read", f"--{name} {shown(text)}", f"invalid value for {name}", f"write a number from {low}")
    return int(text)


def signed(name: str, text: str) -> int:
    """A number from -1 on. Raises InputError."""
    return _integer(name, text, -1, INT64)


def unsigned(name: str, text: str) -> int:
    """A number from 0 on. Raises InputError."""
    return _integer(name, text, 0, UINT64)


def size(name: str, text: str) -> int:
    """Bytes from ``512M``, ``1.5g``, ``4096``, ``64 kb`` or -1: docker/go-units, RAMInBytes. Raises InputError."""
    if text == "-1":
        return -1
    wrong = InputError("read", f"--{name} {shown(text)}", f"invalid value for {name}", "write bytes, 512M, 2g or -1")
    number = text.rstrip("bBiIkKmMgGtTpP ")
    unit = text[len(number) :].strip(" ").lower()
    letter = unit[:1] if unit[:1] in "kmgtp" else ""
    if unit[len(letter) :] not in ("", "b", "ib") or number.count(".") > 1 or not number.isascii():
        raise wrong
    whole, _, fraction = number.partition(".")
    if not whole.isdigit() or not (fraction + "0").isdigit() or len(number) > 20:
        raise wrong
    scale: int = 1 << (10 * " kmgtp".index(letter)) if letter else 1
    value: int = int(whole) * scale + int(fraction or "0") * scale // 10 ** len(fraction)
    if value > INT64:
        raise wrong
    return value
