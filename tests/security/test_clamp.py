"""Law 2, clamp, under attack: whatever the guest writes, with whatever privilege, it gets no more than it was given.

    /nestrt/NAME      limit group: 64 MiB, 40 processes, CPU 0, half a CPU    what all attacks are after
      guest/          guest root: its "/"
        init/         the attacker
        evil/         a group of the attacker's, "unlimited"

The attacker is root: of a user namespace ("userns"), of the host with few capabilities
("nouserns"), of the host with all of them ("root").
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.attack import HANDLES, PRELUDE, limits_of, open_directories, policy_file, run_script
from support.guests import MODES, ask, directory, inside
from support.hostside import hierarchies, hierarchy_of, is_v2_only, limit_group, mark, v2_hierarchy
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt

MIB = 1 << 20
CPUS = len(os.sched_getaffinity(0))
LIMITS = ("--memory", "64M", "--pids", "40", "--cpus", "0", "--cpu-quota", "0.5")
STANDS = {
    "memory": str(64 * MIB),
    "pids": "40",
    "cpus": "0",
    "quota": "50000",
    "cgroup.max.descendants": "1000",
    "cgroup.max.depth": "8",
}
# (controller, v1 file, v2 file, what the attacker would like it to be)
WISHES = (
    ("memory", "memory.limit_in_bytes", "memory.max", "8G"),
    ("pids", "pids.max", "pids.max", "max"),
    ("cpuset", "cpuset.cpus", "cpuset.cpus", f"0-{max(1, CPUS - 1)}"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max", "400000"),
)
MASTERS = ["userns", "root"]


def mount_words(number: int) -> str:
    """What mounts the host's hierarchy *number* again."""
    hierarchy = hierarchies()[number]
    if hierarchy.version == 2:
        return "-t cgroup2 none"
    return f"-t cgroup -o {','.join(sorted(hierarchy.controllers) or ['none', f'name={hierarchy.name}'])} none"


def raise_all(group: str) -> str:
    """A shell command that writes every wish to *group*, a group of the view; it goes on where it is refused."""
    writes = [f"echo {wish} > {inside(name, group, v1, v2)}" for name, v1, v2, wish in WISHES]
    return "; ".join([*writes, "true"])


def standing(name: str) -> dict[str, str]:
    return {key: value for key, value in limits_of(limit_group(name)).items() if key in STANDS}


def expected() -> dict[str, str]:
    keys = standing_keys()
    return {key: value for key, value in STANDS.items() if key in keys}


def standing_keys() -> set[str]:
    return set(STANDS) if v2_hierarchy() else set(STANDS) - {"cgroup.max.descendants", "cgroup.max.depth"}


# The attacker lifts what it sees: takes the covers off, mounts all again, nests a cgroup namespace (which
# turns nsdelegate off for the guest root), writes every limit; then takes what it believes to have.
@pytest.mark.parametrize("mode", MASTERS)
def test_limits_stand_and_bind_whatever_is_written(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, mode: str
) -> None:
    root, evil = "/", "/evil"
    fresh = " ".join(
        f"mkdir -p /mnt/{n}; mount {mount_words(n)} /mnt/{n}; for f in $(ls /mnt/{n}); do "
        f"case $f in *max|*limit_in_bytes|*quota_us) echo 8G > /mnt/{n}/$f; echo max > /mnt/{n}/$f;; esac; done; "
        for n in range(len(hierarchies()))
    )
    enter = "; ".join(f"echo 0 > {h.mountpoint}/evil/cgroup.procs" for h in hierarchies())
    make = "; ".join(f"mkdir {h.mountpoint}/evil" for h in hierarchies())
    outside = CPUS - 1 or 1
    answers = ask(
        nestrt,
        {
            "write": raise_all(root),
            "umount": "for d in $(sed -n 's|^.* \\(/sys/fs/cgroup/[^ ]*[.][^ ]*\\) .*|\\1|p' /proc/self/mountinfo); do "
            f"umount $d || umount -l $d; done; {raise_all(root)}",
            "remount": f"mount -o remount,rw,bind {inside('memory', root, 'memory.limit_in_bytes', 'memory.max')}; "
            + raise_all(root),
            "fresh": fresh + "true",
            "make": f"{make}; {raise_all(evil)}",
            "nest": f"{enter}; unshare -C -m sh -c '{fresh} {raise_all(root)}; sed s/^/own:/ /proc/self/cgroup'",
            "deeper": f"{enter}; unshare -C -U -r -m sh -c '{raise_all(root)}; {raise_all(evil)}; id -u'",
            # What it got: each of these takes more than the limit group has.
            "memory": f"{enter}; dd if=/dev/zero of=/dev/null bs=96M count=1; echo status $?",
            "cpu": f"{enter}; taskset {1 << outside:x} true",
            "processes": f"{enter}; n=0; while [ $n -lt 60 ]; do sleep {5 * SLOW:.0f} & n=$((n+1)); echo $n; done",
        },
        *(*python.options, "--name", guest_name, *MODES[mode], *LIMITS),
    )
    assert standing(guest_name) == expected()
    # The tricks themselves worked: it was in groups of its own, seen as roots.
    own = [line for line in answers.text("nest").splitlines() if line.startswith("own:")]
    assert {line.split(":", 3)[3] for line in own} == {"/"}
    assert answers.text("deeper").endswith("0")
    assert "status 137" in answers["memory"].text, answers["memory"]
    answers.refused("cpu")
    started = [int(line) for line in answers["processes"].text.splitlines() if line.isdigit()]
    assert 10 < max(started) < 40, answers["processes"]


@pytest.mark.slow_on_vm
def test_a_limit_that_the_guest_has_is_one_that_kills(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """The control of the test above: 32 of 64 MiB are there to be had, 96 are not."""
    answers = ask(
        nestrt,
        {
            "fits": "dd if=/dev/zero of=/dev/null bs=32M count=1",
            "does not": "dd if=/dev/zero of=/dev/null bs=96M count=1",
        },
        *("--rootfs", busybox, "--name", guest_name, *LIMITS),
    )
    answers.text("fits")
    assert answers["does not"].rc == 137


# No hierarchy can be added, mounted above the guest root, or be given a release agent (CVE-2022-0492).
@pytest.mark.parametrize("mode", MASTERS)
def test_no_other_hierarchy_can_be_had(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    before = Path("/proc/self/cgroup").read_text().splitlines(), host_options(), agents()
    here = {name for h in hierarchies() for name in h.controllers}
    kernel = [row.split()[0] for row in Path("/proc/cgroups").read_text().splitlines()[1:]]
    lacking = [name for name in kernel if name not in here and not (is_v2_only() and name == "io")]
    questions = {f"controller {name}": f"mount -t cgroup -o {name} none /mnt" for name in lacking}
    questions["named"] = "mount -t cgroup -o none,name=evil none /mnt"
    questions["agent file"] = "find /sys/fs/cgroup -name release_agent | grep ."
    for number, hierarchy in enumerate(hierarchies()):
        words = mount_words(number)
        if hierarchy.version == 1:
            options = words.split()[3]
            questions[f"agent {number}"] = f"mount -t cgroup -o {options},release_agent=/evil none /mnt"
            questions[f"agent again {number}"] = (
                f"mount -t cgroup -o remount,{options},release_agent=/evil none {hierarchy.mountpoint}"
            )
    answers = ask(nestrt, questions, *("--rootfs", busybox, "--name", guest_name, *MODES[mode]))
    for name in questions:
        # A mount of a hierarchy that is there ignores the agent; what counts is that it is not set.
        if not name.startswith("agent ") or name == "agent file":
            answers.refused(name)
    assert (Path("/proc/self/cgroup").read_text().splitlines(), host_options(), agents()) == before


def agents() -> list[str]:
    """The release agents of the host's v1 hierarchies."""
    files = [h.mountpoint / "release_agent" for h in hierarchies()]
    return [file.read_text() for file in files if file.exists()]


def host_options() -> dict[str, str]:
    """The options of the host's cgroup superblocks: nsdelegate must outlive every guest (see cgroups(7))."""
    rows = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {row[0].split()[4]: row[1].split()[2] for row in rows if row[1].startswith("cgroup")}


def test_the_options_of_the_hosts_tree_outlive_a_guest_that_mounts_it(
    nestrt: Nestrt, guest_name: str, busybox: Path
) -> None:
    before = host_options()
    view = v2_hierarchy()
    assert view is not None
    ask(
        nestrt,
        {
            "plain": "mount -t cgroup2 none /mnt && umount /mnt",
            "other": "mount -t cgroup2 -o favordynmods,memory_localevents none /mnt; umount /mnt; true",
            "remount": f"mount -o remount,memory_localevents {view.mountpoint}; true",
        },
        *("--rootfs", busybox, "--name", guest_name, *MODES["root"]),
    )
    assert host_options() == before


# A file handle (open_by_handle_at(2)) names a group by its number, in the view or above it: CAP_DAC_READ_SEARCH
# of the initial user namespace opens any.
@pytest.mark.parametrize("mode", MODES)
def test_no_group_above_the_view_is_opened_by_handle(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, mode: str
) -> None:
    answers, _ = run_script(nestrt, python, HANDLES, "--name", guest_name, *MODES[mode])
    assert answers == {str(h.mountpoint): [] for h in hierarchies()}


NAMESPACES = """
def handle(kind, size=16):
    # struct nsfs_file_handle { u64 ns_id; u32 ns_type; u32 ns_inum; }; FD_NSFS_ROOT, FILEID_NSFS
    buffer = ctypes.create_string_buffer(struct.pack("<Ii", size, 0xF1) + kind, 136)
    return call(libc.open_by_handle_at, -10003, buffer, os.O_RDONLY)
answers = {"initial cgroup": handle(struct.pack("<QII", 0, 0x02000000, 0xEFFFFFFB))}
own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
for name, number in (("next", 11), ("previous", 12)):
    # ioctl_nsfs(2): NS_MNT_GET_NEXT, NS_MNT_GET_PREV
    answers[name] = call(libc.ioctl, own, ctypes.c_ulong(0x8010B700 | number), ctypes.create_string_buffer(16))
for name, number in (("userns", 1), ("parent", 2)):
    kind = "user" if name == "userns" else "pid"
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    answers[name] = call(libc.ioctl, fd, ctypes.c_ulong(0xB700 | number + (name == "userns")), 0)
links = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in os.listdir("/proc") if pid.isdigit()
         for kind in ("mnt", "pid", "cgroup", "net", "ipc", "uts")}
done([answers, sorted(links), sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit())])
"""


# No way to a namespace of the host: none in /proc, no parent, no neighbour, no handle.
@pytest.mark.parametrize("mode", MODES)
def test_no_namespace_of_the_host_is_in_reach(nestrt: Nestrt, guest_name: str, python: PythonRoot, mode: str) -> None:
    (answers, links, pids), _ = run_script(nestrt, python, NAMESPACES, "--name", guest_name, *MODES[mode])
    host = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "cgroup", "net", "ipc", "uts")}
    assert not host & set(links)
    assert pids == [1]
    opened = {name: answer for name, answer in answers.items() if isinstance(answer, int)}
    assert not opened, answers


DEVICES = """
answers = {}
for name, kind, number in (("full", 0o020000, (1, 7)), ("kmsg", 0o020000, (1, 11)), ("port", 0o020000, (1, 4)),
                           ("loop", 0o060000, (7, 0)), ("fuse", 0o020000, (10, 229))):
    made = attempt(os.mknod, f"/dev/shm/../{name}-x", kind | 0o666, os.makedev(*number))
    answers[name] = made or attempt(os.open, f"/dev/{name}-x", os.O_RDONLY | os.O_NONBLOCK)
done(answers)
"""
DETACH = """
def bpf(command, *values):
    attributes = ctypes.create_string_buffer(struct.pack("<IIIII", *(values + (0,) * 5)[:5]), 128)
    return call(libc.syscall, {bpf}, command, attributes, 128)
groups = [directory for place in mounts() for directory, _, _ in os.walk(place)]
for group in groups:
    fd = os.open(group, os.O_RDONLY)
    for program in range(1, 80):
        number = bpf(13, program)                     # BPF_PROG_GET_FD_BY_ID
        if isinstance(number, int):
            bpf(9, fd, number, 6)                     # BPF_PROG_DETACH, BPF_CGROUP_DEVICE
            os.close(number)
    bpf(9, fd, 0, 6)
    attempt(lambda: open(f"{{group}}/devices.allow", "w").write("a"))
    attempt(lambda: open(f"{{group}}/devices.allow", "w").write("c 1:11 rwm"))
"""


# A device that the level was not given stays closed: with a node of one's own, with the rules of the groups
# in view rewritten (v1) or the programs in reach detached (v2).
@pytest.mark.parametrize("mode", MODES)
def test_a_device_outside_the_rules_stays_closed(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, mode: str
) -> None:
    detach = DETACH.format(bpf=321 if os.uname().machine == "x86_64" else 280)
    script = detach + DEVICES
    answers, _ = run_script(nestrt, python, script, "--name", guest_name, *MODES[mode])
    full = answers.pop("full")
    if mode == "userns":
        assert set(answers.values()) == {"EPERM"}
        assert full == "EPERM"
    else:
        assert isinstance(full, int), "the control: /dev/full is in the default rules"
        assert set(answers.values()) == {"EPERM"}


@pytest.mark.parametrize("max_level", [1, 2])
def test_a_leaf_guest_gets_no_cgroup_namespace(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, tmp_path: Path, max_level: int
) -> None:
    """max_level = 1: no view below this guest's own, also not by way of another user namespace; 2 is the control."""
    policy = policy_file(tmp_path, f"[level]\nmax_level = {max_level}\n")
    file = "/proc/sys/user/max_cgroup_namespaces"
    answers = ask(
        nestrt,
        {
            "namespace": "unshare -C true",
            "deeper": "unshare -U -r -C true",
            "raise": f"echo 100 > {file}; unshare -C true",
            "raise deeper": f"unshare -U -r -m sh -c 'mount -t proc p /proc; echo 100 > {file}; unshare -C true'",
        },
        *(*python.options, "--name", guest_name, "--policy", policy),
    )
    for name in answers:
        assert (answers[name].rc == 0) == (max_level == 2), (name, answers[name])


# Groups of the guest's making: as many as max_groups, as deep as max_depth, and all of them removed again.
@pytest.mark.parametrize("most", [20, pytest.param(1000, marks=pytest.mark.slow_on_vm)])
def test_groups_end_at_max_groups_and_max_depth(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, tmp_path: Path, most: int
) -> None:
    policy = policy_file(tmp_path, f"[partition]\nmax_groups = {most}\nmax_depth = 4\n")
    tree = v2_hierarchy()
    assert tree is not None
    answers = ask(
        nestrt,
        {
            "deep": f"cd {tree.mountpoint}; d=.; for i in 1 2 3 4 5 6; do d=$d/d; mkdir $d || break; echo $i; done",
            "nested": f"cd {tree.mountpoint}; mkdir -p n; echo 0 > n/cgroup.procs; unshare -C -m sh -c "
            "'mount -t cgroup2 none /mnt; cd /mnt; "
            "d=.; for i in 1 2 3 4 5 6; do d=$d/d; mkdir $d || break; echo $i; done'",
            "wide": f"cd {tree.mountpoint}; mkdir $(seq 1 {most + 50}) 2>/dev/null; ls -d */ */*/ */*/*/ | wc -l",
            "more": f"mkdir {tree.mountpoint}/n/more",
            "unlock": f"echo max > {tree.mountpoint}/cgroup.max.descendants; mkdir {tree.mountpoint}/n/more",
        },
        *(*python.options, "--name", guest_name, "--policy", policy, *MODES["root"]),
    )
    # guest is the first below the limit group, so three are left below it
    assert [line for line in answers["deep"].text.splitlines() if line.isdigit()] == ["1", "2", "3"]
    assert [line for line in answers["nested"].text.splitlines() if line.isdigit()] == ["1", "2"]
    assert int(answers["wide"].text) == most - 1
    answers.refused("more")
    answers.refused("unlock")
    top = tree.group(limit_group(guest_name))
    assert "nr_descendants " + str(most) in (top / "cgroup.stat").read_text()
    nestrt.run("delete", "--force", guest_name, timeout=60).ok()
    assert not top.exists()


# A name is one component: nothing made of dots and slashes reaches another group.
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        *(
            pytest.param(name, marks=pytest.mark.slow_on_vm)
            for name in ("..", ".", "a/../../evil", "/evil", "a\nb", "", "-x", "a" * 300)
        ),
    ],
)
def test_dots_and_slashes_are_no_name(nestrt: Nestrt, busybox: Path, name: str) -> None:
    words = {
        "launch": ("launch", "--rootfs", str(busybox), f"--name={name}", "--", "true"),
        "delete": ("delete", "--force", name),
        "show": ("show", name),
    }
    for command in words if SLOW == 1 else ["launch"]:
        result = nestrt.run(*words[command])
        assert result.rc != 0, result
        assert len(result.err.splitlines()) == 1 or "usage:" in result.err, result
        assert "Traceback" not in result.err


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("target", ["/../evil", "/a/../../evil", "evil", "/", "/.."])
def test_dots_are_no_mount_target(nestrt: Nestrt, busybox: Path, target: str) -> None:
    result = nestrt.launch("--rootfs", busybox, "--mount", f"type=tmpfs,target={target}", "--", "true")
    assert (result.rc, len(result.err.splitlines())) == (125, 1), result


# Nothing of the caller's stays open or in reach: descriptors, working directory, environment.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("mode", MASTERS)
def test_nothing_of_the_callers_leaks(
    nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path, mode: str
) -> None:
    secret = "nestrt-secret-4711"
    links = "self/cwd 1/cwd 1/root 1/exe"
    script = f"ls -l /proc/self/fd /proc/1/fd; for l in {links}; do echo link: $(readlink /proc/$l); done; env"
    argv = [
        nestrt.command,
        "launch",
        "--rootfs",
        str(busybox),
        "--name",
        guest_name,
        *MODES[mode],
        "--",
        "sh",
        "-c",
        script,
    ]
    with open_directories("/", "/sys/fs/cgroup", str(tmp_path)) as leaked:
        done = subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, pass_fds=leaked, cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "SECRET": secret, "LD_PRELOAD": "", "PYTHONPATH": "/evil"},
            timeout=20 * SLOW,
        )  # fmt: skip
    assert done.returncode == 0, done
    # ls has its own directory open besides 0, 1 and 2; the first process is a shell without any file.
    numbers = [
        line.split(" -> ")[0].split()[8] for line in done.stdout.splitlines() if line[1:4] in ("rwx", "-wx", "r-x")
    ]
    assert sorted(numbers) == ["0", "0", "1", "1", "2", "2", "3"], done.stdout
    assert [line[6:] for line in done.stdout.splitlines() if line.startswith("link: ")] == [
        "/",
        "/",
        "/",
        "/bin/busybox",
    ]
    assert secret not in done.stdout
    assert "PYTHONPATH" not in done.stdout


# CVE-2024-21626: a working directory that is a descriptor's, by way of a symlink of the image.
@pytest.mark.slow_on_vm
def test_a_leaked_descriptor_is_no_working_directory(
    nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path]
) -> None:
    root = make_busybox()
    with open_directories("/") as leaked:
        (root / "app").symlink_to(f"/proc/self/fd/{leaked[0]}")
        for words in (["--workdir", "/app"], ["--workdir", f"/proc/self/fd/{leaked[0]}/tmp"]):
            argv = [nestrt.command, "launch", "--rootfs", str(root), "--name", guest_name, "--userns", "none", "--rm"]
            done = subprocess.run(
                [*argv, *words, "--", "ls", "-a", "."], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                pass_fds=leaked, timeout=20 * SLOW,
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (125, ""), done
            assert len(done.stderr.splitlines()) == 1, done


# The witness: a process of the host that a guest's kill must not reach, whatever number it names.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("mode", MASTERS)
def test_processes_of_the_host_are_out_of_reach(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    witness = subprocess.Popen(["sleep", "300"])
    tree = v2_hierarchy()
    assert tree is not None
    try:
        answers = ask(
            nestrt,
            {
                "kill": f"kill -9 {witness.pid}",
                "see": f"cat /proc/{witness.pid}/status",
                "take": f"mkdir {tree.mountpoint}/evil; echo {witness.pid} > {tree.mountpoint}/evil/cgroup.procs",
                "all": "sleep 100 & kill -9 -1; sleep 1",
            },
            *("--rootfs", busybox, "--name", guest_name, *MODES[mode]),
        )
        for name in ("kill", "see", "take"):
            answers.refused(name)
        assert witness.poll() is None
    finally:
        witness.kill()
        witness.wait()


TYPE = """
import termios
done([attempt(fcntl.ioctl, 0, termios.TIOCSTI, b"x"), attempt(os.open, "/dev/tty", os.O_RDWR),
      attempt(fcntl.ioctl, 0, termios.TIOCSCTTY, 1), attempt(fcntl.ioctl, 0, termios.TIOCSTI, b"x")])
"""
# A shell's session with a terminal of its own, in which it launches a guest without --terminal.
SESSION = """
import fcntl, os, subprocess, sys, termios
master, slave = os.openpty()
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
sys.exit(subprocess.run(sys.argv[1:], stdin=slave).returncode)
"""


# TIOCSTI types into the caller's shell; the guest leaves the caller's session, so the terminal is not its own.
# (With CAP_SYS_ADMIN of the initial user namespace the kernel allows it on any terminal that is open.)
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_a_guest_cannot_type_into_the_callers_terminal(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, mode: str
) -> None:
    argv = [nestrt.command, "launch", *python.options, "--name", guest_name, *MODES[mode]]
    argv += ["--", "/usr/bin/python3", "-ISc", PRELUDE + TYPE]
    done = subprocess.run(
        [sys.executable, "-c", SESSION, *argv],
        capture_output=True,
        text=True,
        timeout=20 * SLOW,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.strip() in (
        '@@["EPERM", "ENXIO", "EPERM", "EPERM"]',
        '@@["EIO", "ENXIO", "EPERM", "EIO"]',
    ), done


IMPERSONATE = """
answers = {}
# As a limit group has it; nested deeper than a parser likes; larger than a mark; with what a terminal obeys.
claims = {
    "host-word": json.dumps({"v": 1, "name": "web", "id": "0" * 16, "level": 1, "state": "running", "pid": 1,
                             "limits": {"memory": 1}, "net": {"mode": "veth"}, "rm": True}),
    "deep": "[" * 30000,
    "large": json.dumps({"v": 1, "name": "x" * 30000}),
    "escape": json.dumps({"v": 1, "name": "\\x1b[31mred\\n", "state": "running", "command": ["\\x1b]0;title\\x07"]}),
    "types": json.dumps({"v": "1", "name": 7, "level": "x", "pid": [], "ids": 3, "limits": [1], "view": 1}),
}
names = ["nestrt", *(f"nestrt/{name}" for name in claims)]
names += ["red\\x1b[31m", b"bad\\xff".decode("utf-8", "surrogateescape")]
for place in mounts():
    for name in names:
        answers[name] = attempt(os.mkdir, f"{place}/{name}")
    for name, text in claims.items():
        for attribute in sys.argv[1:]:
            answers[attribute] = attempt(os.setxattr, f"{place}/nestrt/{name}", attribute, text.encode())
            attempt(os.setxattr, place, attribute, text.encode())
done({name: answer for name, answer in answers.items() if answer})
"""


# A guest forges marks on groups of its own, and on its root. The host takes them for claims, prints nothing
# that a terminal obeys, and fails on none; its own words are those above the view.
@pytest.mark.parametrize("mode", MASTERS)
def test_forged_marks_are_claims(nestrt: Nestrt, guest_name: str, python: PythonRoot, mode: str) -> None:
    attributes = ["user.nestrt", "trusted.nestrt", "security.nestrt"]
    script = IMPERSONATE.replace("sys.argv[1:]", repr(attributes))
    answers, _ = run_script(nestrt, python, script, "--name", guest_name, *MODES[mode])
    if mode == "userns":
        assert {answers.get(name) for name in attributes[1:]} == {"EPERM"}, answers
    real = mark(limit_group(guest_name))
    assert (real["name"], real["state"]) == (guest_name, "running")
    commands = [("ls",), ("tree",), ("show", guest_name), ("ls", "--format", "json"), ("tree", "--format", "json")]
    for command in commands if SLOW == 1 else commands[1:2]:
        result = nestrt.run(*command).ok()
        assert "\x1b" not in result.out, result
        assert "Traceback" not in result.err, result
        assert guest_name in result.out
    if SLOW == 1:
        # What it forged ends no other guest, and is in the way of no clean-up.
        assert "web" not in nestrt.run("gc").ok().out.split()


def test_fork_bomb_and_hog_end_with_the_guest(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """A guest at its limits of processes and memory is deleted like any other."""
    script = "trap '' TERM INT HUP; for i in $(seq 60); do (trap '' TERM; while :; do sleep 1; done) & done; wait"
    nestrt.run("launch", "-d", "--rootfs", busybox, "--name", guest_name, *LIMITS, "--", "sh", "-c", script).ok()
    nestrt.run("delete", "--force", guest_name).ok()


# Groups made to resist: frozen with a process inside, threaded, with strange names.
@pytest.mark.parametrize("mode", MASTERS)
def test_groups_that_resist_are_removed(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    tree = v2_hierarchy()
    assert tree is not None
    freezer = hierarchy_of("freezer")
    cold = f"{directory('freezer', '/') if freezer else tree.mountpoint}/cold"
    frozen = (
        f"{cold}/cgroup.procs",
        *((f"{cold}/freezer.state", "FROZEN") if freezer else (f"{cold}/cgroup.freeze", "1")),
    )
    script = (
        f"cd {tree.mountpoint}; mkdir -p cold warm/thread -- '-rf' 'a b' $(printf 'x%.0s' $(seq 200)); "
        f"mkdir -p {os.path.dirname(frozen[0])}; sleep 1000 & echo $! > {frozen[0]}; "
        f"sleep 1000 & echo $! > cold/cgroup.procs; "
        f"echo threaded > warm/thread/cgroup.type; (echo 0 > warm/cgroup.procs; exec sleep 1000) & sleep 0.1; "
        f"echo {frozen[2]} > {frozen[1]}; echo 1 > cold/cgroup.freeze; echo ready; sleep 1000"
    )
    process = nestrt.start("launch", "--rootfs", busybox, "--name", guest_name, *MODES[mode], "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    nestrt.run("delete", "--force", guest_name).ok()
    assert process.wait(10 * SLOW) == 137
