"""``criu swrk``: one process of CRIU for one dump or restore, and what is said with it.

::

    runtime ── fork ──▶ helper: words on the socket until it stands where it should
       │                   (own groups, cgroup namespace, mounts)
       │ ◀─ a socket ───── │ execve: criu swrk 3
       │ request ────────▶ │
       │ ◀─ notification ─ │   (again and again, each with a reply)
       │ ◀─ response ───── │

The socket that CRIU is spoken to by is the helper's own, for CRIU looks up the descriptors of the image and work
directories in the process whose socket it is, and needs these as its own mount namespace has them.
The restored first process is CRIU's sibling: the runtime's own child.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat

from nestrt.errors import HostError, InputError, KernelError, NestrtError
from nestrt.kernel import mount, namespaces, pidfd, terminal
from nestrt.plan import criu as rpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from nestrt.plan.criu import Answer, Value

# Descriptors of CRIU's; what else is kept comes after.
SOCKET, IMAGE, WORK, KEPT = 3, 4, 5, 6
MESSAGE = 1 << 18
LOG_LIMIT = 4 << 20
MS_PRIVATE, MS_REC = 0x40000, 0x4000
# The oldest whose RPC has all that is asked for here: external pid namespaces.
OLDEST = 31500


def find(program: str) -> str:
    """The path of the criu binary. Raises HostError where there is none."""
    places = [program] if "/" in program else [f"{d}/{program}" for d in os.environ.get("PATH", "").split(":") if d]
    if "/" not in program:
        places += [f"/usr/local/sbin/{program}", f"/usr/sbin/{program}", f"/sbin/{program}"]
    for place in places:
        if os.access(place, os.X_OK) and os.path.isfile(place):
            return place
    raise HostError(
        "find", f"criu ({program})", "executable file not found in $PATH", "install criu, or name it: --criu PATH"
    )


class Service:
    """One helper process that becomes ``criu swrk``. Raises OSError where it cannot be made."""

    def __init__(
        self,
        program: str,
        inside: Callable[[_socket.socket], None],
        directories: tuple[str, str] = ("/", "/"),
        keep: Iterable[int] = (),
        shown: bool = False,
    ) -> None:
        """*inside* is run by the helper before it becomes CRIU; *directories* are those of IMAGE and WORK, by path;
        *keep* come to stand at KEPT and after. *shown*: *inside* has taken a mount namespace, and the image is to be
        readable there for whoever has the directory open: processes in a user namespace, which restore themselves."""
        self.program = program
        self.sock, theirs = _pair()
        self.pid = os.fork()
        if self.pid == 0:
            _become(program, theirs, inside, directories, tuple(keep), shown)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.ended = False

    def begin(self) -> None:
        """Wait until the helper is CRIU. Raises NestrtError with what it says instead."""
        data, control, _, _ = self.sock.recvmsg(MESSAGE, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        descriptor = _descriptor(control)
        if descriptor < 0:
            raise self._said(data)
        # Its end closes when the program runs; an error comes instead where it cannot.
        if data := self.sock.recv(MESSAGE):
            os.close(descriptor)
            raise self._said(data)
        self.sock.close()
        self.sock = _socket.socket(fileno=descriptor)

    def tell(self, word: str) -> None:
        """Let the helper go on. Raises NestrtError where it has ended."""
        try:
            self.sock.send(word.encode(), _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._gone() from error

    def wait(self, word: str) -> None:
        """Wait for the helper's *word*. Raises NestrtError with what it says instead."""
        found = self.sock.recv(MESSAGE)
        if found != word.encode():
            raise self._said(found)

    def _said(self, data: bytes) -> NestrtError:
        number, sign, what = data.decode("utf-8", "replace").partition(" ")
        if sign and number.isdigit():
            return KernelError("run", f"{self.program}: {what}", int(number))
        return self._gone()

    def _gone(self) -> NestrtError:
        return NestrtError("run", self.program, "it has ended without an answer", "see the log in the work directory")

    def ask(
        self, kind: int, options: Iterable[tuple[str, Value]], notified: Callable[[Answer, int], None] | None = None
    ) -> Answer:
        """One request; *notified* is told of each notification, with the descriptor that came along or -1: an
        exception of it makes CRIU undo what it has done, and is raised here. Raises NestrtError where CRIU ends."""
        self.begin()
        self.tell_bytes(rpc.request(kind, options))
        failure: BaseException | None = None
        while True:
            data, control, _, _ = self.sock.recvmsg(MESSAGE, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
            if not data:
                raise failure or self._gone()
            found = rpc.answer(data)
            if found.kind != rpc.NOTIFY:
                if failure is not None:
                    raise failure
                return found
            descriptor = _descriptor(control)
            try:
                if notified:
                    notified(found, descriptor)
            except BaseException as error:
                failure = failure or error
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            self.tell_bytes(rpc.reply(failure is None))

    def tell_bytes(self, data: bytes) -> None:
        try:
            self.sock.send(data, _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._gone() from error

    def close(self, patience: float = 10.0) -> None:
        """Let CRIU end, and end it if it does not."""
        if self.ended:
            return
        self.sock.close()
        if not pidfd.wait(self.pidfd, patience):
            pidfd.send_signal(self.pidfd, 9)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.ended = True


def _descriptor(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, content in control:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS) and len(content) >= 4:
            return int.from_bytes(content[:4], "little")
    return -1


def _pair() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)


def _become(
    program: str,
    sock: _socket.socket,
    inside: Callable[[_socket.socket], None],
    directories: tuple[str, str],
    keep: tuple[int, ...],
    shown: bool,
) -> NoReturn:
    """In the helper: do what *inside* says, and be CRIU."""
    try:
        inside(sock)
        ours, theirs = _pair()
        image, work = directories
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        places = [-1, os.open(work, flags)]
        if shown:
            _show(image)  # after the work directory was opened, which may be the same
        places[0] = os.open(image, flags)
        terminal.send_fd(sock.fileno(), theirs.fileno())
        # First above all that is used, then into place: nothing is overwritten before it has been copied.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (ours.fileno(), *places, *keep)]
        told = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 200)
        for number, fd in enumerate(high):
            os.dup2(fd, SOCKET + number)
        end = SOCKET + len(high)
        os.closerange(end, told)
        os.closerange(told + 1, 4096)
        sock = _socket.socket(fileno=told)
        os.execve(program, [program, "swrk", str(SOCKET)], dict(os.environ))
    except OSError as error:
        sock.send(f"{error.errno or 0} {error.filename or ''}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def _show(image: str) -> None:
    """Cover the directory *image* by one of the same files that anybody may search; its own lets only root in."""
    names = [entry.name for entry in os.scandir(image) if entry.is_file(follow_symlinks=False)]
    trees = [(name, mount.open_tree(f"{image}/{name}")) for name in names]
    tree = mount.new_mount("tmpfs", "mode=711,size=1m")
    mount.move_mount(tree, image)
    for name, file in trees:
        os.close(os.open(f"{image}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        mount.move_mount(file, f"{image}/{name}")
        os.close(file)
    os.close(tree)


def enter_cgroup_namespace(pid: int) -> Callable[[_socket.socket], None]:
    """For the helper of a dump: stand in the cgroup namespace of *pid*, where its mounts are what they are to it."""

    def inside(sock: _socket.socket) -> None:
        fd = os.open(f"/proc/{pid}/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(fd, namespaces.CLONE_NEWCGROUP)
        os.close(fd)

    return inside


def take_place(
    own_namespace: bool, rootfs: str, root: str, targets: tuple[tuple[str, bool], ...]
) -> Callable[[_socket.socket], None]:
    """For the helper of a restore: be moved to the groups, with *own_namespace* take the cgroup namespace there, and
    have *rootfs* mounted at *root*, which nobody else sees. *targets* are (mountpoint in it, whether it is a file)."""

    def inside(sock: _socket.socket) -> None:
        _go(sock)
        if own_namespace:
            namespaces.unshare(namespaces.CLONE_NEWCGROUP)
        sock.send(b"rooted")
        _go(sock)
        namespaces.unshare(namespaces.CLONE_NEWNS)
        mount.propagation("/", MS_REC | MS_PRIVATE)
        tree = mount.open_tree(rootfs, recursive=True)
        mount.move_mount(tree, root)
        os.close(tree)
        if targets:
            _make_targets(root, targets)

    return inside


def _go(sock: _socket.socket) -> None:
    """Wait for a word; without the runtime there is nothing to go on for."""
    if not sock.recv(16):
        os._exit(1)


def _make_targets(root: str, targets: tuple[tuple[str, bool], ...]) -> None:
    """What the mounts of the image need in the root filesystem. A child does it with its root there: so no symlink of
    the image leads out."""
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot(root)
            os.chdir("/")
            for target, is_file in targets:
                if os.path.lexists(target):
                    continue
                os.makedirs(os.path.dirname(target) if is_file else target, 0o755, exist_ok=True)
                if is_file:
                    os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
        except OSError:
            pass  # CRIU says which mount it could not make
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def version(program: str) -> int:
    """CRIU's version as a number: 31701 is 3.17.1. Raises HostError for one that is too old, NestrtError."""
    service = Service(program, lambda sock: None)
    try:
        found = service.ask(rpc.VERSION, ()).version
    finally:
        service.close()
    if found < OLDEST:
        reason = f"version {found // 10000}.{found // 100 % 100} is too old"
        raise HostError("use", program, reason, "install CRIU 3.15 or later")
    return found


def directory(path: str, what: str) -> int:
    """Open the directory *path*, made if it is not there. Raises InputError."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError("make", f"{what} {path}", (error.strerror or "").lower(), "name another") from error
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError("open", f"{what} {path}", (error.strerror or "").lower(), "name a directory") from error


def read_log(place: int, name: str) -> str:
    """The end of CRIU's log in the directory *place*; "" where there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=place)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, LOG_LIMIT, max(0, size - LOG_LIMIT)).decode("utf-8", "replace")
    finally:
        os.close(fd)


def explain(operation: str, id: str, log: str, where: str, given: str = "") -> NestrtError:
    """The error for a request that CRIU refused, by its *log*, which is the file *where*."""
    known = rpc.known_failure(log)
    if known:
        reason, _, remedy = known.partition("; ")
        return HostError(operation, f"container {id}", f"criu failed: {reason}", remedy)
    said = rpc.errors(log) or given or "it says nothing"
    return HostError(operation, f"container {id}", f"criu failed: {said}", f"see {where}")


def descriptors(pid: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What descriptors 0, 1 and 2 of *pid* are to CRIU, and which of these are files from outside its mounts.

    A pipe is called as /proc shows it, a file of a mount that is not the container's ``file[MOUNT:INODE]``, anything
    else "". Raises OSError.
    """
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = {line.split(" ", 1)[0] for line in file}
    names = []
    outside = []
    for number in range(3):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            names.append("")
            continue
        found = os.stat(f"/proc/{pid}/fd/{number}")
        place = _mount_of(pid, number)
        if link.startswith("pipe:["):
            names.append(link)
        elif stat.S_ISREG(found.st_mode) and place not in mounts:
            names.append(f"file[{int(place):x}:{found.st_ino:x}]")
            outside.append(names[-1])
        else:
            names.append("")
    return tuple(names), tuple(dict.fromkeys(outside))


def _mount_of(pid: int, number: int) -> str:
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return value.strip()
    return "0"
