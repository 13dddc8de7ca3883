"""Run the hooks of a bundle: runtime-spec, config.md, "POSIX-platform Hooks".

A hook is the host administrator's program. It gets the container's state on standard
input, exactly its own arguments and environment (runc hands its own environment to a
hook without one, and the container's to startContainer hooks: not here, where data of
an image could decide what the host's programs load, as in CVE-2025-23266), and no
descriptor but 0, 1 and 2.

Imported before the first process is cloned if it is to run hooks: it can import nothing.
"""

from __future__ import annotations

import fcntl
import os
import select
from time import monotonic

from nestrt import jsontext
from nestrt.act.program import close_on_exec, lowered
from nestrt.errors import NestrtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any, NoReturn

    from nestrt.oci.model import Hook
else:
    import _signal  # signal.py imports enum

KEPT = 4096  # of each of a hook's two outputs, the last bytes


def run(
    hooks: tuple[Hook, ...],
    state: dict[str, Any],
    where: str,
    chroot_fd: int | None = None,
    cwd: str = "/",
    warn: Callable[[str], object] | None = None,
) -> None:
    """Run *hooks* one after the other; *where* is the stage's name, for errors.

    *chroot_fd* is the directory that a hook has for its root (createContainer: the
    runtime's, with the container's namespaces), None the caller's own; *cwd* is in it.

    The first hook that fails raises NestrtError, and no other is run; with *warn* each
    failure is told to it instead, and the others run too. runtime.md wants the error
    for all stages but poststop, and up to version 1.2 poststart, where it wants a
    warning. (runc stops the container for poststart too, as 1.3 says; for poststop it
    reports the error and leaves out the other hooks.)
    """
    document = jsontext.dumps(state).encode()
    for index, hook in enumerate(hooks):
        reason = _run_one(hook, document, chroot_fd, cwd)
        if not reason:
            continue
        error = NestrtError(
            "run",
            f"hook {hook.path}",
            f"error running {where} hook #{index}: {reason}",
            f"correct hooks.{where} of config.json, or the program",
        )
        if warn is None:
            raise error
        warn(str(error))


def _pipe() -> tuple[int, int]:
    """A pipe, close-on-exec, above the standard descriptors, which the caller may have closed."""
    ends = os.pipe2(os.O_CLOEXEC)
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


class _Child:
    """A hook's process: leader of a group of its own, so that it can be ended as a whole."""

    def __init__(self, hook: Hook, chroot_fd: int | None, cwd: str) -> None:
        begin, self.input = _pipe()
        self.output, out = _pipe()
        self.errors, err = _pipe()
        failed, fail = _pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(hook, (begin, out, err), fail, chroot_fd, cwd)
        for fd in (begin, out, err, fail):
            os.close(fd)
        for fd in (self.input, self.output, self.errors):
            os.set_blocking(fd, False)
        self.pidfd = os.pidfd_open(self.pid)
        with open(failed, "rb", buffering=0) as file:
            # Ends when the hook runs: then it leads its group.
            self.failure = file.read().decode("utf-8", "replace")

    def stop(self) -> None:
        """Kill the hook and what it started, as far as it is still in its group."""
        try:
            os.killpg(self.pid, _signal.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        for fd in {self.input, self.output, self.errors, self.pidfd} - {-1}:
            os.close(fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run_one(hook: Hook, document: bytes, chroot_fd: int | None, cwd: str) -> str:
    """Run *hook*; returns why it failed, "" if it did not."""
    child = _Child(hook, chroot_fd, cwd)
    if child.failure:
        child.reap()
        return child.failure
    tails = {child.output: b"", child.errors: b""}
    try:
        in_time = _talk(child, document, tails, None if hook.timeout is None else monotonic() + hook.timeout)
    except BaseException:
        child.stop()
        child.reap()
        raise
    texts = [tail.decode("utf-8", "replace") for tail in tails.values()]
    if not in_time:
        child.stop()
        child.reap()
        return f"hook ran past specified timeout of {hook.timeout:.1f}s"
    code = child.reap()
    if code == 0:
        return ""
    how = f"signal: {_signal.strsignal(-code)}".lower() if code < 0 else f"exit status {code}"
    return f"{how}, stdout: {texts[0]}, stderr: {texts[1]}"


def _talk(child: _Child, document: bytes, tails: dict[int, bytes], deadline: float | None) -> bool:
    """Write *document*, read the outputs, until the hook ends; False if it has not by *deadline*.

    Not until its outputs end: what it leaves running in the background may hold them.
    """
    poll = select.poll()
    poll.register(child.input, select.POLLOUT)
    for fd in (child.output, child.errors, child.pidfd):
        poll.register(fd, select.POLLIN)
    while True:
        left = None if deadline is None else max(0, int((deadline - monotonic()) * 1000) + 1)
        if deadline is not None and monotonic() >= deadline:
            return False
        ready = dict(poll.poll(left))
        for fd in tails.keys() & ready.keys():
            if not _drain(fd, tails, 1):
                poll.unregister(fd)
        if child.input in ready:
            document = _feed(child.input, document)
            if not document:
                poll.unregister(child.input)
                os.close(child.input)  # the hook reads end of file
                child.input = -1
        if child.pidfd in ready:
            for fd in tails:
                _drain(fd, tails, 64)  # a pipe holds no more, whoever goes on writing
            return True


def _feed(fd: int, document: bytes) -> bytes:
    """Write what the pipe takes; returns the rest, nothing where the hook does not read it."""
    try:
        return document[os.write(fd, document) :]
    except BlockingIOError:
        return document
    except BrokenPipeError:
        return b""


def _drain(fd: int, tails: dict[int, bytes], times: int) -> bool:
    """Read up to *times*; False at the end of file."""
    for _ in range(times):
        try:
            chunk = os.read(fd, 4096)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        tails[fd] = (tails[fd] + chunk)[-KEPT:]
    return True


def _become(hook: Hook, streams: tuple[int, int, int], fail: int, chroot_fd: int | None, cwd: str) -> NoReturn:
    """In the child: be the hook, or write why not to *fail*."""
    try:
        os.setpgid(0, 0)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        close_on_exec(3)
        if chroot_fd is not None:
            os.fchdir(chroot_fd)
            os.chroot(".")
        os.chdir(cwd)
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)  # Python ignores them, and the hook would too
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        environment = dict(entry.partition("=")[::2] for entry in hook.env)
        os.execve(hook.path, hook.args or (hook.path,), environment)
    except BaseException as error:
        reason = lowered(error.errno or 0) if isinstance(error, OSError) else str(error)
        os.write(fail, f"fork/exec {hook.path}: {reason}".encode())
    os._exit(127)
