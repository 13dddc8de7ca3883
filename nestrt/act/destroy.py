"""Remove a container with all that belongs to it: the one way back, for ``delete``, ``run`` and a failed ``create``.

Everything is in its state file, which was written before anything else was made,
so this works after a kill at any point and as often as wanted.
"""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.act import remove
from nestrt.act.containers import Container
from nestrt.errors import InputError, NestrtError
from nestrt.kernel import pidfd
from nestrt.plan.facts import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


THAW_AFTER = 0.1  # seconds
PARENT_PATIENCE = 1.0  # seconds; nobody comes by later for groups that an engine has named


def kill_first(container: Container, hierarchies: tuple[Hierarchy, ...]) -> None:
    """End the first process and wait until it has ended: with it goes a pid namespace of its own."""
    if not container.alive():
        return
    try:
        descriptor = pidfd.open(container.pid, container.start_time)
    except ProcessLookupError:
        return
    try:
        pidfd.send_signal(descriptor, 9)
        if container.cgroup:
            from nestrt.act import freeze

            if freeze.frozen(container):
                freeze.thaw(container)
        if not pidfd.wait(descriptor, THAW_AFTER):
            remove.thaw(hierarchies, container.cgroup)  # its pid namespace may wait for what the guest has frozen
            pidfd.wait(descriptor, remove.PATIENCE)
    finally:
        os.close(descriptor)


def destroy(
    container: Container, hierarchies: tuple[Hierarchy, ...], warn: Callable[[str], object], entered: bool = True
) -> None:
    """Kill what lives of it, remove its groups, unit and state; then run its poststop hooks.

    Without *entered* it had no process yet: what lives in its group is another's, and stays.

    A hook that fails is a warning (runtime.md, "Lifecycle"). Raises StateError and
    KernelError for what could not be removed: the state is kept for another try.
    """
    kill_first(container, hierarchies)
    if entered or not remove.living(hierarchies, container.cgroup):
        remove.remove_tree(container.cgroup, hierarchies)
    if made := container.document.get("parents"):
        remove.remove_parent(hierarchies, tuple(made), PARENT_PATIENCE)
    if container.unit:
        from nestrt.act import scope

        scope.stop(container.unit)
    if rdt := container.text("resctrl"):
        from nestrt.act import attributes

        attributes.remove_resctrl(rdt)
    poststop(container, warn)
    container.forget()


def poststop(container: Container, warn: Callable[[str], object]) -> None:
    """Run the hooks of that stage, all of them, whatever they return."""
    try:
        text = container.config()
    except NestrtError:
        return  # killed before the document was kept: nothing was made by then
    try:
        found = jsontext.loads(text)
        if not found.get("hooks", {}).get("poststop"):
            return
    except (ValueError, AttributeError):
        return
    from nestrt.act import hooks
    from nestrt.oci.document import load
    from nestrt.oci.state import state

    try:
        spec = load(text, container.directory)
    except InputError as error:
        warn(str(error))
        return
    document = state(container.id, "stopped", 0, container.bundle, spec.version, container.annotations)
    hooks.run(spec.hooks.poststop, document, "poststop", warn=warn)
