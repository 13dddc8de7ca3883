"""Steps: a launch as ordered values, printed by ``--dry-run``, carried out by ``act``.

The launcher's are in host_steps, those of the guest's first process, before its
program runs, in guest_steps. Both lists run in order; where one has to wait for
the other, a Tell on one side meets a Wait on the other.
"""

from __future__ import annotations

from nestrt.record import record


@record
class Step:
    """One thing to do. ``describe`` is one line that begins with a verb."""

    def describe(self) -> str:
        raise NotImplementedError(type(self).__name__)


@record
class Tell(Step):
    """Let the other process go on past its Wait of the same *word*."""

    word: str

    def describe(self) -> str:
        return f"tell the other process: {self.word}"


@record
class Wait(Step):
    """Wait for the other process's Tell."""

    word: str

    def describe(self) -> str:
        return f"wait for: {self.word}"


@record
class Plan:
    """What a launch will do: the launcher's steps and the first process's."""

    name: str
    host: tuple[Step, ...]
    guest: tuple[Step, ...]

    def lines(self) -> list[str]:
        """The plan for ``--dry-run``, one line a step."""
        return [f"host   {step.describe()}" for step in self.host] + [
            f"guest  {step.describe()}" for step in self.guest
        ]
