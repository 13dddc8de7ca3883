"""The state of OCI containers: one directory each below ``--root``, and nothing else that could go stale.

::

    ROOT/ID/             locked (flock) by whoever creates or deletes it
      state.json         what create knew; written whole, by rename
      config.json        the bundle's document as it was at create
      start.sock         where the first process waits to be started; gone once it is
      exposed            there if some of its processes may look into all others (CAP_SYS_PTRACE), see kernel/selfexe.py

Source: runtime-spec, runtime.md: "State", "Lifecycle".
"""

from __future__ import annotations

import errno
import fcntl
import os

from nestrt import jsontext
from nestrt.act.statefile import FILE_LIMIT, STATE, damaged, mistake, read_state
from nestrt.errors import InputError, NestrtError, NotFound, StateError
from nestrt.kernel import flock, pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

VERSION = 1
ID_LIMIT = 1024
ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
CONFIG, SOCKET, EXPOSED = "config.json", "start.sock", "exposed"


def check_id(id: str) -> str:
    """*id* if it can be a container's: letters, digits and ``_+-.``, at most 1024. Raises InputError."""
    if id in ("", ".", "..") or len(id) > ID_LIMIT or not ID_CHARACTERS.issuperset(id):
        reason, remedy = "invalid container ID format", "use letters, digits, and _ + - ."
        raise InputError("use", f"container id {id[:80]!a}", reason, remedy)
    return id


class Container:
    """One container. Raises only where a method says so; what a state file lacks is as good as "stopped"."""

    def __init__(self, root: str, id: str, document: dict[str, Any]) -> None:
        self.directory = f"{root}/{id}"
        self.root = root
        self.id = id
        self.document = document

    @property
    def pid(self) -> int:
        """The first process as this level sees it; 0 where there is none yet."""
        value = self.document.get("pid")
        return value if isinstance(value, int) else 0

    @property
    def start_time(self) -> int:
        """When it began, in clock ticks since boot (proc_pid_stat(5), field 22)."""
        value = self.document.get("start")
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        value = self.document.get(key)
        return value if isinstance(value, str) else ""

    @property
    def bundle(self) -> str:
        return self.text("bundle")

    @property
    def created(self) -> str:
        """RFC 3339."""
        return self.text("created")

    @property
    def cgroup(self) -> str:
        """The limit group's path below this level's root in every hierarchy, "" where there is none."""
        return self.text("cgroup")

    @property
    def driver(self) -> str:
        return self.text("driver") or "cgroupfs"

    @property
    def unit(self) -> str:
        """The systemd scope."""
        return self.text("unit")

    @property
    def virtualized(self) -> bool:
        """Whether a CONTAINER_LEVEL policy holds: then processes stand below the limit group."""
        return self.document.get("virtualized") is True

    @property
    def annotations(self) -> dict[str, str]:
        value = self.document.get("annotations")
        return value if isinstance(value, dict) else {}

    @property
    def socket(self) -> str:
        return f"{self.directory}/{SOCKET}"

    @property
    def exposed(self) -> bool:
        """Whether a process was let in that its own document does not tell of, and that may look into others."""
        return os.path.exists(f"{self.directory}/{EXPOSED}")

    def expose(self) -> None:
        """Remember that. Raises OSError."""
        os.close(os.open(f"{self.directory}/{EXPOSED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def config(self) -> str:
        """The text of the document that it was created from. Raises StateError."""
        try:
            with open(f"{self.directory}/{CONFIG}", "rb") as file:
                return file.read(FILE_LIMIT).decode()
        except (OSError, ValueError) as error:
            raise damaged(self.root, self.id, str(error)) from error

    def alive(self) -> bool:
        """Whether the first process is there and no zombie, and the same that create made."""
        # Start times count from boot: in another one they say nothing.
        return self.pid > 0 and pidfd.alive(self.pid, self.start_time) and self.text("boot") == boot_id()

    def frozen(self) -> bool:
        if not self.cgroup:
            return False
        from nestrt.act.freeze import frozen  # not where nothing runs

        return frozen(self)

    def status(self, owned: bool = False) -> str:
        """creating, created, running, paused or stopped; *owned*: the caller has the lock, so nobody is creating it."""
        if not self.pid:
            return "creating" if not owned and self.busy() else "stopped"
        if not self.alive():
            return "stopped"
        if self.frozen():
            return "paused"
        return "created" if self.waits() else "running"

    def waits(self) -> bool:
        """Whether the first process waits to be started: a ``start`` that was killed leaves a socket of nobody's."""
        if not os.path.exists(self.socket):
            return False
        from nestrt.act.started import connect  # only for one that may wait

        try:
            connect(self.socket).close()
        except OSError:
            return False
        return True

    def require(self, operation: str, *wanted: str) -> str:
        """The status if it is one of *wanted*. Raises StateError in the words that engines know."""
        status = self.status()
        if status in wanted:
            return status
        if status == "stopped":
            raise StateError(operation, f"container {self.id}", "container not running", "create it again")
        raise StateError(
            operation, f"container {self.id}", f"it is {status}, not {' or '.join(wanted)}", "see nestrt state"
        )

    def busy(self) -> bool:
        """Whether somebody creates or deletes it just now."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def save(self) -> None:
        """Write the state file whole. Raises OSError."""
        write_file(f"{self.directory}/{STATE}", jsontext.dumps(self.document))

    def forget(self) -> None:
        """Remove the directory with all that nestrt puts there; what is gone already is no error."""
        for name in _entries(self.directory):
            try:
                os.unlink(f"{self.directory}/{name}")
            except OSError:
                continue
        try:
            os.rmdir(self.directory)
        except FileNotFoundError:
            pass


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def boot_id() -> str:
    """What tells this boot from all others: random(4)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def write_file(path: str, text: str, mode: int = 0o600) -> None:
    """Replace the file *path* in one step: never half of it is there. Raises OSError."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            data = text.encode()
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)  # the disk is full, or *path* is a directory
        raise


def require_free(root: str, id: str) -> None:
    """Raises StateError where *id* is in use: said before anything else that is in its way."""
    if os.path.lexists(f"{root}/{id}"):
        raise _taken(id)


def _taken(id: str) -> StateError:
    return StateError(
        "create",
        f"container {id}",
        "container with given ID already exists",
        f"choose another id, or: nestrt delete {id}",
    )


def reserve(root: str, id: str) -> int:
    """Make the container's directory and lock it; returns the descriptor that holds the lock.

    Raises StateError where the id is in use, OSError for an unwritable *root*.
    """
    os.makedirs(root, mode=0o711, exist_ok=True)
    while True:
        try:
            os.mkdir(f"{root}/{id}", 0o700)
        except FileExistsError as error:
            raise _taken(id) from error
        try:
            return lock(f"{root}/{id}")
        except FileNotFoundError:
            continue  # gc took it for what a killed create has left, in the moment before the lock


def lock(directory: str, seconds: float = -1) -> int:
    """Wait for a container's directory, and take it; returns the descriptor that holds it.

    Raises OSError: ENOENT where it is gone, also while this waited, or another of the name is there;
    BlockingIOError where it is still another's after *seconds* (-1: wait for ever).
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if seconds < 0:
            fcntl.flock(fd, fcntl.LOCK_EX)
        elif not flock.take(fd, seconds):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), directory)
        if not os.path.samestat(os.fstat(fd), os.stat(directory)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def load(root: str, id: str) -> Container:
    """The container of that id.

    Raises NotFound ("container does not exist"), InputError, Foreign, NestrtError (damaged).
    """
    check_id(id)
    try:
        text = read_state(root, id)
        document = {} if text is None else jsontext.loads(text)
        if type(document) is not dict:
            raise ValueError("not an object")
        if wrong := mistake(document, id):
            raise ValueError(wrong)
    except ValueError as error:
        raise damaged(root, id, str(error)) from error
    return Container(root, id, document)


def expose_sharing(root: str, path: str) -> None:
    """Note of all containers in the pid namespace *path* that others come into it. Raises OSError."""
    try:
        namespace = os.stat(path)
    except OSError:
        return  # it cannot be joined either
    for container in all_containers(root):
        if isinstance(container, Container) and container.pid:
            try:
                same = os.path.samestat(os.stat(f"/proc/{container.pid}/ns/pid"), namespace)
            except FileNotFoundError:
                continue  # it has ended
            if same:
                container.expose()


def all_containers(root: str) -> Iterator[Container | NestrtError]:
    """Every container below *root* by id, or the error where its state cannot be read."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    for name in names:
        if not ID_CHARACTERS.issuperset(name) or not os.path.isdir(f"{root}/{name}"):
            continue
        try:
            yield load(root, name)
        except NotFound:
            continue
        except NestrtError as error:
            yield error
