"""What may wait for ever on another process's account, done by a helper that can be killed.

::

    caller ─ fork ─▶ helper: act, write what it found, end
       └◀── bytes ───┘        killed where it does not come to that

Only for waits that a killed process does not go on with (TASK_KILLABLE), by a caller of one thread.
"""

from __future__ import annotations

import errno
import os
import select
import time

from nestrt.kernel import prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal  # signal.py imports enum


def _helper(act: Callable[[], bytes], writer: int) -> None:
    number = 0
    try:
        prctl.set_parent_death_signal(_signal.SIGKILL)
        text = act()
        while text:
            text = text[os.write(writer, text) :]
    except OSError as error:
        number = error.errno or errno.EIO
    except BaseException:  # nothing may run on in the copy
        number = errno.EIO
    os._exit(min(number, 255))


def helped(act: Callable[[], bytes], patience: float, what: str) -> bytes:
    """What *act* returns. Raises OSError, naming *what*: the errno of its own, ETIMEDOUT after *patience* seconds."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _helper(act, writer)
    os.close(writer)
    found, late, deadline = b"", False, time.monotonic() + patience
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        while True:
            late = not poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))
            if late or not (chunk := os.read(reader, 65536)):
                break
            found += chunk
    finally:
        os.close(reader)
        if late:
            os.kill(child, _signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late or code:
        number = errno.ETIMEDOUT if late else code if code > 0 else errno.EIO
        raise OSError(number, os.strerror(number), what)
    return found
