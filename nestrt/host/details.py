"""The text of ``nestrt show``: one guest, in sections."""

from __future__ import annotations

from nestrt.host.marks import escape
from nestrt.host.render import amount, human, moment, table
from nestrt.host.report import shown_inside, told
from nestrt.host.sight import Sight, count_groups
from nestrt.host.walk import Guest
from nestrt.level.units import MAX, format_quota

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.host.effective import Limit
    from nestrt.host.keys import Value
    from nestrt.host.laws_subject import Finding


def _word(value: Any) -> str:
    return {True: "yes", False: "no", None: "-"}[value] if value is None or isinstance(value, bool) else str(value)


def _pairs(values: dict[str, Any] | None) -> str:
    """A decoded object as KEY VALUE, KEY VALUE: short, escaped."""
    parts = []
    for key, value in (values or {}).items():
        if isinstance(value, list):
            value = " ".join(str(item) for item in value)
        elif isinstance(value, dict):
            value = " ".join(f"{inner}={_word(item)}" for inner, item in value.items())
        parts.append(f"{key} {_word(value)}")
    return escape(", ".join(parts)) or "-"


def _asked(values: dict[str, Any] | None, raw: bool) -> dict[str, Any]:
    """Limits as a mark has them, with units; what is no number is left as it is: whoever wrote a claim may lie."""

    def text(key: str, value: Any) -> Any:
        if raw or not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 64:
            return value
        if key in ("memory", "swap", "hugetlb"):
            return human(value)
        return format_quota(value) if key == "cpu_quota" else "max" if value == MAX else value

    return {
        key: {inner: text(key, item) for inner, item in value.items()} if isinstance(value, dict) else text(key, value)
        for key, value in (values or {}).items()
    }


def _identity(sight: Sight, guest: Guest) -> list[tuple[str, ...]]:
    """What can be seen of the guest, whoever marked it."""
    caps = sight.caps(guest)
    limits = [f"at most {caps['groups']}"] if (caps["groups"] or -1) >= 0 else []
    limits += [f"{caps['depth']} deep"] if (caps["depth"] or -1) >= 0 else []
    pid = sight.pid(guest)
    rows: list[tuple[str, ...]] = [
        ("level", str(guest.level)),
        ("state", sight.state(guest)),
        ("pid", str(pid) if pid > 0 else "-"),
        ("limit group", escape(guest.path)),
        ("owner", f"uid {guest.owner}"),
        ("groups", ", ".join([str(count_groups(guest)), *limits])),
        ("guests", escape(" ".join(inner.name for inner in guest.guests)) or "-"),
    ]
    if guest.unread:
        rows.append(("not read", escape("below " + ", ".join(guest.unread[:4])) + (" …" if guest.unread[4:] else "")))
    return rows


def _marked(sight: Sight, guest: Guest, raw: bool) -> list[tuple[str, ...]]:
    """What the mark and the stamp say."""
    mark = guest.mark
    ids = ", ".join(f"{inside} is {outside} outside, {count} of them" for inside, outside, count in mark.ids)
    top = f", guests down to level {mark.max_level}" if mark.max_level >= 0 else ""
    rows: list[tuple[str, ...]] = [
        ("name", mark.name or "-"),
        ("made by", escape(mark.made_by) or "-"),
        ("locked", "yes: nestrt unlock lets it change its tree again" if mark.locked else _word(told(mark, False))),
        ("id", escape(mark.id) or "-"),
        ("created", moment(mark.created)),
        ("rootfs", escape(mark.rootfs) or "-"),
        ("command", escape(" ".join(mark.command)) or "-"),
        ("policy", (escape(mark.policy) or "-") + top + ("" if mark.virtualize else ", not virtualized")),
        ("user ids", ids or told(mark, "those of the launching level") or "-"),
        ("view", _pairs(mark.view)),
        ("limits asked", _pairs(_asked(mark.limits, raw))),
        ("net", _pairs(mark.net)),
        ("removed at end", _word(told(mark, mark.rm))),
        ("stamp", _pairs(sight.stamp(guest))),
    ]
    return rows + [("problem", escape(problem)) for problem in mark.problems]


def _limits(sight: Sight, guest: Guest, raw: bool) -> list[tuple[str, ...]]:
    names = sight.names
    rows: list[tuple[str, ...]] = [("KEY", "LIMIT", "EFFECTIVE", "IN THE GUEST", "USAGE", "BINDS")]
    for limit in sight.limits(guest.path, guest.hierarchies):
        if limit.effective in (MAX, {}, frozenset()) and limit.limit == limit.effective and not limit.usage:
            continue  # neither limited nor used
        if isinstance(limit.binds, dict):
            binds = " ".join(sorted({names.get(path, path) for path in limit.binds.values() if path}))
        else:
            binds = names.get(limit.binds, limit.binds)
        seen = shown_inside(sight, guest, limit)
        texts = [_amount(limit, each, raw) for each in (limit.limit, limit.effective)]
        if isinstance(seen, int):
            inside = _amount(limit, seen, raw)
        else:
            inside = seen if isinstance(seen, str) else "max" if seen is None else "-"
        rows.append((limit.key, *texts, inside, _amount(limit, limit.usage, raw), escape(binds) or "-"))
    return rows


def _amount(limit: Limit, value: Value | None, raw: bool) -> str:
    if raw and isinstance(value, int):
        return "max" if value == MAX else str(value)
    return amount(limit, value)


COUNTED = (
    ("CPU time", "cpu_usec", "us"),
    ("  user", "user_usec", "us"),
    ("  system", "system_usec", "us"),
    ("throttled", "throttled_usec", "us"),
    ("throttled periods", "throttled_periods", ""),
    ("memory", "memory", "bytes"),
    ("  most so far", "memory_peak", "bytes"),
    ("  page cache", "cache", "bytes"),
    ("swap", "swap", "bytes"),
    ("memory limit hit", "memory_limit_hits", ""),
    ("killed, out of memory", "oom_kills", ""),
    ("processes limit hit", "pids_limit_hits", ""),
    ("read", "io_read_bytes", "bytes"),
    ("written", "io_write_bytes", "bytes"),
)


def _counters(counted: dict[str, Any], raw: bool) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for label, name, unit in COUNTED:
        number = counted[name]
        if number is not None:
            text = human(number) if unit == "bytes" else f"{number / 1e6:.3f} s"
            rows.append((label, text if unit and not raw else str(number)))
    return rows


def _pressure(found: dict[str, dict[str, float]] | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("RESOURCE", "SOME 10 s", "FULL 10 s", "SOME IN ALL", "FULL IN ALL")]
    for resource, values in (found or {}).items():
        cells = [f"{values[key]:.2f}%" if key in values else "-" for key in ("some_avg10", "full_avg10")]
        totals = [f"{values[k] / 1e6:.3f} s" if k in values else "-" for k in ("some_total_usec", "full_total_usec")]
        rows.append((resource, *cells, *totals))
    return rows


def _inside(shown: dict[str, Any]) -> list[tuple[str, ...]]:
    own = [kind for kind, differs in shown["namespaces"].items() if differs]
    shared = [kind for kind, differs in shown["namespaces"].items() if not differs]
    rows: list[tuple[str, ...]] = []
    if own or shared:
        rows = [("own namespaces", " ".join(own) or "-"), ("the host's", " ".join(shared) or "-")]
    for mount in shown["mounts"]:
        what = mount["controllers"] or f"v{mount['version']}"
        read_only = " read-only" if mount["read_only"] else ""
        rows.append((f"mount of {escape(what)}", escape(mount["target"]) + read_only))
    return rows


def _laws(laws: tuple[Finding, ...]) -> list[tuple[str, ...]]:
    words = {True: "ok", False: "FAILED", None: "unknown"}
    return [(finding.law, words[finding.holds], escape(finding.what)) for finding in laws]


def _devices(sight: Sight, guest: Guest) -> list[str]:
    devices = sight.devices(guest)
    lines = [escape(rule) for rule in devices.rules]
    for label, programs in (("", devices.programs), ("of groups around it: ", devices.inherited)):
        if programs:
            lines.append(f"{label}device programs {' '.join(str(number) for number in programs)}")
    return lines


def _processes(sight: Sight, guest: Guest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("PID", "GUEST PID", "UID", "GUEST UID", "GROUP", "COMMAND")]
    for process in sight.processes(guest):
        group = process.group.removeprefix(guest.root) or "/"
        numbers = (process.pid, process.guest_pid, process.uid, process.guest_uid)
        known = ["?" if number < 0 or not process.pid else str(number) for number in numbers]
        rows.append((*known, escape(group), escape(process.command)))
        rows += [("", "", "", "", escape(f"{hierarchy or 'v2'}:{path}"), "") for hierarchy, path in process.elsewhere]
    return rows


def _section(title: str, lines: list[str]) -> list[str]:
    return [title, *("  " + line for line in lines)] if lines else []


def details(
    sight: Sight, guest: Guest, shown: dict[str, Any], laws: tuple[Finding, ...], raw: bool = False
) -> list[str]:
    """The lines of ``nestrt show``: what is seen, what was marked, what it has inside (*shown*: report.live()), limits,
    what it used, groups, processes, devices, *laws*. *raw*: bytes and µs as plain numbers."""
    said = "marked" if not guest.claim else f"claims: {guest.mark.attribute}, made inside a guest or by another user"
    groups = [("GROUP", "HIERARCHIES")]
    for group in guest.groups:
        path = group.path.removeprefix(guest.root + "/") if group.path != guest.root else "/"
        where = "all" if group.hierarchies == guest.hierarchies else " ".join(h or "v2" for h in group.hierarchies)
        groups.append((escape(path), where))
    directories = [
        (hierarchy.name or "v2", escape(hierarchy.path(guest.path)))
        for hierarchy in sight.view.hierarchies
        if hierarchy.name in guest.hierarchies
    ]
    limits, processes = _limits(sight, guest, raw), _processes(sight, guest)
    inside, counted, pressure = _inside(shown), _counters(shown["counters"], raw), _pressure(shown["pressure"])
    return [
        escape(guest.name),
        *("  " + line for line in table(_identity(sight, guest))),
        *_section(said, table(_marked(sight, guest, raw))),
        *_section("inside", table(inside) if inside else []),
        *_section("limits", table(limits) if len(limits) > 1 else []),
        *_section("used", table(counted) if counted else []),
        *_section("pressure", table(pressure) if len(pressure) > 1 else []),
        *_section("directories", table(list(directories)) if directories else []),
        *_section("groups", table(list(groups)) if len(groups) > 1 else []),
        *_section("processes", table(processes) if len(processes) > 1 else []),
        *_section("devices", _devices(sight, guest)),
        *_section("laws, by what can be seen: nestrt check tries them", table(_laws(laws)) if laws else []),
    ]
