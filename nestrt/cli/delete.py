"""``nestrt delete``: remove a container with all that belongs to it, or a guest of ``launch``."""

from __future__ import annotations

import os

from nestrt.act import containers
from nestrt.act.containers import Container
from nestrt.act.destroy import destroy
from nestrt.act.statefile import Foreign
from nestrt.cli.engine import STATE_ROOT, Globals, hierarchies_of, report, warn, words
from nestrt.cli.options import Option
from nestrt.errors import InputError, NestrtError, NotFound, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 10.0
HEAD = """usage: nestrt delete [--force] ID …

Remove containers, and guests of nestrt launch: their groups at all levels, ids, network, state."""
OPTIONS = (
    Option("force", "", "kill what still runs in it; one that is not there is no error", "f"),
    Option("regex", "", "the operands are regular expressions that ids match"),
)


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb for containers, and for guests of launch where no container has the name.

    With --force one that is not there is no error. The exit status is that of the last that could not be deleted.
    """
    found = words("delete", OPTIONS, argv, HEAD)
    if found is None:
        return 0
    single, _, names = found
    force = "force" in single
    if "regex" in single:
        names = matching(flags.root, names)
    elif not names:
        raise InputError("delete", "a container", "no id is given", "nestrt list and nestrt ls name them")
    try:
        return each(names, lambda name: delete_one(flags, name, force))
    except OwnStatus as error:
        report(flags, error, "delete")
        return error.status


def matching(root: str, patterns: list[str]) -> list[str]:
    """The ids below *root* that match one of the regular expressions. Raises InputError."""
    import re  # on this way only

    found = []
    for container in containers.all_containers(root):
        if isinstance(container, NestrtError):
            continue
        try:
            if any(re.search(pattern, container.id) for pattern in patterns):
                found.append(container.id)
        except re.error as error:
            raise InputError("read", f"--regex {patterns}", str(error), "write a regular expression") from error
    return found


def delete_one(flags: Globals, name: str, force: bool) -> None:
    """Remove one container or guest. Raises NotFound (not with *force*), StateError, KernelError."""
    try:
        container = containers.load(flags.root, name)
    except NotFound as error:
        if flags.root == STATE_ROOT and _guest(name, force):
            return
        if force:
            return
        if flags.root == STATE_ROOT:
            raise OwnStatus(error) from error  # it could have been a guest of launch
        raise
    except (InputError, Foreign):
        raise  # no name of a container, or not ours: force is no licence to remove what it leads to
    except NestrtError:
        if not force:
            raise
        container = Container(flags.root, name, {})  # its state is unreadable: what its name says is removed
    delete_container(flags, container, force)


def delete_container(flags: Globals, container: Container, force: bool) -> None:
    """Raises StateError where it runs and not *force*, or is being made or removed by another."""
    try:
        lock = containers.lock(container.directory, PATIENCE if force else 1.0)
    except FileNotFoundError:
        return  # another was first
    except BlockingIOError:
        raise StateError("delete", f"container {container.id}", "it is being created or removed", "try again") from None
    try:
        container = containers.load(flags.root, container.id) if container.document else container
        status = container.status(owned=True)
        if status in ("running", "paused") and not force:
            raise StateError(
                "delete",
                f"container {container.id}",
                f"cannot delete container {container.id} that is not stopped: {status}",
                f"nestrt kill {container.id} KILL, or: nestrt delete --force {container.id}",
            )
        destroy(container, hierarchies_of(container), lambda text: warn(flags, text))
    except NotFound:
        pass  # another was first
    finally:
        os.close(lock)


class OwnStatus(NestrtError):
    """An error with the exit status that errors.py gives it, where runc would say 1."""

    def __init__(self, error: NestrtError) -> None:
        super().__init__(error.operation, error.obj, error.reason, error.remedy)
        self.status = error.status


def _guest(name: str, force: bool) -> bool:
    """Remove the guest of launch of that name, if there is one; returns whether there was. Raises OwnStatus."""
    from nestrt.cli import _guests
    from nestrt.host.marks import valid_name
    from nestrt.probe.facts import read_hierarchies

    if not valid_name(name) or not _guests.exists(name, read_hierarchies(make=True)):
        return False
    try:
        _guests.delete(name, force)
    except NestrtError as error:
        raise OwnStatus(error) from error
    return True


def each(names: list[str], action: Callable[[str], object]) -> int:
    """Do *action* for every name. A single one's error is the caller's; of several each is told, and the rest go on."""
    if len(names) == 1:
        action(names[0])
        return 0
    from nestrt.cli._guests import each as every

    return every(names, action)
