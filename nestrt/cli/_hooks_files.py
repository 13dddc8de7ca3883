"""Files that engines read, for ``nestrt hooks``: read within bounds, replaced whole, and trusted or not.

A killed install leaves each file as it was or as it is to be, never a part of one: what is new is written
without a name (open(2), O_TMPFILE), gets one when it is complete, and takes the old one's place by rename(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from nestrt.errors import HostError, InputError, KernelError, StateError
from nestrt.record import record

FILE_LIMIT = 1 << 20  # bytes: a configuration is a few pages
LINKS_LIMIT = 40  # as path_resolution(7) has it
OWNERS = frozenset({0})
OTHERS = 0o022  # group and others may write
REMEDY = "let root own it, and nobody else write it"


@record
class Change:
    """What is to become of the file *path*, whose content was *old*; None: it is not there. *mode* of a new one."""

    path: str
    old: str | None
    new: str | None
    mode: int = 0o644


def resolve(prefix: str, path: str) -> str:
    """Where the absolute *path* lies below the directory *prefix*, "" for this machine itself.

    Below a prefix no symbolic link is followed: it would mean something else there than here. Without
    one they are followed, and the whole way is checked by untrusted(). Raises HostError for a link below a prefix,
    and for one to nothing.
    """
    if not prefix:
        if os.path.islink(path) and not os.path.exists(path):
            raise HostError("use", path, "it is a symbolic link to nothing", "remove it, or make what it names")
        return os.path.realpath(path)
    place = os.path.abspath(prefix)
    for name in path.strip("/").split("/"):
        place = f"{place.rstrip('/')}/{name}"
        if os.path.islink(place):
            raise HostError("use", place, "it is a symbolic link", "below --prefix none is followed: put a file there")
    return place


def read(path: str) -> str | None:
    """The text of the regular file *path*, None where there is none.

    Raises InputError (no regular file, over 1 MiB, not UTF-8, a byte order mark), KernelError.
    """
    try:
        # A FIFO would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError("read", path, "a file stands where a directory is to be", "move it away") from None
    except OSError as error:
        raise KernelError("read", path, error.errno or 0) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError("read", path, "it is not a regular file", "move it away")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise KernelError("read", path, error.errno or 0) from None
    finally:
        os.close(descriptor)
    if len(content) > FILE_LIMIT:
        raise InputError("read", path, "it is larger than 1 MiB", "such a file is not edited; see --print")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError("read", path, f"byte {error.start} is not UTF-8", "save it as UTF-8 text") from None
    if text.startswith("\ufeff"):
        raise InputError("read", path, "it begins with a byte order mark", "save it as UTF-8 text without one")
    return text


# --- writing ------------------------------------------------------------------------------------


def apply(changes: Iterable[Change]) -> None:
    """Carry out *changes* in their order, or none of them: what was done is undone when one fails.

    Raises StateError where a file has changed since it was read, KernelError. Killed in between, it leaves each
    file old or new.
    """
    done: list[Change] = []
    try:
        for change in changes:
            _apply(change)
            done.append(change)
    except BaseException:
        for change in reversed(done):
            try:
                _apply(Change(change.path, change.new, change.old, change.mode))
            except (HostError, InputError, StateError, KernelError):
                continue  # the first error tells more
        raise


def _temporary(path: str) -> str:
    """What a new file is called for a moment: no engine takes the name for one of its files, or it is whole."""
    directory, name = os.path.split(path)
    return f"{directory}/.{name}.nestrt"


def _apply(change: Change) -> None:
    if os.path.lexists(_temporary(change.path)):
        try:
            os.unlink(_temporary(change.path))  # of a run that was killed
        except OSError as error:
            raise KernelError("remove", _temporary(change.path), error.errno or 0) from None
    if change.new == change.old:
        return
    if read(change.path) != change.old:
        raise StateError("write", change.path, "it has changed since it was read", "run the command again")
    try:
        if change.new is None:
            os.unlink(change.path)
        else:
            make_directories(os.path.dirname(change.path))
            _replace(change.path, change.new.encode(), change.mode)
        _sync(os.path.dirname(change.path))
    except OSError as error:
        raise KernelError("write" if change.new is not None else "remove", change.path, error.errno or 0) from None


def make_directories(path: str) -> None:
    """Make the directory *path* and those above it, readable for all whatever the umask. Raises OSError."""
    if os.path.isdir(path):
        return
    make_directories(os.path.dirname(path))
    os.mkdir(path, 0o755)
    os.chmod(path, 0o755)


def _replace(path: str, content: bytes, mode: int) -> None:
    directory, temporary = os.path.dirname(path), _temporary(path)
    try:
        old: os.stat_result | None = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        old = None
    descriptor, named = _nameless(directory, temporary)
    try:
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode) if old is not None else mode)
        if old is not None and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))  # a change of owner takes bits away
        if old is not None:
            _copy_attributes(path, descriptor)
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
        if not named:
            # A directory's descriptor makes it linkat(2), which follows: link(2) would name the link in /proc.
            at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=True)
            finally:
                os.close(at)
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _nameless(directory: str, temporary: str) -> tuple[int, bool]:
    """A new file to write in *directory*, and whether it has the name *temporary* already."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), False
    except OSError:  # EOPNOTSUPP: a filesystem without such files
        return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), True


def _copy_attributes(path: str, descriptor: int) -> None:
    """Access lists and security labels, as far as they can be had."""
    try:
        for name in os.listxattr(path, follow_symlinks=False):
            os.setxattr(descriptor, name, os.getxattr(path, name, follow_symlinks=False))
    except OSError:
        return


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty(directories: Iterable[str]) -> None:
    """Remove those of *directories* that are there and empty, in their order."""
    for directory in directories:
        try:
            os.rmdir(directory)
        except OSError:
            continue


# --- trust --------------------------------------------------------------------------------------


def _steps(path: str) -> Iterator[str]:
    """Every name on the way to the absolute *path*: directories, links, what the links lead through, the file."""
    place, links = "/", 0
    rest = [name for name in path.split("/") if name and name != "."]
    yield place
    while rest:
        name = rest.pop(0)
        if name == "..":
            place = os.path.dirname(place)
            continue
        here = f"{place.rstrip('/')}/{name}"
        yield here
        if not os.path.islink(here):
            place = here
            continue
        links += 1
        if links > LINKS_LIMIT:
            raise HostError("use", path, "too many symbolic links", "name the file itself")
        target = os.readlink(here)
        place = "/" if target.startswith("/") else place
        rest = [part for part in target.split("/") if part and part != "."] + rest


def _fault(path: str, found: os.stat_result, owners: frozenset[int] = OWNERS) -> str:
    """Why others than *owners* may change what *path* is, "" where they cannot."""
    if found.st_uid not in owners:
        return f"{path} belongs to uid {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):
        return ""  # its directory says who may replace it
    # In a sticky directory nobody removes or renames what is another's: unlink(2).
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & OTHERS and not sticky:
        return f"others than its owner may write {path} (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def untrusted(path: str, below: str = "") -> str:
    """Why others than root may change what the absolute *path* leads to, "" where nobody else can.

    What runs as root for each container is a hole where somebody else may write it, or a directory on the way to it.
    What is not there yet cannot be changed. *below*: only what is in that directory, which may be the caller's:
    a package is made there. Raises HostError.
    """
    owners = OWNERS | {os.geteuid()} if below else OWNERS
    for step in _steps(path):
        if below and not step.startswith(below.rstrip("/") + "/"):
            continue
        try:
            fault = _fault(step, os.lstat(step), owners)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{step}: {(error.strerror or '').lower()}"
        if fault:
            return fault
    return ""


def untrusted_tree(top: str) -> str:
    """As untrusted(), of the directory *top* and all that is in it."""
    fault = untrusted(top)
    if fault:
        return fault
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = f"{directory}/{name}"
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            fault = untrusted(path) if stat.S_ISLNK(found.st_mode) else _fault(path, found)
            if fault:
                return fault
    return ""


def interpreter(path: str) -> str:
    """The program that a script names in its first line (execve(2)), "" where *path* is no script."""
    try:
        with open(path, "rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    return os.fsdecode(line[2:].split()[0]) if line.startswith(b"#!") and line[2:].split() else ""


def unusable(path: str) -> str:
    """Why the program *path* cannot be run as root for others, "" where it can: not there, no program, or untrusted."""
    try:
        found = os.stat(path)
    except OSError as error:
        return f"{path}: {(error.strerror or '').lower()}"
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
        return f"{path} is not an executable file"
    script = interpreter(path)
    return untrusted(path) or (untrusted(script) if script.startswith("/") else "")
