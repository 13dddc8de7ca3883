"""Device programs on the host's v2 tree.

::

    <v2 tree>/nestrt-test-bpf-PID      programs are attached here
              └ child                  and here: both are asked
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

import pytest

from nestrt.controllers.device_program import build
from nestrt.kernel import bpf
from nestrt.level.devices import DeviceRule
from support.hostside import v2_hierarchy
from support.need import require

NULL = DeviceRule("c", 1, 3, "rwm")
ZERO_READ = DeviceRule("c", 1, 5, "r")


@pytest.fixture
def group() -> Iterator[str]:
    tree = v2_hierarchy()
    require("cgroup-v2", None if tree else "no cgroup2 mount")
    assert tree is not None
    path = str(tree.group(f"nestrt-test-bpf-{os.getpid()}"))
    try:
        os.mkdir(path)
    except PermissionError as error:
        require("root", str(error))
    os.mkdir(path + "/child")
    yield path
    os.rmdir(path + "/child")
    os.rmdir(path)


@pytest.fixture
def program() -> Iterator[Callable[..., int]]:
    """Loads programs, and closes them in the end."""
    loaded: list[int] = []

    def load(*rules: DeviceRule) -> int:
        loaded.append(bpf.load_device_program(build(rules)))
        return loaded[-1]

    yield load
    for descriptor in loaded:
        os.close(descriptor)


def inside(group: str, action: Callable[[], object]) -> int:
    """The errno of *action* in a process of *group*; 0 if it succeeded."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            with open(group + "/cgroup.procs", "w", encoding="ascii") as procs:
                procs.write(str(os.getpid()))
            action()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def opening(path: str, flags: int = os.O_RDWR) -> Callable[[], object]:
    return lambda: os.open(path, flags)


def test_rules_hold(group: str, program: Callable[..., int], tmp_path: object) -> None:
    bpf.attach(group, program(NULL, ZERO_READ))
    assert inside(group, opening("/dev/null")) == 0
    assert inside(group, opening("/dev/zero", os.O_RDONLY)) == 0
    assert inside(group, opening("/dev/zero")) == errno.EPERM
    assert inside(group, opening("/dev/full")) == errno.EPERM
    assert inside(group + "/child", opening("/dev/full")) == errno.EPERM, "a child group is bound too"
    making = os.makedev(1, 3), os.makedev(1, 5), os.makedev(7, 0)
    modes = stat.S_IFCHR, stat.S_IFCHR, stat.S_IFBLK
    results = [
        inside(group, lambda n=n, m=mode, d=device: os.mknod(f"{tmp_path}/node{n}", m | 0o600, d))
        for n, (mode, device) in enumerate(zip(modes, making, strict=True))
    ]
    assert results == [0, errno.EPERM, errno.EPERM]
    assert inside(group, lambda: os.open(f"{tmp_path}/node0", os.O_RDONLY)) == 0
    # Opening by another way to the same device is the same device; a file is no device.
    assert inside(group, opening("/proc/self/exe", os.O_RDONLY)) == 0


def test_nothing_is_allowed_without_rules(group: str, program: Callable[..., int]) -> None:
    bpf.attach(group, program())
    assert inside(group, opening("/dev/null")) == errno.EPERM


def test_rules_change_live(group: str, program: Callable[..., int]) -> None:
    """One process of the group stays; what it may do follows the program."""
    old, new = program(NULL), program(ZERO_READ)
    bpf.attach(group, old)
    ask, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(group + "/cgroup.procs", "w", encoding="ascii") as procs:
                procs.write(str(os.getpid()))
            while path := os.read(ask[0], 9):
                try:
                    os.close(os.open(path, os.O_RDONLY))
                    os.write(answers[1], b"y")
                except OSError:
                    os.write(answers[1], b"n")
        finally:
            os._exit(0)

    def may(path: str) -> str:
        os.write(ask[1], path.encode())
        return os.read(answers[0], 1).decode()

    try:
        assert may("/dev/null") + may("/dev/zero") == "yn"
        bpf.replace(group, new, old)
        assert may("/dev/null") + may("/dev/zero") == "ny"
        bpf.detach(group, new)
        assert may("/dev/null") + may("/dev/zero") == "yy"
    finally:
        for descriptor in (*ask, *answers):
            if descriptor != ask[0]:
                os.close(descriptor)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ask[0])


def test_all_programs_must_allow(group: str, program: Callable[..., int]) -> None:
    """The child's program allows more than its parent's: it gets what both allow."""
    child = group + "/child"
    bpf.attach(group, program(NULL))
    bpf.attach(child, program(NULL, ZERO_READ))
    assert inside(child, opening("/dev/null")) == 0
    assert inside(child, opening("/dev/zero", os.O_RDONLY)) == errno.EPERM
    bpf.attach(child, program(ZERO_READ))
    assert inside(child, opening("/dev/null")) == errno.EPERM, "two programs of one group are both asked"
    assert inside(group, opening("/dev/null")) == 0


def test_programs_outlive_their_descriptors_and_are_found(group: str) -> None:
    assert bpf.query(group) == ()
    first = bpf.load_device_program(build((NULL,)))
    assert not os.get_inheritable(first)
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    bpf.attach(directory, first)
    os.close(first)
    assert inside(group, opening("/dev/zero", os.O_RDONLY)) == errno.EPERM
    (identity,) = bpf.query(directory)
    os.close(directory)
    assert bpf.query(group + "/child") == ()
    assert identity in bpf.query(group + "/child", effective=True)

    again = bpf.program_by_id(identity)
    second = bpf.load_device_program(build((NULL, ZERO_READ)))
    bpf.replace(group, second, again)
    assert inside(group, opening("/dev/zero", os.O_RDONLY)) == 0
    assert bpf.query(group) != (identity,)
    bpf.detach(group, second)
    assert bpf.query(group) == ()
    os.close(again)
    os.close(second)


def test_hundreds_of_rules_load(group: str, program: Callable[..., int]) -> None:
    rules = [DeviceRule("bc"[n % 2], 2 + n // 40, 3 * n, "rw" if n % 3 else "r") for n in range(800)]
    bpf.attach(group, program(NULL, *rules))
    assert inside(group, opening("/dev/null")) == 0
    assert inside(group, opening("/dev/zero", os.O_RDONLY)) == errno.EPERM


def test_errors_name_the_group_and_quote_the_verifier(group: str, program: Callable[..., int]) -> None:
    with pytest.raises(OSError, match="R0 !read_ok") as refused:
        bpf.load_device_program(b"\x95" + bytes(7))
    assert refused.value.errno == errno.EACCES
    one, other = program(NULL), program()
    with pytest.raises(OSError, match="nestrt-test-bpf") as missing:
        bpf.detach(group, one)
    assert missing.value.errno in (errno.ENOENT, errno.EINVAL)
    bpf.attach(group, one)
    with pytest.raises(OSError, match="nestrt-test-bpf"):
        bpf.attach(group, one)
    with pytest.raises(OSError, match="nestrt-test-bpf"):
        bpf.replace(group, one, other)
    with pytest.raises(FileNotFoundError):
        bpf.attach(group + "/none", one)
    with pytest.raises(OSError, match="/proc") as wrong:
        bpf.attach("/proc", one)
    assert wrong.value.errno == errno.EBADF
