"""The rewrite of a config.json for a guest: what engines wrote, changed in every way, on every kind of host.

::

    tests/unit/configs/*.json ──mutations──▶ text ──load_known──▶ document, spec ──rewrite(policy, host)──▶ text
                                                                                  what runc reads (any case, the last
                                                                                  of two), what crun reads (exact)

The laws are looked at in both readings, by an oracle of its own that knows the files of real hosts.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nestrt.errors import HostError, InputError
from nestrt.level.annotations import PROFILES, builtin
from nestrt.level.devices import DEFAULT_RULES, allowed
from nestrt.level.devices import DeviceRule as Allowed
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.policy import Policy
from nestrt.oci import parse_linux, parse_process, parse_resources, parse_seccomp
from nestrt.oci.partial import load_known
from nestrt.plan.facts import Hierarchy
from nestrt.plan.rewrite import Terms, rewrite, text_of
from nestrt.record import replace

CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.json"))
TEXTS = {path.stem: path.read_text() for path in CONFIGS}
GROUP = "/ci/web-1"
HOOK = ("/opt/nestrt/hooks/nestrt", "nestrt", "hook")
NOTE, RECORD = "io.nestrt.limit-group", "io.nestrt.record"
NUMBER = "27dfb15c004009bfbdd7e7b3264fd588"
STAGES = ("createRuntime", "poststart", "poststop")
PLACE = "/b/config.json"

# Of groups on a Debian 12 with v1, and of one on a 6.12 with v2: what a limit stands in, and the rest.
V1_LIMITS = {
    "memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.kmem.limit_in_bytes "
    "memory.kmem.tcp.limit_in_bytes memory.soft_limit_in_bytes",
    "pids": "pids.max",
    "cpu": "cpu.shares cpu.cfs_quota_us cpu.cfs_period_us cpu.cfs_burst_us cpu.rt_runtime_us cpu.rt_period_us cpu.idle",
    "cpuset": "cpuset.cpus cpuset.mems cpuset.cpu_exclusive cpuset.mem_exclusive",
    "devices": "devices.allow devices.deny",
    "blkio": "blkio.throttle.read_bps_device blkio.throttle.write_bps_device blkio.throttle.read_iops_device "
    "blkio.throttle.write_iops_device blkio.bfq.weight blkio.bfq.weight_device",
    "hugetlb": "hugetlb.2MB.limit_in_bytes hugetlb.2MB.rsvd.limit_in_bytes hugetlb.1GB.limit_in_bytes",
    "net_cls": "net_cls.classid",
    "net_prio": "net_prio.ifpriomap",
    "rdma": "rdma.max",
    "misc": "misc.max",
    "freezer": "",
    "cpuacct": "",
    "perf_event": "",
    "": "",
}
V2_LIMITS = {
    "memory": "memory.max memory.high memory.low memory.min memory.swap.max memory.swap.high memory.zswap.max",
    "pids": "pids.max",
    "cpu": "cpu.max cpu.max.burst cpu.weight cpu.weight.nice cpu.idle cpu.uclamp.max cpu.uclamp.min",
    "cpuset": "cpuset.cpus cpuset.mems cpuset.cpus.exclusive cpuset.cpus.partition",
    "io": "io.max io.weight io.latency",
    "hugetlb": "hugetlb.2MB.max hugetlb.2MB.rsvd.max hugetlb.1GB.max hugetlb.1GB.rsvd.max",
    "rdma": "rdma.max",
    "misc": "misc.max",
    "": "cgroup.max.depth cgroup.max.descendants",
}
REST = {
    1: "cgroup.clone_children cgroup.procs notify_on_release tasks memory.oom_control memory.usage_in_bytes "
    "freezer.state devices.list cpuset.memory_migrate cpuacct.usage",
    2: "cgroup.controllers cgroup.events cgroup.freeze cgroup.kill cgroup.pressure cgroup.procs cgroup.stat "
    "cgroup.subtree_control cgroup.threads cgroup.type memory.oom.group memory.reclaim memory.current cpu.pressure",
}
# Which switch of [partition] says that a guest may divide it.
SWITCH = {
    "cpu": "divide_cpu", "cpuset": "divide_cpu", "memory": "divide_memory", "hugetlb": "divide_memory",
    "pids": "divide_pids", "io": "divide_io", "blkio": "divide_io", "devices": "divide_devices",
}  # fmt: skip


def v1(name: str, *controllers: str) -> Hierarchy:
    options = ",".join(controllers) or f"none,name={name}"
    return Hierarchy(name, 1, controllers, options, f"/sys/fs/cgroup/{name}")


def v2(name: str, *controllers: str) -> Hierarchy:
    return Hierarchy(name, 2, controllers, "", f"/sys/fs/cgroup/{name}".rstrip("/"))


_V1 = (
    v1("cpu,cpuacct", "cpu", "cpuacct"), v1("cpuset", "cpuset"), v1("memory", "memory"), v1("devices", "devices"),
    v1("freezer", "freezer"), v1("blkio", "blkio"), v1("pids", "pids"), v1("systemd"),
)  # fmt: skip
_MORE = (v1("hugetlb", "hugetlb"), v1("net_cls,net_prio", "net_cls", "net_prio"), v1("rdma", "rdma"))
HOSTS: dict[str, tuple[Hierarchy, ...]] = {
    "v1": (*_V1, *_MORE, v1("perf_event", "perf_event")),
    "hybrid": (*_V1, v2("unified", "hugetlb")),
    "hybrid without controllers on v2": (*_V1, *_MORE, v2("unified")),
    "v2": (v2("", "cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"),),
}


def limit_names(h: Hierarchy, controller: str) -> list[str]:
    return (V1_LIMITS if h.version == 1 else V2_LIMITS)[controller].split()


def listing(h: Hierarchy) -> tuple[str, ...]:
    """The names in a group's directory."""
    named = [name for controller in ("", *h.controllers) for name in limit_names(h, controller)]
    return tuple(sorted({*named, *REST[h.version].split()}))


def terms(policy: Policy, host: str, **more: Any) -> Terms:
    hierarchies = HOSTS[host]
    files = {h.name: listing(h) for h in hierarchies}
    return Terms(policy, GROUP, hierarchies, files, HOOK, NUMBER, **more)


def rewritten(text: str, given_: Terms) -> str:
    """*text* as the runtime gets it. Raises InputError, HostError."""
    return text_of(rewrite(*load_known(text, PLACE), given_))


class Spelled(str):
    """A number as it is written in the text."""


# --- two readers ------------------------------------------------------------------------------

_TABLES = (
    parse_linux.LINUX, parse_linux.MOUNT, parse_linux.NAMESPACE, parse_linux.HOOKS, parse_linux.HOOK, parse_linux.RANGE,
    parse_process.CAPABILITY_SETS, parse_resources.RESOURCES, parse_resources.MEMORY, parse_resources.CPU,
    parse_resources.BLOCK_IO, parse_resources.THROTTLE, parse_resources.HUGEPAGE, parse_resources.PIDS,
    parse_resources.NETWORK, parse_resources.PRIORITY, parse_resources.RDMA, parse_resources.DEVICE_RULE,
    parse_seccomp.SECCOMP, parse_seccomp.SYSCALLS,
)  # fmt: skip
_TOP = "process root mounts hooks annotations linux capabilities args"
NAMES = {name.casefold(): name for table in _TABLES for name in table} | {name: name for name in _TOP.split()}
# Objects of which the names are data.
FREE = ("annotations", "unified", "sysctl")


def read_as(reader: str, value: Any) -> Any:
    """*value* with the specification's names as *reader* finds them: "runc" (Go: in any case, the last of two),
    "crun" (as they are written)."""
    if isinstance(value, list):
        return [read_as(reader, item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        known = NAMES.get(key.casefold())
        if known is None:
            found[key] = item
        elif key == known or reader == "runc":
            found[known] = item if known in FREE else read_as(reader, item)
    return found


# --- the laws, as far as a document can keep them -----------------------------------------------


def options(mount: dict[str, Any]) -> list[str]:
    return mount.get("options") or []


def is_bind(mount: dict[str, Any]) -> bool:
    return "bind" in options(mount) or "rbind" in options(mount)


def source_path(mount: dict[str, Any]) -> str:
    return os.path.normpath("/" + (mount.get("source") or "").lstrip("/"))


def is_cover(mount: dict[str, Any], t: Terms) -> bool:
    """Whether it is a read-only bind of the guest root's own file or directory over the same in the view."""
    inside = {f"{h.mountpoint}{GROUP}/guest": h.mountpoint for h in t.hierarchies}
    source = mount.get("source") or ""
    root = next((root for root in inside if source == root or source.startswith(root + "/")), None)
    return (
        root is not None
        and options(mount)[:2] == ["bind", "ro"]
        and mount["destination"] == inside[root] + source.removeprefix(root)
        and ".." not in source.split("/")
    )


def check_view(document: dict[str, Any], t: Terms) -> None:
    """Law 1: the document mounts the view, nothing covers it, and nothing of the host's groups is in there."""
    linux = document["linux"]
    assert linux["cgroupsPath"] == f"{GROUP}/guest"
    (namespace,) = (entry for entry in linux["namespaces"] if entry["type"] == "cgroup")
    assert not namespace.get("path")
    assert any(entry["type"] == "mount" for entry in linux["namespaces"])
    found: dict[str, tuple[str, list[str]]] = {}
    for number, mount in enumerate(document["mounts"]):
        place = os.path.normpath("/" + mount["destination"].lstrip("/"))
        if found:
            assert place not in ("/sys", "/sys/fs"), "it is covered"
        if is_bind(mount):
            source = source_path(mount)
            assert not (source + "/").startswith("/sys/fs/cgroup/") or is_cover(mount, t), mount
            if "rbind" in options(mount) and "/sys/fs/cgroup".startswith(source.rstrip("/") + "/"):
                hole = place.rstrip("/") + "/sys/fs/cgroup".removeprefix(source.rstrip("/"))
                later = [m for m in document["mounts"][number + 1 :] if not is_bind(m)]
                assert hole in [other["destination"] for other in later], f"the host's groups are at {hole}"
        elif mount.get("type") in ("cgroup", "cgroup2"):
            assert place not in found
            found[place] = mount["type"], options(mount)
    if t.policy.mount == "none":
        assert not found
        (over,) = (mount for mount in document["mounts"] if mount["destination"] == "/sys/fs/cgroup")
        assert over["type"] == "tmpfs"
        assert "ro" in over["options"]
        return
    wanted = {"/sys/fs/cgroup": "cgroup"}
    if any(h.name == "unified" for h in t.hierarchies):
        wanted["/sys/fs/cgroup/unified"] = "cgroup2"
    assert {place: kind for place, (kind, _) in found.items()} == wanted
    for _, words in found.values():
        assert [word for word in words if word in ("ro", "rw")] == [t.policy.mount]
        assert {"nosuid", "nodev", "noexec"} <= set(words)


def may_divide(policy: Policy, controller: str) -> bool:
    name = "io" if controller == "blkio" else controller
    seen = policy.controllers is None or name in policy.controllers
    return seen and (controller not in SWITCH or getattr(policy, SWITCH[controller]))


def has_private_ids(linux: dict[str, Any]) -> bool:
    """Whether the host's root is nobody in there."""
    if not any(entry["type"] == "user" for entry in linux["namespaces"]):
        return False
    maps = [linux.get(key) or [] for key in ("uidMappings", "gidMappings")]
    return all(ranges and all(row["hostID"] > 0 for row in ranges) for ranges in maps)


def check_locks(document: dict[str, Any], t: Terms) -> None:
    """Law 3: each limit file is read-only by itself, or with its hierarchy, or another user's, or not there."""
    view = max((n for n, m in enumerate(document["mounts"]) if m.get("type") in ("cgroup", "cgroup2")), default=0)
    later = document["mounts"][view + 1 :]
    locked = [mount["destination"] for mount in later if is_cover(mount, t)]
    assert len(locked) == len(set(locked))
    hidden = [m["destination"] for m in later if m.get("type") == "tmpfs" and {"ro", "nodev"} <= set(options(m))]
    for h in t.hierarchies:
        seen = ["io" if controller == "blkio" else controller for controller in h.controllers]
        wanted = t.policy.controllers
        shown = h.version == 2 or not seen or wanted is None or bool(set(seen) & set(wanted))
        assert t.policy.mount == "none" or (h.mountpoint in hidden) == (not shown)
        if t.policy.mount != "rw" or h.mountpoint in (*locked, *hidden):
            continue
        if h.version == 1 and h.controllers:
            assert any(may_divide(t.policy, controller) for controller in h.controllers)
        if has_private_ids(document["linux"]):
            continue
        for controller in ("", *h.controllers):
            # On v2 the limit group does not hand on what the guest may not divide: the files are not there.
            if h.version == 1 or not controller or may_divide(t.policy, controller):
                missing = {f"{h.mountpoint}/{name}" for name in limit_names(h, controller)} - set(locked)
                assert not missing
    # Only what is a limit: the guest divides and moves with the rest.
    assert not [path for path in locked if path.endswith(("procs", "tasks", "control", "threads", "freeze"))]


def at_most(value: int | None, most: int | None) -> bool:
    """Whether a document's number, of which 0 and less are no limit, is within a policy's, None and -1 being none."""
    return most is None or most < 0 or (value is not None and 0 < value <= most)


def numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def check_resources(resources: dict[str, Any], limits: Limits) -> None:
    """Law 2: nothing that the runtime will write is more than the policy's [limits]."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    assert at_most(memory.get("limit"), limits.memory)
    if limits.swap is not None and limits.swap >= 0:
        assert memory["swap"] - memory["limit"] <= limits.swap
    assert at_most((resources.get("pids") or {}).get("limit"), limits.pids)
    if limits.cpu_quota is not None and limits.cpu_quota > 0:
        period = cpu.get("period") or 100_000
        assert 0 < cpu["quota"] <= max(1000, limits.cpu_quota * period // 100_000)
        assert (cpu.get("burst") or 0) <= cpu["quota"]
    for key in ("cpus", "mems"):
        most = getattr(limits, key)
        assert most is None or numbers(cpu[key]) <= most
    for limit in limits.io:
        for key, name in (("rbps", "throttleReadBpsDevice"), ("wiops", "throttleWriteIOPSDevice")):
            rows = (resources.get("blockIO") or {}).get(name) or []
            rates = [row["rate"] for row in rows if f"{row['major']}:{row['minor']}" == limit.device]
            assert getattr(limit, key) is None or at_most(rates[-1] if rates else None, getattr(limit, key))
    pages = {row["pageSize"]: row["limit"] for row in resources.get("hugepageLimits") or []}
    assert all(most < 0 or (page in pages and pages[page] <= most) for page, most in limits.hugetlb)
    network = resources.get("network") or {}
    assert limits.net_cls is None or network["classID"] == limits.net_cls
    assert not {"memory.max", "pids.max", "cpu.max"} & set(resources.get("unified") or {}) or limits == Limits()
    if limits.devices is not None:
        check_devices(resources.get("devices") or [], limits.devices)


def check_devices(rules: list[dict[str, Any]], allow: tuple[Allowed, ...]) -> None:
    """Each cell that the ordered rules allow, the last deciding and nothing being the default, the policy allows."""
    nodes = {(rule.get("major"), rule.get("minor")) for rule in rules} | {(999, 999), (1, 11), (8, 0)}
    for kind in "bc":
        for major, minor in nodes:
            node = (999 if major in (None, -1) else major, 999 if minor in (None, -1) else minor)
            for access in "rwm":
                answer = False
                for rule in rules:
                    same = rule.get("type") in (None, "", "a") or (
                        rule["type"] == kind
                        and rule.get("major") in (None, -1, node[0])
                        and rule.get("minor") in (None, -1, node[1])
                    )
                    if same and access in (rule.get("access") or "rwm"):
                        answer = rule.get("allow", False)
                assert not answer or allowed(allow, kind, *node, access), (kind, node, access)


def check_handles(document: dict[str, Any]) -> None:
    """Law 2: who might open the limit group by a file handle cannot call open_by_handle_at(2)."""
    linux = document["linux"]
    sets = (document.get("process") or {}).get("capabilities") or {}
    held = {name for kind in parse_process.CAPABILITY_SETS for name in sets.get(kind) or ()}
    if any(entry["type"] == "user" for entry in linux["namespaces"]):
        return
    if not {"CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"} & {name.upper() for name in held}:
        return
    profile = linux["seccomp"]
    own = [rule["action"] for rule in profile["syscalls"] if "open_by_handle_at" in rule["names"]]
    refusing = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP")
    assert all(action in refusing for action in own)
    assert own or profile["defaultAction"] in refusing


def check_hooks(document: dict[str, Any], t: Terms) -> None:
    """Ours are there once, last, by an absolute path, with an environment of their own; no other runs before them
    under our name."""
    for stage in ("createRuntime", "poststop", *("poststart",) * t.policy.strict):
        ours = [hook for hook in document["hooks"][stage] if hook["path"] == t.hook[0]]
        # Behind a poststop hook that fails runc runs none.
        assert ours == [document["hooks"][stage][0 if stage == "poststop" else -1]]
        assert ours[0]["args"] == [*t.hook[1:], stage]
        assert ours[0]["path"].startswith("/")
        assert ours[0]["env"]
        assert all(word.startswith("PATH=/") for word in ours[0]["env"])
        assert ours[0]["timeout"] > 0


def check_laws(text: str, t: Terms) -> None:
    """The laws in *text* as runc and as crun read it; and it is JSON that everybody reads alike."""
    plain = json.loads(text)
    assert text.isascii()
    assert same(text, text_of(load_known(text, PLACE)[0]))
    for reader in ("runc", "crun"):
        document = read_as(reader, plain)
        check_view(document, t)
        check_locks(document, t)
        check_resources(document["linux"].get("resources") or {}, t.policy.limits)
        check_handles(document)
        check_hooks(document, t)
        assert document["annotations"][NOTE] == GROUP
        assert document["annotations"][RECORD] == NUMBER


# --- what is not named stays ----------------------------------------------------------------------


def of_the_view(mount: dict[str, Any]) -> bool:
    if is_bind(mount):
        return (source_path(mount) + "/").startswith("/sys/fs/cgroup/")
    if mount.get("type") in ("cgroup", "cgroup2"):
        return True
    place = mount["destination"]
    return mount.get("type") == "tmpfs" and (place.startswith("/sys/fs/cgroup/") or place.endswith("/cgroup"))


def rest(text: str, limits: Limits) -> dict[str, Any]:
    """The document *text* without what the rewrite's docstring names; numbers as they are spelled."""
    found: dict[str, Any] = json.loads(text, parse_float=Spelled, parse_int=Spelled)
    annotations = found.get("annotations") or {}
    annotations.pop(NOTE, None)
    annotations.pop(RECORD, None)
    found["annotations"] = annotations
    found["mounts"] = [mount for mount in found.get("mounts") or [] if not of_the_view(mount)]
    for mount in found["mounts"]:
        if "rbind" in options(mount) and source_path(mount) in ("/", "/sys", "/sys/fs"):
            mount["options"] = ["bind" if word == "rbind" else word for word in mount["options"]]
    hooks = found.get("hooks") or {}
    for stage in STAGES:
        hooks[stage] = [hook for hook in hooks.get(stage) or [] if hook["path"] != HOOK[0]]
    found["hooks"] = hooks
    linux = found.get("linux") or {}
    linux.pop("cgroupsPath", None)
    linux["namespaces"] = [entry for entry in linux.get("namespaces") or [] if entry["type"] != "cgroup"]
    seccomp = linux.pop("seccomp", None) or {}
    rules = [
        {**rule, "names": [name for name in rule["names"] if name != "open_by_handle_at"]}
        for rule in seccomp.get("syscalls") or []
    ]
    if seccomp and (seccomp.get("defaultAction") != "SCMP_ACT_ALLOW" or any(rule["names"] for rule in rules)):
        linux["seccomp"] = {**seccomp, "syscalls": [rule for rule in rules if rule["names"]]}
    linux["resources"] = rest_of_resources(linux.get("resources") or {}, limits)
    found["linux"] = linux
    return found


def rest_of_resources(resources: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """*resources* without what a limit can be said in; unknown names in there, and all the rest, stay."""
    if limits == Limits():
        return resources
    whole = ("devices", "hugepageLimits", "rdma", "unified", "pids", "network")
    found = {key: value for key, value in resources.items() if key not in whole}
    for key, names in (
        ("memory", "limit swap"),
        ("cpu", "quota period burst shares cpus mems"),
        ("blockIO", "throttleReadBpsDevice throttleWriteBpsDevice throttleReadIOPSDevice throttleWriteIOPSDevice"),
    ):
        part = {name: value for name, value in (found.pop(key, None) or {}).items() if name not in names.split()}
        if part:
            found[key] = part
    return found


def difference(had: Any, has: Any, where: str = "") -> str:
    """The first place where *has* is not as *had*, with both; "" for none. New names may come after those that were."""
    if type(had) is not type(has):
        return f"{where}: {str(had)[:80]} is {str(has)[:80]}"
    if isinstance(had, dict):
        if list(had) != list(has):
            return f"{where}: {list(had)} are {list(has)}"
        return next(filter(None, (difference(had[key], has[key], f"{where}.{key}") for key in had)), "")
    if isinstance(had, list):
        if len(had) != len(has):
            return f"{where}: {len(had)} are {len(has)}"
        pairs = enumerate(zip(had, has, strict=True))
        return next(filter(None, (difference(*pair, f"{where}[{number}]") for number, pair in pairs)), "")
    return "" if had == has else f"{where}: {str(had)[:80]} is {str(has)[:80]}"


def same(one: str, other: str) -> bool:
    """Whether both are one text; a comparison that pytest would explain for half a minute."""
    return one == other


def check_rest(before: str, after: str, limits: Limits) -> None:
    had, has = rest(before, limits), rest(after, limits)
    # What the rewrite makes where there was nothing stands at the end.
    for key in ("annotations", "mounts", "hooks", "linux"):
        had[key], has[key] = had.pop(key), has.pop(key)
    for one in (had, has):
        one["hooks"] = dict(sorted(one["hooks"].items()))
        one["linux"] = dict(sorted(one["linux"].items()))
        one["linux"]["resources"] = dict(sorted(one["linux"]["resources"].items()))
    assert not difference(had, has)
    # In their order, too.
    for key in ("annotations", "hooks", "linux"):
        old, new = (json.loads(text).get(key) or {} for text in (before, after))
        assert not difference([name for name in old if name in new], [name for name in new if name in old])


# --- what documents are made of -------------------------------------------------------------------

sizes = st.none() | st.just(-1) | st.integers(1 << 20, 1 << 40)
policies_with_limits = st.builds(
    Limits,
    memory=sizes,
    swap=st.none() | st.just(-1) | st.integers(0, 1 << 40),
    cpus=st.none() | st.frozensets(st.integers(0, 5), min_size=1),
    mems=st.none() | st.just(frozenset({0})),
    cpu_quota=st.none() | st.just(-1) | st.integers(1000, 10**7),
    cpu_weight=st.none() | st.integers(1, 10_000),
    pids=st.none() | st.just(-1) | st.integers(1, 4_000_000),
    io=st.just(()) | st.builds(lambda rate: (IoLimit("8:0", rbps=rate, wiops=100),), st.integers(1, 1 << 40)),
    devices=st.sampled_from([None, (), DEFAULT_RULES, (Allowed("c", 1, 3, "rw"), Allowed("b", 8, None, "r"))]),
    hugetlb=st.just(()) | st.just((("2MB", 4 << 20),)),
    misc=st.just(()) | st.just((("sev", "2"),)),
    net_cls=st.none() | st.integers(0, 2**32 - 1),
)
CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io", "devices", "freezer", "hugetlb", "misc")
generated = st.builds(
    Policy,
    mount=st.sampled_from(["rw", "rw", "ro", "none"]),
    controllers=st.none() | st.lists(st.sampled_from(CONTROLLERS), unique=True).map(tuple),
    start_in=st.sampled_from(["init", "."]),
    divide_cpu=st.booleans(),
    divide_memory=st.booleans(),
    divide_pids=st.booleans(),
    divide_io=st.booleans(),
    divide_devices=st.booleans(),
    limits=policies_with_limits | st.just(Limits()),
)
policies = st.sampled_from([builtin(name) for name in PROFILES]) | generated
hosts = st.sampled_from(sorted(HOSTS))
# Names that no version of the specification has, one of them almost.
unknown_names = st.sampled_from(["x", "io.example/x", "readonlyPath", "0", "", "ключ", "a\nb", "\ud800"])
spelled = st.sampled_from(
    ["1", "0.10", "1e5", "1E-5", "-0.0", "1e999", "123456789012345678901234567890", "18446744073709551615"]
)


unknown_values = st.recursive(
    st.none() | st.booleans() | spelled.map(Spelled) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unknown_names, inner, max_size=3),
    max_leaves=6,
)
ANNOTATIONS = {"io.container.manager": "libpod", "x": "", "run.oci.keep_original_groups": "1", "a/b": "ü\u2028"}
BINDS = (
    ("/srv", "/data", ["rbind", "rprivate"]),
    ("/sys/fs/cgroup", "/mnt/host", ["bind"]),
    ("/sys/fs/cgroup/memory/ci", "/sys/fs/cgroup/memory", ["rbind", "rw"]),
    ("/sys//fs/./cgroup/", "/x", ["rbind"]),
    ("/sys", "/sys", ["rbind", "ro"]),
    ("/sys/fs", "/y", ["rbind"]),
    ("/", "/host", ["rbind", "rslave"]),
    ("../../../sys/fs/cgroup", "/z", ["bind"]),
    ("/sys/fs/cgroup-not", "/n", ["bind"]),
)
MOUNTS = (
    *({"destination": to, "type": "none", "source": source, "options": words} for source, to, words in BINDS),
    {"destination": "/cg", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
    {"destination": "/cg2", "type": "cgroup2", "source": "none"},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": None},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
)
OTHERS_HOOK = {"path": "/usr/bin/nvidia", "args": ["nvidia", "prestart"], "timeout": 5, "x": 1}
OLD_HOOK = {"path": HOOK[0], "args": ["nestrt", "hook", "--policy", "old", "STAGE"], "env": ["PATH=/bin"]}


def objects(value: Any, free: bool = False) -> Iterator[dict[str, Any]]:
    """Every object in a document of which the names are the specification's."""
    if isinstance(value, dict):
        if not free:
            yield value
        for key, item in value.items():
            yield from objects(item, key in FREE or key == "rdma")
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


def written(value: Any) -> str:
    """*value* as JSON, numbers as they are spelled."""
    if isinstance(value, Spelled):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def one_of(data: st.DataObject, items: list[Any]) -> Any:
    """One of *items*, which are too large to be shown where a test fails."""
    return items[data.draw(st.integers(0, len(items) - 1))]


def change(data: st.DataObject, document: dict[str, Any]) -> None:
    """One change that leaves *document* one that a runtime takes."""
    linux = document["linux"]
    kind = data.draw(st.sampled_from(["unknown", "order", "drop", "annotation", "mount", "hook", "rights", "number"]))
    if kind == "unknown":
        holder = one_of(data, list(objects(document)))
        name = data.draw(unknown_names)
        if name not in holder:
            holder[name] = data.draw(unknown_values)
    elif kind == "order":
        holder = one_of(data, list(objects(document)))
        items, order = list(holder.items()), data.draw(st.permutations(range(len(holder))))
        holder.clear()
        holder.update([items[number] for number in order])
    elif kind == "drop":
        names = "process mounts hooks annotations hostname resources seccomp readonlyPaths maskedPaths cgroupsPath"
        name = data.draw(st.sampled_from(names.split()))
        (document if name in document else linux).pop(name, None)
    elif kind == "annotation":
        key = data.draw(st.sampled_from(sorted(ANNOTATIONS)))
        document["annotations"] = {**(document.get("annotations") or {}), key: ANNOTATIONS[key]}
    elif kind == "mount":
        mounts = list(document.get("mounts") or [])
        mounts.insert(data.draw(st.integers(0, len(mounts))), copy.deepcopy(data.draw(st.sampled_from(MOUNTS))))
        document["mounts"] = mounts
    elif kind == "hook":
        stage = data.draw(st.sampled_from([*STAGES, "prestart", "createContainer"]))
        hook = copy.deepcopy(data.draw(st.sampled_from([OTHERS_HOOK, OLD_HOOK] if stage in STAGES else [OTHERS_HOOK])))
        hook["args"] = [stage if word == "STAGE" else word for word in hook["args"]]
        document["hooks"] = {**(document.get("hooks") or {})}
        document["hooks"][stage] = [hook, *(document["hooks"].get(stage) or [])]
    elif kind == "rights" and document.get("process"):
        names = data.draw(st.sampled_from([["CAP_SYS_ADMIN"], ["CAP_DAC_READ_SEARCH", "CAP_KILL"], [], None]))
        document["process"]["capabilities"] = {"bounding": names, "effective": names}
    elif kind == "number":
        linux["resources"] = {**(linux.get("resources") or {})}
        key, value = data.draw(
            st.sampled_from([
                ("memory", {"limit": 2**63 - 1, "x": 1}), ("memory", {"limit": 0}),
                ("memory", {"limit": -1, "swap": -1}),
                ("pids", {"limit": -1}), ("pids", {"limit": 0, "x": [1]}), ("cpu", {"quota": -1, "period": 50_000}),
                ("cpu", {"cpus": "0-3", "mems": "0", "burst": 2**40, "quota": 2**40, "x": None}),
                ("devices", [{"allow": True, "access": "rwm", "x": 1}]),
                ("devices", [{"allow": False, "access": "rwm"},
                             {"allow": True, "type": "c", "major": -1, "minor": 3, "access": "rw"}]),
                ("blockIO", {"weight": 0, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 2**40}]}),
                ("hugepageLimits", [{"pageSize": "2MB", "limit": 2**50}]), ("unified", {"memory.high": "1"}),
                ("network", {"classID": 5}), ("x", {"limit": 1}),
            ])
        )  # fmt: skip
        linux["resources"][key] = copy.deepcopy(value)


def changed(data: st.DataObject, most: int = 4) -> str:
    document = json.loads(TEXTS[data.draw(st.sampled_from(sorted(TEXTS)))])
    joined = [entry for entry in document["linux"]["namespaces"] if entry["type"] == "cgroup"]
    for entry in joined:
        entry.pop("path", None)  # refused: test_what_no_rewriting_helps
    for _ in range(data.draw(st.integers(0, most))):
        change(data, document)
    return written(document)


# --- the tests -------------------------------------------------------------------------------------


def test_there_are_documents() -> None:
    engines = {name.split("-")[0] for name in TEXTS}
    assert {"podman", "docker", "ctr", "buildah", "runc", "crun"} <= engines


@given(st.data())
def test_without_a_policy_nothing_changes(data: st.DataObject) -> None:
    text = changed(data)
    document, spec = load_known(text, PLACE)
    before = copy.deepcopy(document)
    assert rewrite(document, spec, None) is document
    assert not difference(before, document)
    # And numbers are written as they were.
    assert not difference(*(json.loads(t, parse_float=Spelled, parse_int=Spelled) for t in (text, text_of(document))))


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_what_engines_wrote(name: str, host: str) -> None:
    """Each recorded document as it is, for each built-in policy."""
    document = json.loads(TEXTS[name])
    if any(entry["type"] == "cgroup" and entry.get("path") for entry in document["linux"]["namespaces"]):
        return  # refused: test_what_no_rewriting_helps
    for policy in PROFILES:
        given_ = terms(builtin(policy), host)
        text = rewritten(TEXTS[name], given_)
        check_laws(text, given_)
        check_rest(TEXTS[name], text, given_.policy.limits)
        assert same(rewritten(text, given_), text)


@settings(max_examples=300)
@given(st.data(), policies, hosts)
def test_what_engines_could_write(data: st.DataObject, policy: Policy, host: str) -> None:
    """Any of them changed: the laws hold, what is not named stays, and twice is as good as once."""
    text = changed(data)
    given_ = terms(policy, host, machine=data.draw(st.sampled_from(["x86_64", "aarch64", "riscv64"])))
    try:
        after = rewritten(text, given_)
    except InputError as error:
        # Only limits can be impossible: two sets without a common CPU, swap without memory, a file in "unified".
        assert policy.limits != Limits()
        check_error(error)
        assume(False)
    check_laws(after, given_)
    check_rest(text, after, policy.limits)
    assert same(rewritten(after, given_), after)


@given(st.data(), policies, hosts)
def test_the_inputs_stay_as_they_are(data: st.DataObject, policy: Policy, host: str) -> None:
    document, spec = load_known(changed(data), PLACE)
    before = copy.deepcopy(document)
    try:
        rewrite(document, spec, terms(policy, host))
    except InputError:
        pass
    assert not difference(before, document)


def test_the_brokers_socket() -> None:
    given_ = terms(builtin("default"), "v2", socket="/run/nestrt/broker.sock")
    text = rewritten(TEXTS["podman-run"], given_)
    check_laws(text, given_)
    (mount,) = (m for m in json.loads(text)["mounts"] if m["destination"] == "/run/nestrt/guest.sock")
    assert mount["source"] == "/run/nestrt/broker.sock"
    assert same(rewritten(text, given_), text)


def check_error(error: InputError | HostError) -> None:
    line = str(error)
    assert line.startswith("cannot ")
    assert error.reason
    assert error.remedy
    assert line.isprintable()
    assert len(line) < 2000


def refused(text: str, given_: Terms | None = None) -> str:
    with pytest.raises((InputError, HostError)) as caught:
        rewritten(text, given_ or terms(builtin("nested"), "hybrid"))
    check_error(caught.value)
    return str(caught.value)


def with_linux(**values: Any) -> str:
    document = json.loads(TEXTS["podman-run"])
    document["linux"].update(values)
    return json.dumps(document)


def test_what_no_rewriting_helps() -> None:
    joined = refused(TEXTS["podman-run-cgroupns-joined"])
    assert "cgroup namespace /proc/" in joined
    assert "mount namespace" in refused(with_linux(namespaces=[{"type": "pid"}]))
    assert "mount namespace" in refused('{"ociVersion": "1.0.2"}')
    document = json.loads(TEXTS["podman-run"])
    for value in ("/", "/ci", "relative", "", "/../x"):
        document["annotations"][NOTE] = value
        assert NOTE in refused(json.dumps(document)), value
    # Its own word is believed only where it fits.
    document["annotations"][NOTE] = GROUP
    document["linux"]["cgroupsPath"] = f"{GROUP}/guest"
    check_laws(rewritten(json.dumps(document), terms(builtin("nested"), "v1")), terms(builtin("nested"), "v1"))


@pytest.mark.parametrize(
    "value",
    [
        {"Linux": {}},
        {"LINUX": None},
        {"Mounts": []},
        {"Hooks": {}},
        {"Annotations": {}},
        {"proceſs": {}},
        {"linux": {"CgroupsPath": "/"}},
        {"linux": {"readonlypaths": []}},
        {"linux": {"Resources": {"memory": {"limit": -1}}}},
        {"linux": {"resources": {"Memory": {"limit": -1}}}},
        {"linux": {"seccomp": {"SysCalls": []}}},
        {"hooks": {"CreateRuntime": []}},
        {"mounts": [{"destination": "/x", "Type": "cgroup", "type": "tmpfs"}]},
        {"mounts": [{"destination": "/x", "Source": "/sys/fs/cgroup", "options": ["bind"]}]},
    ],
    ids=str,
)
def test_another_spelling_is_refused(value: dict[str, Any]) -> None:
    """Go takes names in any case, and the last of two; what is changed must not be said twice."""
    document = json.loads(TEXTS["podman-run"])
    for key, item in value.items():
        if key in document and isinstance(item, dict):
            document[key] = {**document[key], **item}
        else:
            document[key] = item
    assert "in another case" in refused(json.dumps(document))


DENY_ALL = {"allow": False, "access": "rwm"}
FEW = Limits(memory=64 << 20, pids=50, cpu_quota=100_000, devices=DEFAULT_RULES)
OPENING = [{"Names": ["open_by_handle_at"], "action": "SCMP_ACT_ALLOW"}]


@pytest.mark.parametrize(
    "values",
    [
        {"resources": {"memory": {"limit": 1, "LIMIT": 1 << 40}}},
        {"resources": {"memory": {"Limit": 1 << 40, "limit": 1}}},
        {"resources": {"pids": {"limit": 5, "Limit": -1}}},
        {"resources": {"cpu": {"quota": 5000, "Quota": -1, "period": 100_000}}},
        {"resources": {"devices": [{**DENY_ALL, "Allow": True}]}},
        {"resources": {"devices": [DENY_ALL, {"allow": True, "Access": "r", "access": "rwm"}]}},
        {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": OPENING}},
        {"namespaces": [{"type": "mount"}, {"type": "uts", "Type": "cgroup"}]},
        {"namespaces": [{"type": "mount"}, {"Type": "cgroup"}]},
        {"namespaces": [{"type": "mount"}, {"type": "cgroup", "path": "/proc/1/ns/cgroup", "Path": ""}]},
        {"namespaces": [{"Type": "mount"}]},
        {
            "namespaces": [{"type": "mount"}, {"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": 0, "HostID": 5, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 5, "size": 10}],
        },
    ],
    ids=str,
)
def test_two_readers(values: dict[str, Any]) -> None:
    """What Go and what C reads of one name in two spellings: refused, or the laws hold in both."""
    document = json.loads(with_linux(**values))
    document["process"]["capabilities"]["bounding"].append("CAP_SYS_ADMIN")
    given_ = terms(replace(builtin("nested"), limits=FEW), "hybrid")
    try:
        text = rewritten(json.dumps(document), given_)
    except InputError as error:
        check_error(error)
    else:
        check_laws(text, given_)


WORDS = st.sampled_from([
    "", "/", "..", "\0", "\ud800", "\n", "cgroup", "bind", "rbind", "/sys/fs/cgroup", "SCMP_ACT_ALLOW", "mount", "user",
    "open_by_handle_at", "CAP_SYS_ADMIN", HOOK[0], "createRuntime", GROUP, "nestrt", "hook", "0-1", "2MB",
])  # fmt: skip
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**300, 1.5, -0.0])
scalars = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | WORDS
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | WORDS, inner, max_size=3)
)


def places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue:
        holder = queue.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                queue.append(holder[key])
    return found


def spoil(data: st.DataObject, document: dict[str, Any]) -> None:
    """One change that nobody checks for sense."""
    holder, key = one_of(data, places(document))
    kind = data.draw(st.sampled_from(["replace", "remove", "add", "case", "twice"]))
    if kind == "remove":
        del holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder[data.draw(WORDS)] = data.draw(anything)
    elif kind == "case" and isinstance(holder, dict):
        other = data.draw(st.sampled_from([key.upper(), key.capitalize(), key.replace("s", "ſ").replace("k", "K")]))
        items = [(other if name == key else name, item) for name, item in holder.items()]
        if data.draw(st.booleans()):
            items = [*holder.items(), (other, data.draw(anything))]
        holder.clear()
        holder.update(items)
    elif kind == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = data.draw(anything)


@settings(max_examples=500)
@given(st.data(), policies, hosts)
def test_hostile_documents(data: st.DataObject, policy: Policy, host: str) -> None:
    """One line of an error; or what both runtimes read keeps the laws, where they can read it at all."""
    document = json.loads(TEXTS[data.draw(st.sampled_from(sorted(TEXTS)))])
    for _ in range(data.draw(st.integers(1, 3))):
        spoil(data, document)
    given_ = terms(policy, host)
    try:
        text = rewritten(json.dumps(document), given_)
    except (InputError, HostError) as error:
        check_error(error)
    else:
        check_laws(text, given_)


@given(anything)
@example([])
@example({"linux": []})
def test_any_json(value: object) -> None:
    refused(json.dumps(value))


@given(st.text() | st.text(alphabet='{}[]":,\\ud8e0123.-'))
@example("\ufeff{}")
@example("[" * 100_000)
@example('{"linux": ' * 5000)
@example('{"x": ' + "1" * 5000 + "}")
@example('{"x": NaN}')
@example('{"linux": {}, "x": ' + '{"a": ' * 900 + "1" + "}" * 901)
def test_any_text(text: str) -> None:
    refused(text)


def test_a_name_that_is_there_twice() -> None:
    """Go puts the second object of a name over the first; what is written has each once, and keeps the laws."""
    given_ = terms(builtin("nested"), "hybrid")
    plain = TEXTS["podman-run"].lstrip()[1:]
    for first in ('"linux": {"cgroupsPath": "/"}', '"mounts": [{"type": "cgroup"}]', '"hooks": {}'):
        text = rewritten("{" + first + "," + plain, given_)
        check_laws(text, given_)
        assert text.count('"linux":') == text.count('"mounts":') == text.count('"hooks":') == 1


def test_a_deep_document_is_one_line() -> None:
    """What can be read can be too deep to be written."""
    document = TEXTS["runc-spec"].strip().removesuffix("}")
    for depth in (100, 300, 900, 3000):
        text = f'{document}, "x": {"[" * depth}{"]" * depth}}}'
        given_ = terms(builtin("default"), "v2")
        if depth < 900:
            check_laws(rewritten(text, given_), given_)
        else:
            assert "nested too deeply" in refused(text, given_)


def test_limits_of_the_host_and_of_the_document() -> None:
    """The smaller holds, by name; a document without resources gets the policy's."""
    limits = Limits(memory=64 << 20, pids=50, cpus=frozenset({0, 1}), cpu_quota=150_000)
    policy = replace(builtin("nested"), limits=limits)
    given_ = terms(policy, "v2")
    document = json.loads(TEXTS["runc-spec"])
    document["linux"].pop("resources", None)
    resources = json.loads(rewritten(json.dumps(document), given_))["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["pids"] == {"limit": 50}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000, "cpus": "0-1"}
    document["linux"]["resources"] = {"memory": {"limit": 1 << 20, "x": 1}, "pids": {"limit": 900}, "x": 1.50}
    text = rewritten(json.dumps(document), given_)
    resources = json.loads(text)["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 20, "x": 1}
    assert resources["pids"] == {"limit": 50}
    assert resources["x"] == 1.5
