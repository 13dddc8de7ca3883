"""What config.json says of the process, read back from the process.

    test --clone3--> first process            chroot to a busybox root with procfs in it,
     |                time_steps … program_steps, as plan/process.py draws them
     |  before_groups, after_groups, then at "prepared": limit_steps
     v
    its output: what the program found of itself
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestrt.act import attributes, first, guest, resctrl
from nestrt.act.process import Guest
from nestrt.act.protocol import pair
from nestrt.errors import HostError, InputError, NestrtError, ProgramError, StateError
from nestrt.kernel import caps, id_maps, mount, namespaces, schedule
from nestrt.oci.model import (
    Affinity,
    Capabilities,
    IoPriority,
    Namespace,
    Personality,
    Process,
    Rlimit,
    Scheduler,
    Spec,
    User,
)
from nestrt.plan import process as plan
from nestrt.plan import process_steps as do
from nestrt.plan.guest_steps import BecomeRoot
from nestrt.plan.steps import Plan, Step, Tell, Wait
from nestrt.record import replace
from support.need import require
from support.rootfs import busybox_root

# Nothing here depends on the host's kind.
pytestmark = pytest.mark.slow_on_vm

PATH = "PATH=/bin"
ALL = Namespace("uts"), Namespace("ipc"), Namespace("network"), Namespace("pid"), Namespace("mount")
FLAGS = {
    "uts": namespaces.CLONE_NEWUTS,
    "ipc": namespaces.CLONE_NEWIPC,
    "network": namespaces.CLONE_NEWNET,
    "pid": namespaces.CLONE_NEWPID,
    "mount": namespaces.CLONE_NEWNS,
    "user": namespaces.CLONE_NEWUSER,
    "time": 0,  # made by the first process itself
}
IDS = ((0, 300_000, 65_536),)
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture(autouse=True)
def _root() -> None:
    require("root", None if caps.current().effective >= caps.DEFAULT else "not all of the default capabilities")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return busybox_root(tmp_path / "root")


class Launched:
    """What the launcher's functions need of it: the first process and, for resctrl, where the state goes."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def prepare(root: Path) -> None:
    mount.propagation("/", mount.MS_REC | mount.MS_PRIVATE)
    mount.move_mount(mount.new_mount("proc"), f"{root}/proc")
    mount.move_mount(mount.new_mount("tmpfs"), f"{root}/dev")
    os.chroot(root)
    os.chdir("/")


def first_steps(spec: Spec, process: Process, joins: bool) -> tuple[Step, ...]:
    steps: list[Step] = [Wait("mapped"), *plan.time_steps(spec)]
    if spec.namespace("user"):
        steps.append(BecomeRoot())
    steps += plan.keyring_steps(process, True)
    if not joins:
        steps += plan.system_steps(spec)
    steps += [*plan.attribute_steps(process, spec), Tell("prepared"), Wait("limited")]
    return (*steps, *plan.user_steps(process, joins), Tell("ready"), *plan.program_steps(process))


def output(root: Path, process: Process, spec: Spec | None = None, joins: bool = False) -> str:
    """What the process wrote, as it was made by the steps; raises what they raised."""
    spec = replace(spec or Spec("1.2.0", namespaces=ALL), process=process)
    flags = sum(FLAGS[entry.type] for entry in spec.namespaces)
    out, into = os.pipe()
    ours, theirs = pair()
    pid, pidfd = namespaces.clone(flags)
    if pid == 0:
        try:
            os.close(ours.sock.detach())
            os.dup2(into, 1)
            os.dup2(into, 2)
            prepare(root)
            steps = {**guest.STEPS, **attributes.FIRST}
            held = Guest(theirs, -1, {}, -1, set())
            first.main(Plan("test", (), first_steps(spec, process, joins)), held, steps, None)
        finally:
            os._exit(124)  # whatever is raised here is not for pytest, of which this is a copy
    os.close(into)
    os.close(pidfd)
    os.close(theirs.sock.detach())
    try:
        if spec.namespace("user"):
            id_maps.write_id_map(pid, "uid_map", IDS)
            id_maps.write_id_map(pid, "gid_map", IDS)
        carry_out(plan.before_groups(process, joins), pid)
        ours.tell("mapped")
        carry_out(plan.after_groups(process, joins, "test"), pid)
        ours.wait("prepared")
        carry_out(plan.limit_steps(process), pid)
        ours.tell("limited")
        ours.wait("ready")
        ours.expect_program(process.args[0])
    finally:
        if ours.fd >= 0:
            os.close(ours.sock.detach())  # the first process ends with it
        with open(out, encoding="utf-8") as file:
            text = file.read()
        os.waitpid(pid, 0)
    return text


def carry_out(steps: list[Step], pid: int) -> None:
    for step in steps:
        attributes.HOST[type(step)](Launched(pid), step)


def shell(script: str, **fields: object) -> Process:
    return replace(Process(args=("/bin/sh", "-c", script), env=(PATH,)), **fields)


def status_of(text: str) -> dict[str, list[str]]:
    lines = [line.partition(":") for line in text.splitlines()]
    return {name: value.split() for name, _, value in lines}


# Limits, scores, CPUs


def test_limits_are_exact(root: Path) -> None:
    """Every limit that exists, lowered: soft below hard."""
    limits = []
    for number, name in enumerate(schedule.RLIMITS):
        hard = min(schedule.limits(0, number)[1], 1 << 40)
        limits.append(Rlimit(name, hard // 2, hard))
    text = output(root, shell("exec cat /proc/self/limits", rlimits=tuple(limits)))
    found = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()[1:]}
    assert len(found) == len(limits)
    by_name = {limit.type: [str(limit.soft), str(limit.hard)] for limit in limits}
    assert found["Max open files"] == by_name["RLIMIT_NOFILE"]
    assert found["Max address space"] == by_name["RLIMIT_AS"]
    assert found["Max core file size"] == by_name["RLIMIT_CORE"]
    assert sorted(found.values()) == sorted(by_name.values())


def test_infinity_is_2_to_the_64_less_1(root: Path) -> None:
    limit = Rlimit("RLIMIT_CPU", 2**64 - 1, 2**64 - 1)
    text = output(root, shell("grep 'cpu time' /proc/self/limits", rlimits=(limit,)))
    assert text.split()[3:5] == ["unlimited", "unlimited"]


def test_a_limit_that_may_not_be_raised_is_named_with_the_highest(root: Path) -> None:
    require("no-cap-sys-resource", "CAP_SYS_RESOURCE is there" if 24 in caps.current().effective else None)
    highest = schedule.limits(0, schedule.RLIMITS.index("RLIMIT_NOFILE"))[1]
    limits = (Rlimit("RLIMIT_CORE", 0, 0), Rlimit("RLIMIT_NOFILE", 1, highest + 1))
    with pytest.raises(NestrtError) as caught:
        output(root, shell("true", rlimits=limits))
    assert "process.rlimits[1] (RLIMIT_NOFILE" in str(caught.value)
    assert "operation not permitted" in str(caught.value)
    assert f"at most {highest}" in caught.value.remedy


def test_limits_of_a_process_in_a_user_namespace(root: Path) -> None:
    spec = Spec("1.2.0", namespaces=(*ALL, Namespace("user")))
    limit = Rlimit("RLIMIT_NOFILE", 17, 19)
    assert output(root, shell("ulimit -n; ulimit -Hn", rlimits=(limit,)), spec).split() == ["17", "19"]


def test_oom_score_adj(root: Path) -> None:
    assert output(root, shell("cat /proc/self/oom_score_adj", oom_score_adj=321)) == "321\n"


def test_oom_score_adj_that_it_has_already_is_no_error(root: Path) -> None:
    now = int(Path("/proc/self/oom_score_adj").read_text())
    assert output(root, shell("cat /proc/self/oom_score_adj", oom_score_adj=now)) == f"{now}\n"


def test_a_lower_oom_score_adj_is_refused_with_the_lowest(root: Path) -> None:
    require("no-cap-sys-resource", "CAP_SYS_RESOURCE is there" if 24 in caps.current().effective else None)
    with pytest.raises(HostError, match=r"process.oomScoreAdj to -999: permission denied"):
        output(root, shell("true", oom_score_adj=-999))


def test_exec_affinity_and_the_lack_of_it(root: Path) -> None:
    """The runtime itself is bound to CPU 0; a container is not, and exec is as it says."""
    require("two-cpus", None if len(os.sched_getaffinity(0)) > 1 else "one CPU")
    cpus = os.sched_getaffinity(0)
    one, other = sorted(cpus)[:2]
    ask = "grep Cpus_allowed_list /proc/self/status"
    os.sched_setaffinity(0, {one})
    try:
        assert output(root, shell(ask)).split()[1] != str(one)
        bound = shell(ask, affinity=Affinity(str(one), str(other)))
        assert output(root, bound, joins=True).split()[1] == str(other)
        bound = shell(ask, affinity=Affinity(str(other)))
        assert output(root, bound, joins=True).split()[1] == str(other)
        with pytest.raises(NestrtError, match=r"process.execCPUAffinity.final"):
            output(root, shell(ask, affinity=Affinity("", "8000")), joins=True)
    finally:
        os.sched_setaffinity(0, cpus)


# Namespaces


def uptime(text: str) -> float:
    return float(text.split()[0])


@pytest.mark.parametrize("user", [False, True], ids=["root", "user namespace"])
def test_time_offsets(root: Path, user: bool) -> None:
    spec = Spec(
        "1.2.0",
        namespaces=(*ALL, Namespace("time"), *([Namespace("user")] if user else [])),
        time_offsets=(("monotonic", 1_000_000, 0), ("boottime", 2_000_000, 500)),
    )
    process = shell("cat /proc/uptime /proc/self/timens_offsets; readlink /proc/self/ns/time")
    text = output(root, process, spec).splitlines()
    assert -1 < uptime(text[0]) - time.clock_gettime(time.CLOCK_BOOTTIME) - 2_000_000 < 60
    assert [line.split() for line in text[1:3]] == [["monotonic", "1000000", "0"], ["boottime", "2000000", "500"]]
    assert text[3] != os.readlink("/proc/self/ns/time")


def test_time_offsets_by_the_runtimes_proc(root: Path) -> None:
    """In a root without procfs, where /proc/self is a trap of the image's: the runtime's own root is used."""
    (root / "proc/self").mkdir()
    (root / "proc/self/timens_offsets").write_text("")
    pid, pidfd = namespaces.clone(namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNS)
    if pid == 0:
        held = Guest(pair()[1], -1, {}, -1, set())
        held.old_root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        os.chroot(root)
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            attributes.FIRST[do.EnterTimeNamespace](held, do.EnterTimeNamespace((("boottime", 3_000_000, 0),)))
        finally:
            os._exit(int(time.clock_gettime(time.CLOCK_BOOTTIME) - before < 3_000_000))
    os.close(pidfd)
    assert os.waitpid(pid, 0)[1] == 0
    assert (root / "proc/self/timens_offsets").read_text() == ""


def test_an_offset_out_of_range_is_named(root: Path) -> None:
    spec = Spec("1.2.0", namespaces=(*ALL, Namespace("time")), time_offsets=(("boottime", -(10**12), 0),))
    with pytest.raises(NestrtError, match=r"linux.timeOffsets"):
        output(root, shell("true"), spec)


@pytest.mark.parametrize("user", [False, True], ids=["root", "user namespace"])
def test_names_and_sysctls(root: Path, user: bool) -> None:
    spec = Spec(
        "1.2.0",
        namespaces=(*ALL, *([Namespace("user")] if user else [])),
        hostname="inside",
        domainname="example.org",
        sysctl=(("kernel.shmmni", "321"), ("net.ipv4.ip_forward", "1"), ("net.ipv4.ping_group_range", "0 5")),
    )
    files = "kernel/hostname kernel/domainname kernel/shmmni net/ipv4/ip_forward net/ipv4/ping_group_range"
    text = output(root, shell(f"cd /proc/sys; cat {files}"), spec)
    assert text.split() == ["inside", "example.org", "321", "1", "0", "5"]
    assert os.uname().nodename != "inside"


def test_a_sysctl_is_written_to_procfs_whatever_the_image_has(root: Path) -> None:
    """/proc/sys/kernel of the container is covered by a directory of the image's, with a file of that name."""
    fake = root / "opt/fake"
    fake.mkdir()
    (fake / "shmmni").write_text("nothing")
    spec = Spec("1.2.0", namespaces=ALL, sysctl=(("kernel.shmmni", "99"),))
    real_prepare = prepare

    def covered(root: Path) -> None:
        real_prepare(root)
        mount.move_mount(mount.open_tree("/opt/fake"), "/proc/sys/kernel")

    globals()["prepare"] = covered
    try:
        uncover = shell("umount /proc/sys/kernel; cat /proc/sys/kernel/shmmni", capabilities=full())
        assert output(root, uncover, spec) == "99\n"
    finally:
        globals()["prepare"] = real_prepare
    assert (fake / "shmmni").read_text() == "nothing"


def test_a_sysctl_that_is_not_there_is_named(root: Path) -> None:
    spec = Spec("1.2.0", namespaces=ALL, sysctl=(("net.ipv4.no_such", "1"),))
    with pytest.raises(NestrtError, match=r"linux.sysctl net.ipv4.no_such to '1': No such file or directory"):
        output(root, shell("true"), spec)


def test_a_session_and_a_keyring_of_its_own(root: Path) -> None:
    text = output(root, shell("cat /proc/self/stat; cat /proc/keys"))
    assert text.splitlines()[0].split()[5] == "1"
    assert Path("/proc/keys").read_text() != text


# Attributes


def test_scheduler(root: Path) -> None:
    found = Scheduler("SCHED_BATCH", nice=7, flags=("SCHED_FLAG_RESET_ON_FORK",))
    # prio is 120 + nice, and a child of this one is back to normal: so no shell and no child.
    process = replace(shell(""), args=("/bin/cat", "/proc/1/sched", "/proc/1/stat"), scheduler=found)
    text = output(root, process)
    fields = text.splitlines()[-1].rpartition(")")[2].split()
    assert (fields[16], fields[38]) == ("7", "3")


@pytest.mark.parametrize(("policy", "number"), [("SCHED_FIFO", "1"), ("SCHED_RR", "2")])
def test_realtime(root: Path, policy: str, number: str) -> None:
    process = replace(shell(""), args=("/bin/cat", "/proc/1/stat"), scheduler=Scheduler(policy, priority=5))
    try:
        text = output(root, process)
    except NestrtError as error:
        require("realtime", str(error))
    fields = text.rpartition(")")[2].split()
    assert (fields[37], fields[38]) == ("5", number)


def test_a_policy_that_the_kernel_lacks_is_named(root: Path) -> None:
    with pytest.raises(NestrtError, match=r"process.scheduler SCHED_ISO"):
        output(root, shell("true", scheduler=Scheduler("SCHED_ISO")))


@pytest.mark.parametrize(
    ("name", "level", "shown"),
    [("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"), ("IOPRIO_CLASS_IDLE", 0, "idle"),
     ("IOPRIO_CLASS_RT", 1, "realtime: prio 1")],
)  # fmt: skip
def test_io_priority(root: Path, name: str, level: int, shown: str) -> None:
    assert output(root, shell("ionice", io_priority=IoPriority(name, level))).strip() == shown


def test_personality(root: Path) -> None:
    spec = Spec("1.2.0", namespaces=ALL, personality=Personality("LINUX32"))
    assert output(root, shell("cat /proc/self/personality; uname -m"), spec).split()[0] == "00000008"


def test_no_new_privileges(root: Path) -> None:
    assert status_of(output(root, shell("cat /proc/self/status", no_new_privileges=True)))["NoNewPrivs"] == ["1"]
    assert status_of(output(root, shell("cat /proc/self/status")))["NoNewPrivs"] == ["0"]


def test_security_modules_that_are_off_are_named() -> None:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    require("no-apparmor", "AppArmor is on" if enabled.exists() and enabled.read_text()[0] == "Y" else None)
    for process, field in (
        (shell("", apparmor_profile="x"), "process.apparmorProfile"),
        (shell("", selinux_label="x"), "process.selinuxLabel"),
    ):
        with pytest.raises(HostError, match=f"cannot use {field}: .* is not enabled on this host"):
            carry_out(plan.required_steps(process), 0)


def test_attributes_of_a_security_module_are_really_written(root: Path) -> None:
    """Where none is there to take it, the kernel refuses, and the error says which field."""
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    require("no-apparmor", "AppArmor is on" if enabled.exists() and enabled.read_text()[0] == "Y" else None)
    with pytest.raises(NestrtError, match=r"process.apparmorProfile web: Invalid argument"):
        output(root, shell("true", apparmor_profile="web"))
    with pytest.raises(NestrtError, match=r"process.selinuxLabel a:b:c: Invalid argument"):
        output(root, replace(shell("true"), selinux_label="a:b:c"), joins=True)


# The user


def full() -> Capabilities:
    every = tuple(caps.to_name(number) for number in sorted(caps.current().permitted))
    return Capabilities(every, every, every, every, ())


def masks(text: str) -> dict[str, frozenset[str]]:
    found = status_of(text)
    return {
        name: frozenset(caps.to_name(n) for n in range(64) if int(found[name][0], 16) >> n & 1) for name in SETS
    }


def test_ids_groups_and_umask(root: Path) -> None:
    ask = "id -u; id -g; id -G; umask; grep -E '^(Uid|Gid)' /proc/self/status"
    process = shell(ask, user=User(7, 8, 0o27, (9, 10)))
    text = output(root, process).split("\n")
    assert text[:4] == ["7", "8", "8 9 10", "0027"]
    assert [line.split()[1:] for line in text[4:6]] == [["7"] * 4, ["8"] * 4]
    assert output(root, shell("umask")) == "0022\n"
    old = os.umask(0o31)
    try:
        assert output(root, shell("umask"), joins=True) == "0031\n"
    finally:
        os.umask(old)


def test_five_sets_of_an_ordinary_user(root: Path) -> None:
    """Of an ordinary user execve(2) leaves what is ambient; the others are as they were said."""
    process = shell(
        "cat /proc/self/status",
        user=User(1000, 1000),
        capabilities=Capabilities(
            bounding=("CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"),
            effective=("CAP_KILL",),
            inheritable=("CAP_KILL", "CAP_CHOWN"),
            permitted=("CAP_KILL", "CAP_CHOWN"),
            ambient=("CAP_KILL",),
        ),
    )
    assert masks(output(root, process)) == {
        "CapInh": {"CAP_KILL", "CAP_CHOWN"},
        "CapPrm": {"CAP_KILL"},
        "CapEff": {"CAP_KILL"},
        "CapBnd": {"CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"},
        "CapAmb": {"CAP_KILL"},
    }


def test_sets_just_before_the_program(root: Path) -> None:
    """What execve(2) makes of the sets hides what they were: the first process itself is looked at."""
    asked = Capabilities(
        bounding=("CAP_KILL", "CAP_CHOWN"), effective=("CAP_KILL",), permitted=("CAP_KILL", "CAP_CHOWN"), inheritable=()
    )
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        become = plan.user_steps(shell("", user=User(1000, 1000), capabilities=asked), False)[1]
        attributes.FIRST[do.BecomeUser](Guest(pair()[1], -1, {}, -1, set()), become)
        os.write(into, Path("/proc/self/status").read_bytes())
        os._exit(0)
    os.close(into)
    os.waitpid(pid, 0)
    with open(out, encoding="utf-8") as file:
        found = masks(file.read())
    assert (found["CapEff"], found["CapPrm"]) == ({"CAP_KILL"}, {"CAP_KILL", "CAP_CHOWN"})
    assert (found["CapInh"], found["CapAmb"], found["CapBnd"]) == (set(), set(), {"CAP_KILL", "CAP_CHOWN"})


def test_root_has_its_bounding_set_and_without_capabilities_nothing(root: Path) -> None:
    some = ("CAP_KILL", "CAP_CHOWN")
    asked = Capabilities(bounding=some, effective=some, permitted=some)
    found = masks(output(root, shell("cat /proc/self/status", capabilities=asked)))
    assert found["CapBnd"] == found["CapPrm"] == found["CapEff"] == set(some)
    assert set(masks(output(root, shell("cat /proc/self/status"))).values()) == {frozenset()}


def test_what_this_level_lacks_is_left_out(root: Path) -> None:
    lacking = caps.known() - caps.current().permitted
    require("no-cap-sys-resource", None if lacking else "this level has every capability")
    some = ("CAP_KILL", caps.to_name(min(lacking)))
    asked = Capabilities(some, some, some, some, some)
    found = masks(output(root, shell("cat /proc/self/status", capabilities=asked, user=User(5, 5))))
    assert set(found.values()) == {frozenset({"CAP_KILL"})}


def test_sets_that_contradict_each_other_are_refused(root: Path) -> None:
    asked = Capabilities(bounding=("CAP_KILL",), effective=("CAP_KILL",))
    with pytest.raises(NestrtError, match="unable to apply caps: operation not permitted"):
        output(root, shell("true", capabilities=asked))


def test_an_id_that_is_not_mapped(root: Path) -> None:
    spec = Spec("1.2.0", namespaces=(*ALL, Namespace("user")))
    with pytest.raises(NestrtError, match="cannot setuid to unmapped uid 70000 in user namespace"):
        output(root, shell("true", user=User(70_000, 0)), spec)


def test_the_user_of_a_user_namespace(root: Path) -> None:
    spec = Spec("1.2.0", namespaces=(*ALL, Namespace("user")))
    process = shell("id -u; id -G; cat /proc/self/status", user=User(5, 6, None, (7,)), capabilities=Capabilities())
    text = output(root, process, spec)
    assert text.splitlines()[:2] == ["5", "6 7"]
    assert set(masks(text).values()) == {frozenset()}


@pytest.mark.parametrize(
    ("env", "uid", "home"),
    [((), 0, "/root"), ((), 1000, "/"), ((), 4242, "/"), (("HOME=",), 0, "/root"), (("HOME=/x", "HOME=/y"), 0, "/y")],
)
def test_home(root: Path, env: tuple[str, ...], uid: int, home: str) -> None:
    assert output(root, shell("echo $HOME", env=(PATH, *env), user=User(uid, uid))) == f"{home}\n"


def test_home_of_a_user_who_cannot_read_passwd(root: Path) -> None:
    (root / "etc/passwd").write_text("u:x:77:77::/home/u:/bin/sh\n")
    (root / "etc/passwd").chmod(0o600)
    assert output(root, shell("echo $HOME", user=User(77, 77))) == "/home/u\n"


# The working directory


def test_a_working_directory_is_made(root: Path) -> None:
    assert output(root, shell("pwd; stat -c %a:%u .", cwd="/new/deep")).split() == ["/new/deep", "755:0"]


def test_a_directory_that_only_root_may_enter_is_entered_first(root: Path) -> None:
    (root / "root/closed").mkdir(mode=0o700)
    (root / "root").chmod(0o700)
    assert output(root, shell("/bin/readlink /proc/self/cwd", cwd="/root/closed", user=User(9, 9))) == "/root/closed\n"


def test_a_directory_that_nobody_may_enter(root: Path) -> None:
    """Root of a user namespace is refused on the way, and so is the user after it."""
    (root / "root").chmod(0o700)  # owned by the host's root, which the user namespace does not have
    spec = Spec("1.2.0", namespaces=(*ALL, Namespace("user")))
    with pytest.raises(NestrtError) as caught:
        output(root, shell("true", cwd="/root"), spec)
    assert 'chdir to cwd ("/root") set in config.json failed: permission denied' in str(caught.value)


def test_a_file_for_a_working_directory(root: Path) -> None:
    with pytest.raises(NestrtError, match=r"process.cwd /etc/passwd: "):
        output(root, shell("true", cwd="/etc/passwd"))
    with pytest.raises(NestrtError, match=r'chdir to cwd \("/gone"\) set in config.json failed: no such file'):
        output(root, shell("true", cwd="/gone"), joins=True)


def test_a_working_directory_outside_the_root_is_refused(root: Path, tmp_path: Path) -> None:
    """CVE-2024-21626: the working directory is reached by a descriptor of the host that was left open."""
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(NestrtError, match="it lies outside the root filesystem"):
            output(root, shell("true", cwd=f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


# Standard streams


@pytest.fixture
def pipe_as_stdin() -> Iterator[int]:
    begin, end = os.pipe()
    saved = os.dup(0)
    os.dup2(begin, 0)
    yield begin
    os.dup2(saved, 0)
    for fd in (begin, end, saved):
        os.close(fd)


def test_standard_streams_are_the_users(root: Path, pipe_as_stdin: int) -> None:
    text = output(root, shell("echo hello > /proc/self/fd/1; stat -L -c %u /proc/self/fd/0", user=User(1000, 1000)))
    assert text.split() == ["hello", "1000"]
    assert os.fstat(pipe_as_stdin).st_uid == 1000


def test_the_hosts_null_device_stays_roots(root: Path) -> None:
    saved, null, owner = os.dup(0), os.open("/dev/null", os.O_RDWR), os.stat("/dev/null").st_uid
    os.dup2(null, 0)
    try:
        output(root, shell("true", user=User(1000, 1000)))
        assert os.stat("/dev/null").st_uid == owner
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(null)


# The program


@pytest.mark.parametrize(
    ("argument", "env", "reason", "status"),
    [
        ("no-such", (PATH,), 'exec: "no-such": executable file not found in $PATH', 127),
        ("plain", ("PATH=/etc:/bin",), 'exec: "plain": executable file not found in $PATH', 127),
        ("/no/such", (PATH,), 'exec: "/no/such": stat /no/such: no such file or directory', 127),
        ("/etc/plain", (PATH,), 'exec: "/etc/plain": permission denied', 126),
        ("/etc", (PATH,), 'exec: "/etc": permission denied', 126),
        ("", (PATH,), 'exec: "": executable file not found in $PATH', 127),
    ],
)
def test_a_program_that_cannot_be_executed(
    root: Path, argument: str, env: tuple[str, ...], reason: str, status: int
) -> None:
    """In the words that engines look for, and before the process is told to be ready."""
    (root / "etc/plain").write_text("")
    with pytest.raises(NestrtError) as caught:
        output(root, Process(args=(argument,), env=env))
    assert reason in caught.value.reason
    assert caught.value.status == status


def test_the_program_is_looked_for_with_the_users_rights(root: Path) -> None:
    (root / "root").chmod(0o700)
    (root / "root/tool").symlink_to("/bin/busybox")
    with pytest.raises(NestrtError, match="stat /root/tool: permission denied") as caught:
        output(root, Process(args=("/root/tool",), user=User(9, 9)))
    assert caught.value.status == 126


def test_a_program_by_path_relative_to_the_working_directory(root: Path) -> None:
    assert output(root, Process(args=("bin/echo", "a b", ""), env=(PATH,))) == "a b \n"
    assert output(root, Process(args=("echo", "found"))) == "found\n"


def test_an_interpreter_that_is_missing_is_told_by_the_trampoline(root: Path) -> None:
    (root / "bin/script").write_text("#!/no/such/interpreter\n")
    (root / "bin/script").chmod(0o755)
    with pytest.raises(ProgramError) as caught:
        output(root, Process(args=("script",), env=(PATH,)))
    assert caught.value.status == 127


def test_the_environment_is_exact_and_no_descriptor_is_left(root: Path) -> None:
    process = shell("tr '\\0' '\\n' < /proc/self/environ; ls /proc/self/fd", env=(PATH, "A=1", "A=2", "B=x=y"))
    lines = output(root, process).split()
    assert lines[:4] == [PATH, "A=2", "B=x=y", "HOME=/root"]
    # The shell's own redirection is gone by then; ls has its directory open.
    assert set(lines[4:]) - {"0", "1", "2"} == {"3"} or set(lines[4:]) <= {"0", "1", "2", "3"}


def test_preserved_descriptors() -> None:
    """Descriptors 3 and 4 of the caller reach the program, and no other."""
    code = f"""
import os, sys
sys.path.insert(0, {os.fspath(Path(__file__).resolve().parents[2])!r})
from nestrt.act import attributes
from nestrt.act.process import Guest
from nestrt.act.protocol import pair
from nestrt.oci.model import Process
from nestrt.plan import process as plan
for wanted in (3, 4):
    os.set_inheritable(os.open('/etc/hostname', os.O_RDONLY), True)
held = Guest(pair()[1], -1, {{}}, -1, set())
process = Process(args=('ls', '/proc/self/fd'), env=('PATH=/bin',))
for step in [*plan.user_steps(process, False), *plan.program_steps(process, 2)]:
    attributes.FIRST[type(step)](held, step)
"""
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1", "2", "3", "4", "5"], done.stderr  # 5: the directory that ls reads


# resctrl


def test_without_resctrl_the_error_names_the_field() -> None:
    mounted = [entry for entry in Path("/proc/self/mountinfo").read_text().splitlines() if " - resctrl " in entry]
    require("no-resctrl", "resctrl is mounted" if mounted else None)
    with pytest.raises(HostError, match=r"cannot use linux.intelRdt: no resctrl filesystem is mounted"):
        attributes.HOST[do.JoinResctrl](Launched(1), do.JoinResctrl("c", True, ()))


def test_a_group_that_must_be_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"linux.intelRdt.closID shared"):
        resctrl.join(os.fspath(tmp_path), do.JoinResctrl("shared", False, ()), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_group_with_other_schemata_is_refused(tmp_path: Path) -> None:
    """Written as in config.json, read as the kernel writes it: leading zeros, spaces, other caches' order."""
    group = tmp_path / "shared"
    group.mkdir()
    (group / "schemata").write_text("    L3:0=007f0;1=0001f\n    MB:0= 20;1= 70\n")
    (group / "tasks").write_text("")
    same = do.JoinResctrl("shared", False, ("L3:1=1f;0=7F0", "MB:0=20"))
    assert resctrl.to_remove(os.fspath(tmp_path), same) == ""
    resctrl.join(os.fspath(tmp_path), same, 42)
    assert (group / "tasks").read_text() == "42"
    other = do.JoinResctrl("shared", False, ("L3:0=f",))
    with pytest.raises(StateError, match="it is there with L3:0=7f0, not f"):
        resctrl.join(os.fspath(tmp_path), other, 42)
