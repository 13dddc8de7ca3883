"""What a controller is: two tables of files, v1's and v2's, and what to write for given limits and documents.

Nothing here says that a file or controller is there: the kernel's own list of
a hierarchy and of a group's files decides that (table.py).
"""

from __future__ import annotations

from nestrt.errors import HostError
from nestrt.level.units import MAX
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources


@record
class File:
    """A control file by its *meaning*, which is the same word for v1 and v2.

    *name* may hold one ``*`` for what is found between two dots
    ("hugetlb.*.max"). *unit*: bytes, us (µs), ns, count, numbers (0-1,3), keys
    (lines of words or key=value), bool, shares, weight, rules, word. *limit*: the
    launching level keeps it, so it is locked in the guest root. *writable*: its
    owner may write it. *combine* says what holds a group further down: the
    "min" of its ancestors' values, their "intersect", or "none", each for itself.
    """

    name: str
    meaning: str
    unit: str
    limit: bool = False
    writable: bool = False
    combine: str = "none"


def limit(name: str, meaning: str, unit: str, combine: str = "none") -> File:
    """A File that the launching level keeps to itself in the guest root."""
    return File(name, meaning, unit, True, True, combine)


def own(name: str, meaning: str, unit: str) -> File:
    """A File that limits nothing and that the group's owner may write."""
    return File(name, meaning, unit, False, True)


@record
class Setting:
    """*value* for *file* of a group, one write(2). *optional*: where this kernel lacks the file, leave it.

    *unless* names a file that says the same: where the group has that one, leave
    this. *field* is what a document calls it ("linux.resources.pids.limit"), for
    the error where the kernel refuses; "" where no document asked.
    """

    file: str
    value: str
    optional: bool = False
    unless: str = ""
    field: str = ""


if TYPE_CHECKING:
    Settings = Callable[[Limits, int], tuple[Setting, ...]]
    Documented = Callable[[Resources, int], tuple[Setting, ...]]


def no_settings(limits: Limits, version: int) -> tuple[Setting, ...]:
    """For a controller that limits nothing, or that is not known: its groups are made and left as they are."""
    return ()


def no_resources(resources: Resources, version: int) -> tuple[Setting, ...]:
    """For a controller that linux.resources has no word for."""
    return ()


def asked(file: str, value: object, field: str, *, optional: bool = False, unless: str = "") -> Setting:
    """The Setting that the *field* of linux.resources asks for ("memory.limit")."""
    return Setting(file, str(value), optional, unless, f"linux.resources.{field}")


def not_here(field: str, reason: str) -> HostError:
    """The error for a *field* of linux.resources that this version of cgroups cannot honour."""
    return HostError("honour", f"linux.resources.{field}", reason, "leave it out of the bundle's config.json")


@record
class Controller:
    """One controller: *name* as v2 spells it, *v1_name* as v1 does, None where v1 never had it.

    *settings(limits, version)* are the writes, in order, for the limit group and
    again for the guest root; *resources(resources, version)* those that a
    document's linux.resources asks of a new limit group. *divided_by* is the Policy field that says whether
    the guest may divide it, "" where there is nothing to divide. *usage* are the
    meanings a host shows of a group. *fill* are v1 files that are empty in a
    new group and need the parent's value before a process can enter.
    *core*: the v2 tree has it without naming it in cgroup.controllers.
    """

    name: str
    v1_name: str | None
    v1: tuple[File, ...] = ()
    v2: tuple[File, ...] = ()
    settings: Settings = no_settings
    divided_by: str = ""
    usage: tuple[str, ...] = ()
    fill: tuple[str, ...] = ()
    core: bool = False
    resources: Documented = no_resources

    def files(self, version: int) -> tuple[File, ...]:
        """Its files in a hierarchy of *version* 1 or 2."""
        return self.v1 if version == 1 else self.v2

    def file(self, meaning: str, version: int) -> File | None:
        """The file of that *meaning*, or None where this version has none."""
        for file in self.files(version):
            if file.meaning == meaning:
                return file
        return None

    def kernel_name(self, version: int) -> str:
        """Its name in /proc/cgroups, mount options (v1) and cgroup.controllers (v2)."""
        return self.v1_name or self.name if version == 1 else self.name


def number(value: int, version: int) -> str:
    """*value* as a limit file takes it: MAX is -1 for v1's counters and max for v2's."""
    if value == MAX:
        return "-1" if version == 1 else "max"
    return str(value)
