"""Filters from a bundle's section, by an emulator of what the kernel does with them."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from unit.seccomp_emulator import ALLOW, KILL, KILL_PROCESS, LOG, NOTIFY, TRAP, X32_BIT, X86, errno_of, run

from nestrt.errors import HostError, InputError, NestrtError
from nestrt.kernel import libseccomp, seccomp, seccomp_cache
from nestrt.oci.model import Seccomp, SyscallArg, Syscalls
from nestrt.plan import seccomp_steps as steps

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")

READ, WRITE, MKDIR, PERSONALITY, CLONE, SETNS, SOCKET, CLONE3, NEWEST = 0, 1, 83, 135, 56, 308, 41, 435, 5000
OPEN_BY_HANDLE = 304


def entry(names: str, action: str = "SCMP_ACT_ALLOW", errno_ret: int | None = None, *args: Any) -> Syscalls:
    return Syscalls(tuple(names.split()), action, errno_ret, tuple(SyscallArg(*arg) for arg in args))


def code(*entries: Syscalls, default: str = "SCMP_ACT_ERRNO", **fields: Any) -> bytes:
    made = libseccomp.build(Seccomp(default, syscalls=entries, **fields))
    assert made is not None
    return made.code


def test_the_handle_filter_refuses_handles_of_every_abi() -> None:
    made = seccomp.filter_code(seccomp._BY_HANDLE["x86_64"])
    assert run(made, OPEN_BY_HANDLE) == run(made, OPEN_BY_HANDLE | X32_BIT) == errno_of(errno.EPERM)
    assert run(made, 342, arch=X86) == errno_of(errno.EPERM)
    assert run(made, READ) == run(made, OPEN_BY_HANDLE, arch=X86) == run(made, 342) == ALLOW


@pytest.mark.parametrize(
    ("action", "errno_ret", "value"),
    [
        ("SCMP_ACT_KILL", None, KILL),
        ("SCMP_ACT_KILL_THREAD", None, KILL),
        ("SCMP_ACT_KILL_PROCESS", None, KILL_PROCESS),
        ("SCMP_ACT_TRAP", None, TRAP),
        ("SCMP_ACT_ERRNO", None, errno_of(errno.EPERM)),
        ("SCMP_ACT_ERRNO", 95, errno_of(95)),
        ("SCMP_ACT_TRACE", None, 0x7FF00001),
        ("SCMP_ACT_TRACE", 7, 0x7FF00007),
        ("SCMP_ACT_LOG", None, LOG),
        ("SCMP_ACT_NOTIFY", None, NOTIFY),
    ],
)
def test_every_action(action: str, errno_ret: int | None, value: int) -> None:
    made = code(entry("mkdir", action, errno_ret), default="SCMP_ACT_ALLOW", listener_path="/agent")
    assert run(made, MKDIR) == value
    assert run(made, READ) == run(made, NEWEST) == ALLOW


def test_the_default_action_and_its_errno() -> None:
    assert run(code(entry("read write")), MKDIR) == errno_of(errno.ENOSYS), "mkdir's number is above write's"
    assert run(code(entry("read write personality")), MKDIR) == errno_of(errno.EPERM)
    assert run(code(entry("read personality"), default_errno_ret=22), MKDIR) == errno_of(22)
    assert run(code(entry("read personality"), default="SCMP_ACT_KILL_PROCESS"), MKDIR) == KILL_PROCESS
    assert run(code(entry("read", "SCMP_ACT_ERRNO"), default="SCMP_ACT_LOG"), MKDIR) == LOG


@pytest.mark.parametrize(
    ("op", "value", "two", "hits", "misses"),
    [
        ("SCMP_CMP_EQ", 8, 0, (8,), (0, 7, 8 | 1 << 40)),
        ("SCMP_CMP_NE", 8, 0, (0, 8 | 1 << 40), (8,)),
        ("SCMP_CMP_LT", 8, 0, (0, 7), (8, 9, 1 << 40)),
        ("SCMP_CMP_LE", 8, 0, (7, 8), (9, 1 << 40)),
        ("SCMP_CMP_GT", 1 << 40, 0, ((1 << 40) + 1, (1 << 64) - 1), (1 << 40, 5)),
        ("SCMP_CMP_GE", 1 << 40, 0, (1 << 40, (1 << 64) - 1), ((1 << 40) - 1,)),
        ("SCMP_CMP_MASKED_EQ", 0xF0, 0x20, (0x20, 0x2F, 0x120), (0, 0x30, 0xF0)),
    ],
)
@pytest.mark.parametrize("index", [0, 5])
def test_every_operator(op: str, value: int, two: int, hits: tuple[int], misses: tuple[int], index: int) -> None:
    made = code(entry("personality", "SCMP_ACT_ERRNO", 42, (index, value, two, op)), default="SCMP_ACT_ALLOW")
    before = (0,) * index
    assert {run(made, PERSONALITY, *before, hit) for hit in hits} == {errno_of(42)}
    assert {run(made, PERSONALITY, *before, miss) for miss in misses} == {ALLOW}


def test_conditions_on_several_arguments_are_all_needed_on_one_argument_any() -> None:
    both = code(entry("setns socket", "SCMP_ACT_ALLOW", None, (0, 1, 0, "SCMP_CMP_EQ"), (1, 2, 0, "SCMP_CMP_EQ")))
    assert run(both, SETNS, 1, 2) == ALLOW
    assert run(both, SETNS, 1, 3) == run(both, SETNS, 0, 2) == errno_of(errno.EPERM)
    either = code(entry("setns", "SCMP_ACT_ALLOW", None, (0, 1, 0, "SCMP_CMP_EQ"), (0, 3, 0, "SCMP_CMP_EQ")))
    assert run(either, SETNS, 1) == run(either, SETNS, 3) == ALLOW
    assert run(either, SETNS, 2) == errno_of(errno.EPERM)


def test_a_rule_with_the_default_action_and_an_unknown_name_are_left_out() -> None:
    made = code(entry("mkdir", "SCMP_ACT_ERRNO"), entry("no_such_call personality"))
    assert run(made, MKDIR) == errno_of(errno.EPERM)
    assert run(made, PERSONALITY) == ALLOW


def test_the_architectures_said_and_always_the_native_one() -> None:
    native = code(entry("read mkdir"))
    assert run(native, READ) == ALLOW
    assert run(native, READ, arch=X86) == run(native, READ | X32_BIT) == KILL
    all_three = code(entry("read mkdir"), architectures=("SCMP_ARCH_X86", "SCMP_ARCH_X32"))
    assert run(all_three, READ) == run(all_three, 3, arch=X86) == run(all_three, READ | X32_BIT) == ALLOW
    assert run(all_three, 4, arch=X86) == errno_of(errno.EPERM)  # write there


def test_new_calls_fail_with_enosys_above_the_largest_of_each_architecture() -> None:
    # mkdir is 83 of x86_64 and x32, 39 of x86; setns 308, 308, 346.
    named = (entry("mkdir setns"),)
    made = code(*named, architectures=("SCMP_ARCH_X86", "SCMP_ARCH_X32"))
    assert run(made, 307) == run(made, 307 | X32_BIT) == run(made, 345, arch=X86) == errno_of(errno.EPERM)
    assert run(made, 309) == run(made, 309 | X32_BIT) == run(made, 347, arch=X86) == errno_of(errno.ENOSYS)
    assert run(made, 347, arch=0xC00000B7) == KILL
    native = code(*named)
    assert run(native, 309) == errno_of(errno.ENOSYS)
    assert run(native, 309 | X32_BIT) == KILL
    for default in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        assert run(code(entry("mkdir", "SCMP_ACT_TRAP"), default=default), NEWEST) >= 0x7FF00000
    assert run(code(*named, default="SCMP_ACT_KILL"), NEWEST) == errno_of(errno.ENOSYS)
    assert run(code(*named, default_errno_ret=errno.ENOSYS), 307) == errno_of(errno.ENOSYS)


def test_new_calls_of_other_machines() -> None:
    arm, s390 = 0xC00000B7, 0x80000016
    allow = bytes.fromhex("060000000000ff7f")
    made = libseccomp.new_calls_fail({arm: 300, s390: 350}) + allow
    assert run(made, 300, arch=arm) == run(made, 350, arch=s390) == run(made, NEWEST) == ALLOW
    assert run(made, 301, arch=arm) == run(made, 351, arch=s390) == errno_of(errno.ENOSYS)
    assert run(made, 0, arch=s390) == errno_of(errno.ENOSYS), "the multiplexer"
    assert run(made, 0, arch=arm) == ALLOW
    only_x32 = libseccomp.new_calls_fail({0x4000003E: 10 | X32_BIT}) + allow
    assert run(only_x32, 11 | X32_BIT) == errno_of(errno.ENOSYS)
    assert run(only_x32, 11) == run(only_x32, 10 | X32_BIT) == ALLOW
    assert libseccomp.new_calls_fail({}) == b""


def test_an_engines_profile() -> None:
    """More than 32 names make a binary tree; each is still decided as said."""
    known = "read write close fstat mmap mprotect munmap brk ioctl access pipe select dup nanosleep getpid socket"
    known += " connect accept bind listen clone fork vfork execve exit wait4 kill uname fcntl flock fsync truncate"
    known += " getcwd chdir rename mkdir rmdir creat link unlink"
    made = code(entry(known), entry("setns", "SCMP_ACT_ERRNO", 99))
    assert {run(made, number) for number in (READ, WRITE, SOCKET, MKDIR, CLONE)} == {ALLOW}
    assert run(made, SETNS) == errno_of(99)
    assert run(made, PERSONALITY) == errno_of(errno.EPERM)


@pytest.mark.parametrize(
    ("section", "error", "words"),
    [
        (Seccomp("SCMP_ACT_NOTIFY"), InputError, "cannot be used as default action"),
        (Seccomp("SCMP_ACT_MAYBE"), InputError, "string SCMP_ACT_MAYBE is not a valid action for seccomp"),
        (Seccomp("SCMP_ACT_ALLOW", 5), InputError, "this action has no errno"),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(entry("mkdir", "SCMP_ACT_TRAP", 5),)), InputError, "no errno"),
        (Seccomp("SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_VAX",)), InputError, "not a valid arch"),
        (Seccomp("SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_S390X",)), HostError, "SCMP_ARCH_S390X"),
        (Seccomp("SCMP_ACT_ALLOW", flags=("SECCOMP_FILTER_FLAG_NEW",)), InputError, "is not known"),
        (
            Seccomp("SCMP_ACT_ALLOW", flags=("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",)),
            InputError,
            "no rule notifies",
        ),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(entry("mkdir", "SCMP_ACT_NOTIFY"),)), InputError, "listenerPath is not"),
        (
            Seccomp("SCMP_ACT_ALLOW", listener_path="/a", syscalls=(entry("write", "SCMP_ACT_NOTIFY"),)),
            InputError,
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            Seccomp(
                "SCMP_ACT_ALLOW",
                syscalls=(
                    entry(
                        "mkdir",
                        "SCMP_ACT_TRAP",
                        None,
                        (0, 1, 0, "=="),
                    ),
                ),
            ),
            InputError,
            "not a valid operator",
        ),
        (
            Seccomp(
                "SCMP_ACT_ALLOW",
                syscalls=(
                    entry(
                        "mkdir",
                        "SCMP_ACT_TRAP",
                        None,
                        (6, 1, 0, "SCMP_CMP_EQ"),
                    ),
                ),
            ),
            InputError,
            "0 to 5",
        ),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(Syscalls(("",), "SCMP_ACT_LOG"),)), InputError, "empty string"),
    ],
)
def test_what_cannot_be_is_refused_by_name(section: Seccomp, error: type[NestrtError], words: str) -> None:
    with pytest.raises(error) as caught:
        libseccomp.build(section)
    assert words in str(caught.value)


def test_flags() -> None:
    def flags(**fields: Any) -> tuple[int, bool]:
        made = libseccomp.build(Seccomp("SCMP_ACT_ALLOW", **fields))
        assert made is not None
        return made.flags, made.notify

    log, spec, tsync, killable = (
        f"SECCOMP_FILTER_FLAG_{n}" for n in ("LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV")
    )
    assert flags() == (4, False), "runc's default"
    assert flags(flags=()) == (0, False)
    assert flags(flags=(tsync,)) == (0, False)
    assert flags(flags=(log, spec)) == (6, False)
    agent = {"listener_path": "/agent", "syscalls": (entry("mkdir", "SCMP_ACT_NOTIFY"),)}
    assert flags(flags=(), **agent) == (8, True)
    if killable in libseccomp.supported_flags():
        assert flags(flags=(killable,), **agent) == (40, True)


def test_nothing_said_is_no_filter() -> None:
    assert libseccomp.build(Seccomp("")) is None


def test_no_libseccomp_is_an_error_that_names_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(libseccomp, "_library", None)
    monkeypatch.setattr(libseccomp.ctypes, "CDLL", missing)
    with pytest.raises(HostError, match=r"linux\.seccomp.*install libseccomp2"):
        libseccomp.build(Seccomp("SCMP_ACT_ALLOW"))


def test_what_was_built_is_kept_and_what_was_spoilt_is_built_anew(tmp_path: Path) -> None:
    section = Seccomp("SCMP_ACT_ERRNO", syscalls=(entry("read mkdir"),))
    directory = tmp_path / "kept"
    first = seccomp_cache.cached(section, str(directory))
    assert first == libseccomp.build(section)
    (file,) = directory.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes(8))
    assert seccomp_cache.cached(section, str(directory)) != first, "it is read, not built"
    for spoilt in (b"", content[:-1], b"x" + content[1:]):
        file.write_bytes(spoilt)
        assert seccomp_cache.cached(section, str(directory)) == first
    assert file.read_bytes() == content
    assert seccomp_cache.cached(Seccomp("SCMP_ACT_ALLOW"), str(directory)) != first
    assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize("how", ["open", "link", "missing"])
def test_a_place_that_others_could_write_in_is_not_trusted(tmp_path: Path, how: str) -> None:
    section = Seccomp("SCMP_ACT_ERRNO", syscalls=(entry("read mkdir"),))
    directory = tmp_path / "kept"
    honest = seccomp_cache.cached(section, str(directory))
    (file,) = directory.iterdir()
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    place = directory
    if how == "open":
        directory.chmod(0o770)
    elif how == "link":
        place = tmp_path / "link"
        place.symlink_to(directory)
    else:
        place = tmp_path / "no" / "such"
    assert seccomp_cache.cached(section, str(place)) == honest


def test_the_cache_does_not_grow_for_ever(tmp_path: Path) -> None:
    for number in range(70):
        seccomp_cache.cached(Seccomp("SCMP_ACT_ERRNO", number), str(tmp_path / "kept"))
    assert len(os.listdir(tmp_path / "kept")) <= 64


def test_which_steps_there_are() -> None:
    plain = Seccomp("SCMP_ACT_ERRNO", syscalls=(entry("read"),))
    asks = Seccomp("SCMP_ACT_ALLOW", listener_path="/a", syscalls=(entry("mkdir", "SCMP_ACT_NOTIFY"),))
    assert steps.filter_host(None) == steps.filter_first(None, False) == steps.filter_started(None, True) == []
    assert steps.filter_first(plain, no_new_privileges=True) == []
    assert steps.filter_first(plain, no_new_privileges=False) == [steps.HoldLoadingRight()]
    assert steps.filter_agent(plain) == steps.filter_agent(None) == ([], [])
    assert steps.filter_agent(asks) == ([steps.ConnectListener("/a")], [steps.SendListener("")])
    assert "1 system calls" in steps.filter_host(plain)[0].describe()
