"""``nestrt check`` against a guest that wants to hang it, to fool it, or to reach the host by its helper.

host     nestrt check ─── helper, in the guest's user, mount and cgroup namespaces
guest    FUSE that never answers, FIFOs, files and symlinks in place of groups; names that no terminal
         should see; marks that name somebody else; processes put where the check cleans up
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support.attack import PRELUDE, guest_pids, limits_of
from support.guests import MODES
from support.hostside import directories, guest_root, hierarchies, hierarchy_of, is_v2_only, limit_group, mark
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, Result, wait_for

# A check ends, and is not fooled, in the same way on every kind of host.
pytestmark = pytest.mark.slow_on_vm
LIMITS = ("-m", "64M", "--pids", "40")
# Seconds that a check may take beside the limit that it has itself.
PATIENCE = 20.0
# What the scripts say when they are ready: a group of theirs.
READY = "ready"
BEGIN = """
MOUNTS = mounts()
def ready():
    os.mkdir(HOME + "/ready")
    while True:
        libc.pause()
"""


def begin(nestrt: Nestrt, python: PythonRoot, name: str, script: str, *options: Any) -> int:
    """Launch a guest that runs *script* until it calls ready(), and stays; returns its first process."""
    home = hierarchies()[0].mountpoint
    text = f"{PRELUDE}\nHOME = os.open({str(home)!r}, os.O_PATH)\n{BEGIN}".replace(
        'os.mkdir(HOME + "/ready")', 'os.mkdir("ready", dir_fd=HOME)'
    )
    words = ("-d", "--name", name, *python.options, *LIMITS, *options, "--", "/usr/bin/python3", "-ISc", text + script)
    nestrt.launch(*words).ok()
    pid = int(mark(limit_group(name))["pid"])
    flag = hierarchies()[0].group(guest_root(name)) / READY
    wait_for(lambda: flag.is_dir() or not Path(f"/proc/{pid}").exists(), "the attack to be ready", 30)
    assert flag.is_dir(), "the attack has ended"
    return pid


def check(nestrt: Nestrt, *words: str) -> tuple[Result, dict[str, bool | None], float]:
    """``nestrt check WORDS`` of one guest: the result, what it says of each law, and how long it took (s)."""
    began = time.monotonic()
    result = nestrt.run("check", "--format", "json", *words, timeout=PATIENCE)
    took = time.monotonic() - began
    rows = json.loads(result.out)
    return result, {entry["law"]: entry["holds"] for row in rows for entry in row["laws"]}, took


def helpers() -> set[int]:
    """Processes of a check, the helper above all, that have outlived it."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"check" in words and any(word.endswith(b"hooks/nestrt") for word in words):
            found.add(int(entry))
    return found


def left_groups(name: str) -> list[Path]:
    return [path for path in directories(guest_root(name)) if "/nestrt-check-" in str(path)]


@pytest.fixture(autouse=True)
def no_helper_is_left() -> Any:
    before = helpers()
    yield
    wait_for(lambda: helpers() <= before, "the helpers to end")


FUSE = """
def serve(*places):
    # include/uapi/linux/fuse.h: FUSE_INIT is answered, FUSE_GETATTR of the root while asked to, all else read and kept.
    fd = os.open("/dev/fuse", os.O_RDWR)
    for place in places:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        assert libc.mount(b"silent", place.encode(), b"fuse", 0, options) == 0, (place, ctypes.get_errno())
    if os.fork() == 0:
        while True:
            request = os.read(fd, 1 << 20)
            size, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode == 26:
                body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0)
                os.write(fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
"""


# Whatever is looked up below such a mount waits for ever, killed or not: the server has the request and keeps it.
@pytest.mark.parametrize("place", ["/sys/fs/cgroup", "/sys", "/", "/proc", "/dev"])
def test_a_silent_filesystem_holds_nobody(nestrt: Nestrt, guest_name: str, python: PythonRoot, place: str) -> None:
    options = (*MODES["root"], "--device", "/dev/fuse")
    begin(nestrt, python, guest_name, f"{FUSE}\nserve({place!r})\nready()", *options)
    result, laws, took = check(nestrt, guest_name)
    assert took < PATIENCE * SLOW
    assert laws["view"] is True, result
    assert laws["clamp"] is True, result
    # It can take covers off, and that is found by mounts of the check's own; no view is walked to.
    assert laws["lock"] is False, result
    assert limits_of(limit_group(guest_name))["pids"] == "40"


# In place of limit files: a FIFO without a reader, a device, a plain file, a directory of plain files, a symlink.
COVERS = """
pids = next(place for place in MOUNTS if os.path.exists(place + "/pids.max"))
made = "/tmp/made"
os.mkdir(made)
kind = KIND
if kind == "fifo":
    os.mkfifo(made + "/x")
elif kind == "file":
    open(made + "/x", "w").write("max")
elif kind == "tty":
    made, = [made]
    os.symlink("/dev/tty", made + "/x")
if kind == "directory":
    for name in os.listdir(pids):
        open(made + "/" + name, "w").write("max")
    result = libc.mount(made.encode(), pids.encode(), None, 4096, None)
elif kind == "link":
    # The directory above the view, with the name of the view a link to the attacker's.
    result = libc.mount(b"tmpfs", b"/sys/fs/cgroup", b"tmpfs", 0, None)
    for place in MOUNTS:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        attempt(os.symlink, made, place)
else:
    result = libc.mount((made + "/x").encode(), (pids + "/pids.max").encode(), None, 4096, None)
assert result == 0, ctypes.get_errno()
ready()
"""


@pytest.mark.parametrize("kind", ["fifo", "file", "directory", "link", "tty"])
def test_what_is_mounted_over_limit_files_is_not_opened(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, kind: str
) -> None:
    script = COVERS.replace("KIND", repr(kind))
    begin(nestrt, python, guest_name, script, "--mount", "type=tmpfs,target=/tmp")
    result, laws, took = check(nestrt, guest_name)
    assert took < PATIENCE * SLOW
    if kind == "link" and is_v2_only():
        laws["freedom"] = True  # the view is the mount that is hidden
    assert {law for law, holds in laws.items() if not holds} == set(), result


# A cover that the guest itself puts on a limit file does not make the lock of others hold, nor break its own.
def test_a_copy_of_the_view_elsewhere_is_a_view_too(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    script = """
for number, place in enumerate(MOUNTS):
    os.mkdir(f"/tmp/{number}")
    assert libc.mount(place.encode(), f"/tmp/{number}".encode(), None, 4096, None) == 0
ready()
"""
    begin(nestrt, python, guest_name, script, *MODES["root"], "--mount", "type=tmpfs,target=/tmp")
    for words in ((guest_name,), ("--passive", guest_name)):
        result, laws, _ = check(nestrt, *words)
        assert laws["view"] is True, result
        # Bound without the covers: its root's files can be written there.
        assert laws["lock"] is False, result


# Names that break lines, columns and terminals, as long as they may be; mounts without end.
NAMES = r"""
import sys
evil = ["a\rb", "a\x1cb", "a\x85b", "\x1b[2Jx", "a b", "back\\slash", "\u2028", "x" * 255, "a - cgroup x rw", "0::"]
for place in MOUNTS:
    for name in evil:
        attempt(os.mkdir, f"{place}/{name}")
        attempt(os.mkdir, f"{place}/{name}/guest")
for number, name in enumerate(evil):
    os.mkdir(f"/tmp/{name}")
    if libc.mount(MOUNTS[0].encode(), f"/tmp/{name}".encode(), None, 4096, None):
        raise OSError(ctypes.get_errno())
deep = "/tmp/deep"
for _ in range(12):
    deep += "/" + "d" * 250
os.makedirs(deep)
assert libc.mount(MOUNTS[0].encode(), deep.encode(), None, 4096, None) == 0
open("/proc/self/comm", "w").write("x) R 1 1\n2")
ready()
"""


def test_names_fool_nobody(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    begin(nestrt, python, guest_name, NAMES, "--mount", "type=tmpfs,target=/tmp")
    result, laws, _ = check(nestrt, guest_name)
    assert {law for law, holds in laws.items() if not holds} == set(), result
    shown = nestrt.run("check", guest_name, timeout=PATIENCE)
    assert all(line.isprintable() for line in shown.out.splitlines())
    assert "\x1b" not in shown.out
    assert left_groups(guest_name) == []


# A mount that shows too much cannot be hidden by a name that breaks its line of mountinfo.
def test_a_name_hides_no_mount(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    script = r"""
os.mkdir("/tmp/a\x1cb")
assert libc.mount(b"/mnt", "/tmp/a\x1cb".encode(), None, 8192, None) == 0
ready()
"""
    bind = f"type=bind,source={hierarchy.mountpoint},target=/mnt,ro"
    begin(nestrt, python, guest_name, script, *MODES["root"], "--mount", bind, "--mount", "type=tmpfs,target=/tmp")
    result, laws, _ = check(nestrt, "--passive", guest_name)
    assert laws["view"] is False, result
    assert laws["clamp"] is False
    assert r"/tmp/a\x1cb" in nestrt.run("check", "--passive", guest_name).out


MANY = """
count = 0
while count < 4000 and libc.mount(b"/tmp", b"/tmp", None, 4096, None) == 0:
    count += 1
for place in MOUNTS[:1] * 200:
    libc.mount(place.encode(), place.encode(), None, 4096, None)
ready()
"""


def test_thousands_of_mounts_take_no_long_time(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    begin(nestrt, python, guest_name, MANY, "--mount", "type=tmpfs,target=/tmp")
    result, laws, took = check(nestrt, guest_name)
    assert took < PATIENCE * SLOW / 2
    assert laws["view"] is True, result
    assert laws["clamp"] is True, result
    assert laws["lock"] is True, result


# The guest watches its root, and puts a process into whatever is made there. The check ends and says what stays.
SQUAT = """
if os.fork() == 0:
    while True:
        for place in MOUNTS:
            for name in os.listdir(place):
                if name.startswith("nestrt-check-"):
                    attempt(lambda: open(f"{place}/{name}/cgroup.procs", "w").write("0"))
ready()
"""


def test_a_guest_that_occupies_the_checks_groups_holds_nobody(
    nestrt: Nestrt, guest_name: str, python: PythonRoot
) -> None:
    begin(nestrt, python, guest_name, SQUAT)
    told = ""
    for _ in range(3):
        result = nestrt.run("check", guest_name, timeout=PATIENCE)
        assert result.rc in (0, 1), result
        told += result.err
    assert all(str(path) in told for path in left_groups(guest_name)), told
    assert limits_of(limit_group(guest_name))["pids"] == "40"


# A claim's process is the guest's word: nobody else's namespaces are entered for it.
CLAIM = """
for place in MOUNTS:
    os.makedirs(place + "/nestrt/evil/guest", exist_ok=True)
    value = {"v": 1, "name": "evil", "id": "1", "state": "running", "command": [], "pid": PID, "start": START}
    attempt(os.setxattr, place + "/nestrt/evil", "user.nestrt", json.dumps(value).encode())
ready()
"""


def test_a_claim_names_no_process_of_somebody_elses(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    victim = os.getpid()
    start = int(Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2].split()[19])
    begin(nestrt, python, guest_name, CLAIM.replace("PID", str(victim)).replace("START", str(start)))
    result = nestrt.run("check", f"{guest_name}/evil")
    assert result.rc == 4, result
    assert "it has ended" in result.err
    # By that process's own number it is no guest at all.
    assert nestrt.run("check", str(victim)).rc == 3


# What a claim says it was to get is no more than a claim: its limit group does not have it, and that is found.
def test_a_claim_of_limits_is_compared_with_what_stands(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    script = (
        CLAIM.replace("PID", "os.getpid()")
        .replace("START", "0")
        .replace('"start": 0}', '"start": 0, "limits": {"pids": 3, "memory": "x"}, "ids": "no", "view": [1]}')
    )
    script = script.replace(
        "ready()", "[open(p + '/nestrt/evil/guest/cgroup.procs', 'w').write('0') for p in MOUNTS]\nready()"
    )
    begin(nestrt, python, guest_name, script)
    result, laws, _ = check(nestrt, f"{guest_name}/evil")
    assert result.rc == 1
    assert laws["clamp"] is False, result
    assert laws["sight"] is False, result
    assert "Traceback" not in result.err


def entered(checker: int) -> int:
    """The checker's helper, once it is in a mount namespace of its own; 0 before that."""
    for name in Path(f"/proc/{checker}/task/{checker}/children").read_text().split():
        try:
            if os.readlink(f"/proc/{name}/ns/mnt") != os.readlink(f"/proc/{checker}/ns/mnt"):
                return int(name)
        except OSError:
            continue
    return 0


# The checker is killed in the middle: its helper, which is stopped there, goes with it.
def test_a_killed_check_leaves_no_helper(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    begin(nestrt, python, guest_name, "ready()")
    helper = 0
    for _ in range(20):
        process = nestrt.start("check", guest_name)
        while not helper and process.poll() is None:
            helper = entered(process.pid)
        try:
            if helper:
                os.kill(helper, signal.SIGSTOP)
                break
        except ProcessLookupError:  # this one was quicker
            helper = 0
    assert helper, "no check was caught with its helper in the guest"
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not helpers(), "the helper to end")
    assert limits_of(limit_group(guest_name))["pids"] == "40"


# The guest sees nothing of the helper: no process, no signal, no descriptor; and it is charged nothing.
WATCH = """
seen = set()
me = set(os.listdir("/proc"))
if os.fork() == 0:
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit() and name not in me and int(name) != os.getpid():
                attempt(os.mkdir, HOME_PATH + "/seen-" + name)
ready()
"""


def test_the_helper_is_not_in_the_guest(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    home = str(hierarchies()[0].mountpoint)
    begin(nestrt, python, guest_name, WATCH.replace("HOME_PATH", repr(home)))
    before = guest_pids(guest_name)
    result, laws, _ = check(nestrt, guest_name)
    assert {law for law, holds in laws.items() if not holds} == set(), result
    assert guest_pids(guest_name) == before
    root = hierarchies()[0].group(guest_root(guest_name))
    assert [path.name for path in root.iterdir() if path.name.startswith("seen-")] == []


# The guest changes the groups while they are looked at: the check ends with an answer, and without a trace.
CHURN = """
for number in range(3):
    if os.fork() == 0:
        while True:
            for place in MOUNTS:
                attempt(os.mkdir, f"{place}/c{number}")
                attempt(os.mkdir, f"{place}/c{number}/guest")
                attempt(os.setxattr, f"{place}/c{number}", "user.nestrt", b'{"v":1,"name":"c","id":"2","pid":1}')
                attempt(os.rmdir, f"{place}/c{number}/guest")
                attempt(os.rmdir, f"{place}/c{number}")
ready()
"""


def test_a_guest_that_changes_while_it_is_checked(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    begin(nestrt, python, guest_name, CHURN)
    for _ in range(4):
        result, laws, _ = check(nestrt, guest_name)
        assert "Traceback" not in result.err
        assert laws["clamp"] is True, result
        assert laws["lock"] is True, result
    assert left_groups(guest_name) == []
