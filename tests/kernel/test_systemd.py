"""The systemd driver against a real systemd: the first process of a guest (tests/support/systemd_root.py).

    host
    └ /nestrt/NAME/guest             "/" of the guest, whose first process is systemd
       ├ init.scope                  systemd
       ├ system.slice
       │  └ run-….service            where a test's script runs
       └ machine.slice
          └ machine-x.slice
             └ nestrt-web.scope      Delegate=yes, limits as properties: what the driver makes

One guest serves all tests of this module. The scope's files are found where /proc says that its process is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.act.scope import Manager
from nestrt.errors import HostError
from support.hostside import is_v2_only
from support.need import SLOW, require
from support.runner import Nestrt
from support.systemd_root import BUNDLE, SHARED, USER, SystemdGuest, problem, systemd_guest

MIB = 1 << 20


@pytest.fixture(scope="module")
def guest(scratch: Path) -> Iterator[SystemdGuest]:
    require("systemd-root", problem())
    directory = Path(tempfile.mkdtemp(prefix="nestrt-systemd-", dir=scratch))
    directory.chmod(0o755)
    command = Nestrt()
    with systemd_guest(command, directory, f"nestrt-t-{os.getpid():x}-systemd") as running:
        yield running
    command.stop()
    shutil.rmtree(directory)


# What each script begins with: a process to put into a unit, and a look at what that unit has.
DRIVER = """
import json, os, subprocess, time
from nestrt.act.scope import Manager
from nestrt.errors import NestrtError
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources
from nestrt.plan.systemd import parse_path, properties, start_properties

UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
FILES = {
    "memory": ("memory.max",) if UNIFIED else ("memory.limit_in_bytes",),
    "pids": ("pids.max",),
    "cpu": ("cpu.max", "cpu.weight") if UNIFIED else ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"),
}
told = {}

def process():
    # Not with the script's output: where a test fails it outlives the script.
    return subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def groups(pid):
    rows = open(f"/proc/{pid}/cgroup").read().split()
    return {row.split(":")[1].removeprefix("name="): row.split(":", 2)[2] for row in rows}

def files(group):
    found = {}
    for controller, names in FILES.items():
        directory = "/sys/fs/cgroup" + ("" if UNIFIED else f"/{controller}") + group
        for name in names:
            found[name] = open(f"{directory}/{name}").read().strip()
    # 51 % is what counts; in which period is the writer's choice.
    pair = found.pop("cpu.max").split() if UNIFIED else (found.pop("cpu.cfs_quota_us"), found.pop("cpu.cfs_period_us"))
    found["cpu"] = int(pair[0]) / int(pair[1])
    return found

def units():
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "nestrt-*"]
    return [row.split()[0] for row in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]

def refusal(call, *args):
    try:
        call(*args)
    except NestrtError as error:
        return [type(error).__name__, error.status, str(error)]
    return []

def control_group(unit):
    kind = "Slice" if unit.endswith(".slice") else "Scope"
    path = manager.bus.call("GetUnit", "s", unit).text("o")
    return manager.bus.get(path, f"org.freedesktop.systemd1.{kind}", "ControlGroup", "s").text()

unit = parse_path("machine-x.slice:nestrt:web", "web")
manager = Manager(False)
"""


def drive(guest: SystemdGuest, code: str, timeout: float = 20.0) -> dict[str, Any]:
    """What *code* has put into ``told``. AssertionError with its words if it does not come to the end."""
    result = guest.python(f"{DRIVER}\n{code}\nprint(json.dumps(told))", timeout).ok()
    found = json.loads(result.out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


LIMITS = """
resources = Resources(
    memory=Memory(limit=64 << 20),
    cpu=Cpu(shares=512, quota=25_500, period=50_000),
    pids=33,
    block_io=BlockIo(weight=500),
)
devices = (DeviceRule(False), DeviceRule(True, "c", 1, 3, "rwm"), DeviceRule(True, "c", 136, None, "rw"))
version = manager.bus.version()
annotations = (("org.systemd.property.TimeoutStopSec", "uint64 7"),)
made = (*start_properties(unit, resources, UNIFIED, version, annotations),
        *properties(resources, UNIFIED, version, devices))
one = process()
manager.start(unit.name, made, one.pid)
"""
NAMES = (
    "Delegate", "Slice", "DefaultDependencies", "TimeoutStopUSec", "CollectMode", "TasksMax", "CPUQuotaPerSecUSec",
    "CPUQuotaPeriodUSec", "DevicePolicy", "DeviceAllow", "MemoryMax", "MemoryLimit", "MemoryAccounting",
)  # fmt: skip


def test_limits_are_properties_of_a_delegated_scope_and_outlive_a_reload(guest: SystemdGuest) -> None:
    """Started, reloaded, changed, stopped: what systemd says, what the kernel's files say, where the process is."""
    memory = "memory.max" if is_v2_only() else "memory.limit_in_bytes"
    shown = f"""
def show():
    rows = subprocess.run(["systemctl", "show", "-p", {",".join(NAMES)!r}, unit.name], capture_output=True, text=True)
    return [row.split("=", 1) for row in rows.stdout.splitlines()]
"""
    told = drive(
        guest,
        LIMITS
        + shown
        + """
told["version"] = version
told["group"], told["expected"] = control_group(unit.name), unit.group()
told["groups"] = groups(one.pid)
told["shown"], told["files"] = show(), files(unit.group())
# A limit that only a file has is what systemd writes over: so much for the test's teeth.
name = FILES["memory"][0]
with open("/sys/fs/cgroup" + ("" if UNIFIED else "/memory") + unit.group() + "/" + name, "w") as file:
    file.write(str(128 << 20))
subprocess.run(["systemctl", "daemon-reload"], check=True)
told["again"], told["reloaded"] = show(), files(unit.group())
change = properties(Resources(memory=Memory(limit=96 << 20), pids=-1), UNIFIED, version)
manager.set_properties(unit.name, change)
told["changed"] = files(unit.group())
subprocess.run(["systemctl", "daemon-reload"], check=True)
told["kept"] = files(unit.group())
manager.stop(unit.name)
told["ended"], told["units"] = one.wait(), units()
told["left"] = os.path.exists("/sys/fs/cgroup" + ("" if UNIFIED else "/memory") + unit.group())
manager.stop(unit.name)
""",
    )
    assert told["version"] >= 250
    assert told["group"] == told["expected"] == "/machine.slice/machine-x.slice/nestrt-web.scope"
    assert told["groups"]["" if is_v2_only() else "systemd"] == told["expected"]
    shown_now = dict(told["shown"])
    assert shown_now["Delegate"] == "yes"
    assert shown_now["Slice"] == "machine-x.slice"
    assert shown_now["DefaultDependencies"] == "no"
    assert shown_now["TimeoutStopUSec"] == "7s"
    assert shown_now["CollectMode"] == "inactive-or-failed"
    assert shown_now["TasksMax"] == "33"
    assert shown_now["CPUQuotaPerSecUSec"] == "510ms"
    assert shown_now["CPUQuotaPeriodUSec"] == "50ms"
    assert shown_now["DevicePolicy"] == "strict"
    assert {tuple(row) for row in told["shown"]} >= {
        ("DeviceAllow", "/dev/char/1:3 rwm"),
        ("DeviceAllow", "char-136 rw"),
        ("MemoryMax" if is_v2_only() else "MemoryLimit", str(64 * MIB)),
    }
    wanted = {memory: str(64 * MIB), "pids.max": "33", "cpu": 0.51}
    assert wanted.items() <= told["files"].items()
    assert sorted(told["again"]) == sorted(told["shown"])
    assert told["reloaded"] == told["files"]
    assert told["changed"] == told["kept"] == {**told["files"], memory: str(96 * MIB), "pids.max": "max"}
    assert told["ended"] == -15
    assert told["units"] == []
    assert not told["left"]


@pytest.mark.slow_on_vm
def test_a_name_in_use_is_refused_and_one_that_failed_is_taken(guest: SystemdGuest) -> None:
    """A scope that ran out of its time has failed, and stays known by that name until it is reset."""
    told = drive(
        guest,
        """
from nestrt.plan.systemd_text import Property

version = manager.bus.version()
plain = start_properties(unit, Resources(), UNIFIED, version)
kept = [item for item in plain if item.name != "CollectMode"] + [Property("RuntimeMaxUSec", "t", 1000)]
one = process()
manager.start(unit.name, kept, one.pid)
end = time.monotonic() + 120
while subprocess.run(["systemctl", "is-failed", "--quiet", unit.name]).returncode and time.monotonic() < end:
    time.sleep(0.05)
told["ended"], told["failed"] = one.wait(), units()
two = process()
manager.start(unit.name, plain, two.pid)
told["groups"] = groups(two.pid)
told["refusal"] = refusal(manager.start, unit.name, plain, two.pid)
told["alive"] = two.poll()
# The same once more, where systemd forgets by itself.
manager.set_properties(unit.name, [])
manager.stop(unit.name)
told["units"] = units()
""",
    )
    assert told["ended"] == -15
    assert told["failed"] == ["nestrt-web.scope"]
    assert "nestrt-web.scope" in "".join(told["groups"].values())
    kind, status, text = told["refusal"]
    assert (kind, status) == ("StateError", 4)
    assert text.startswith("cannot start unit nestrt-web.scope: Unit nestrt-web.scope was already loaded")
    assert told["alive"] is None
    assert told["units"] == []


@pytest.mark.slow_on_vm
def test_what_systemd_refuses_is_one_line_that_names_the_unit(guest: SystemdGuest) -> None:
    told = drive(
        guest,
        """
from nestrt.plan.systemd_text import Property

version = manager.bus.version()
plain = start_properties(unit, Resources(), UNIFIED, version)
one = process()
told["property"] = refusal(manager.start, unit.name, (*plain, Property("NoSuchThing", "t", 1)), one.pid)
told["type"] = refusal(manager.start, unit.name, (*plain, Property("TasksMax", "s", "many")), one.pid)
told["change"] = refusal(manager.set_properties, "nestrt-none.scope", (Property("TasksMax", "t", 1),))
told["pid"] = refusal(manager.start, unit.name, plain, 4_000_000)
one.kill()
told["units"] = units()
""",
    )
    assert told["property"][2].startswith("cannot start unit nestrt-web.scope: Cannot set property NoSuchThing")
    assert told["type"][0] == "NestrtError"
    assert told["change"][:2] == ["NotFound", 3]
    assert told["pid"][0] == "NestrtError"
    assert told["units"] == []


def test_a_slice_is_made_without_a_process_and_moves_go_by_systemd(guest: SystemdGuest) -> None:
    """A process moved from one scope into a child group of another, as exec does where files are not ours."""
    told = drive(
        guest,
        """
version = manager.bus.version()
pod = parse_path("machine.slice::machine-pod.slice", "pod")
manager.start(pod.name, start_properties(pod, Resources(pids=50), UNIFIED, version)
              + properties(Resources(pids=50), UNIFIED, version), None)
inner = parse_path("machine-pod.slice:nestrt:in", "in")
one, two = process(), process()
manager.start(inner.name, start_properties(inner, Resources(), UNIFIED, version), one.pid)
told["pod"], told["inner"] = control_group(pod.name), control_group(inner.name)
# Where v1 hierarchies stand beside the v2 tree systemd keeps its units in both.
for tree in ("",) if UNIFIED else ("/systemd", "/unified"):
    os.mkdir(f"/sys/fs/cgroup{tree}{inner.group()}/child")
manager.attach(inner.name, "/child", two.pid)
told["moved"] = groups(two.pid)["" if UNIFIED else "systemd"]
manager.stop(inner.name)
told["ended"] = [one.wait(), two.wait()]
manager.stop(pod.name)
more = properties(Resources(pids=40), UNIFIED, version)
told["gone"] = [refusal(manager.set_properties, gone.name, more)[:2] for gone in (inner, pod)]
""",
    )
    assert told["pod"] == "/machine.slice/machine-pod.slice"
    assert told["inner"] == "/machine.slice/machine-pod.slice/nestrt-in.scope"
    assert told["moved"] == "/machine.slice/machine-pod.slice/nestrt-in.scope/child"
    assert told["ended"] == [-15, -15]
    assert told["gone"][0] == ["NotFound", 3]


@pytest.mark.slow_on_vm
def test_without_a_bus_systemd_is_reached_by_its_own_socket(guest: SystemdGuest) -> None:
    told = drive(
        guest,
        """
subprocess.run(["systemctl", "stop", "dbus.socket", "dbus.service"], check=True, stderr=subprocess.DEVNULL)
try:
    manager = Manager(False)
    one = process()
    manager.start(unit.name, start_properties(unit, Resources(), UNIFIED, manager.bus.version()), one.pid)
    told["group"] = control_group(unit.name)
    manager.stop(unit.name)
    told["ended"], told["units"] = one.wait(), units()
finally:
    subprocess.run(["systemctl", "start", "dbus.socket"], check=True)
""",
    )
    assert told == {"group": "/machine.slice/machine-x.slice/nestrt-web.scope", "ended": -15, "units": []}


@pytest.mark.slow_on_vm
def test_an_ordinary_user_may_not_use_the_machines_systemd(guest: SystemdGuest) -> None:
    told = drive(
        guest,
        """
version = manager.bus.version()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.setgid(65534)
    os.setuid(65534)
    one = process()
    with Manager(False) as other:
        refused = refusal(other.start, unit.name, start_properties(unit, Resources(), UNIFIED, version), one.pid)
    one.kill()
    for name in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
        os.environ.pop(name, None)
    os.write(writing, json.dumps([refused, refusal(Manager)]).encode())
    os._exit(0)
os.close(writing)
told["machine"], told["own"] = json.loads(os.read(reading, 65536))
os.waitpid(child, 0)
told["units"] = units()
""",
    )
    assert told["machine"][:2] == ["HostError", 5]
    assert "leave --systemd-cgroup out" in told["machine"][2]
    assert told["own"][:2] == ["HostError", 5]
    assert "XDG_RUNTIME_DIR" in told["own"][2]
    assert told["units"] == []


@pytest.mark.v2
def test_a_users_own_systemd_makes_scopes_below_its_group(guest: SystemdGuest) -> None:
    """A user's manager in a group delegated to it: what user@1000.service is, without a login."""
    (guest.shared / "user.sh").write_text(
        f"set -e\nmkdir -p /run/user/{USER}\nchown {USER}:{USER} /run/user/{USER}\n"
        f"systemd-run --quiet --unit=own --uid={USER} --gid={USER} --property=Delegate=yes --property=Type=notify "
        f"--setenv=XDG_RUNTIME_DIR=/run/user/{USER} /lib/systemd/systemd --user --unit=basic.target\n"
        f"exec setpriv --reuid={USER} --regid={USER} --clear-groups env XDG_RUNTIME_DIR=/run/user/{USER} "
        f"/usr/bin/python3 -IS {SHARED}/user.py\n"
    )
    (guest.shared / "user.py").write_text(
        "import sys\nsys.path.insert(0, '/opt/nestrt')\n"
        + DRIVER.replace("Manager(False)", "Manager()").replace('"systemctl", ', '"systemctl", "--user", ')
        + """
unit = parse_path("", "web", True)
version = manager.bus.version()
root = manager.bus.manager_text("ControlGroup")
resources = Resources(memory=Memory(limit=64 << 20), pids=33)
# The user's manager may move only what is below it: the process begins there, as a session's does.
session = ["systemd-run", "--user", "--scope", "--quiet", "--unit=session", "sleep", "600"]
one = subprocess.Popen(session, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
end = time.monotonic() + 120
while not groups(one.pid)[""].endswith("session.scope") and time.monotonic() < end:
    time.sleep(0.05)
made = (*start_properties(unit, resources, True, version), *properties(resources, True, version))
manager.start(unit.name, made, one.pid)
told["group"], told["expected"] = control_group(unit.name), unit.group(root)
told["where"], told["owner"] = groups(one.pid)[""], os.stat("/sys/fs/cgroup" + unit.group(root)).st_uid
told["pids"] = open("/sys/fs/cgroup" + unit.group(root) + "/pids.max").read().strip()
told["memory"] = open("/sys/fs/cgroup" + unit.group(root) + "/memory.max").read().strip()
manager.stop(unit.name)
told["ended"] = one.wait()
print(json.dumps(told))
"""
    )
    try:
        result = guest.run("/bin/sh", f"{SHARED}/user.sh", timeout=30).ok()
    finally:
        guest.enter("systemctl", "stop", "own.service")
    told = json.loads(result.out.splitlines()[-1])
    assert told["group"] == told["expected"] == told["where"]
    assert told["group"].startswith("/system.slice/own.service/user.slice/")
    assert told["owner"] == USER
    assert (told["pids"], told["memory"]) == ("33", str(64 * MIB))


def test_where_no_systemd_runs_the_driver_says_so() -> None:
    require("no-systemd", "a systemd runs here" if os.path.isdir("/run/systemd/system") else None)
    with pytest.raises(HostError, match="systemd is not running here: leave --systemd-cgroup out"):
        Manager(False)


@pytest.mark.slow_on_vm
def test_starting_takes_milliseconds(guest: SystemdGuest) -> None:
    """A container's start waits for systemd's job, not for a turn of a poll."""
    told = drive(
        guest,
        """
version = manager.bus.version()
plain = start_properties(unit, Resources(), UNIFIED, version)
took = []
for attempt in range(5):
    one = process()
    begin = time.monotonic()
    manager.start(unit.name, plain, one.pid)
    took.append(time.monotonic() - begin)
    one.kill()
    one.wait()
    manager.stop(unit.name)
told["took"] = sorted(took)
""",
    )
    assert told["took"][2] < 0.5 * SLOW, told["took"]


# --- the verbs, with --systemd-cgroup ----------------------------------------------------------------
# What each script about verbs begins with: the command, the unit's properties, and what is left.
VERBS = """
def nestrt(*args):
    # Files, not pipes: the container keeps them.
    with open("/tmp/told", "w+") as out:
        command = ["/opt/nestrt/hooks/nestrt", "--systemd-cgroup", *args]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        out.seek(0)
        return [done.returncode, out.read().strip()]

def show(*names):
    rows = subprocess.run(["systemctl", "show", "-p", ",".join(names), unit.name], capture_output=True, text=True)
    return dict(row.split("=", 1) for row in rows.stdout.splitlines())

def left():
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if "nestrt-web" in path] + units() + [
        name for name in os.listdir("/run/nestrt/oci") if os.path.isdir("/run/nestrt/oci/" + name)
    ]

def reload():
    subprocess.run(["systemctl", "daemon-reload"], check=True)
"""
PROPERTIES = ("Delegate", "Slice", "TasksMax", "CPUQuotaPerSecUSec", "MemoryMax", "MemoryLimit", "TimeoutStopUSec")


def bundle(guest: SystemdGuest, name: str = "bundle", **changes: Any) -> str:
    """Write a bundle for the guest of the guest; its directory there."""
    directory = guest.shared / name
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**BUNDLE, **changes}))
    return f"{SHARED}/{name}"


@pytest.mark.parametrize("policy", ["none", "default"])
def test_a_container_is_a_scope_whose_limits_outlive_a_reload(guest: SystemdGuest, policy: str) -> None:
    """run, exec, update, kill and delete; with a policy the scope is the limit group and the guest root is below it.

    machine.slice/machine-x.slice/nestrt-web.scope      policy none: the container's processes
                                   └ guest/init         policy default
    """
    annotations = {"org.systemd.property.TimeoutStopSec": "uint64 7"}
    if policy != "none":
        annotations["nestrt.policy"] = policy
    path = bundle(guest, annotations=annotations)
    told = drive(
        guest,
        f"""{VERBS}
told["run"] = nestrt("run", "--detach", "--bundle", {path!r}, "--pid-file", "/tmp/pid", "web")
pid = int(open("/tmp/pid").read())
told["groups"] = sorted(set(groups(pid).values()))
told["shown"], told["files"] = show(*{PROPERTIES}), files(unit.group())
reload()
told["reloaded"] = files(unit.group())
told["exec"] = nestrt("exec", "web", "cut", "-d:", "-f3", "/proc/self/cgroup")
told["update"] = nestrt("update", "--memory", str(96 << 20), "--pids-limit", "44", "web")
told["updated"] = show(*{PROPERTIES})
reload()
told["kept"] = files(unit.group())
told["again"] = sorted(set(groups(pid).values()))
told["kill"] = nestrt("kill", "web", "KILL")
end = time.monotonic() + 60
while json.loads(nestrt("state", "web")[1])["status"] != "stopped" and time.monotonic() < end:
    time.sleep(0.1)
told["delete"] = nestrt("delete", "web")
told["left"] = left()
""",
        timeout=60,
    )
    memory = "MemoryMax" if is_v2_only() else "MemoryLimit"
    file = "memory.max" if is_v2_only() else "memory.limit_in_bytes"
    scope = "/machine.slice/machine-x.slice/nestrt-web.scope"
    assert told["run"] == [0, ""]
    assert told["groups"] == told["again"] == [scope if policy == "none" else f"{scope}/guest/init"]
    wanted = {"Delegate": "yes", "Slice": "machine-x.slice", "TasksMax": "33", "CPUQuotaPerSecUSec": "510ms"}
    wanted |= {memory: str(64 * MIB), "TimeoutStopUSec": "7s"}
    assert wanted.items() <= told["shown"].items()
    assert told["files"][file] == str(64 * MIB)
    assert told["files"]["pids.max"] == "33"
    assert told["reloaded"] == told["files"]
    assert told["exec"][0] == 0
    assert set(told["exec"][1].split()) == {"/" if policy == "none" else "/init"}
    assert told["update"] == [0, ""]
    assert told["updated"] == {**told["shown"], memory: str(96 * MIB), "TasksMax": "44"}
    assert told["kept"] == {**told["files"], file: str(96 * MIB), "pids.max": "44"}
    assert told["kill"] == told["delete"] == [0, ""]
    assert told["left"] == []


@pytest.mark.slow_on_vm
def test_a_container_that_cannot_start_leaves_no_unit(guest: SystemdGuest) -> None:
    path = bundle(guest, "bundle", process={**BUNDLE["process"], "args": ["/no/such/program"]})
    other = bundle(guest, "other", linux={**BUNDLE["linux"], "cgroupsPath": "/machine/web"})
    third = bundle(guest, "third", annotations={"org.systemd.property.NoSuchThing": "1"})
    told = drive(
        guest,
        f"""{VERBS}
told["program"] = nestrt("run", "--bundle", {path!r}, "web")
told["path"] = nestrt("run", "--bundle", {other!r}, "web")
told["property"] = nestrt("run", "--bundle", {third!r}, "web")
told["left"] = left()
""",
        timeout=40,
    )
    assert told["program"][0] != 0
    assert "no such file or directory" in told["program"][1]
    assert 'expected cgroupsPath to be of format "slice:prefix:name"' in told["path"][1]
    assert told["path"][1].count("\n") == 0
    # Refused by systemd itself, when the first process is there already.
    assert told["property"][0] != 0
    assert "cannot start unit nestrt-web.scope: Cannot set property NoSuchThing" in told["property"][1]
    assert told["property"][1].count("\n") == 0
    assert told["left"] == []


def test_a_running_container_is_deleted_by_force_with_its_scope(guest: SystemdGuest) -> None:
    path = bundle(guest)
    told = drive(
        guest,
        f"""{VERBS}
told["create"] = nestrt("create", "--bundle", {path!r}, "web")
told["start"] = nestrt("start", "web")
told["units"] = units()
told["delete"] = nestrt("delete", "--force", "web")
told["left"] = left()
""",
        timeout=40,
    )
    assert told["create"] == told["start"] == told["delete"] == [0, ""]
    assert told["units"] == ["nestrt-web.scope"]
    assert told["left"] == []


def test_without_systemd_the_verbs_say_so_in_one_line(nestrt: Nestrt, tmp_path: Path, busybox: Path) -> None:
    require("no-systemd", "a systemd runs here" if os.path.isdir("/run/systemd/system") else None)
    document = {**BUNDLE, "root": {"path": str(busybox)}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    state = tmp_path / "state"
    done = nestrt.run("--root", state, "--systemd-cgroup", "run", "--bundle", tmp_path, "nestrt-t-none")
    assert done.rc != 0
    assert done.err.count("\n") == 1
    assert "leave --systemd-cgroup out" in done.err
    assert not state.exists() or not [entry for entry in state.iterdir() if entry.is_dir()]
