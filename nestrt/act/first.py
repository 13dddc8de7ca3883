"""The first process of a guest, or one that ``exec`` adds: carries out its steps of the plan, becomes the program.

It runs the launcher's interpreter, in the guest's namespaces, before any code of
the image does. What it needs of the old root it reaches through descriptors.
"""

from __future__ import annotations

import os
import sys

from nestrt.act.process import Guest
from nestrt.act.program import setgroups_allowed
from nestrt.act.protocol import Gone
from nestrt.errors import KernelError, NestrtError
from nestrt.kernel import prctl, terminal
from nestrt.plan import guest_steps as do
from nestrt.plan.steps import Plan, Step, Tell, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    Steps = dict[type[Step], Callable[..., None]]
else:
    import _signal  # signal.py imports enum


def refused(step: Step, error: OSError) -> NestrtError:
    """The kernel's refusal of a step as an error for the user."""
    return KernelError(step.describe(), str(error.filename or ""), error.errno or 0)


def main(
    plan: Plan,
    guest: Guest,
    steps: Steps,
    observe: Callable[[str, Step], None] | None,
    explain: Callable[[Step, OSError], NestrtError] = refused,
) -> NoReturn:
    """Carry out the guest's steps by the functions in *steps*; tells the launcher what failed, and never returns."""
    # From here on an import could only come from the image: it must fail instead.
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    try:
        prctl.set_parent_death_signal(_signal.SIGKILL)
        for step in plan.guest:
            try:
                steps[type(step)](guest, step)
            except OSError as error:
                raise explain(step, error) from error
            if observe:
                observe("guest", step)
    except NestrtError as error:
        guest.channel.tell_error(error)
    except Gone:
        pass
    except BaseException as error:  # a traceback would reach the user from two processes at once
        guest.channel.tell_error(
            NestrtError("start", plan.name, f"{type(error).__name__}: {error}", "this is a bug of nestrt")
        )
    os._exit(125)


def _wait(guest: Guest, step: Wait) -> None:
    guest.channel.wait(step.word)


def _tell(guest: Guest, step: Tell) -> None:
    guest.channel.tell(step.word)


def _become_root(guest: Guest, step: do.BecomeRoot) -> None:
    if setgroups_allowed():
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl.set_parent_death_signal(_signal.SIGKILL)  # a change of user clears it


def open_terminal(guest: Guest, step: do.OpenTerminal) -> None:
    """Begin a session with a terminal of the guest's own devpts, which then is descriptors 0, 1 and 2."""
    master, guest.pty = terminal.open_guest_pty("/dev/ptmx")
    guest.channel.tell_terminal(master)
    slave = terminal.open_slave(master)
    os.close(master)
    terminal.make_controlling(slave)


COMMON: Steps = {
    Wait: _wait,
    Tell: _tell,
    do.BecomeRoot: _become_root,
    do.OpenTerminal: open_terminal,
}
