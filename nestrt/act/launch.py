"""Carry out the launcher's steps of a plan; the protocol is drawn in plan/launch.py.

Whatever fails or is interrupted on the way, the guest's first process ends with
the launcher (parent death signal, end of file on the channel), and remove()
takes back all that was made: there is one way to undo a launch, and it is the
one that ``delete`` and ``gc`` use.
"""

from __future__ import annotations

import os

from nestrt.act import relay
from nestrt.act.explain import explain
from nestrt.act.protocol import Channel, Gone
from nestrt.errors import NestrtError
from nestrt.kernel import pidfd
from nestrt.plan import host_steps as do
from nestrt.plan.request import state_file
from nestrt.plan.steps import Plan, Step, Tell, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.act.broker import Embedded
    from nestrt.act.first import Steps

    Observer = Callable[[str, Step], None]


class Launcher:
    """The state of one launch: descriptors, and the first process once it is there."""

    def __init__(
        self,
        plan: Plan,
        signals: set[int],
        steps: Steps,
        first: Steps,
        connect: Callable[[str, int], object] | None = None,
        observe: Observer | None = None,
    ) -> None:
        """*signals* are those to block in the guest's program, *steps* and *first* carry out the launcher's
        steps and the first process's, *connect* joins (name, pid) to the network, *observe* is told of each
        step, with "host" or "guest", after it was carried out."""
        self.plan = plan
        self.steps = steps
        self.first = first
        self.signals = signals
        self.connect = connect
        self.observe = observe
        self.pid = 0
        self.pidfd = -1
        self.lock = -1
        self.parent_lock = -1
        self.tree = -1
        self.binds: dict[tuple[str, str], int] = {}
        self.log = -1
        self.board = -1
        self.broker: Embedded | None = None
        self.warnings: list[str] = []
        self.channel: Channel

    @property
    def master(self) -> int | None:
        """The master of the guest's terminal, if it has one."""
        return self.channel.master

    def run(self) -> None:
        """Carry out all steps; returns when the guest's program runs. Raises NestrtError."""
        for step in self.plan.host:
            try:
                self.steps[type(step)](self, step)
            except (OSError, Gone) as error:
                raise self._cause(step, error) from error
            if self.observe:
                self.observe("host", step)

    def await_program(self, program: str) -> None:
        """Wait until the first process is the guest's *program*; raises what it told instead."""
        try:
            self.channel.expect_program(program, self.board)
        except NestrtError:
            self.wait()
            raise

    def abandon(self) -> None:
        """End the first process, if it is there: its guest is not to be. Let go of the shared group."""
        self.release_parents()
        if self.pid:
            pidfd.send_signal(self.pidfd, 9)
            try:
                self.wait()
            except ChildProcessError:
                pass  # reaped already, on the way here
        self.end_broker()

    def end_broker(self) -> None:
        """End the broker that was started for this guest alone, if there is one."""
        if self.broker is not None:
            self.broker.end()
            self.broker = None

    def release_parents(self) -> None:
        if self.parent_lock >= 0:
            os.close(self.parent_lock)
            self.parent_lock = -1

    def owns_name(self) -> bool:
        """Whether the name is still this launch's: a forced delete may have given it to another."""
        try:
            return self.lock >= 0 and os.path.samestat(os.fstat(self.lock), os.stat(state_file(self.plan.name)))
        except OSError:
            return False

    def wait(self) -> int:
        """Reap the first process; returns its wait status."""
        return os.waitpid(self.pid, 0)[1] if self.pid else 0

    def _cause(self, step: Step, error: OSError | Gone) -> NestrtError:
        """Why *step* failed: what the first process told last if it has ended, and else the kernel's word."""
        # A process that is ending takes no part in moves any more (PF_EXITING), a moment before it has ended.
        if isinstance(error, OSError) and not (self.pid and pidfd.wait(self.pidfd, 0.2)):
            return explain(step, error)
        return self.channel.last_error() or self._lost(step)

    def _lost(self, step: Step) -> NestrtError:
        status = self.wait()
        reason = (
            f"its first process ended early (signal {status & 127})"
            if status & 127
            else "its first process ended early"
        )
        return NestrtError(
            "start",
            f"guest {self.plan.name}",
            f"{reason}, before: {step.describe()}",
            "look at dmesg: a memory limit may be too low to start in",
        )


def _tell(launcher: Launcher, step: Tell) -> None:
    launcher.channel.tell(step.word)


def wait(launcher: Launcher, step: Wait) -> None:
    launcher.channel.wait(step.word)
    if launcher.master is not None:
        relay.fit(launcher.master)  # before the program can ask


def _await_program(launcher: Launcher, step: do.AwaitProgram) -> None:
    launcher.await_program(step.program)


# What every launcher does, whatever it launches.
COMMON: Steps = {Tell: _tell, Wait: wait, do.AwaitProgram: _await_program}
