"""Programs under filters for real: every action, the listener, and the same section under runc.

A child of the test is the first process: it loads, or has the trampoline load, what
the test, as the launcher, has built. The agent is a thread of the test.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from unit.seccomp_emulator import X32_BIT, X86, X86_64, run

from nestrt.act import seccomp as act
from nestrt.errors import HostError, NestrtError
from nestrt.kernel import board as board_page
from nestrt.kernel import caps, libseccomp, prctl, seccomp, trampoline
from nestrt.oci.model import Seccomp, SyscallArg, Syscalls
from nestrt.plan import seccomp_steps as do
from support.need import SLOW, require
from support.runner import wait_for

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64"),
    pytest.mark.slow_on_vm,  # nothing here depends on the host's kind
]

MKDIR, PERSONALITY, GETPPID, NEWEST = 83, 135, 110, 5000
# include/uapi/linux/seccomp.h: _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp)
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
libc = ctypes.CDLL(None, use_errno=True)


def entry(names: str, action: str = "SCMP_ACT_ALLOW", errno_ret: int | None = None, *args: Any) -> Syscalls:
    return Syscalls(tuple(names.split()), action, errno_ret, tuple(SyscallArg(*arg) for arg in args))


def filter_of(*entries: Syscalls, default: str = "SCMP_ACT_ALLOW", **fields: Any) -> libseccomp.Filter:
    made = libseccomp.build(Seccomp(default, syscalls=entries, **fields))
    assert made is not None
    return made


def call(number: int, *args: int) -> str:
    """What a system call comes to: "ok", or its error's name."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def child(work: Callable[[], object]) -> tuple[int, str]:
    """Exit code (negative: the signal) of a child that does *work*, and what that returned, as text."""
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(ours, str(work()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(ours, repr(error).encode())
            os._exit(99)
    os.close(ours)
    text = b""
    while chunk := os.read(theirs, 4096):
        text += chunk
    os.close(theirs)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text.decode()


def under(made: libseccomp.Filter, work: Callable[[], object]) -> tuple[int, str]:
    def loaded() -> object:
        seccomp.load(made.code, made.flags)
        return work()

    return child(loaded)


@pytest.mark.parametrize(
    ("action", "number", "result"),
    [
        ("SCMP_ACT_ERRNO", None, (0, "EPERM")),
        ("SCMP_ACT_ERRNO", errno.ENOANO, (0, "ENOANO")),
        ("SCMP_ACT_KILL", None, (-signal.SIGSYS, "")),
        ("SCMP_ACT_KILL_THREAD", None, (-signal.SIGSYS, "")),
        ("SCMP_ACT_KILL_PROCESS", None, (-signal.SIGSYS, "")),
        ("SCMP_ACT_TRAP", None, (-signal.SIGSYS, "")),
        ("SCMP_ACT_TRACE", None, (0, "ENOSYS")),  # without a tracer
        ("SCMP_ACT_LOG", None, (0, "ok")),
    ],
)
def test_what_each_action_does(action: str, number: int | None, result: tuple[int, str]) -> None:
    assert under(filter_of(entry("getppid", action, number)), lambda: call(GETPPID)) == result


def test_killing_the_thread_spares_the_others_killing_the_process_does_not() -> None:
    def in_thread() -> str:
        thread = threading.Thread(target=call, args=(GETPPID,), daemon=True)
        thread.start()
        thread.join(0.5)
        return "alive"

    assert under(filter_of(entry("getppid", "SCMP_ACT_KILL_THREAD")), in_thread) == (0, "alive")
    assert under(filter_of(entry("getppid", "SCMP_ACT_KILL_PROCESS")), in_thread) == (-signal.SIGSYS, "")


def test_a_trap_can_be_caught() -> None:
    def work() -> str:
        caught: list[int] = []
        signal.signal(signal.SIGSYS, lambda *_: caught.append(1))
        call_unchecked(GETPPID)
        return f"caught {len(caught)}"

    assert under(filter_of(entry("getppid", "SCMP_ACT_TRAP")), work) == (0, "caught 1")


def call_unchecked(number: int) -> None:
    libc.syscall(ctypes.c_long(number))


def test_arguments_are_compared_in_64_bits() -> None:
    made = filter_of(
        entry("personality", "SCMP_ACT_ERRNO", errno.ENOANO, (0, 0xF0000, 0x20000, "SCMP_CMP_MASKED_EQ")),
        entry("getppid", "SCMP_ACT_ERRNO", errno.ENOANO, (1, 1 << 33, 0, "SCMP_CMP_GT")),
    )

    def work() -> list[str]:
        return [
            call(PERSONALITY, 0x20008),
            call(PERSONALITY, 0xFFFFFFFF),
            call(GETPPID, 0, (1 << 33) + 1),
            call(GETPPID, 0, 1 << 33),
            call(GETPPID, 0, 5),
        ]

    assert under(made, work) == (0, str(["ENOANO", "ok", "ENOANO", "ok", "ok"]))


def test_a_new_system_call_is_not_there_and_an_old_one_is_refused() -> None:
    everything = entry("write exit exit_group rt_sigreturn munmap mmap brk futex close read personality")
    made = filter_of(everything, default="SCMP_ACT_ERRNO")
    assert under(made, lambda: [call(GETPPID), call(NEWEST)]) == (0, str(["EPERM", "ENOSYS"]))


def test_the_flags_that_are_said_to_be_supported_can_be_loaded() -> None:
    names = libseccomp.supported_flags()
    assert "SECCOMP_FILTER_FLAG_TSYNC" in names
    agent = {"listener_path": "/agent"} if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in names else {}
    action = "SCMP_ACT_NOTIFY" if agent else "SCMP_ACT_LOG"
    assert under(filter_of(entry("mkdir", action), flags=names, **agent), lambda: "loaded") == (0, "loaded")
    assert not seccomp.flags_supported(1 << 30)


# --- by the trampoline -----------------------------------------------------------------------------------------


class First:
    """seccomp.FirstSide."""

    def __init__(self, made: libseccomp.Filter | None, board: int) -> None:
        self.filter = made
        self.board = board


class Container:
    """A first process that goes through the steps up to its program, and what the launcher has of it."""

    def __init__(self, made: libseccomp.Filter, prepare: Callable[[First], Any], *argv: str, early: bool) -> None:
        self.filter: libseccomp.Filter | None = made
        self.board = board_page.new_board()
        self.agent: socket.socket | None = None  # type: ignore[assignment]
        self.channel, theirs = socket.socketpair()
        self.output, ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(ours, 1)
                first = First(made, self.board)
                sets = prepare(first)
                act.FIRST[do.LoadFilter](first, do.LoadFilter(early))
                held = first.filter
                more: tuple[Any, ...] = (held.code, held.flags, self.board, sets) if held else ()
                trampoline.become(argv[0], argv, {"PATH": "/usr/bin:/bin"}, theirs.fileno(), *more)
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
            finally:
                os._exit(99)
        self.pidfd = os.pidfd_open(self.pid)
        theirs.close()
        os.close(ours)

    def state(self, status: str) -> dict[str, object]:
        return {"ociVersion": "1.2.0", "id": "c", "status": status, "pid": self.pid, "bundle": "/b"}

    def await_program(self) -> tuple[str, int] | None:
        self.channel.settimeout(10 * SLOW)
        assert self.channel.recv(4) == b""
        return act.failed(self.board)

    def end(self) -> tuple[int, str]:
        text = b""
        while chunk := os.read(self.output, 4096):
            text += chunk
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text.decode()


@pytest.fixture
def container() -> Iterator[Callable[..., Container]]:
    made: list[Container] = []

    def make(*args: Any, early: bool = False) -> Container:
        made.append(Container(*args, early=early))
        return made[-1]

    yield make
    for each in made:
        try:
            signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            os.waitpid(each.pid, 0)
        except ChildProcessError:
            pass
        for descriptor in (each.pidfd, each.board, each.output):
            os.close(descriptor)
        each.channel.close()


def no_new_privs(_first: First) -> None:
    prctl.set_no_new_privs()


STATUS = ("/bin/cat", "/proc/self/status")
# All that a runtime would do between the load and the program.
RUNTIMES = "prctl capset capget setuid setresuid setresgid setgroups fcntl close_range chdir keyctl seccomp execveat"


def field(text: str, name: str) -> str:
    return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith(name + ":"))


def test_with_no_new_privs_the_filter_sees_nothing_of_the_runtime(container: Callable[..., Container]) -> None:
    made = filter_of(entry(RUNTIMES, "SCMP_ACT_KILL_PROCESS"))
    one = container(made, no_new_privs, *STATUS)
    assert one.await_program() is None
    status, text = one.end()
    assert (status, field(text, "Seccomp"), field(text, "NoNewPrivs")) == (0, "2", "1")


@pytest.mark.parametrize("uid", [0, 1234])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("wanted", [(), (0, 10), (0, 21)])
def test_without_no_new_privs_the_right_to_load_is_gone_when_the_program_runs(
    container: Callable[..., Container], uid: int, early: bool, wanted: tuple[int, ...]
) -> None:
    """CAP_SYS_ADMIN (21) stays only where the program is to have it; then in exactly the sets that are said."""
    keep = frozenset(wanted)

    def prepare(first: First) -> tuple[int, int, int]:
        act.FIRST[do.HoldLoadingRight](first, do.HoldLoadingRight())
        have = caps.current()
        caps.apply(have.effective, have.permitted, have.inheritable, keep, frozenset())
        prctl.set_keep_capabilities(True)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        sets = act.with_loading_right(keep, keep, keep, keep)
        caps.apply(sets[0], sets[1], sets[2], keep, sets[3])
        return act.sets_for_load(keep, keep, keep)

    # Where hooks have to run under the filter, the right is given up under it too, as by runc.
    forbidden = RUNTIMES.replace("capset ", "").replace("execveat", "").replace("fcntl", "") if early else RUNTIMES
    forbidden = forbidden.replace("close_range", "")
    one = container(filter_of(entry(forbidden, "SCMP_ACT_KILL_PROCESS")), prepare, *STATUS, early=early)
    assert one.await_program() is None
    status, text = one.end()
    assert (status, field(text, "Seccomp"), field(text, "NoNewPrivs")) == (0, "2", "0")
    mask = f"{sum(1 << number for number in keep):016x}"
    assert {name: field(text, name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), mask
    )


def test_without_the_right_the_error_says_so() -> None:
    def work() -> str:
        have = caps.current()
        fewer = have.permitted - {act.SYS_ADMIN}
        caps.apply(fewer, fewer, frozenset(), have.bounding, frozenset())
        try:
            act.FIRST[do.HoldLoadingRight](First(filter_of(), -1), do.HoldLoadingRight())
        except HostError as error:
            return str(error)
        return "nothing"

    status, text = child(work)
    assert status == 0
    assert "CAP_SYS_ADMIN" in text
    assert "linux.seccomp" in text


# --- the listener ----------------------------------------------------------------------------------------------


class Agent(threading.Thread):
    """Takes one listener, then answers each call: *answers* by number, (value, errno, flags); else let it go on."""

    def __init__(self, path: str, answers: dict[int, tuple[int, int, int]]) -> None:
        super().__init__(daemon=True)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen()
        self.answers = answers
        self.document: dict[str, Any] = {}
        self.seen: list[int] = []
        self.start()

    def run(self) -> None:
        with self.server:
            connection, _ = self.server.accept()
        with connection:
            text, fds, _, _ = socket.recv_fds(connection, 65536, 4)
        if not fds:
            return
        self.document = json.loads(text)
        (listener,) = fds
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not poll.poll()[0][1] & select.POLLHUP:  # until nothing is under the filter any more
            request = bytearray(80)
            try:
                ioctl(listener, NOTIF_RECV, request)
                number = struct.unpack_from("=QIIi", request)[3]
                self.seen.append(number)
                value, error, flags = self.answers.get(number, (0, 0, CONTINUE))
                identity = struct.unpack_from("=Q", request)[0]
                ioctl(listener, NOTIF_SEND, struct.pack("=QqiI", identity, value, -error, flags))
            except FileNotFoundError:  # it was killed while it waited
                continue
        os.close(listener)


EVERYTHING = "execve openat open read close fcntl mmap mkdir exit_group capset prctl brk munmap"


@pytest.mark.parametrize("early", [False, True])
def test_the_agent_answers_for_the_program_even_for_its_execve(
    container: Callable[..., Container], tmp_path: Path, early: bool
) -> None:
    path = str(tmp_path / "agent")
    agent = Agent(path, {MKDIR: (0, errno.ENOANO, 0)})
    made = filter_of(entry(EVERYTHING, "SCMP_ACT_NOTIFY"), listener_path=path)
    one = container(made, no_new_privs, "/bin/sh", "-c", "mkdir /nestrt-none 2>&1; echo done", early=early)
    act.HOST[do.ConnectListener](one, do.ConnectListener(path))
    act.HOST[do.SendListener](one, do.SendListener("meta data"))
    assert one.await_program() is None
    status, text = one.end()
    assert (status, "done" in text, "No anode" in text) == (0, True, True), text
    agent.join(5)
    assert agent.document == {
        "ociVersion": "1.2.0",
        "fds": ["seccompFd"],
        "pid": one.pid,
        "metadata": "meta data",
        "state": one.state("creating"),
    }
    assert 59 in agent.seen
    assert early or agent.seen[0] == 59, "nothing but execve comes before the program"


def test_no_agent_is_an_error_in_runcs_words(container: Callable[..., Container], tmp_path: Path) -> None:
    with pytest.raises(NestrtError, match="failed to connect with seccomp agent"):
        act.connect(str(tmp_path / "none"))
    with pytest.raises(NestrtError, match="failed to connect with seccomp agent"):
        act.connect("@nestrt-none")
    with pytest.raises(NestrtError, match="failed to connect with seccomp agent"):
        act.connect("/" + "x" * 200)


def test_a_first_process_that_fails_before_the_load_is_not_waited_for(
    container: Callable[..., Container], tmp_path: Path
) -> None:
    path = str(tmp_path / "agent")
    agent = Agent(path, {})
    bad = libseccomp.Filter(bytes(8), seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER, True)
    one = container(bad, no_new_privs, "/bin/true")
    one.agent = act.connect(path)  # type: ignore[assignment]
    act.HOST[do.SendListener](one, do.SendListener(""))
    assert one.await_program() == ("load the seccomp filter", errno.EINVAL)
    agent.join(5)
    assert agent.document == {}


# --- runc ------------------------------------------------------------------------------------------------------

PTRACE_GET_FILTER, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x420C, 0x4206, 0x4207, 17


def filter_of_process(pid: int) -> bytes:
    """The newest filter of *pid*: ptrace(2), PTRACE_SECCOMP_GET_FILTER."""

    def ptrace(request: int, address: int = 0, data: Any = 0) -> int:
        result = int(
            libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data))
        )
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    ptrace(PTRACE_SEIZE)
    try:
        ptrace(PTRACE_INTERRUPT)
        os.waitpid(pid, 0x40000000)  # __WALL: it is no child of ours, but we trace it
        count = ptrace(PTRACE_GET_FILTER)
        buffer = ctypes.create_string_buffer(count * 8)
        ptrace(PTRACE_GET_FILTER, 0, ctypes.addressof(buffer))
        return buffer.raw
    finally:
        ptrace(PTRACE_DETACH)


def under_runc(busybox: Path, directory: Path, section: dict[str, Any]) -> bytes:
    """The program that runc loads for *section*."""
    runc = shutil.which("runc") or "/usr/sbin/runc"
    subprocess.run([runc, "spec"], cwd=directory, check=True)
    config = directory / "config.json"
    spec = json.loads(config.read_text())
    spec["root"] = {"path": str(busybox), "readonly": True}
    spec["process"].update(terminal=False, args=["/bin/sleep", "60"])
    spec["linux"]["seccomp"] = section
    config.write_text(json.dumps(spec))
    name = f"nestrt-runc-{os.getpid()}"
    root = ["--root", str(directory / "state")]
    subprocess.run(
        [runc, *root, "run", "-d", "-b", directory, "--pid-file", directory / "pid", name],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        pid = int((directory / "pid").read_text())
        # runc's own process has its filter last, just before it becomes the program.
        wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the program")
        return filter_of_process(pid)
    finally:
        subprocess.run([runc, *root, "delete", "--force", name], check=True)


def as_record(section: dict[str, Any]) -> Seccomp:
    entries = tuple(
        Syscalls(
            tuple(e["names"]),
            e["action"],
            e.get("errnoRet"),
            tuple(SyscallArg(a["index"], a["value"], a.get("valueTwo", 0), a["op"]) for a in e.get("args") or ()),
        )
        for e in section.get("syscalls", ())
    )
    return Seccomp(
        section["defaultAction"], section.get("defaultErrnoRet"), tuple(section.get("architectures", ())), None, "", "",
        entries,
    )  # fmt: skip


def sections() -> dict[str, dict[str, Any]]:
    all_three = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    some = "read write open openat close execve exit exit_group brk mmap munmap mprotect arch_prctl nanosleep"
    some += (
        " clock_nanosleep set_tid_address prlimit64 getrandom rseq set_robust_list readlink readlinkat restart_syscall"
    )
    some += (
        " clock_nanosleep_time64 rt_sigaction rt_sigprocmask fstat newfstatat getuid setuid ioctl fcntl futex epoll_ctl"
    )
    some += (
        " epoll_pwait tgkill getpid gettid sigaltstack capset capget prctl chdir getdents64 getppid close_range write"
    )
    some += " epoll_create1 pipe2 pread64 madvise sched_yield rt_sigreturn fstatfs statfs fchdir getcwd no_such_call"
    two = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_GT"}]
    mixed = [
        {"names": some.split(), "action": "SCMP_ACT_ALLOW"},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": two},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": two[:1]},
        {"names": ["dup3"], "action": "SCMP_ACT_TRAP"},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        },
    ]
    found: dict[str, dict[str, Any]] = {
        "allow": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_LOG"}]},
        # Not without any: runc 1.1 has no ENOSYS then, later ones do as nestrt does.
        "native": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": all_three[:1], "syscalls": mixed},
        "three": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": all_three, "syscalls": mixed},
        "kill": {"defaultAction": "SCMP_ACT_KILL", "architectures": all_three[:2], "syscalls": mixed},
    }
    engine = Path("/usr/share/containers/seccomp.json")
    if engine.exists():
        profile = json.loads(engine.read_text())
        for each in profile["syscalls"]:
            each.pop("includes", None), each.pop("excludes", None), each.pop("errno", None)
            each["args"] = each.get("args") or []
        found["podman"] = {
            "defaultAction": profile["defaultAction"],
            "defaultErrnoRet": profile["defaultErrnoRet"],
            "architectures": all_three,
            "syscalls": profile["syscalls"],
        }
    return found


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("name", ["allow", "native", "three", "kill", "podman"])
def test_a_section_means_what_it_means_under_runc(busybox: Path, tmp_path: Path, name: str) -> None:
    """Every number of three architectures, and arguments around those that the sections compare."""
    runc = shutil.which("runc") or shutil.which("/usr/sbin/runc")
    require("runc", None if runc else "it is not installed")
    section = sections().get(name)
    require("podman's profile", None if section else "it is not installed")
    assert section is not None
    theirs = under_runc(busybox, tmp_path, section)
    made = libseccomp.build(as_record(section))
    assert made is not None
    values = (0, 1, 2, 8, 9, 10, 16, 40, 0x20000, 2114060288, 0xFFFFFFFF, 1 << 40)
    different = [
        (hex(arch), number, value)
        for arch, bit in ((X86_64, 0), (X86, 0), (X86_64, X32_BIT), (0xC00000B7, 0))
        for number in [*range(600), 1000, 0x3FFFFFFF]
        for value in (values if bit == 0 and number in (41, 56, 120, 135, 102, 359, 136) else (0,))
        if run(theirs, number | bit, value, arch=arch) != run(made.code, number | bit, value, arch=arch)
    ]
    assert different == []
