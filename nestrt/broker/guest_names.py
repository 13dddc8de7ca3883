"""Names of users and groups as a guest has them: its /etc/passwd and /etc/group, passwd(5), group(5).

Read when rules are set, and never again: what is stored are numbers. So no event of the kernel's, and nobody but the
guest's root, has the broker open a file of the guest's; a name that is given to another number later does not change
a rule, as it does not change the owner of a file. (Refusing names would be safer still, and would make most
cgrules.conf files useless.)

The files are the guest's to replace by anything: resolved in its root (openat2(2), RESOLVE_IN_ROOT, no magic links),
looked at before they are opened, regular files only, none of procfs and the like, at most 1 MiB. A filesystem
of the guest's own (FUSE) may still never answer: nobody waits longer than PATIENCE for it.
"""

from __future__ import annotations

import os
import stat
from weakref import WeakKeyDictionary

import trio

from nestrt.broker.refusal import Refusal
from nestrt.broker.served import Served
from nestrt.broker.threads import ABANDON
from nestrt.kernel import mount, pidfd

LARGEST = 1 << 20  # bytes of a file
PATIENCE = 2.0  # seconds
LONGEST_NAME = 256
PASSWD, GROUP = "etc/passwd", "etc/group"
USE_NUMBERS = "write numbers instead of names"
# Their files look regular, and reading some of them does things.
NO_FILES = (mount.PROC_SUPER_MAGIC, mount.SYSFS_MAGIC, mount.CGROUP_SUPER_MAGIC, mount.CGROUP2_SUPER_MAGIC)

READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Names = dict[str, int]

_readers: WeakKeyDictionary[Served, trio.CapacityLimiter] = WeakKeyDictionary()


def reader(guest: Served) -> trio.CapacityLimiter:
    """For a thread that reads what a process of *guest* can keep it waiting for, for ever: one for each guest, apart
    from those that serve it."""
    return _readers.setdefault(guest, trio.CapacityLimiter(1))


def parse(content: bytes) -> Names:
    """Numbers by name; the first of a name's counts."""
    found: Names = {}
    for line in content.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 3 and 0 < len(fields[0]) <= LONGEST_NAME and fields[2].isdigit() and len(fields[2]) <= 10:
            found.setdefault(fields[0].decode("utf-8", "surrogateescape"), int(fields[2]))
    return found


def read_file(root: int, path: str) -> bytes:
    """The regular file *path* below the directory *root*. Raises OSError, ValueError with the reason."""
    fd = mount.open_in_root(root, path, os.O_PATH)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or mount.filesystem_magic(fd) in NO_FILES:
            raise ValueError("it is no regular file")
        if found.st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        # By the descriptor: what has been looked at is what is opened.
        with open(os.open(f"/proc/self/fd/{fd}", READ), "rb") as file:
            content = file.read(LARGEST + 1)
    finally:
        os.close(fd)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    return content


def _read(pid: int, start: int) -> tuple[Names, Names]:
    process = pidfd.open(pid, start)
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        ended = pidfd.wait(process, 0)
    finally:
        os.close(process)
    try:
        if ended:
            raise ValueError("its first process has ended")
        found = []
        for path in (PASSWD, GROUP):
            try:
                found.append(parse(read_file(root, path)))
            except (OSError, ValueError) as error:
                reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
                raise ValueError(f"/{path}: {reason}") from None
        return found[0], found[1]
    finally:
        os.close(root)


async def read_names(guest: Served) -> tuple[Names, Names]:
    """The guest's users and groups, as its first process's root filesystem has them. Raises Refusal."""
    what = "cannot learn the names of the guest's users and groups"
    mark = guest.known
    if mark.pid <= 0:
        raise Refusal("NotPossible", f"{what}: its first process is not known", USE_NUMBERS)
    with trio.move_on_after(PATIENCE):
        try:
            users, groups = await trio.to_thread.run_sync(
                _read, mark.pid, mark.start, limiter=reader(guest), **ABANDON
            )
            return users, groups
        except OSError as error:
            raise Refusal("NotPossible", f"{what}: {os.strerror(error.errno or 0)}", USE_NUMBERS) from None
        except ValueError as error:
            raise Refusal("NotPossible", f"{what}: {error}", USE_NUMBERS) from None
    raise Refusal("NotPossible", f"{what}: its files take more than {PATIENCE:g} s to read", USE_NUMBERS)
