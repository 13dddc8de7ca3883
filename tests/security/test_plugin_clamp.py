"""Law 2, clamp, for guests of another runtime: whatever they write, with whatever privilege, they get no more.

::

    /nestrt-…/ID      limit group: 64 MiB, 40 processes, CPU 0, half a CPU    made by nestrt, before runc is called
      guest/          guest root: its "/"                                     made by runc
        init/         the first process

The attacker is root: with few capabilities ("default"), with all of them ("privileged"), of a user namespace with ids
of its own ("private") or the host's ("shared"). It attacks by processes that runc adds (exec) as much as by its first.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.attack import HANDLES, PRELUDE, open_directories
from support.bundles import ALL_CAPABILITIES, PARENT, python_bundle
from support.hostside import hierarchies, hierarchy_of, is_v2_only, processes, scratch_disk, v2_hierarchy
from support.need import SLOW, require
from support.plugin_attack import Wrapped, age, new_wrapped_fixture, records, wrapped_fixture  # noqa: F401
from support.rootfs import PythonRoot
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewWrapped = Callable[..., Wrapped]
MODES = ["default", "privileged", "private", "shared"]
ON_VM = ["default", pytest.param("privileged", marks=pytest.mark.slow_on_vm(False)), "private", "shared"]
SLEEP = ("/usr/bin/sleep", "600")
CPUS = len(os.sched_getaffinity(0))
SHARED = [{"containerID": 0, "hostID": 0, "size": 65536}]


def guest(one: Wrapped, python: PythonRoot, mode: str, **resources: Any) -> Wrapped:
    """*one* with the limits drawn above, the machine's programs, and the rights of *mode*."""
    python_bundle(one, python).resources(
        memory={"limit": 64 << 20}, pids={"limit": 40}, cpu={"cpus": "0", "quota": 50000, "period": 100000}
    )
    one.resources(**resources)
    one.config["process"]["noNewPrivileges"] = False
    if mode != "default":
        one.capabilities(ALL_CAPABILITIES)
    if mode == "private":
        one.user_namespace()
    elif mode == "shared":
        one.namespace("user").config["linux"].update(uidMappings=SHARED, gidMappings=SHARED)
    return one


def up(one: Wrapped, *options: str) -> Wrapped:
    """Run it, detached, as something that sleeps."""
    one.args(*SLEEP).run("--detach", *options).ok()
    confined(one)
    return one


def confined(one: Wrapped) -> None:
    """AssertionError unless it has namespaces of its own and sees its own groups: else the machine would be attacked.

    The fourth field of mountinfo is the mount's root as the reader's cgroup namespace sees it.
    """
    for kind in ("pid", "mnt", "cgroup"):
        assert os.readlink(f"/proc/{one.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    for line in Path(f"/proc/{one.pid}/mountinfo").read_text().splitlines():
        if " - cgroup" in line:
            assert line.split()[3].startswith(f"{one.cgroup}/guest"), line


def python_in(one: Wrapped, script: str, *options: str) -> Any:
    """What *script*, in a process that runc adds, has given to done()."""
    result = one.exec("/usr/bin/python3", "-ISc", PRELUDE + script, options=options, timeout=60)
    lines = [line for line in result.out.splitlines() if line.startswith("@@")]
    assert len(lines) == 1, result
    return json.loads(lines[0][2:])


def machine() -> dict[str, str]:
    """What of the host's hierarchies no guest may change: options of their superblocks, release agents, root limits."""
    rows = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = {row[0].split()[4]: row[1].split()[2] for row in rows if row[1].startswith("cgroup")}
    for hierarchy in hierarchies():
        for name in ("release_agent", "notify_on_release", "cgroup.subtree_control", "devices.list"):
            file = hierarchy.mountpoint / name
            if file.exists():
                found[str(file)] = file.read_text()
    return found


# --- limits --------------------------------------------------------------------------------------

# Every file that limits, in the place $1 and two levels below it, gets what the attacker would like; it goes on where
# that is refused. mount_all mounts each hierarchy afresh, as its cgroup namespace lets it.
TOOLS = f"""
raise() {{
  for f in $(find "$1" -maxdepth 3 -type f); do
    case ${{f##*/}} in
      cpuset.cpus) echo 0-{max(1, CPUS - 1)} > $f ;;
      memory.limit_in_bytes | memory.memsw.limit_in_bytes | cpu.cfs_quota_us) echo -1 > $f; echo 900000000 > $f ;;
      memory.max | memory.high | memory.swap.max | pids.max | cpu.max | cgroup.max.*)
        echo max > $f; echo 900000000 > $f ;;
      devices.allow) echo a > $f; echo 'b *:* rwm' > $f; echo 'c 1:11 rwm' > $f ;;
      release_agent | notify_on_release) echo "$f" >> /tmp/agents; echo /evil > $f; echo 1 > $f ;;
    esac
  done
}} 2> /dev/null
mount_all() {{
  mkdir -p "$1"
  for kind in cpu cpuacct cpuset memory devices freezer blkio pids net_cls perf_event name=systemd name=evil; do
    options=$kind
    case $kind in name=*) options=none,$kind ;; esac
    mkdir -p "$1/$kind"
    mount -t cgroup -o $options,release_agent=/evil none "$1/$kind" || mount -t cgroup -o $options none "$1/$kind"
  done
  mkdir -p "$1/v2" && mount -t cgroup2 none "$1/v2"
}} 2> /dev/null
enter() {{
  for d in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e $d/cgroup.procs ] && mkdir -p $d/evil && echo 0 > $d/evil/cgroup.procs
  done
}} 2> /dev/null
"""
ATTACK = """
cat > /tmp/tools && . /tmp/tools
raise /sys/fs/cgroup
for d in $(sed -n 's|^.* \\(/sys/fs/cgroup/[^ ]*[.][^ ]*\\) .*|\\1|p' /proc/self/mountinfo); do
  umount $d || umount -l $d || mount -o remount,rw,bind $d
done 2> /dev/null
raise /sys/fs/cgroup
mount_all /tmp/fresh; raise /tmp/fresh
enter; raise /sys/fs/cgroup
for how in "-C -m" "-U -r -C -m"; do
  unshare $how sh -c '. /tmp/tools; mount_all /tmp/nest; raise /tmp/nest; raise /sys/fs/cgroup
    for d in /tmp/nest/*; do mkdir $d/in && echo 0 > $d/in/cgroup.procs; done 2> /dev/null
    unshare -C -m sh -c ". /tmp/tools; mount_all /tmp/deep; raise /tmp/deep; raise /tmp/nest"
    echo nested >> /tmp/told'
done
cat /tmp/told
exit 0
"""


@pytest.mark.parametrize("mode", ON_VM)
def test_limits_stand_whatever_is_written(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    before = machine()
    up(guest(wrapped, python, mode))
    stands = wrapped.limits()
    assert [Path(path).name for path in stands if path.endswith(("pids.max", "memory.max", "memory.limit_in_bytes"))]
    told = wrapped.exec("sh", "-c", ATTACK, input=TOOLS, timeout=40).ok()
    if mode != "default":
        # The tricks themselves worked: it was in cgroup namespaces of its own.
        assert "nested" in told.out, told
    assert wrapped.limits() == stands
    assert machine() == before
    assert wrapped.exec("sh", "-c", "cat /tmp/agents 2>/dev/null | grep release_agent").out == ""
    # And they bind, from inside a group of its own.
    hog = "mkdir -p /sys/fs/cgroup/memory/hog 2>/dev/null && echo 0 > /sys/fs/cgroup/memory/hog/cgroup.procs"
    assert wrapped.exec("sh", "-c", f"{hog}; exec dd if=/dev/zero of=/dev/null bs=96M count=1").rc == 137
    wrapped.exec("sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=24M count=1").ok()
    assert wrapped.exec("taskset", f"{1 << (CPUS - 1 or 1):x}", "true").rc != 0
    forks = "n=0; while [ $n -lt 60 ]; do sleep 600 < /dev/null > /dev/null 2>&1 & n=$((n+1)); echo $n; done"
    started = [int(line) for line in wrapped.exec("sh", "-c", forks).out.split()]
    assert 10 < max(started) < 40
    assert wrapped.pid in processes(wrapped.cgroup)


# Groups of the guest's making: as many as max_groups, as deep as max_depth, whatever its root says.
@pytest.mark.parametrize("mode", ["default", "privileged"])
def test_groups_end_at_max_groups_and_max_depth(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    tree = v2_hierarchy()
    assert tree is not None
    wrapped.annotate(partition__max_groups="20", partition__max_depth="4")
    up(guest(wrapped, python, mode))
    script = f"""
cd {tree.mountpoint}
for f in cgroup.max.descendants cgroup.max.depth; do umount $f; echo max > $f; done 2> /dev/null
d=.; for i in 1 2 3 4 5 6; do d=$d/d; mkdir $d 2> /dev/null || break; echo deep $i; done
i=0; while [ $i -lt 60 ] && mkdir w$i 2> /dev/null; do i=$((i+1)); done; echo wide $i
unshare -C -m sh -c 'mkdir /tmp/m && mount -t cgroup2 none /tmp/m && cd /tmp/m && echo max > cgroup.max.descendants
  mkdir more && echo more' 2> /dev/null
exit 0
"""
    told = wrapped.exec("sh", "-c", script).ok().out.split("\n")
    # guest is the first below the limit group, so three are left below it; guest and init count among the 20
    assert [line for line in told if line.startswith("deep")] == ["deep 1", "deep 2", "deep 3"]
    assert "wide 15" in told
    assert "more" not in told
    assert "nr_descendants 20" in (tree.group(wrapped.cgroup) / "cgroup.stat").read_text()


# v1's throttling does not reach the groups below one: a guest that could make or change groups there would have none.
@pytest.mark.v1
@pytest.mark.parametrize("mode", MODES)
def test_io_limits_on_v1_are_not_left_behind(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    tree = hierarchy_of("io")
    require("blkio", None if tree is not None and tree.version == 1 else "it is no v1 hierarchy here")
    assert tree is not None
    disk = scratch_disk()
    require("a disk", None if disk else "no disk to limit")
    major, minor = map(int, disk.split(":"))
    limit = {"throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}]}
    created = guest(wrapped, python, mode, blockIO=limit).args(*SLEEP).run("--detach")
    if created.rc:
        assert len(created.err.splitlines()) == 1, created
        assert created.err.startswith("nestrt: cannot "), created
        return
    pid = wrapped.pid
    confined(wrapped)
    script = f"""
for place in {tree.mountpoint} /tmp/fresh; do
  [ $place = /tmp/fresh ] && mkdir $place && mount -t cgroup -o blkio none $place
  umount $place/*; echo "{disk} 0" > $place/init/blkio.throttle.write_bps_device
  echo "{disk} 0" > $place/blkio.throttle.write_bps_device
  mkdir $place/evil; echo 1 > $place/evil/cgroup.procs
done 2> /dev/null
exit 0
"""
    wrapped.exec("sh", "-c", script).ok()
    group = next(
        line.split(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if ":blkio:" in line
    )
    file = tree.group(group) / "blkio.throttle.write_bps_device"
    assert file.read_text() == f"{disk} {1 << 20}\n", f"its first process is in {group}"


DEVICES = """
answers = {}
for place in mounts():
    for directory, _, _ in os.walk(place):
        for rule in ("a", "c 1:11 rwm", "c 10:229 rwm", "b 7:0 rwm"):
            attempt(lambda: open(f"{directory}/devices.allow", "w").write(rule))
for name, kind, number in (("full", 0o020000, (1, 7)), ("kmsg", 0o020000, (1, 11)), ("port", 0o020000, (1, 4)),
                           ("loop", 0o060000, (7, 0)), ("fuse", 0o020000, (10, 229))):
    made = attempt(os.mknod, f"/dev/{name}-x", kind | 0o666, os.makedev(*number))
    answers[name] = made or attempt(os.open, f"/dev/{name}-x", os.O_RDONLY | os.O_NONBLOCK)
done(answers)
"""


#   the document: nothing but /dev/full and /dev/null      the runtime's own list: ptmx, tun, … besides
# What is not in the document's list stays closed: with nodes of one's own, in groups of one's own.
@pytest.mark.parametrize("mode", MODES)
def test_devices_beyond_the_list_stay_closed(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    rules = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": "c", "major": 1, "minor": minor, "access": "rwm"} for minor in (3, 7)]
    guest(wrapped, python, mode).resources(devices=rules)
    if mode == "default":
        wrapped.capabilities("CAP_MKNOD", "CAP_DAC_OVERRIDE")
    up(wrapped)
    stands = wrapped.limits()
    fresh = "mkdir -p /tmp/d && mount -t cgroup -o devices none /tmp/d && mkdir /tmp/d/evil; exit 0"
    wrapped.exec("sh", "-c", f"{fresh}; mkdir /sys/fs/cgroup/devices/evil").ok()
    answers = python_in(wrapped, DEVICES)
    full = answers.pop("full")
    assert set(answers.values()) == {"EPERM"}, answers
    assert full == "EPERM" if mode in ("private", "shared") else isinstance(full, int), full
    assert wrapped.limits() == stands


# --- ways to the limit group ---------------------------------------------------------------------

# open_by_handle_at(2) of the true root by other doors: int 0x80 (number 342), x32 (bit 30), and the usual one.
#   push rbx; mov eax, edi; mov ebx, esi; xchg ecx, edx; int 0x80; pop rbx; ret
DOORS = """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("5389f889f387d1cd805bc3"))
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
low = libc.mmap(None, 4096, 3, 0x22 | 0x40, -1, 0)  # MAP_32BIT
ctypes.memmove(low, struct.pack("<IiQ", 8, 0xFE, 1), 16)
call80 = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_uint,) * 4)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
libc.syscall.restype = ctypes.c_long
opened = []
for place in mounts()[:2]:
    mount = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for name, result in (("i386", call80(342, mount, low, 0)),
                         ("x86_64", libc.syscall(ctypes.c_long(304), mount, ctypes.c_void_p(low), 0)),
                         ("x32", libc.syscall(ctypes.c_long(0x40000000 | 304), mount, ctypes.c_void_p(low), 0))):
        if result >= 0:
            opened.append([name, place])
done(opened)
"""


def usual_calls() -> list[str]:
    """What engines allow every container."""
    entries = json.loads(Path("/usr/share/containers/seccomp.json").read_text())["syscalls"]
    allowed = {name for entry in entries if entry["action"] == "SCMP_ACT_ALLOW" for name in entry["names"]}
    return sorted(allowed - {OPEN})


OPEN = "open_by_handle_at"


def profile(default: str, *entries: dict[str, Any]) -> dict[str, Any]:
    architectures = {"x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}.get(os.uname().machine)
    found: dict[str, Any] = {"defaultAction": default, "syscalls": list(entries)}
    return {**found, **({"architectures": architectures} if architectures else {})}


def allow(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}


def profiles() -> dict[str, dict[str, Any] | None]:
    usual = usual_calls()
    by_argument = {"index": 2, "value": 0, "op": "SCMP_CMP_GE"}
    return {
        "none": None,
        "empty": {},
        "no calls": profile("SCMP_ACT_ALLOW"),
        "log": profile("SCMP_ACT_LOG"),
        "allowed by name": profile("SCMP_ACT_ERRNO", allow(*usual, OPEN)),
        "allowed twice": profile("SCMP_ACT_ERRNO", allow(*usual, OPEN), allow(OPEN)),
        "allowed by argument": profile("SCMP_ACT_ERRNO", allow(*usual), allow(OPEN, args=[by_argument])),
        "another errno": profile("SCMP_ACT_ALLOW", {"names": [OPEN], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}),
        "another case": profile("SCMP_ACT_ERRNO", {"Names": [*usual, OPEN], "action": "SCMP_ACT_ALLOW"}),
    }


PROFILES = (
    "none",
    "empty",
    "no calls",
    "log",
    "allowed by name",
    "allowed twice",
    "allowed by argument",
    "another errno",
    "another case",
)


# A file handle names a group by its number, above the view too: CAP_DAC_READ_SEARCH of the initial user namespace
# opens any.
@pytest.mark.parametrize("mode", ON_VM)
def test_no_group_above_the_view_is_opened_by_handle(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    up(guest(wrapped, python, mode))
    found = python_in(wrapped, HANDLES)
    assert not any(found.values()), found
    if os.uname().machine == "x86_64":
        assert python_in(wrapped, DOORS) == []


@pytest.mark.parametrize("name", PROFILES)
def test_no_profile_of_the_documents_opens_handles(wrapped: Wrapped, python: PythonRoot, name: str) -> None:
    guest(wrapped, python, "privileged").config["linux"]["seccomp"] = profiles()[name]
    created = wrapped.args(*SLEEP).run("--detach")
    if created.rc:
        # A profile that is refused does no harm either.
        assert created.err.startswith("nestrt: "), created
        return
    assert not any(python_in(wrapped, HANDLES).values())
    if os.uname().machine == "x86_64":
        assert python_in(wrapped, DOORS) == []


# An engine's `exec --privileged` gives one process more than the document gave the container.
@pytest.mark.parametrize("name", ["none", "no calls", "allowed by name"])
def test_a_privileged_exec_opens_no_handle(wrapped: Wrapped, python: PythonRoot, tmp_path: Path, name: str) -> None:
    guest(wrapped, python, "default").config["linux"]["seccomp"] = profiles()[name]
    up(wrapped)
    capabilities = ("--cap", "CAP_DAC_READ_SEARCH", "--cap", "CAP_SYS_ADMIN")
    assert not any(python_in(wrapped, HANDLES, *capabilities).values())
    # docker's way: a process.json
    wrapped.capabilities(ALL_CAPABILITIES)
    process = {**wrapped.config["process"], "args": ["/usr/bin/python3", "-ISc", PRELUDE + HANDLES]}
    file = tmp_path / "process.json"
    file.write_text(json.dumps(process))
    result = wrapped.verb("exec", "--process", str(file), wrapped.id).ok()
    assert not any(json.loads(result.out[2:]).values()), result.out


#   host  /sys/fs/cgroup/pids/nestrt-…/ID/pids.max      a volume of the host's "/" shows it, however that is named;
#         read-only volumes are so at their top alone
BINDS: dict[str, tuple[str, list[str]]] = {
    "/": ("/", ["rbind", "rprivate"]),
    "/ read-only": ("/", ["rbind", "ro"]),
    "/sys": ("/sys", ["rbind"]),
    "/sys by dots": ("/usr/../sys/.", ["rbind"]),
    "the hierarchies": ("/sys/fs/cgroup", ["rbind"]),
    "a hierarchy": ("/sys/fs/cgroup/TREE", ["bind"]),
    "a hierarchy by dots": ("/sys/devices/../fs/cgroup/TREE", ["bind"]),
    "the limit group": ("/sys/fs/cgroup/TREE/GROUP", ["bind"]),
    "by /proc": ("/proc/self/root/sys/fs/cgroup/TREE", ["bind"]),
    "by a link": ("LINK/TREE", ["bind"]),
    "relative": ("../" * 12 + "sys/fs/cgroup/TREE", ["bind"]),
}


@pytest.mark.parametrize("mode", ["default", "private"])
@pytest.mark.parametrize("name", BINDS)
def test_no_volume_reaches_the_limit_group(wrapped: Wrapped, tmp_path: Path, name: str, mode: str) -> None:
    tree = hierarchy_of("pids")
    assert tree is not None
    place = str(tree.mountpoint).removeprefix("/sys/fs/cgroup").strip("/")
    link = tmp_path / "link"
    link.symlink_to("/sys/fs/cgroup")
    source, options = BINDS[name]
    for word, value in (("TREE", place), ("GROUP", wrapped.cgroup.strip("/")), ("LINK", str(link))):
        source = source.replace(word, value)
    wrapped.resources(pids={"limit": 40})
    wrapped.config["mounts"].append({"destination": "/mnt", "type": "bind", "source": source, "options": options})
    if mode == "private":
        wrapped.user_namespace()
    created = wrapped.shell("exec sleep 600").run("--detach")
    if created.rc:
        assert "Traceback" not in created.err, created
        return
    stands = wrapped.limits()
    group = wrapped.cgroup
    places = [f"/mnt{part}{group}" for part in (f"/sys/fs/cgroup/{place}", f"/fs/cgroup/{place}", f"/{place}", "")]
    script = "".join(f"echo 900 > {one}/pids.max; mkdir {one}/evil; " for one in places)
    wrapped.exec("sh", "-c", f"({script}) 2> /dev/null; exit 0").ok()
    assert wrapped.limits() == stands
    assert not any((h.group(group) / "evil").exists() for h in hierarchies())


# Whatever an engine leaves open, and whatever nestrt and its hooks open, is closed where the guest begins.
@pytest.mark.parametrize("mode", ["default", "privileged"])
def test_no_descriptor_gets_into_the_guest(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    guest(wrapped, python, mode)
    links = (
        "for p in 1 self; do for f in /proc/$p/fd/*; do readlink $f; done; readlink /proc/$p/cwd /proc/$p/root; done"
    )
    with open_directories("/", "/sys/fs/cgroup", str(wrapped.path)) as leaked:
        argv = [wrapped.nestrt.command, *wrapped.args(*SLEEP).words("run", "--detach")]
        with open(os.devnull, "r+") as null:
            done = subprocess.run(argv, pass_fds=leaked, stdin=null, stdout=null, stderr=null, timeout=20 * SLOW)
        assert done.returncode == 0
        found = os.listdir(f"/proc/{wrapped.pid}/fd")
        assert sorted(found) == ["0", "1", "2"], [os.readlink(f"/proc/{wrapped.pid}/fd/{fd}") for fd in found]
        words = [wrapped.nestrt.command, *wrapped.globals, "exec", wrapped.id, "sh", "-c", links]
        seen = subprocess.run(words, pass_fds=leaked, capture_output=True, text=True, timeout=20 * SLOW)
    assert seen.returncode == 0, seen
    outside = [line for line in seen.stdout.split("\n") if line.startswith(("/sys", "/tmp", str(wrapped.path)))]
    assert outside == [], seen


# The witness: a process of the host that the guest neither sees, kills, nor takes into a group of its own.
@pytest.mark.parametrize("mode", MODES)
def test_processes_of_the_host_are_out_of_reach(wrapped: Wrapped, python: PythonRoot, mode: str) -> None:
    witness = subprocess.Popen(["sleep", "300"])
    before = Path(f"/proc/{witness.pid}/cgroup").read_text()
    try:
        up(guest(wrapped, python, mode))
        script = f"""
kill -9 {witness.pid} && echo killed
for g in /sys/fs/cgroup /sys/fs/cgroup/*; do
  mkdir $g/evil; for p in {witness.pid} 0; do echo $p > $g/evil/cgroup.procs; done
  echo {witness.pid} > $g/cgroup.procs
done
"""
        wrapped.exec("sh", "-c", f"({script}) 2> /dev/null")
        assert witness.poll() is None
        assert Path(f"/proc/{witness.pid}/cgroup").read_text() == before
    finally:
        witness.kill()
        witness.wait()


# --- storms --------------------------------------------------------------------------------------


def lives(pid: int) -> bool:
    """Whether the process is there, and no zombie that waits for its parent."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


FREEZE = """
file=freezer.state word=FROZEN
cd /sys/fs/cgroup/freezer 2> /dev/null || { cd /sys/fs/cgroup; file=cgroup.freeze word=1; }
mkdir -p cold/colder; sleep 600 & echo $! > cold/colder/cgroup.procs; sleep 600 & echo $! > cold/cgroup.procs
touch /tmp/done
[ SELF = self ] && echo $$ > cold/colder/cgroup.procs
echo $word > cold/colder/$file; echo $word > cold/$file; sleep 600
"""


# v1: a frozen process cannot die (runc#2105). Under runc alone no container freezes itself; a guest's view lets it.
@pytest.mark.parametrize("who", ["children", "self"])
@pytest.mark.parametrize("end", ["kill", "delete --force"])
def test_frozen_groups_are_no_hiding_place(wrapped: Wrapped, who: str, end: str) -> None:
    wrapped.up(FREEZE.replace("SELF", who))
    time.sleep(0.3 * SLOW)
    inside = processes(wrapped.cgroup)
    assert inside
    if end == "kill":
        wrapped.kill("KILL").ok()
        wait_for(lambda: not [pid for pid in inside if lives(pid)], "what was killed to go")
    wrapped.delete("--force", timeout=40).ok()
    assert [pid for pid in inside if lives(pid)] == []
    assert wrapped.leftovers() == []


BOMB = "(bomb() { bomb | bomb & }; bomb; while :; do (trap '' TERM HUP; sleep 1) & done) 2>/dev/null & exec sleep 600"
MANY = """
for t in /sys/fs/cgroup/pids /sys/fs/cgroup/freezer /sys/fs/cgroup; do
  [ -e $t/cgroup.procs ] && cd $t && mkdir $(seq 1 NUMBER)
done 2> /dev/null
touch /tmp/done; exec sleep 600
"""


# A bomb in its own pid namespace, or in the host's, where the end of its first process ends no other.
@pytest.mark.parametrize("pids", ["own", "host's"])
def test_a_fork_bomb_ends_with_the_guest(wrapped: Wrapped, pids: str) -> None:
    wrapped.resources(pids={"limit": 80})
    if pids == "host's":
        wrapped.namespace("pid", None)
    wrapped.up(BOMB)
    time.sleep(0.3 * SLOW)
    inside = processes(wrapped.cgroup)
    wrapped.delete("--force", timeout=40).ok()
    assert processes(wrapped.cgroup) == set()
    assert [pid for pid in inside if lives(pid)] == []
    assert wrapped.leftovers() == []


#   hostile   20,000 groups, running        web   starts and ends: what its hooks cost is not the other's to choose
@pytest.mark.v1
def test_many_groups_of_one_guest_cost_no_other(new_wrapped: NewWrapped) -> None:
    hostile, web = new_wrapped(), new_wrapped()
    web.args("true").run().ok()
    # The least of some: what else runs on the machine makes each take more.
    alone = min(cost(lambda: web.run().ok()) for _ in range(3))
    hostile.up(MANY.replace("NUMBER", "20000"))
    wait_for(lambda: hostile.exec("test", "-e", "/tmp/done").rc == 0, "the groups", 30)
    beside = min(cost(lambda: web.run().ok()) for _ in range(3))
    begun = time.monotonic()
    hostile.delete("--force", timeout=60).ok()
    assert time.monotonic() - begun < 20 * SLOW
    assert hostile.leftovers() == []
    assert beside < alone + 0.3, (alone, beside)


def cost(action: Callable[[], object]) -> float:
    """Seconds of CPU time that the children of this process have used for *action*."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# 300 records that nothing is wrong with do not keep the sweep from what is left behind them.
def test_no_number_of_guests_hides_what_is_left(new_wrapped: NewWrapped) -> None:
    left = new_wrapped(id=f"nestrt-zz-{os.getpid():x}")
    left.stage("precreate", left.config).ok()
    crowd = [f"nestrt-aa-{os.getpid():x}-{number}" for number in range(300)]
    values = {**left.record(), "maker": os.getpid(), "began": _start_time(os.getpid()), "group": f"{PARENT}/nobody"}
    place = next(path for path in (Path("/run/nestrt/plugin")).iterdir() if path.name.endswith(left.id))
    others = [place.with_name(name) for name in crowd]
    try:
        for path in others:
            path.write_text(json.dumps({**values, "created": int(time.time())}))
        age(left)
        record = json.loads(place.read_text())
        place.write_text(json.dumps({**record, "maker": 0}))
        web = new_wrapped()
        for _ in range(4):
            web.args("true").run().ok()
        assert left.leftovers() == []
    finally:
        for path in others:
            path.unlink(missing_ok=True)


def _start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


# A guest in the host's pid namespace hides processes in groups that are nested deeper than a path can say.
HIDE = """
n=$(printf %0200d 1)
for t in /sys/fs/cgroup/pids /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ -e $t/cgroup.procs ] || continue
  cd $t; i=0
  while [ $i -lt 24 ] && mkdir $n && cd -P $n; do i=$((i+1)); done
  sleep 600 & echo $! > cgroup.procs
done 2> /dev/null
touch /tmp/done; wait; sleep 600
"""


@pytest.mark.parametrize("pids", ["own", "host's"])
def test_hidden_processes_are_found(wrapped: Wrapped, pids: str) -> None:
    if pids == "host's":
        wrapped.namespace("pid", None)
    wrapped.up(HIDE)
    wait_for(lambda: wrapped.exec("test", "-e", "/tmp/done").rc == 0, "the groups", 30)
    sleepers = {pid for pid in _sleepers() if wrapped.cgroup in _groups_of(pid)}
    assert len(sleepers) >= (1 if is_v2_only() else 2)
    try:
        wrapped.delete("--force", timeout=30).ok()
        assert [pid for pid in sleepers if lives(pid)] == []
    finally:
        for pid in filter(lives, sleepers):
            os.kill(pid, signal.SIGKILL)
    assert wrapped.leftovers() == []
    assert not any(values.get("group") == wrapped.cgroup for values in records().values())


def _groups_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:  # another's, which has ended
        return ""


def _sleepers() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path("/proc", entry, "cmdline").read_bytes() == b"sleep\x00600\x00":
                found.append(int(entry))
        except OSError:
            continue
    return found
