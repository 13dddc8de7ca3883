"""``nestrt kill NAME [--signal S]``: a signal for all processes of a guest of any runtime, and of its guests."""

from __future__ import annotations

from nestrt.act import members, remove
from nestrt.act.containers import Container
from nestrt.act.freeze import freeze, frozen, thaw
from nestrt.act.signals import signal_number
from nestrt.cli._host_audit import Change
from nestrt.cli._target import look, of_guest, refuse_own, require_root, words
from nestrt.cli.options import Option
from nestrt.errors import HostError, InputError, KernelError, NestrtError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.walk import Guest, View
    from nestrt.plan.facts import Hierarchy

HEAD = """usage: nestrt kill [--signal SIGNAL] NAME [SIGNAL]

Send SIGNAL (default: SIGKILL) to all processes of a guest of any runtime, and of its guests.
For a container of this runtime, without --signal: its first process alone, SIGTERM."""
OPTIONS = (
    Option("signal", "SIGNAL", "a name or number of signal(7): TERM, SIGTERM, 15", "s"),
    Option("all", "", "to all of its processes: always so", "a"),
)
KILL = 9


def _everyone(guest: Guest, hierarchies: tuple[Hierarchy, ...], number: int) -> None:
    """Each process gets it once. Where it can be, the guest is stopped meanwhile: nobody forks away."""
    subject = Container("", guest.name, {"cgroup": guest.path})
    stopped = False
    if not frozen(subject):
        try:
            freeze(subject)
            stopped = True
        except (NestrtError, OSError):
            pass  # who cannot be stopped can be told all the same
    try:
        members.signal_everyone(hierarchies, guest.path, number)
    finally:
        if stopped:
            thaw(subject)


def main(argv: list[str]) -> int:
    """Run the command. Raises NestrtError: StateError where nothing of the guest runs, or it does not end in time."""
    found = words("kill", OPTIONS, argv, HEAD)
    if found is None:
        return 0
    single, _, operands = found
    if len(operands) not in (1, 2) or (len(operands) == 2 and "signal" in single):
        raise InputError("kill", "a guest", "it takes one name and one signal", "write nestrt kill NAME --signal TERM")
    given = operands[1] if len(operands) == 2 else single.get("signal", "KILL")
    view, guest = look(operands[0])
    number = signal_number(given)
    require_root("kill", guest)
    with Change("Kill", view, guest) as change:
        change.note("signal", None, number)
        _kill(view, guest, number)
    return 0


def _kill(view: View, guest: Guest, number: int) -> None:
    refuse_own("kill", view, guest)
    hierarchies, what = of_guest(view, guest), f"guest {guest.name}"
    if not members.living(hierarchies, guest.path):
        raise StateError("kill", what, "it has no processes", "nestrt ls shows which guests run")
    try:
        if number == KILL:
            remove.kill(hierarchies, guest.path)
        else:
            _everyone(guest, hierarchies, number)
    except PermissionError as error:
        raise HostError("kill", what, "operation not permitted", "run it as root of the level above") from error
    except OSError as error:
        raise KernelError("kill", what, error.errno or 0, "see whether it is still there: nestrt ls") from error
