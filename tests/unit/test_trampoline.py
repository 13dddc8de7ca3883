"""The trampoline: its bytes are those of the sources beside this, and it does what its docstring says.

The code for aarch64 runs under qemu's user mode where that is installed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nestrt.kernel import board as board_page
from nestrt.kernel import seccomp, trampoline
from nestrt.kernel.prctl import set_no_new_privs
from support.need import require

SOURCES = Path(__file__).parent
MACHINES = ("x86_64", "aarch64")
MKDIR, WRITE, EXECVE, EXIT, EXIT_GROUP = 83, 1, 59, 60, 231
X86_64 = 0xC000003E

native = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filters have the numbers of x86_64")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_code_is_that_of_its_source(machine: str, tmp_path: Path) -> None:
    tools = [f"{machine}-linux-gnu-{tool}" for tool in ("as", "objcopy")]
    if not shutil.which(tools[0]) and platform.machine() == machine:
        tools = ["as", "objcopy"]
    require("binutils", None if all(shutil.which(tool) for tool in tools) else f"no {tools[0]}")
    source = SOURCES / f"trampoline_{machine}.s"
    subprocess.run([tools[0], "-o", tmp_path / "object", source], check=True)
    subprocess.run([tools[1], "-O", "binary", "-j", ".text", tmp_path / "object", tmp_path / "code"], check=True)
    assert trampoline._CODE[machine][1] == (tmp_path / "code").read_bytes().hex()


def in_child(work: Callable[[], object]) -> tuple[int, bytes]:
    """Run *work* in a child whose channel is what it wrote to: the wait status as an exit code, and the words."""
    theirs, ours = CHANNEL
    pid = os.fork()
    if pid == 0:
        try:
            os.close(theirs)
            work()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(99)
    os.close(ours)
    words = b""
    while chunk := os.read(theirs, 100):
        words += chunk
    os.close(theirs)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), words


CHANNEL = (-1, -1)


@pytest.fixture(params=[3, 9])
def channel(request: pytest.FixtureRequest) -> int:
    """A pipe whose writing end is number 50 plus the parameter: nothing depends on the number."""
    global CHANNEL
    theirs, ours = os.pipe()
    number = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 50 + request.param)
    os.close(ours)
    CHANNEL = (theirs, number)
    return number


def forbidding(*numbers: int) -> bytes:
    return seccomp.filter_code({X86_64: numbers})


def test_the_program_runs_with_its_arguments_and_environment(channel: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'echo "$0" "$@" "$MORE" >{out}; ls /proc/self/fd >>{out}; exit 7'
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    environment = {"MORE": "more", "PATH": "/usr/bin:/bin"}
    status, words = in_child(
        lambda: trampoline.become("/bin/sh", ("sh", "-c", script, "zero", "one"), environment, channel)
    )
    os.close(kept)
    assert (status, words) == (7, b"")
    first, *fds = out.read_text().splitlines()
    assert first == "zero one more"
    assert str(channel) not in fds
    assert str(kept) in fds


def test_an_errno_comes_back_on_the_channel(channel: int) -> None:
    status, words = in_child(lambda: trampoline.become("/nestrt/none", ("none",), {}, channel))
    assert (status, words) == (127, errno.ENOENT.to_bytes(4, "little"))
    assert trampoline.failure(int.from_bytes(words, "little")) == ("execute the program", errno.ENOENT)
    assert trampoline.failure(0) is None


@native
def test_the_program_runs_under_the_filter(channel: int) -> None:
    board = board_page.new_board()
    arguments = ("sh", "-c", "mkdir /nestrt-none 2>/dev/null && exit 9; exit 5")

    def work() -> None:
        set_no_new_privs()
        trampoline.become("/bin/sh", arguments, {"PATH": "/bin"}, channel, forbidding(MKDIR), 4, board)

    assert in_child(work) == (5, b"")
    assert board_page.read_board(board) == (None, 0)
    os.close(board)


@native
@pytest.mark.parametrize(
    ("numbers", "path", "status", "number"),
    [
        ((WRITE, 72, 9, 3, 317), "/nestrt/none", 127, errno.ENOENT),
        ((EXECVE,), "/bin/true", 127, errno.EPERM),
        ((EXECVE, EXIT, WRITE), "/bin/true", -4, errno.EPERM),
    ],
)
def test_execve_that_fails_under_a_filter_is_told_by_the_board(
    channel: int, numbers: tuple[int, ...], path: str, status: int, number: int
) -> None:
    board = board_page.new_board()

    def work() -> None:
        set_no_new_privs()
        trampoline.become(path, ("none",), {}, channel, forbidding(*numbers), 0, board)

    assert in_child(work) == (status, b"")
    assert trampoline.failure(board_page.read_board(board)[1]) == ("execute the program", number)
    os.close(board)


@native
def test_a_filter_that_the_kernel_refuses_is_told_by_the_board(channel: int) -> None:
    board = board_page.new_board()

    def work() -> None:
        set_no_new_privs()
        trampoline.become("/bin/true", ("true",), {}, channel, bytes(8), 0, board)

    assert in_child(work) == (127, b"")
    assert trampoline.failure(board_page.read_board(board)[1]) == ("load the seccomp filter", errno.EINVAL)
    os.close(board)


@native
def test_a_board_that_is_none_is_told_by_the_channel(channel: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def work() -> None:
        set_no_new_privs()
        trampoline.become("/bin/true", ("true",), {}, channel, forbidding(MKDIR), 0, null)

    status, words = in_child(work)
    os.close(null)
    assert status == 127
    assert trampoline.failure(int.from_bytes(words, "little")) == ("map the board", errno.EACCES)


def test_the_image_cannot_be_changed_through_the_programs_exe(channel: int, tmp_path: Path) -> None:
    """The program is /proc/self/exe: the trampoline again, without arguments of its own."""
    status, words = in_child(lambda: trampoline.become("/proc/self/exe", ("/proc/self/exe", "/bin/true"), {}, channel))
    # Its argument list is now one shorter: it executes /proc/self/exe once more, then /bin/true.
    assert (status, words) == (0, b"")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_image_of_either_machine_runs_under_emulation(machine: str, tmp_path: Path) -> None:
    emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    require("qemu-user", None if emulator else f"no qemu-{machine}")
    assert emulator is not None
    file = tmp_path / "trampoline"
    theirs, ours = os.pipe()

    def words_of(*arguments: str, **parameters: object) -> tuple[int, bytes]:
        file.write_bytes(trampoline.image(machine, ours, **parameters))  # type: ignore[arg-type]
        file.chmod(0o755)
        done = subprocess.run([emulator, "-0", arguments[0], file, *arguments[1:]], pass_fds=(ours, *boards))
        os.set_blocking(theirs, False)
        try:
            return done.returncode, os.read(theirs, 100)
        except BlockingIOError:
            return done.returncode, b""

    boards: tuple[int, ...] = ()
    assert words_of("/nestrt/none", "none") == (127, errno.ENOENT.to_bytes(4, "little"))
    assert words_of("/bin/sh", "sh", "-c", "exit $1", "sh", "6") == (6, b"")
    board = board_page.new_board()
    boards = (board,)
    # The emulator knows no seccomp(2): what it answers has to be told by the board.
    assert words_of("/bin/true", "true", code=bytes(8), board=board) == (127, b"")
    told = trampoline.failure(board_page.read_board(board)[1])
    assert told is not None
    assert told[0] == "load the seccomp filter"
    for descriptor in (theirs, ours, board):
        os.close(descriptor)
