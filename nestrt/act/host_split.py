"""Carry out the steps of nestrt host: all of them, or none."""

from __future__ import annotations

import errno
import os

from nestrt.act.explain import explain
from nestrt.act.groups import Worker
from nestrt.errors import NestrtError
from nestrt.kernel import cgroup
from nestrt.plan import host_split as do
from nestrt.plan.host_steps import MakeGroup, SetFile
from nestrt.plan.steps import Step
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PASSES = 20


class Splitter:
    """*attribute* is what is written on changed groups, *is_user* tells a user's process from a kernel thread.
    *warnings* has a line for what did not matter enough to take everything back."""

    def __init__(self, attribute: str, is_user: Callable[[int], bool]) -> None:
        self.attribute = attribute
        self.is_user = is_user
        self.worker = Worker("host")
        self.undo: list[Callable[[], object]] = []
        self.warnings: list[str] = []

    def run(self, steps: Iterable[Step]) -> None:
        """Raises NestrtError for the first step that the kernel refuses; then all is as it was."""
        try:
            for step in steps:
                act = self.ACTS.get(type(step))
                try:
                    if act:
                        act(self, step)
                    else:
                        self.worker.run([step])
                except OSError as error:
                    raise explain(step, error) from error
        except BaseException:
            while self.undo:
                try:
                    self.undo.pop()()
                except (OSError, NestrtError):
                    continue  # it has gone
            raise

    def _make(self, step: MakeGroup) -> None:
        path = step.hierarchy.path(step.group)
        there = os.path.isdir(path)
        self.worker.run([step])
        if not there:
            self.undo.append(lambda: os.rmdir(path))

    def _attribute(self, path: str) -> bytes | None:
        try:
            return os.getxattr(path, self.attribute)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise

    def _put(self, path: str, value: bytes | None) -> None:
        if value is not None:
            os.setxattr(path, self.attribute, value)
        elif self._attribute(path) is not None:
            os.removexattr(path, self.attribute)

    def _keep(self, step: do.Keep) -> None:
        path = step.hierarchy.path(step.group)
        raw = self._attribute(path)
        before = do.parse_kept(raw.decode()) if raw else None
        known = before.was if before else {}
        was = {file: text or known.get(file) or cgroup.read(f"{path}/{file}") for file, text in step.kept.was.items()}
        self.undo.append(lambda: self._put(path, raw))
        self._put(path, do.format_kept(replace(step.kept, was=was)).encode())

    def _set(self, step: SetFile) -> None:
        path = step.hierarchy.path(step.group, step.file)
        before = cgroup.read(path)
        if before != step.value:
            cgroup.write(path, step.value)
            self.undo.append(lambda: cgroup.write(path, before))

    def _forget(self, step: do.Forget) -> None:
        path = step.hierarchy.path(step.group)
        raw = self._attribute(path)
        self.undo.append(lambda: self._put(path, raw))
        self._put(path, None)

    def _move(self, step: do.MoveTasks) -> None:
        """Until none is left: what is born meanwhile is born where its parent was."""
        source, target = (step.hierarchy.path(group, "cgroup.procs") for group in (step.source, step.target))
        moved: list[int] = []

        def back() -> None:
            for pid in moved:
                _write(source, pid)

        self.undo.append(back)
        stuck: set[int] = set()
        for _ in range(PASSES):
            pids = [pid for pid in cgroup.processes(os.path.dirname(source)) if pid not in stuck and self.is_user(pid)]
            if not pids:
                break
            for pid in pids:
                problem = _write(target, pid)
                if not problem:
                    moved.append(pid)
                elif problem != errno.ESRCH:
                    stuck.add(pid)
        if stuck:
            some = " ".join(map(str, sorted(stuck)[:4]))
            self.warnings.append(f"{len(stuck)} processes stay in {step.hierarchy.path(step.source)}: {some}")

    def _remove(self, step: do.RemoveGroup) -> None:
        path = step.hierarchy.path(step.group)
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.warnings.append(f"{path} stays: something is in it")

    ACTS: dict[type[Step], Callable[..., None]] = {
        MakeGroup: _make,
        SetFile: _set,
        do.Keep: _keep,
        do.Forget: _forget,
        do.MoveTasks: _move,
        do.RemoveGroup: _remove,
    }


def _write(path: str, pid: int) -> int:
    """Move one process; 0, or why it could not be: ESRCH (it has ended), EINVAL (bound to what it is in), EPERM."""
    try:
        cgroup.write(path, str(pid))
    except OSError as error:
        return error.errno or errno.EIO
    return 0
