"""Texts that users, policies and the kernel write, turned into numbers and back.

Everything that is not accepted raises InputError naming the text and what to
write instead. ``MAX`` (-1) stands for the kernel's ``max``: no limit.
"""

from __future__ import annotations

from nestrt.errors import InputError

MAX = -1
PERIOD = 100_000  # µs: the kernel's default cfs period, which every quota of nestrt is counted by
SIZE_LIMIT = 2**63 - 1  # bytes: what the kernel's memparse() keeps of a signed 64-bit number
CPU_LIMIT = 8192  # CONFIG_NR_CPUS cannot be larger (arch/x86/Kconfig)
PIDS_LIMIT = 4_194_304  # PID_MAX_LIMIT (include/linux/threads.h); pids.max refuses more
ID_LIMIT = 2**32 - 1  # (uid_t) -1 is no id: user_namespaces(7)
ID_RANGES_LIMIT = 340  # lines in /proc/PID/uid_map: user_namespaces(7)

_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")


def shown(text: object) -> str:
    """*text* for an error: quoted, and cut where it is longer than a line can take."""
    value = str(text) if isinstance(text, (str, int, float)) else type(text).__name__
    return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'


def clean(path: str) -> str:
    """*path* as an absolute one without ``.``, ``..`` and doubled slashes, by its text alone: /a/../b is /b."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def digits(text: str) -> int | None:
    """The number that *text* spells in at most 19 ASCII digits, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None


def parse_size(text: str, what: str = "size") -> int:
    """Bytes from ``512M``, ``1GiB``, ``4096`` or ``max`` (MAX).

    Units are IEC, powers of 1024: K, M, G, T, with or without ``i`` or ``iB``.
    Raises InputError.
    """
    stripped = text.strip()
    if stripped == "max":
        return MAX
    number = stripped.rstrip("BbIiKkMmGgTt")
    unit = stripped[len(number) :].upper()
    if unit.endswith("IB"):
        unit = unit[:-2] or "?"
    elif unit.endswith("I"):
        unit = unit[:-1] or "?"
    value = digits(number)
    if value is None or unit not in _SHIFTS:
        raise InputError("read", f"{what} {shown(text)}", "not a size", "write bytes, 64K, 512M, 2G, 1T or max")
    size = value << _SHIFTS[unit]
    if size > SIZE_LIMIT:
        raise InputError("read", f"{what} {shown(text)}", "more than 63 bits of bytes", "write max for no limit")
    return size


def format_size(size: int) -> str:
    """*size* bytes in the largest unit that divides them: ``512M``, ``4097``, and ``max`` for MAX."""
    if size == MAX:
        return "max"
    for unit in ("T", "G", "M", "K"):
        if size and not size & ((1 << _SHIFTS[unit]) - 1):
            return f"{size >> _SHIFTS[unit]}{unit}"
    return str(size)


def parse_cpus(text: str, what: str = "CPU list") -> frozenset[int]:
    """The numbers in a list as cpuset(7) writes it: ``0-1,3``; CPUs or memory nodes.

    An empty list names nothing, and raises InputError like any other mistake.
    """
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        low, high = digits(first), digits(last if dash else first)
        if low is None or high is None:
            raise InputError("read", f"{what} {shown(text)}", "not a list of numbers", "write it like 0-1,3")
        if low > high:
            raise InputError("read", f"{what} {shown(text)}", f"{low}-{high} runs backwards", f"write {high}-{low}")
        if high >= CPU_LIMIT:
            raise InputError(
                "read", f"{what} {shown(text)}", f"no kernel has number {high}", f"use numbers below {CPU_LIMIT}"
            )
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def format_cpus(numbers: frozenset[int]) -> str:
    """*numbers* as cpuset(7) writes them: ``0-1,3``; "" for none."""
    parts: list[str] = []
    run: list[int] = []
    for number in [*sorted(numbers), -1]:
        if run and number == run[-1] + 1:
            run.append(number)
            continue
        if run:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
        run = [number]
    return ",".join(parts)


def parse_quota(text: str, what: str = "CPU quota") -> int:
    """CPUs (``1.5``, ``0.25``, ``max``) as µs of CPU time in each 100000 µs period: 150000, 25000, MAX.

    The kernel takes no quota below 1000 µs (Documentation/scheduler/sched-bwc.rst): 0.01 CPUs.
    Raises InputError.
    """
    stripped = text.strip()
    if stripped == "max":
        return MAX
    whole, dot, part = stripped.partition(".")
    cpus, fraction = digits(whole), digits(part) if dot else 0
    if cpus is None or fraction is None:
        raise InputError("read", f"{what} {shown(text)}", "not a number of CPUs", "write it like 1.5, 0.25 or max")
    # Digits beyond the fifth are less than a microsecond.
    quota = cpus * PERIOD + int((part + "00000")[:5])
    if not 1000 <= quota <= CPU_LIMIT * PERIOD:
        raise InputError("read", f"{what} {shown(text)}", "out of range", f"use 0.01 to {CPU_LIMIT} CPUs, or max")
    return quota


def format_quota(quota: int) -> str:
    """*quota* µs in each 100000 µs period as CPUs: 150000 is ``1.5``, MAX is ``max``."""
    if quota == MAX:
        return "max"
    fraction = f"{quota % PERIOD:05d}".rstrip("0")
    return f"{quota // PERIOD}.{fraction}" if fraction else str(quota // PERIOD)


def parse_weight(text: str, what: str = "CPU weight") -> int:
    """A share among siblings, 1 to 10000, 100 being the kernel's default (cgroup-v2.rst, cpu.weight).

    Raises InputError.
    """
    value = digits(text.strip())
    if value is None or not 1 <= value <= 10_000:
        raise InputError("read", f"{what} {shown(text)}", "not a weight", "write 1 to 10000 (100 is usual)")
    return value


def parse_count(text: str, what: str = "number of processes", high: int = PIDS_LIMIT) -> int:
    """A number of things from 1 to *high*, or ``max`` (MAX); by default processes, as pids.max takes them.

    Raises InputError.
    """
    stripped = text.strip()
    if stripped == "max":
        return MAX
    value = digits(stripped)
    if value is None or not 1 <= value <= high:
        raise InputError("read", f"{what} {shown(text)}", "not a count", f"write 1 to {high}, or max")
    return value


def parse_name(text: str) -> str:
    """A guest's name: a letter or digit, then up to 63 letters, digits, ``_``, ``.`` or ``-``.

    It becomes the name of a directory in every hierarchy. Raises InputError.
    """
    remedy = "use 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or digit"
    if not text:
        raise InputError("use", "guest name ''", "it is empty", remedy)
    if len(text) > 64:
        raise InputError("use", f"guest name {shown(text)}", f"{len(text)} characters are too many", remedy)
    if text[0] not in _LETTERS:
        raise InputError("use", f"guest name {shown(text)}", f"it begins with {text[0]!r}", remedy)
    wrong = [character for character in text if character not in _LETTERS and character not in "_.-"]
    if wrong:
        raise InputError("use", f"guest name {shown(text)}", f"{wrong[0]!r} cannot stand in it", remedy)
    return text


def parse_id_range(text: str, what: str = "id range") -> tuple[int, int, int]:
    """(inside, outside, count) from ``0:100000:65536``, as a line of user_namespaces(7)'s uid_map.

    Raises InputError.
    """
    numbers = [digits(part.strip()) for part in text.split(":")]
    known = [number for number in numbers if number is not None]
    if len(numbers) != 3 or len(known) != 3:
        raise InputError("read", f"{what} {shown(text)}", "not a range of ids", 'write "inside:outside:count"')
    inside, outside, count = known
    if not count or inside + count > ID_LIMIT or outside + count > ID_LIMIT:
        raise InputError("read", f"{what} {shown(text)}", "out of range", f"ids are 0 to {ID_LIMIT - 1}, count from 1")
    return inside, outside, count
