"""Carry out an update of a live container's limits; whatever fails, the old values are written back.

The order is the plan's (plan/update.py). The guest may change its own groups meanwhile:
where that makes a write fail, the container is frozen and the writes are made once more.
"""

from __future__ import annotations

import errno
import os

from nestrt import jsontext
from nestrt.act.freeze import freeze, frozen, thaw
from nestrt.errors import HostError, KernelError, NestrtError, StateError
from nestrt.kernel import cgroup
from nestrt.plan import update as plan
from nestrt.plan import update_quota

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.act.containers import Container
    from nestrt.oci.resources import DeviceRule, Resources
    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.update import Setting
    from nestrt.plan.update_quota import Pairs

ROOT = "guest"
FIRST = "init"
MARKS = ("trusted.nestrt", "user.nestrt", "security.nestrt")
# What the kernel says where another group's value is in the way.
IN_THE_WAY = (errno.EBUSY, errno.EINVAL, errno.EACCES, errno.ENOSPC)
GONE = (errno.ENOENT, errno.ENODEV)
MEMORY_LIMIT = "memory.limit_in_bytes"


class Update:
    """One update of *container*. *undo* is what to write to have the old values again, the last first.

    The guest root is called as the container's document says, "guest" where it does not.
    """

    def __init__(self, container: Container, hierarchies: tuple[Hierarchy, ...], old: Resources, new: Resources):
        self.container = container
        self.hierarchies = tuple(h for h in hierarchies if os.path.isdir(h.path(container.cgroup)))
        self.old = old
        self.new = new
        top = "/" + (container.text("root") or ROOT)
        self.own_groups = (top, f"{top}/{FIRST}")  # below the limit group: made by the runtime
        self.undo: list[Callable[[], None]] = []
        self.held: list[int] = []  # descriptors that the way back needs

    def carry_out(self, rules: tuple[DeviceRule, ...] | None = None, before: tuple[DeviceRule, ...] = ()) -> None:
        """Write everything; *rules* is the whole list of device rules, None to leave them, *before* that until now.

        Raises NestrtError that names the field; then nothing has changed. Until close() back() undoes it all.
        """
        if not self.hierarchies:
            raise StateError("update", f"container {self.container.id}", "it has no groups", "create it with groups")
        try:
            for hierarchy in self.hierarchies:
                self._hierarchy(hierarchy)
            if rules is not None:
                from nestrt.act.update_devices import update_devices  # rarely

                update_devices(self, rules, before)
        except BaseException:
            self.back()
            raise

    def back(self, to: int = 0) -> None:
        """Write the old values back, as far as the kernel takes them, until *to* steps back are left."""
        while len(self.undo) > to:
            try:
                self.undo.pop()()
            except (OSError, NestrtError):
                continue  # a group that has gone, or a value that was only ever read

    def close(self) -> None:
        """What was carried out stays."""
        self.undo.clear()
        while self.held:
            os.close(self.held.pop())

    def still(self, change: Callable[[], None]) -> None:
        """Carry out *change* while no process of the container runs. Raises what freeze() and *change* raise."""
        if frozen(self.container):
            change()
            return
        freeze(self.container)
        try:
            change()
        finally:
            thaw(self.container)

    def _root(self, hierarchy: Hierarchy) -> str:
        """The guest root, where there is one of ours; else ""."""
        root = self.container.cgroup + self.own_groups[0]
        return root if self.container.virtualized and os.path.isdir(hierarchy.path(root)) else ""

    def _hierarchy(self, h: Hierarchy) -> None:
        group, root = self.container.cgroup, self._root(h)
        writes = plan.writes(
            h,
            self.old,
            self.new,
            lambda file: cgroup.read(h.path(group, file)),
            (lambda file: cgroup.read(h.path(root, file))) if root else None,
            os.listdir(h.path(root)) if root else (),
        )
        self._flat_throttles(h, writes.plain, root)
        for setting in writes.plain:
            follow = [s for s in writes.shown if s.file == setting.file]
            try:
                self._set(h, group, setting)
            except OSError as error:
                if not follow or error.errno not in IN_THE_WAY:
                    raise self._refused(h, setting, error) from error
                # The guest root has more than is left, and has to shrink first.
                self._follow(h, root, follow)
                self._try(h, group, setting)
        self._follow(h, root, list(writes.shown))
        for setting in writes.cpusets:
            self._tree(h, setting, lambda s=setting: self._cpuset(h, s, root))  # type: ignore[misc]
        if writes.quota is not None:
            quota, period = writes.quota
            field = "linux.resources.cpu." + ("quota" if quota is not None else "period")
            self._tree(h, field, lambda: self._quota(h, quota, period, root))
        for setting in writes.late:
            self._try(h, group, setting)
        self._follow(h, root, list(writes.late_shown))

    def _flat_throttles(self, h: Hierarchy, settings: tuple[Setting, ...], root: str) -> None:
        """v1's throttles hold for one group alone: a guest that may make groups there cannot get them later."""
        first = self.container.cgroup + self.own_groups[1]
        asked = [setting for setting in settings if setting.file.startswith("blkio.throttle.")]
        if not root or not asked:
            return
        block = self.old.block_io
        had = block.throttle_read_bps + block.throttle_write_bps + block.throttle_read_iops + block.throttle_write_iops
        if not had:
            raise HostError(
                "set",
                f"{asked[0].field} of container {self.container.id}",
                "cgroup v1 throttles single groups, and the guest may have groups of its own",
                "give it at least one throttle at create, or use a host with cgroup v2",
            )
        for setting in asked:
            if os.path.isdir(h.path(first)):
                self._try(h, first, setting)

    def _follow(self, h: Hierarchy, root: str, settings: list[Setting]) -> None:
        for setting in settings:
            try:
                self._set(h, root, setting)
            except OSError as error:
                raise self._refused(h, setting, error) from error

    def _try(self, h: Hierarchy, group: str, setting: Setting) -> None:
        try:
            self._set(h, group, setting)
        except OSError as error:
            raise self._refused(h, setting, error) from error

    def _set(self, h: Hierarchy, group: str, setting: Setting) -> None:
        if setting.unless and os.path.exists(h.path(group, setting.unless)):
            return
        try:
            self.write(h.path(group, setting.file), setting.value)
        except FileNotFoundError:
            if not setting.optional:
                raise

    def write(self, path: str, value: str) -> None:
        """Write *value* to a control file and remember the way back. OSError."""
        try:
            before = cgroup.read(path)
        except OSError:
            before = ""
        cgroup.write(path, value)
        self.undo.append(lambda: cgroup.write(path, former(before, value)))

    def _tree(self, h: Hierarchy, what: Setting | str, change: Callable[[], None]) -> None:
        """Carry out a *change* of many groups; once more with the container frozen, if it gets in the way itself."""
        done = len(self.undo)
        try:
            change()
            return
        except OSError as error:
            below = cgroup.below(h.path(self.container.cgroup))
            if error.errno not in (*IN_THE_WAY, *GONE) or not below or frozen(self.container):
                raise self._refused(h, what, error) from error

        def again() -> None:
            self.back(done)  # what is half done is not what the groups have of their own
            change()

        try:
            self.still(again)
        except OSError as error:
            raise self._refused(h, what, error) from error

    def _groups(self, h: Hierarchy) -> list[str]:
        top = h.path(self.container.cgroup)
        return [top, *reversed(cgroup.below(top))]

    def _cpuset(self, h: Hierarchy, setting: Setting, root: str) -> None:
        groups = [(path, plan.parse_numbers(cgroup.read(f"{path}/{setting.file}"))) for path in self._groups(h)]
        follower = h.path(root) if root else ""
        for path, numbers in plan.cpuset_moves(groups, plan.parse_numbers(setting.value), follower):
            self.write(f"{path}/{setting.file}", plan.format_numbers(numbers))

    def _quota(self, h: Hierarchy, quota: int | None, period: int | None, root: str) -> None:
        groups = self._pairs(h)
        top = h.path(self.container.cgroup)
        has = groups[top]
        wanted = update_quota.check(has[0] if quota is None else quota, has[1] if period is None else period)
        bursts = {path: burst for path in groups if (burst := self._burst(path))}
        before = dict(groups)

        def undo() -> None:
            try:
                self._bandwidth(self._pairs(h), before, bursts)
            except OSError:
                self.still(lambda: self._bandwidth(self._pairs(h), before, bursts))

        self.undo.append(undo)
        self._bandwidth(groups, {top: wanted, **({h.path(root): wanted} if root else {})}, bursts)

    def _pairs(self, h: Hierarchy) -> Pairs:
        """The quota and period of the container's groups, without those that go meanwhile."""
        found: Pairs = {}
        for path in self._groups(h):
            try:
                quota = int(cgroup.read(f"{path}/{update_quota.QUOTA}"))
                found[path] = quota, int(cgroup.read(f"{path}/{update_quota.CFS_PERIOD}"))
            except OSError as error:
                if not found or error.errno not in GONE:
                    raise
        return found

    def _burst(self, path: str) -> int:
        try:
            return int(cgroup.read(f"{path}/{update_quota.BURST}"))
        except FileNotFoundError:
            return 0  # before Linux 5.14

    def _bandwidth(self, groups: Pairs, wanted: Pairs, bursts: dict[str, int]) -> None:
        """Take *groups* to what is *wanted*, and the rest of them within it. *bursts* are kept as far as they fit."""
        final = update_quota.final_pairs(groups, wanted)
        for path, file, value in update_quota.quota_writes(groups, final):
            if file == update_quota.QUOTA and 0 <= value < self._burst(path):
                cgroup.write(f"{path}/{update_quota.BURST}", str(value))  # no burst above the quota
            cgroup.write(f"{path}/{file}", str(value))
        for path, burst in bursts.items():
            if path in final:
                fits = burst if final[path][0] < 0 else min(burst, final[path][0])
                if fits != self._burst(path):
                    cgroup.write(f"{path}/{update_quota.BURST}", str(fits))

    def _refused(self, h: Hierarchy, what: Setting | str, error: OSError) -> NestrtError:
        """One line that names the document's field."""
        field, file, value = what if isinstance(what, str) else what.field or what.file, "", ""
        if not isinstance(what, str):
            file, value = what.file, what.value
        obj = f"{field}{f' to {value}' if value else ''} of container {self.container.id}"
        if error.errno == errno.ENOENT:
            return HostError("set", obj, f"this kernel has no {file or error.filename}", "leave it out")
        if error.errno == errno.EBUSY and file == MEMORY_LIMIT:
            try:
                usage, peak = (
                    cgroup.read(h.path(self.container.cgroup, f"memory.{word}"))
                    for word in ("usage_in_bytes", "max_usage_in_bytes")
                )
            except OSError:
                usage = peak = "?"
            return StateError(
                "set",
                obj,
                f"unable to set memory limit to {value} (current usage: {usage}, peak usage: {peak})",
                "allow more, or free memory first",
            )
        return KernelError("set", obj, error.errno or 0, "it has to fit what the group above has")


def former(before: str, written: str) -> str:
    """What to write to have *before*, a file's whole text, again after *written* was.

    Files with a line for each device or resource take one line, and "max" or 0 where there was none.
    """
    lines = before.splitlines()
    key, *words = written.split() or [""]
    if words and (":" in key or len(lines) != 1):
        for line in lines:
            if line.split()[:1] == [key]:
                return line
        names = [word.partition("=") for word in words]
        return " ".join([key, *(f"{name}=max" if equals else "0" for name, equals, _ in names)])
    if not lines:
        return "\n"  # write(2) of nothing does nothing
    first = lines[0].split()
    # memory.oom_control: "oom_kill_disable 0" and more lines
    return first[-1] if len(lines) > 1 and len(first) == 2 else lines[0]


def known(container: Container) -> tuple[object, tuple[str, ...]]:
    """What the container has by its state file, else by its document; and the paths of its linux.devices.

    Raises StateError for a document that is no longer there.
    """
    try:
        config = jsontext.loads(container.config())
    except ValueError:
        config = {}
    linux = config.get("linux") if isinstance(config, dict) else {}
    linux = linux if isinstance(linux, dict) else {}
    nodes = tuple(str(item.get("path")) for item in linux.get("devices") or () if isinstance(item, dict))
    return container.document.get("resources") or linux.get("resources") or {}, nodes


def remark(container: Container, hierarchies: tuple[Hierarchy, ...], limits: dict[str, object]) -> None:
    """Put *limits* into the marks on the limit group and the stamp on the guest root, so that both say the truth."""
    root = f"{container.cgroup}/{container.text('root') or ROOT}"
    for hierarchy in hierarchies:
        for group in (container.cgroup, root):
            for attribute in MARKS:
                path = hierarchy.path(group)
                try:
                    value = jsontext.loads(os.getxattr(path, attribute).decode())
                except (OSError, ValueError):
                    continue
                if isinstance(value, dict) and isinstance(value.get("limits"), dict):
                    value["limits"] = {**value["limits"], **limits}
                    try:
                        os.setxattr(path, attribute, jsontext.dumps(value).encode())
                    except OSError:
                        continue  # another level's word, which only it may change


def change(
    subject: Container,
    hierarchies: tuple[Hierarchy, ...],
    old: Resources,
    new: Resources,
    limits: dict[str, object],
    then: Callable[[], object] | None = None,
) -> None:
    """Make a guest of any runtime, by its limit group, have *new* beside the *old* that it has; marks get *limits*.

    *then* is done once the groups have it. Raises NestrtError, OSError, what *then* raises; then nothing has changed.
    """
    update = Update(subject, hierarchies, old, new)
    try:
        update.carry_out()
        if then is not None:
            then()
    except BaseException as error:
        update.back()
        if isinstance(error, NestrtError):  # whose words are those of a container and its document
            error.obj = error.obj.replace("of container", "of guest").removeprefix("linux.resources.")
            error.remedy = error.remedy.replace("at create", "where it is started")
        raise
    finally:
        update.close()
    remark(subject, hierarchies, limits)
