"""Who wants to be told what of a guest's groups."""

from __future__ import annotations

from typing import Any, Callable

from nestrt.broker.watch_tree import fitting
from nestrt.guest import client
from nestrt.host.event_sources import TREE
from nestrt.host.pressure import Trigger


class Interest:
    """Somebody wants to be told: *kinds* of events of *group*, and with *below* of those below it. *tell* is called
    with each event, and must not wait. *triggers*: the pressure that is meant."""

    def __init__(
        self,
        group: str,
        kinds: frozenset[str],
        below: bool,
        tell: Callable[[dict[str, Any]], None],
        triggers: tuple[Trigger, ...] = (),
    ) -> None:
        self.group = group
        self.kinds = kinds
        self.below = below
        self.tell = tell
        self.triggers = triggers

    def covers(self, group: str) -> bool:
        """Whether events of *group* are for it."""
        return group == self.group or (self.below and client.below(group, self.group) is not None)

    def hierarchies(self, view: client.View) -> set[str]:
        """The names of the hierarchies in which groups that come and go matter to it."""
        if self.below and self.kinds & TREE:
            return {h.name for h in view.hierarchies}
        found = {h.name for h in view.hierarchies if fitting(view, h, self.kinds)}
        return found if found or self.below else {view.hierarchies[0].name}


def cpus_of(view: client.View, group: str) -> tuple[frozenset[int], frozenset[int]]:
    """The CPUs of *group*, and of the guest, in the numbers of the broker's level; empty where nobody says."""
    everything = view.effective("/", "cpuset.cpus") or frozenset()
    return view.effective(group, "cpuset.cpus") or everything, everything
