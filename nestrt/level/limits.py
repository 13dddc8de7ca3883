"""Limits: what a guest is asked to stay within, and the same as written in marks and stamps."""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.devices import DeviceRule, format_rule, parse_rules
from nestrt.level.units import MAX, SIZE_LIMIT, digits, format_cpus, format_size, parse_cpus, parse_size, shown
from nestrt.level.values import Getter, integer_value, size_value, text_list, text_value
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

LIST_LIMIT = 1024
IO_KEYS = ("rbps", "wbps", "riops", "wiops")
IO_REMEDY = "write MAJOR:MINOR and one of rbps wbps riops wiops, like '8:0 rbps=1M wiops=100'"


@record
class IoLimit:
    """Throttles of the block device *device* ("8:0"): bytes and operations a second; MAX: none, None: not asked."""

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None


@record
class Limits:
    """What was asked for; None or () where nothing was, MAX (-1) for an explicit ``max``.

    *memory* and *swap* are bytes, *swap* of swap alone (v2's memory.swap.max).
    *cpus* and *mems* are numbers as the launching level counts them.
    *cpu_quota* is µs of CPU time in each 100000 µs, *cpu_weight* 1 to 10000.
    *hugetlb* pairs a page size as the kernel spells it ("2MB") with bytes;
    *rdma* a device with "hca_handle=2 hca_object=max"; *misc* a resource with a
    number or "max"; *net_cls* is a class id (0xAAAABBBB for tc's AAAA:BBBB);
    *net_prio* pairs an interface with a priority. *devices* is the whole
    allow-list, () being no device at all.
    """

    memory: int | None = None
    swap: int | None = None
    cpus: frozenset[int] | None = None
    mems: frozenset[int] | None = None
    cpu_quota: int | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    io: tuple[IoLimit, ...] = ()
    devices: tuple[DeviceRule, ...] | None = None
    hugetlb: tuple[tuple[str, int], ...] = ()
    rdma: tuple[tuple[str, str], ...] = ()
    misc: tuple[tuple[str, str], ...] = ()
    net_cls: int | None = None
    net_prio: tuple[tuple[str, int], ...] = ()

    def to_mark(self) -> dict[str, object]:
        """What a mark holds of these limits: JSON values, only what was asked for. from_mark() reads it back."""
        found: dict[str, object] = {}
        for key in ("memory", "swap", "cpu_quota", "cpu_weight", "pids", "net_cls"):
            if (number := getattr(self, key)) is not None:
                found[key] = number
        for key in ("cpus", "mems"):
            if (numbers := getattr(self, key)) is not None:
                found[key] = format_cpus(numbers)
        for key in ("hugetlb", "rdma", "misc", "net_prio"):
            if pairs := getattr(self, key):
                found[key] = dict(pairs)
        if self.io:
            found["io"] = [format_io(limit) for limit in self.io]
        if self.devices is not None:
            found["devices"] = [format_rule(rule) for rule in self.devices]
        return found


def over(base: Limits, stronger: Limits) -> Limits:
    """*base* with what *stronger* asks for instead: flags over a policy file's [limits].

    ``io`` goes by device; every other field is replaced whole.
    """
    values = dict(base.__dict__)
    values.update({key: value for key, value in stronger.__dict__.items() if value not in (None, ())})
    if stronger.devices is not None:
        values["devices"] = stronger.devices
    again = {limit.device for limit in stronger.io}
    values["io"] = tuple(limit for limit in base.io if limit.device not in again) + stronger.io
    return Limits(**values)


def parse_io(text: str) -> IoLimit:
    """The throttle in ``8:0 rbps=1M wbps=2M riops=100 wiops=max``, as io.max spells it (cgroup-v2.rst).

    Raises InputError.
    """
    what = f"I/O limit {shown(text)}"
    words = text.split()
    numbers = words[0].split(":") if words else []
    if len(numbers) != 2 or any(digits(number) is None for number in numbers):
        raise InputError("read", what, "it names no device", IO_REMEDY)
    values: dict[str, int] = {}
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key not in IO_KEYS:
            raise InputError("read", what, f"{shown(word)} is unknown", IO_REMEDY)
        if key in values:
            raise InputError("read", what, f"{key} is there twice", IO_REMEDY)
        values[key] = parse_size(value, f"{what}, {key}")
        if values[key] == 0:
            raise InputError("read", what, f"{key} is 0", "use at least 1, or max for no limit")
    if not values:
        raise InputError("read", what, "it limits nothing", IO_REMEDY)
    return IoLimit(":".join(str(int(number)) for number in numbers), **values)


def format_io(limit: IoLimit) -> str:
    """*limit* as parse_io() reads it: ``8:0 rbps=1M wiops=100``."""
    given = [(key, getattr(limit, key)) for key in IO_KEYS]
    return " ".join([limit.device, *(f"{key}={format_size(value)}" for key, value in given if value is not None)])


def parse_ios(texts: list[str]) -> tuple[IoLimit, ...]:
    """parse_io() for each of *texts*; a device may be there once. Raises InputError."""
    found = tuple(parse_io(text) for text in texts)
    devices = [limit.device for limit in found]
    for device in devices:
        if devices.count(device) > 1:
            raise InputError("use", f"I/O limits of {device}", "there are two", "write them in one line")
    return found


def hugetlb_size(page: str) -> str:
    """*page* if it is a page size as the kernel spells it in hugetlb's file names: "2MB", "1GB", "64KB".

    Raises InputError.
    """
    if page[-2:] not in ("KB", "MB", "GB") or not digits(page[:-2]) or page[0] == "0":
        raise InputError("use", f"huge page size {shown(page)}", "not a page size", "write it like 2MB or 1GB")
    return page


def plain_word(text: str, what: str) -> str:
    """*text* if the kernel can take it as one word of a line: 1 to 128 printable characters without blanks.

    Raises InputError.
    """
    if not 0 < len(text) <= 128 or not text.isprintable() or len(text.split()) != 1:
        raise InputError("use", f"{what} {shown(text)}", "not one word", "use 1 to 128 characters without blanks")
    return text


def rdma_words(text: str) -> str:
    """*text* if rdma.max takes it: "hca_handle=2 hca_object=max" (cgroup-v1/rdma.rst). Raises InputError."""
    for word in text.split() or [""]:
        key, _, value = word.partition("=")
        if key not in ("hca_handle", "hca_object") or (value != "max" and digits(value) is None):
            raise InputError(
                "read", f"rdma limit {shown(text)}", f"{shown(word)} is unknown", "write 'hca_handle=2 hca_object=max'"
            )
    return " ".join(text.split())


def misc_count(text: str) -> str:
    """*text* if misc.max takes it after a resource's name: a number or "max". Raises InputError."""
    value = text.strip()
    if value != "max" and digits(value) is None:
        raise InputError("read", f"misc limit {shown(text)}", "not a number", "write a number or max")
    return value


def from_mark(value: Mapping[str, object], where: str = "mark", errors: list[InputError] | None = None) -> Limits:
    """The limits in a mark or stamp. It may come from a guest: everything in it is typed and bounded.

    Unknown keys are left alone, as a later version's mark has them. Raises
    InputError, or with *errors* collects them and goes on without the key.
    """
    get = Getter(value, where, "limits", errors)

    def number(key: str, low: int = 0, high: int = SIZE_LIMIT) -> int | None:
        found = get.integer(key, None, MAX, high)
        if found is not None and MAX < found < low:
            get.refuse(key, f"{found} is below {low}", f"use {low} or more, or -1 for max")
            return None
        return found

    def numbers(key: str) -> frozenset[int] | None:
        return get.parsed(key, None, lambda found: parse_cpus(text_value(found)))

    def pairs(key: str, name: Callable[[str], str], convert: Callable[[object], T]) -> tuple[tuple[str, T], ...]:
        items = get.mapping_of(key, LIST_LIMIT).items()
        return get.guarded(key, (), lambda: tuple((name(item), convert(found)) for item, found in items))

    return Limits(
        memory=number("memory"),
        swap=number("swap"),
        cpus=numbers("cpus"),
        mems=numbers("mems"),
        cpu_quota=number("cpu_quota", 1000),
        cpu_weight=get.integer("cpu_weight", None, 1, 10_000),
        pids=number("pids"),
        io=get.parsed("io", (), lambda found: parse_ios(text_list(found, LIST_LIMIT))),
        devices=get.parsed("devices", None, lambda found: parse_rules(text_list(found, LIST_LIMIT))),
        hugetlb=pairs("hugetlb", hugetlb_size, size_value),
        rdma=pairs("rdma", lambda name: plain_word(name, "rdma device"), lambda v: rdma_words(text_value(v))),
        misc=pairs("misc", lambda name: plain_word(name, "misc resource"), lambda v: misc_count(text_value(v))),
        net_cls=get.integer("net_cls", None, 0, 2**32 - 1),
        net_prio=pairs("net_prio", lambda name: plain_word(name, "interface"), integer_value),
    )
