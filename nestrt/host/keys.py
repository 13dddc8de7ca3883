"""Which limits a group can have, and how each is read: the controllers' tables, and the kernel's texts as numbers.

A key is called by its v2 file ("memory.max", on v1 too), by v1's where v2 has nothing like it
("memory.memsw.limit_in_bytes"); v1's four throttles of blkio are one, "io.max".
"""

from __future__ import annotations

from nestrt.controllers.base import Controller, File
from nestrt.controllers.io import THROTTLES
from nestrt.controllers.names import expand, variable_part
from nestrt.controllers.table import for_hierarchy
from nestrt.errors import InputError
from nestrt.level.units import MAX, PERIOD, digits, parse_cpus
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # A number (MAX: none), the numbers of a cpuset, or numbers by "8:0 rbps".
    Value = int | frozenset[int] | dict[str, int]

# v1 has no "max": memory.limit_in_bytes and its like read back as the largest multiple of a page.
UNLIMITED = 1 << 62
# Promises to a group, not limits on it.
PROTECTIONS = ("low", "min")


@record
class Key:
    """A limit that groups can have.

    *controller* is its v2 name, *unit* and *combine* (min, intersect) are those of controllers.base.File. *read*
    gets a function that reads one file of the group; *usage* is the file that counts what is used, "" if there is
    none; *files* are those that it is read from.
    """

    name: str
    controller: str
    unit: str
    combine: str
    read: Callable[[Callable[[str], str]], Value]
    usage: str
    files: tuple[str, ...] = ()


def number(text: str) -> int:
    """A limit's text as a number: ``max``, v1's -1 and v1's largest values are MAX. ValueError."""
    if text == "max":
        return MAX
    value = int(text)
    return MAX if value < 0 or value >= UNLIMITED else value


def quota(text: str) -> int:
    """v2's cpu.max ("150000 100000", "max 100000") as µs of CPU time per 100000 µs. ValueError."""
    first, _, second = text.partition(" ")
    period = int(second or PERIOD)
    return MAX if first == "max" else int(first) * PERIOD // (period or PERIOD)


def numbers(text: str) -> frozenset[int]:
    """A cpuset's list; empty where the file is. ValueError."""
    try:
        return parse_cpus(text) if text else frozenset()
    except InputError as error:
        raise ValueError(str(error)) from error


def keyed(text: str) -> dict[str, int]:
    """v2's nested-keyed and flat-keyed files: "8:0 rbps=1 wbps=max" is {"8:0 rbps": 1}; no limits are left out."""
    found = {}
    for line in text.splitlines():
        device, *words = line.split()
        for word in words:
            name, equals, value = word.rpartition("=")
            if (known := digits(value)) is not None:
                found[f"{device} {name}" if equals else device] = known
    return found


def _v1_quota(read: Callable[[str], str]) -> int:
    quota_us, period = int(read("cpu.cfs_quota_us")), int(read("cpu.cfs_period_us"))
    return MAX if quota_us < 0 else quota_us * PERIOD // (period or PERIOD)


def _v1_io(read: Callable[[str], str]) -> dict[str, int]:
    found = {}
    for name, file in THROTTLES:
        for line in read(file).splitlines():
            device, _, value = line.partition(" ")
            found[f"{device} {name}"] = int(value)
    return found


def _reader(file: str, convert: Callable[[str], Value]) -> Callable[[Callable[[str], str]], Value]:
    return lambda read: convert(read(file))


_CONVERT: dict[str, Callable[[str], Value]] = {
    "bytes": number,
    "count": number,
    "us": quota,
    "numbers": numbers,
    "keys": keyed,
}


def _usage_meaning(meaning: str) -> str:
    """ "current" for "max" and "high", "swap_current" for "swap_max"."""
    prefix = meaning.rpartition("_")[0]
    return f"{prefix}_current" if prefix else "current"


def _keys_of_file(controller: Controller, file: File, version: int, listing: list[str]) -> list[Key]:
    like = controller.file(file.meaning, 2)
    counter = controller.file(_usage_meaning(file.meaning), version) if file.unit in ("bytes", "count") else None
    found = []
    for name in expand([file.name], listing):
        part = variable_part(file.name, name)
        usage = counter.name.replace("*", part) if counter else ""
        read = _v1_quota if name == "cpu.cfs_quota_us" else _reader(name, _CONVERT[file.unit])
        key = (like.name if like else file.name).replace("*", part)
        found.append(Key(key, controller.name, file.unit, file.combine, read, usage, (name,)))
    return found


def keys_of(controllers: tuple[str, ...], version: int, listing: list[str]) -> tuple[Key, ...]:
    """The keys of a hierarchy with these *controllers* (kernel names) whose groups have the files of *listing*."""
    found: list[Key] = []
    for controller in for_hierarchy(controllers, version):
        if controller.name == "io" and version == 1:
            if THROTTLES[0][1] in listing:
                files = tuple(file for _, file in THROTTLES)
                found.append(Key("io.max", "io", "keys", "min", _v1_io, "", files))
            continue
        for file in controller.files(version):
            if file.combine != "none" and file.unit in _CONVERT and file.meaning not in PROTECTIONS:
                found += _keys_of_file(controller, file, version, listing)
    return tuple(found)
