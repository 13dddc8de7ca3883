"""Capabilities, process attributes and process descriptors, in children of the test."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from nestrt.errors import InputError
from nestrt.kernel import caps, pidfd, prctl
from support.need import SLOW, require

# Capabilities do not depend on the version of cgroups.
pytestmark = pytest.mark.slow_on_vm

needs_root = pytest.mark.usefixtures("root")
NOTHING: frozenset[int] = frozenset()
CHOWN, KILL, SETPCAP, SYS_CHROOT, SYS_ADMIN = 0, 5, 8, 18, 21


@pytest.fixture
def root() -> None:
    require("root", None if caps.current().effective >= caps.DEFAULT else "not all of the default capabilities")


def in_child(action: Callable[[], str]) -> str:
    """What *action* returns in a process of its own, or its exception."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = action()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(into, text.encode())
        os._exit(0)
    os.close(into)
    with open(out, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def status_sets(text: str) -> dict[str, int]:
    """The masks of /proc/PID/status: CapInh, CapPrm, CapEff, CapBnd, CapAmb."""
    lines = [line.split() for line in text.splitlines() if line.startswith("Cap")]
    return {name.rstrip(":"): int(mask, 16) for name, mask in lines}


def own_status() -> str:
    with open("/proc/self/status", encoding="utf-8") as file:
        return file.read()


def after_exec() -> str:
    """The masks that a program has which this process becomes: what a guest's first program will see."""
    return subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout


def mask(numbers: frozenset[int]) -> int:
    return sum(1 << number for number in numbers)


def test_names_are_the_kernels() -> None:
    """The header that the C library's users compile against has the same names and numbers."""
    try:
        with open("/usr/include/linux/capability.h", encoding="utf-8") as header:
            defines = [line.split() for line in header if line.startswith("#define CAP_")]
    except FileNotFoundError as error:
        require("kernel-headers", str(error))
    known = {words[1]: int(words[2]) for words in defines if len(words) == 3 and words[2].isdigit()}
    assert {name: caps.by_name(name) for name in known} == known


@pytest.mark.parametrize("name", ["CAP_SYS_ADMIN", "cap_sys_admin", "sys_admin", "SYS_ADMIN"])
def test_names_in_every_writing(name: str) -> None:
    assert caps.by_name(name) == SYS_ADMIN
    assert caps.to_name(SYS_ADMIN) == "CAP_SYS_ADMIN"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("CAP_SYS_ADMINN", "CAP_SYS_ADMIN"),
        ("net_bind", "CAP_NET_BIND_SERVICE"),
        ("", ""),
        ("x\ny", ""),
        ("qqqqqqqqqqqq", "capabilities(7)"),
    ],
)
def test_unknown_names(name: str, remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        caps.by_name(name)
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)


def test_newer_capabilities_are_numbers() -> None:
    assert caps.to_name(63) == "63"


def test_current_is_what_proc_says() -> None:
    now = caps.current()
    said = status_sets(own_status())
    for field, name in (
        ("inheritable", "CapInh"),
        ("permitted", "CapPrm"),
        ("effective", "CapEff"),
        ("bounding", "CapBnd"),
        ("ambient", "CapAmb"),
    ):
        assert mask(getattr(now, field)) == said[name], name


def test_last_is_found_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    last = caps.last()

    def refuse(*_arguments: object, **_named: object) -> None:
        raise FileNotFoundError

    monkeypatch.setitem(vars(caps), "open", refuse)
    assert caps.last() == last


@needs_root
def test_sets_hold_through_execve() -> None:
    """Root keeps, of what it is given, what the bounding set has; a guest's uid 0 looks so."""
    default = caps.DEFAULT

    def act() -> str:
        caps.apply(default, default, NOTHING, default, NOTHING)
        return own_status() + "\f" + after_exec()

    before, after = in_child(act).split("\f")
    for text in (before, after):
        assert status_sets(text) == {
            "CapInh": 0,
            "CapPrm": mask(default),
            "CapEff": mask(default),
            "CapBnd": mask(default),
            "CapAmb": 0,
        }
    assert len(default) == 14


@needs_root
def test_ambient_capabilities_reach_another_user() -> None:
    wanted = frozenset({CHOWN, KILL})

    def act() -> str:
        prctl.set_keep_capabilities(True)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        caps.apply(caps.current().permitted, caps.current().permitted, NOTHING, caps.known(), NOTHING)
        caps.apply(wanted, wanted, wanted, wanted, wanted)
        prctl.set_no_new_privs()
        return after_exec()

    assert set(status_sets(in_child(act)).values()) == {mask(wanted)}


@needs_root
def test_ambient_capabilities_go_though_they_could_stay() -> None:
    both = frozenset({CHOWN, KILL})

    def act() -> str:
        caps.apply(both, both, both, both, both)
        caps.apply(both, both, both, both, frozenset({KILL}))
        return own_status()

    sets = status_sets(in_child(act))
    assert (sets["CapInh"], sets["CapAmb"]) == (mask(both), 1 << KILL)


@needs_root
def test_nothing_left() -> None:
    def act() -> str:
        caps.apply(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
        try:
            os.chroot("/")
        except PermissionError:
            return after_exec()
        return "chroot was allowed"

    assert set(status_sets(in_child(act)).values()) == {0}


@needs_root
def test_more_than_one_has_is_refused_by_name() -> None:
    def act() -> str:
        few = frozenset({KILL})
        caps.apply(few, few, NOTHING, caps.current().bounding, NOTHING)
        # A bounding set that stays as it is needs no CAP_SETPCAP.
        caps.apply(few, few, NOTHING, caps.current().bounding, NOTHING)
        try:
            caps.apply(few, few, NOTHING, caps.current().bounding - {SYS_ADMIN}, NOTHING)
        except PermissionError as error:
            first = str(error)
        try:
            caps.apply(few, few | {SYS_ADMIN}, NOTHING, caps.current().bounding, NOTHING)
        except PermissionError as error:
            return first + "; " + str(error)
        return "more was allowed"

    text = in_child(act)
    assert "bounding capability CAP_SYS_ADMIN" in text
    assert text.count(os.strerror(errno.EPERM)) == 2


@needs_root
def test_ambient_beyond_permitted_is_refused() -> None:
    def act() -> str:
        caps.apply(NOTHING, NOTHING, NOTHING, caps.current().bounding, frozenset({SYS_CHROOT}))
        return "was allowed"

    assert "ambient capability CAP_SYS_CHROOT" in in_child(act)


@needs_root
def test_unknown_numbers_are_left_out() -> None:
    def act() -> str:
        future = frozenset({KILL, 62})
        caps.apply(future, future, future, future, future)
        return own_status()

    assert set(status_sets(in_child(act)).values()) == {1 << KILL}


def test_no_new_privs_and_dumpable() -> None:
    def act() -> str:
        before = prctl.no_new_privs(), prctl.dumpable()
        prctl.set_no_new_privs()
        prctl.set_dumpable(False)
        return f"{before} {prctl.no_new_privs()} {prctl.dumpable()}"

    assert in_child(act).endswith("True False")


def test_parent_death_signal() -> None:
    """Test, parent, child: the parent ends, the child is told and tells the test."""
    out, into = os.pipe()
    parent = os.fork()
    if parent == 0:
        ready, told = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGUSR1, lambda *_: (os.write(into, b"told"), os._exit(0)))
            prctl.set_parent_death_signal(signal.SIGUSR1)
            os.write(told, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
        os._exit(0)
    os.close(into)
    os.waitpid(parent, 0)
    assert os.read(out, 4) == b"told"
    os.close(out)


def test_session_keyring_is_new_or_refused() -> None:
    def keyring() -> str:
        with open("/proc/keys", encoding="utf-8") as file:
            return file.read()

    if not os.path.exists("/proc/keys"):
        assert in_child(lambda: str(prctl.new_session_keyring())) == "False"
        return

    def act() -> str:
        first = prctl.new_session_keyring()
        before = {line.split()[0] for line in keyring().splitlines() if "_ses" in line}
        second = prctl.new_session_keyring()
        after = {line.split()[0] for line in keyring().splitlines() if "_ses" in line}
        return f"{first} {second} {bool(after - before)}"

    assert in_child(act) in ("True True True", "False False False")


def test_processes_are_told_apart_by_their_start() -> None:
    child = subprocess.Popen([sys.executable, "-IS", "-c", "import time; time.sleep(60)"])
    try:
        start = pidfd.start_time(child.pid)
        assert start is not None
        assert pidfd.alive(child.pid, start)
        assert not pidfd.alive(child.pid, start + 1)
        with pytest.raises(ProcessLookupError):
            pidfd.open(child.pid, start + 1)
        descriptor = pidfd.open(child.pid, start)
        assert not os.get_inheritable(descriptor)
        assert not pidfd.wait(descriptor, 0.01)
        assert pidfd.send_signal(descriptor, signal.SIGTERM)
        assert pidfd.wait(descriptor, 10 * SLOW)
        assert pidfd.start_time(child.pid) == start, "still there, as a zombie"
        assert not pidfd.alive(child.pid, start)
        assert child.wait() == -signal.SIGTERM
        assert pidfd.start_time(child.pid) is None
        assert not pidfd.alive(child.pid, start)
        assert not pidfd.send_signal(descriptor, signal.SIGTERM)
        os.close(descriptor)
        with pytest.raises(ProcessLookupError):
            pidfd.open(child.pid, start)
    finally:
        child.kill()
        child.wait()


def test_a_program_cannot_forge_its_start_by_its_name(tmp_path: object) -> None:
    """The second field of /proc/PID/stat is whatever the program is called."""
    path = f"{tmp_path}/a) Z 1 2"
    with open(path, "w", encoding="ascii") as script:
        script.write("#!/bin/sh\nread line\n")
    os.chmod(path, stat.S_IRWXU)
    began = pidfd.start_time(os.getpid())
    child = subprocess.Popen([path], stdin=subprocess.PIPE)
    try:
        limit = time.monotonic() + 30 * SLOW
        while time.monotonic() < limit:
            with open(f"/proc/{child.pid}/comm", "rb") as file:
                if file.read().startswith(b"a) Z"):
                    break
            time.sleep(0.01)
        start = pidfd.start_time(child.pid)
        assert began is not None
        assert start is not None
        assert start >= began
        assert pidfd.alive(child.pid, start)
    finally:
        child.kill()
        child.communicate()
