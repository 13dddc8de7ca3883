"""Try what a guest's root may do to its groups: the checker's side. The protocol is drawn in plan/trials.py.

The helper is ended when it has told all, or when its time is over; then whatever it has made goes.
"""

from __future__ import annotations

import os
import select
import time

from nestrt import jsontext
from nestrt.act.trials_inside import Helper, main
from nestrt.kernel import namespaces, pidfd
from nestrt.plan.trials import Outcome, Trials, Tried

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum

NAMESPACES = (
    ("user", namespaces.CLONE_NEWUSER),
    ("mnt", namespaces.CLONE_NEWNS),
    ("cgroup", namespaces.CLONE_NEWCGROUP),
)
MOST_BYTES = 1 << 20
REMOVALS = 20


def carry_out(pid: int, start: int, trials: Trials, groups: tuple[str, ...], seconds: float) -> Tried:
    """Try *trials* in the namespaces of process *pid*, which began at *start* (clock ticks since boot).

    *groups* are the guest root's directories: whatever of trials.child the helper leaves in one is removed. Takes at
    most *seconds*, and 2 s for a helper that does not end. Raises OSError: ESRCH where *pid* is
    gone, EPERM.
    """
    target = pidfd.open(pid, start)
    try:
        flags = 0
        for name, flag in NAMESPACES:
            if not os.path.samestat(os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")):
                flags |= flag
        procfs = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        checker = os.getpid()
        helper = os.fork()
        if helper == 0:
            main(Helper(target, flags, procfs, writer, checker), trials)
        os.close(writer)
        os.close(procfs)
        try:
            text, problem = _listen(reader, seconds)
        finally:
            os.close(reader)
            ended = _end(helper)
    finally:
        os.close(target)
    left = _remove(groups, trials.child)
    outcomes = _parse(text)
    if not problem and not (outcomes and outcomes[-1].kind == "done"):
        problem = "the helper was ended before it was done"
    if not ended:
        problem = f"helper {helper} cannot be ended: something in the guest holds it in the kernel"
    return Tried(outcomes, problem, left)


def _listen(reader: int, seconds: float) -> tuple[bytes, str]:
    """What the helper writes until it ends, and why no more was read."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    deadline, text = time.monotonic() + seconds, b""
    while len(text) < MOST_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return text, f"it was not done after {seconds:g} s"
        chunk = os.read(reader, 65536)
        if not chunk:
            return text, ""
        text += chunk
    return text, "it told more than is read"


def _end(helper: int) -> bool:
    """Kill and reap the helper; False where the kernel keeps it."""
    os.kill(helper, _signal.SIGKILL)
    for _ in range(200):
        if os.waitpid(helper, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False


def _remove(groups: tuple[str, ...], child: str) -> tuple[str, ...]:
    """Remove the helper's child groups; returns those that stay, as a guest may put processes and groups into them."""
    left = []
    for group in groups:
        path = f"{group}/{child}"
        for _ in range(REMOVALS):
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
        else:
            left.append(path)
    return tuple(left)


def _parse(text: bytes) -> tuple[Outcome, ...]:
    """The outcomes in whole lines."""
    found = []
    for line in text.split(b"\n")[:-1]:
        kind, place, how, name, error = jsontext.loads(line.decode())
        found.append(Outcome(kind, place, how, name, error))
    return tuple(found)
