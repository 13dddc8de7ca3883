"""The steps that make groups, carried out, whoever starts the guest: a launch, a create or another runtime."""

from __future__ import annotations

import fcntl
import os

from nestrt.act import script
from nestrt.errors import StateError
from nestrt.plan import host_steps as do
from nestrt.plan.request import PARENT_LOCK
from nestrt.plan.script import OPERATIONS, operation
from nestrt.plan.steps import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from nestrt.plan.steps import Step

    class Maker(Protocol):
        """Who carries the steps out: *pid* is the first process, 0 where there is none yet."""

        plan: Plan
        pid: int
        parent_lock: int


def hold_parents(launcher: Maker) -> None:
    """Keep what guests share from being removed while this one's groups are made."""
    os.makedirs(os.path.dirname(PARENT_LOCK), mode=0o755, exist_ok=True)
    launcher.parent_lock = os.open(PARENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(launcher.parent_lock, fcntl.LOCK_SH)


def _make_group(launcher: Maker, step: do.MakeGroup) -> None:
    try:
        _carry_out(launcher, step)
    except FileExistsError as error:
        raise StateError(
            "launch",
            f"guest {launcher.plan.name}",
            f"group {step.hierarchy.path(step.group)} is there already",
            "choose another --name, or remove what is left: nestrt gc",
        ) from error


def _attach_program(launcher: Maker, step: do.AttachDeviceProgram) -> None:
    from nestrt.kernel import bpf  # only where device rules are a program

    program = bpf.load_device_program(step.code)
    try:
        bpf.attach(step.hierarchy.path(step.group), program)
    finally:
        os.close(program)


def _carry_out(launcher: Maker, step: Step) -> None:
    script.carry_out(operation(step), launcher.pid)


STEPS: dict[type[Step], Callable[..., None]] = {
    **dict.fromkeys(OPERATIONS, _carry_out),
    do.MakeGroup: _make_group,
    do.AttachDeviceProgram: _attach_program,
}


class Worker:
    """Carries steps out that make or change groups (Maker): *pid* is the guest's first process, or 0."""

    def __init__(self, name: str, pid: int = 0) -> None:
        self.plan = Plan(name, (), ())
        self.pid = pid
        self.parent_lock = -1

    def run(self, steps: Iterable[Step]) -> None:
        """Raises NestrtError for the first that the kernel refuses."""
        for step in steps:
            try:
                STEPS[type(step)](self, step)
            except OSError as error:
                from nestrt.act.explain import explain

                raise explain(step, error) from error

    def release(self) -> None:
        """Let go of the groups that guests share."""
        if self.parent_lock >= 0:
            os.close(self.parent_lock)
            self.parent_lock = -1
