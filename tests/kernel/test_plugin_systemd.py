"""Guests of runc and crun under systemd's cgroup driver, in a guest with a real systemd (support/systemd_root.py).

    the systemd guest
    └ machine.slice
      └ machine-x.slice
        └ nestrt-web.scope          limit group: made by systemd, limits as properties and as files, mark
          ├ nestrt-hold/            until the guest has a process: the holder (v2; on v1 it stands in the scope)
          └ guest/                  guest root: made by the runtime
            └ init/                 first group

``nestrt wrap --systemd-cgroup`` asks for the scope itself; behind podman's hooks crun does. Scripts run as
services of the systemd guest; what they have seen comes back as JSON.
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

from support.need import SLOW, require
from support.runner import Nestrt
from support.systemd_root import BUNDLE, SHARED, SystemdGuest, problem, systemd_guest

MIB = 1 << 20
SCOPE = "/machine.slice/machine-x.slice/nestrt-web.scope"
UNIT = "nestrt-web.scope"
# The runtime ends what does not keep the laws, before its start and after.
STRICT = {"nestrt.policy": "nested", "nestrt.level.strict": "true"}
# The limits of BUNDLE in the files of its scope. 51 % of a CPU are a step that systemd keeps.
GIVEN = {"memory": str(64 * MIB), "pids": "33", "cpu": 0.51}
# crun takes no hybrid host that has controllers in the v2 tree.
needs_crun = pytest.mark.v2

DRIVER = """
import json, os, subprocess, time

UNIFIED = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
NESTRT, SCOPE, UNIT = "/opt/nestrt/hooks/nestrt", "SCOPE_", "UNIT_"
told = {}

def run(*words, stdin=""):
    # Files, not pipes: a container keeps them.
    with open("/tmp/in", "w+") as given, open("/tmp/told", "w+") as out:
        given.write(stdin)
        given.seek(0)
        done = subprocess.run(words, stdin=given, stdout=out, stderr=out)
        out.seek(0)
        return [done.returncode, out.read().strip()]

def wrap(*words, runtime="runc", flag="--systemd-cgroup"):
    return run(NESTRT, "wrap", "--runtime", runtime, flag, *words)

def systemctl(*words):
    return run("systemctl", *words)[1]

def group(controller, path=SCOPE):
    return "/sys/fs/cgroup" + ("" if UNIFIED else "/" + controller) + path

def read(path):
    with open(path) as file:
        return file.read().strip()

def files(path=SCOPE):
    found = {"pids": read(group("pids", path) + "/pids.max")}
    found["memory"] = read(group("memory", path) + ("/memory.max" if UNIFIED else "/memory.limit_in_bytes"))
    place = group("cpu", path)
    if UNIFIED:
        pair = read(place + "/cpu.max").split()
    else:
        pair = read(place + "/cpu.cfs_quota_us"), read(place + "/cpu.cfs_period_us")
    found["cpu"] = int(pair[0]) / int(pair[1]) if pair[0].isdigit() else pair[0]
    return found

def caps():
    place = "/sys/fs/cgroup" + ("" if UNIFIED else "/unified") + SCOPE
    return [read(place + "/cgroup.max.descendants"), sorted(os.listdir(place))]

def groups(pid):
    return {row.split(":")[1]: row.split(":", 2)[2] for row in read(f"/proc/{pid}/cgroup").splitlines()}

def left():
    found = [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith("nestrt-web.scope")]
    rows = systemctl("list-units", "--all", "--plain", "--no-legend", "nestrt-*").splitlines()
    found += [row.split()[0] for row in rows]
    found += os.listdir("/run/nestrt/plugin") if os.path.isdir("/run/nestrt/plugin") else []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if "nestrt-web.scope" in read(f"/proc/{pid}/cgroup"):
                found.append(pid)
        except OSError:
            continue
    return found

def until(condition, seconds=20 * SLOW_):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
"""


@pytest.fixture(scope="module")
def guest(scratch: Path) -> Iterator[SystemdGuest]:
    require("systemd-root", problem())
    directory = Path(tempfile.mkdtemp(prefix="nestrt-systemd-", dir=scratch))
    directory.chmod(0o755)
    command = Nestrt()
    with systemd_guest(command, directory, f"nestrt-t-{os.getpid():x}-plugin") as running:
        yield running
    command.stop()
    shutil.rmtree(directory)


def drive(guest: SystemdGuest, code: str, timeout: float = 40.0) -> dict[str, Any]:
    """What *code* has put into ``told``. AssertionError with its words if it does not come to the end."""
    driver = DRIVER.replace("SCOPE_", SCOPE).replace("UNIT_", UNIT).replace("SLOW_", str(SLOW))
    result = guest.python(f"{driver}\n{code}\nprint(json.dumps(told))", timeout).ok()
    found = json.loads(result.out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def bundle(guest: SystemdGuest, annotations: dict[str, str] | None = None, **linux: Any) -> str:
    """Write a bundle of the policy "nested", changed as said, for the guest of the guest; its directory there."""
    directory = guest.shared / "bundle"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    given = {"nestrt.policy": "nested"} if annotations is None else annotations
    document = {**BUNDLE, "annotations": given, "linux": {**BUNDLE["linux"], **linux}}
    place = directory / "config.json"
    place.unlink(missing_ok=True)
    place.write_text(json.dumps(document))
    place.chmod(0o666)
    return f"{SHARED}/bundle"


LIFE = """
pid = int(read("/tmp/pid"))
told["groups"] = sorted(set(groups(pid).values()))
told["files"], told["shown"], told["caps"] = files(), files(SCOPE + "/guest"), caps()
told["delegate"] = systemctl("show", "-P", "Delegate", UNIT)
systemctl("daemon-reload")
told["reloaded"] = files()
"""
WRITE = "read max < /proc/self/cgroup; cd /sys/fs/cgroup; [ -d pids ] && cd pids; cat pids.max; "
WRITE += "echo 500 > pids.max; mkdir web && echo 5 > web/pids.max && cat web/pids.max; rmdir web"


@pytest.mark.parametrize(
    ("runtime", "flag"),
    [
        ("runc", "--systemd-cgroup"),
        pytest.param("crun", "--systemd-cgroup", marks=needs_crun),
        pytest.param("crun", "--cgroup-manager=systemd", marks=(needs_crun, pytest.mark.slow_on_vm)),
    ],
)
def test_a_guest_under_wrap_is_below_a_scope_whose_limits_outlive_a_reload(
    guest: SystemdGuest, runtime: str, flag: str
) -> None:
    """create, start, exec, update, kill, delete: what the kernel's files say at each step, and that nothing is left."""
    path = bundle(guest, STRICT)
    told = drive(
        guest,
        f"""
def call(*words):
    return wrap(*words, runtime={runtime!r}, flag={flag!r})

told["create"] = call("create", "--bundle", {path!r}, "--pid-file", "/tmp/pid", "web")
told["record"] = json.loads(read("/run/nestrt/plugin/" + os.listdir("/run/nestrt/plugin")[0]).splitlines()[-1])
told["start"] = call("start", "web")
{LIFE}
told["exec"] = call("exec", "web", "sh", "-c", {WRITE!r})
told["update"] = call("update", "--memory", str(96 << 20), "--pids-limit", "44", "web")
told["updated"] = [files(), files(SCOPE + "/guest")]
systemctl("daemon-reload")
told["kept"] = files()
told["again"] = sorted(set(groups(pid).values()))
told["check"] = run(NESTRT, "check", "nestrt-web")
told["kill"] = call("kill", "web", "KILL")
until(lambda: not os.path.exists(f"/proc/{{pid}}"))
told["delete"] = call("delete", "web")
told["left"] = left()
""",
        timeout=60,
    )
    assert told["create"] == told["start"] == told["update"] == told["kill"] == told["delete"] == [0, ""]
    assert told["groups"] == told["again"] == [f"{SCOPE}/guest/init"]
    assert told["record"]["unit"] == UNIT
    assert "holder" not in told["record"]
    assert told["files"] == told["reloaded"] == GIVEN
    assert told["shown"] == GIVEN
    most, entries = told["caps"]
    assert most == "4000"  # policy nested
    assert "guest" in entries
    assert "nestrt-hold" not in entries
    assert told["delegate"] == "yes"
    # runc passes output and errors on by themselves: in no order between the two.
    assert sorted(told["exec"][1].splitlines()) == ["33", "5", "sh: can't create pids.max: Read-only file system"]
    wanted = {**GIVEN, "memory": str(96 * MIB), "pids": "44"}
    assert told["updated"] == [wanted, wanted]
    assert told["kept"] == wanted
    assert told["check"][0] == 0, told["check"][1]
    assert told["left"] == []


@pytest.mark.slow_on_vm
def test_a_running_guest_is_deleted_by_force_and_starts_again_from_the_same_bundle(guest: SystemdGuest) -> None:
    """The second time the document names the guest root already; the name of the unit is that of the group above."""
    path = bundle(guest)
    told = drive(
        guest,
        f"""
for attempt in ("first", "second"):
    told[attempt] = [wrap("run", "--detach", "--bundle", {path!r}, "--pid-file", "/tmp/pid", "web")]
    told[attempt].append(sorted(set(groups(int(read("/tmp/pid"))).values())))
    told[attempt].append([systemctl("is-active", UNIT), files()])
    told[attempt].append(wrap("run", "--detach", "--bundle", {path!r}, "other")[0])
    told[attempt].append([systemctl("is-active", UNIT), wrap("delete", "--force", "web"), left()])
""",
        timeout=60,
    )
    wanted = [[0, ""], [f"{SCOPE}/guest/init"], ["active", GIVEN], 1, ["active", [0, ""], []]]
    assert told["first"] == told["second"] == wanted


@pytest.mark.slow_on_vm
def test_a_guest_that_cannot_start_leaves_no_scope(guest: SystemdGuest) -> None:
    """Refused by the runtime (no such program), by systemd (no such property, type), and by nestrt."""
    told = {}
    cases: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
        "property": ({"org.systemd.property.NoSuchThing": "1"}, {}),
        "limit": ({"org.systemd.property.MemoryMax": "uint64 17179869184"}, {}),
        "delegate": ({"org.systemd.property.Delegate": "false"}, {}),
        "slice": ({}, {"cgroupsPath": "machine.slice::machine-pod.slice"}),
        "path": ({}, {"cgroupsPath": "/machine/web"}),
    }
    for name, (given, linux) in cases.items():
        path = bundle(guest, {"nestrt.policy": "nested", **given}, **linux)
        code = f'told[{name!r}] = [wrap("run", "--detach", "--bundle", {path!r}, "web"), left()]'
        told.update(drive(guest, code))
    path = bundle(guest)
    code = """
document = json.loads(read(CONFIG))
document["process"]["args"] = ["/no/such/program"]
with open(CONFIG, "w") as file:
    json.dump(document, file)
told["program"] = [wrap("run", "--detach", "--bundle", PATH, "web"), wrap("delete", "--force", "web"), left()]
"""
    told.update(drive(guest, code.replace("CONFIG", f'"{path}/config.json"').replace("PATH", repr(path))))
    assert told["program"][0][0] != 0
    assert "no such file or directory" in told["program"][0][1]
    assert told["program"][1:] == [[0, ""], []]
    for name, words in {
        "property": "nestrt: cannot start unit nestrt-web.scope: Cannot set property NoSuchThing",
        "limit": "nestrt: cannot honour annotation org.systemd.property.MemoryMax: the container has a policy",
        "delegate": "nestrt: cannot honour annotation org.systemd.property.Delegate: the container has a policy",
        "slice": "nestrt: cannot give a policy to container web: machine-pod.slice is a slice",
        "path": 'nestrt: cannot use cgroupsPath "/machine/web": expected cgroupsPath to be of format',
    }.items():
        (status, said), rest = told[name]
        assert status == 1, name
        assert said.startswith(words)
        assert "\n" not in said
        assert rest == []


def test_without_a_policy_the_runtime_makes_its_own_scope(guest: SystemdGuest) -> None:
    path = bundle(guest, {"org.systemd.property.MemoryMax": "uint64 134217728"})
    before = (guest.shared / "bundle" / "config.json").read_bytes()
    told = drive(
        guest,
        f"""
told["run"] = wrap("run", "--detach", "--bundle", {path!r}, "--pid-file", "/tmp/pid", "web")[0]
place = groups(int(read("/tmp/pid")))["" if UNIFIED else "name=systemd"]
told["seen"] = [place, systemctl("show", "-P", "Description", UNIT)]
told["delete"] = [wrap("delete", "--force", "web")[0], left()]
""",
    )
    assert told["run"] == 0
    assert told["seen"][0] == SCOPE
    assert told["seen"][1].startswith("libcontainer container")
    assert told["delete"] == [0, []]
    assert (guest.shared / "bundle" / "config.json").read_bytes() == before


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("slice_", ["machine-x.slice", "machine-y.slice"])
def test_a_unit_of_another_that_has_the_name_is_left_alone(guest: SystemdGuest, slice_: str) -> None:
    """In the same slice its group is in use; in another one only the name is, and systemd says so."""
    path = bundle(guest)
    told = drive(
        guest,
        f"""
words = ["systemd-run", "--scope", "--quiet", "--slice", {slice_!r}, "--unit", UNIT, "sleep", "600"]
with open("/dev/null", "r+") as null:
    one = subprocess.Popen(words, stdin=null, stdout=null, stderr=null)
until(lambda: systemctl("is-active", UNIT) == "active")
told["run"] = wrap("run", "--detach", "--bundle", {path!r}, "web")
told["delete"] = wrap("delete", "--force", "web")
told["gc"] = run(NESTRT, "gc")
told["other"] = [systemctl("is-active", UNIT), one.poll()]
systemctl("stop", UNIT)
one.wait()
told["left"] = left()
""",
    )
    status, said = told["run"]
    assert status == 1
    assert "container's cgroup is not empty" in said if slice_ == "machine-x.slice" else "already loaded" in said
    assert told["delete"] == told["gc"] == [0, ""]
    assert told["other"] == ["active", None]
    assert told["left"] == []


# Goes on as the runtime when systemd has ended the scope of a holder that was killed.
LATE = f"""#!/bin/sh
case "$*" in *run*)
    kill -9 $(tail -n 1 /run/nestrt/plugin/*web | sed 's/.*"holder":\\([0-9]*\\).*/\\1/')
    while systemctl -q is-active {UNIT}; do sleep 0.05; done ;;
esac
exec runc "$@"
"""


def test_a_runtime_that_comes_after_the_scope_has_ended_starts_nothing(guest: SystemdGuest) -> None:
    """It makes a group of the scope's name itself, without limits: the mark is not there, and createRuntime refuses."""
    path = bundle(guest, {"nestrt.policy": "nested", "nestrt.view.controllers": "cpu,memory,pids"})
    (guest.shared / "late").write_text(LATE)
    (guest.shared / "late").chmod(0o755)
    told = drive(
        guest,
        f"""
told["run"] = wrap("run", "--detach", "--bundle", {path!r}, "web", runtime="{SHARED}/late")
told["delete"] = [wrap("delete", "--force", "web"), left()]
""",
    )
    status, said = told["run"]
    assert status != 0
    assert f"{SCOPE} is not the limit group that was made for it: {UNIT} was stopped since" in said
    assert told["delete"] == [[0, ""], []]


@pytest.mark.slow_on_vm
def test_killed_anywhere_on_the_way_it_leaves_what_delete_by_force_removes(guest: SystemdGuest) -> None:
    """SIGKILL at 16 moments: in Python, in systemd's job, in the runtime, in its hooks, and after its end."""
    path = bundle(guest)
    told = drive(
        guest,
        f"""
told["left"], told["loose"], started = [], [], 0
begin = time.monotonic()
told["whole"] = wrap("run", "--detach", "--bundle", {path!r}, "web"), wrap("delete", "--force", "web")
step = (time.monotonic() - begin) / 16
for number in range(16):
    # runc does not always forget one that was killed.
    words = ["run", "--detach", "--bundle", {path!r}, f"web{{number}}"]
    with open("/dev/null", "r+") as null:
        begun = [NESTRT, "wrap", "--runtime", "runc", "--systemd-cgroup", *words]
        one = subprocess.Popen(begun, stdin=null, stdout=null, stderr=null)
    time.sleep(step * number)
    one.kill()
    one.wait()
    try:
        held = read(group("pids", SCOPE + "/guest/init") + "/cgroup.procs") and files()
    except OSError:
        held = None  # not made yet, or gone with what was killed
    if held:
        started += 1
        if held != {GIVEN!r}:
            told["loose"].append(held)
    deleted = wrap("delete", "--force", f"web{{number}}")
    if deleted[0] or not until(lambda: not left(), 5):
        told["left"].append([number, deleted, left()])
told["started"] = started
""",
        timeout=120,
    )
    assert told["whole"] == [[0, ""], [0, ""]]
    assert told["left"] == []
    assert told["loose"] == []
    assert told["started"] > 0


@pytest.mark.slow_on_vm
def test_the_holder_ends_with_whom_it_holds_the_scope_for_and_gc_removes_the_record(guest: SystemdGuest) -> None:
    """A runtime that is killed before it has done anything: the scope goes at once, the record when it has aged."""
    path = bundle(guest)
    (guest.shared / "idle").write_text("#!/bin/sh\nexec sleep 600\n")
    (guest.shared / "idle").chmod(0o755)
    told = drive(
        guest,
        f"""
words = [NESTRT, "wrap", "--runtime", "{SHARED}/idle", "--systemd-cgroup", "run", "--bundle", {path!r}, "web"]
with open("/dev/null", "r+") as null:
    one = subprocess.Popen(words, stdin=null, stdout=null, stderr=null)
until(lambda: "sleep" in read(f"/proc/{{one.pid}}/cmdline"))
record = json.loads(read("/run/nestrt/plugin/" + os.listdir("/run/nestrt/plugin")[0]).splitlines()[-1])
holder = record["holder"]
told["active"] = systemctl("is-active", UNIT)
place = f"/proc/{{holder}}/"
told["holder"] = [len(os.listdir(place + "fd")), os.readlink(place + "cwd"), read(place + "comm")]
told["where"] = groups(holder)[""]
told["files"] = files()
one.kill()
one.wait()
told["ended"] = until(lambda: systemctl("is-active", UNIT) == "inactive" and not os.path.exists(f"/proc/{{holder}}"))
told["group"] = os.path.exists(group("pids"))
until(lambda: time.time() > record["created"] + 12)
told["gc"], told["left"] = run(NESTRT, "gc"), left()
""",
        timeout=60,
    )
    assert told["active"] == "active"
    assert told["holder"] == [1, "/", "nestrt-hold"]
    assert told["where"] == f"{SCOPE}/nestrt-hold"
    assert told["files"] == GIVEN
    assert told["ended"] is True
    assert told["group"] is False
    assert told["gc"] == [0, SCOPE]
    assert told["left"] == []


# --- podman's hooks, by hand: precreate, then the runtime as podman calls it ------------------------------

PRECREATE = """
config = read(PATH + "/config.json")
told["precreate"], text = run(NESTRT, "hook", "precreate", stdin=config)
with open(PATH + "/config.json", "w") as file:
    file.write(text)
"""


@needs_crun
def test_behind_podmans_hooks_crun_puts_the_guest_below_its_scope(guest: SystemdGuest) -> None:
    """The limits come in createRuntime, to the files and to systemd; crun has told it only some of them."""
    path = bundle(guest, STRICT)
    told = drive(
        guest,
        PRECREATE.replace("PATH", repr(path))
        + f"""
told["path"] = json.loads(text)["linux"]["cgroupsPath"]
told["create"] = run("crun", "--systemd-cgroup", "create", "--bundle", {path!r}, "--pid-file", "/tmp/pid", "web")
told["start"] = run("crun", "start", "web")
{LIFE}
told["exec"] = run("crun", "exec", "web", "sh", "-c", {WRITE!r})
told["check"] = run(NESTRT, "check", "nestrt-web")
told["delete"] = run("crun", "delete", "--force", "web")
told["left"] = left()
""",
        timeout=60,
    )
    assert told["precreate"] == 0
    assert told["path"] == BUNDLE["linux"]["cgroupsPath"]
    assert told["create"] == told["start"] == told["delete"] == [0, ""]
    assert told["groups"] == [f"{SCOPE}/guest/init"]
    assert told["files"] == told["reloaded"] == told["shown"] == GIVEN
    assert told["caps"][0] == "4000"
    assert told["exec"][1].splitlines() == ["33", "sh: can't create pids.max: Read-only file system", "5"]
    assert told["check"][0] == 0, told["check"][1]
    assert told["left"] == []


@needs_crun
def test_behind_podmans_hooks_runc_is_refused_with_the_remedy(guest: SystemdGuest) -> None:
    path = bundle(guest)
    told = drive(
        guest,
        PRECREATE.replace("PATH", repr(path))
        + f"""
told["run"] = run("runc", "--systemd-cgroup", "run", "--detach", "--bundle", {path!r}, "web")
told["left"] = left()
""",
    )
    assert told["precreate"] == 0
    assert told["run"][0] != 0
    assert f"its runtime has put it into {SCOPE}, not below its scope, as only crun does" in told["run"][1]
    assert "let nestrt wrap be the engine's runtime" in told["run"][1]
    assert told["left"] == []


@pytest.mark.v1
def test_behind_podmans_hooks_a_scope_is_refused_where_v1_has_controllers(guest: SystemdGuest) -> None:
    path = bundle(guest)
    told = drive(guest, f'told["said"] = run(NESTRT, "hook", "precreate", stdin=read("{path}/config.json")), left()')
    (status, said), rest = told["said"]
    assert status == 5
    assert said.startswith(
        "nestrt: cannot give a policy to container nestrt-web: its runtime is to make a systemd scope"
    )
    assert said.endswith('or its cgroup manager "cgroupfs"')
    assert "\n" not in said
    assert rest == []
