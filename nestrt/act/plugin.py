"""Guests that another runtime starts: their groups carried out, and all of it taken back."""

from __future__ import annotations

import os
import time

from nestrt.act import remove
from nestrt.act.records import Record, names, open_record
from nestrt.errors import NestrtError
from nestrt.kernel import pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.facts import Hierarchy

# Between the making of a limit group and the runtime's first process: an engine that is killed there
# may have left a monitor that goes on for a moment.
SIGKILL = 9
GRACE = 10.0  # seconds
TORN = "config.json.nestrt."  # what cli.wrap calls a document that it writes, before its pid
LONGEST = 600.0  # seconds from there to the first process, whoever is at it
SWEEP_LIMIT = 256  # records looked at by the way


def marked_id(hierarchies: tuple[Hierarchy, ...], group: str) -> str | None:
    """The id in the mark of *group*, "" where a group has none, None where there is no group in any hierarchy."""
    found: str | None = None
    for hierarchy in hierarchies:
        if os.path.isdir(hierarchy.path(group)):
            value = remove.read_mark(hierarchy, group).get("id")
            if isinstance(value, str) and value:
                return value
            found = ""
    return found


def record_of(hierarchies: tuple[Hierarchy, ...], group: str) -> str:
    """The name of the record that the mark of *group* tells, "" for none."""
    found = (remove.read_mark(hierarchy, group).get("record") for hierarchy in hierarchies)
    return next((name for name in found if isinstance(name, str)), "")


def is_prepared(hierarchies: tuple[Hierarchy, ...], group: str, name: str) -> bool:
    """Whether *group* is the limit group of the guest whose record is *name*: the mark there says so."""
    return bool(name) and record_of(hierarchies, group) == name


def take_back(record: Record, hierarchies: tuple[Hierarchy, ...]) -> None:
    """End what lives of the guest and remove all that is its own: groups, those above that were made for it, its
    scope, the record.

    The caller has the record locked. Raises StateError, KernelError, and HostError where there is no systemd to
    ask: it is then kept for another try.
    """
    group, unit = record.text("group"), record.text("unit")
    if record.number("holder"):
        from nestrt.act import holder

        holder.end(record.number("holder"), record.number("holder_start"))
    known = marked_id(hierarchies, group) if group.strip("/") else None
    ours = known == record.text("id") or (known == "" and record.values.get("made") is True)
    if known is not None and ours and (known or not remove.living(hierarchies, group)):
        remove.remove_tree(group, hierarchies)
    if unit:
        from nestrt.act import holder

        # What lives there all the same is another's.
        if (known is None or ours) and not remove.living(hierarchies, group):
            holder.stop(unit, group, record.text("id"))
        hierarchies = holder.elsewhere(hierarchies)
    _remove_torn(record.text("bundle"))
    if record.parents:
        remove.remove_parent(hierarchies, record.parents, remove.PATIENCE / 10)
    record.forget()


def _remove_torn(bundle: str) -> None:
    """Remove a document that was to take the place of the bundle's, whose writer was killed."""
    try:
        torn = [name for name in os.listdir(bundle) if name.startswith(TORN)] if bundle else []
        for name in torn:
            os.unlink(f"{bundle}/{name}")
    except OSError:
        return


def is_over(record: Record, hierarchies: tuple[Hierarchy, ...]) -> bool:
    """Whether nobody will come for the guest any more: its engine has removed it, or never went on to start it.

    The caller has the record locked.
    """
    bundle, group = record.text("bundle"), record.text("group")
    if record.values.get("started") is True:
        # Who lives is looked at last: a guest may have thousands of groups.
        gone = not bundle or not os.path.isdir(bundle)
        return gone and not (group.strip("/") and remove.living(hierarchies, group))
    age = time.time() - record.number("created")
    maker, began = record.number("maker"), record.number("began")
    # An engine's service is the maker of many, and outlives those that it could not start.
    if age <= (LONGEST if maker and pidfd.start_time(maker) == began else GRACE):
        return False
    return not (group.strip("/") and remove.living(hierarchies, group))


def release(record: Record, hierarchies: tuple[Hierarchy, ...]) -> None:
    """v1: a guest that has frozen itself cannot die (runc#2105); it is thawed where its first process is killed."""
    pid = record.number("pid")
    if not pid or pidfd.start_time(pid) != record.number("start"):
        return
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            rows = dict(line.split(b":", 1) for line in file.read(8192).split(b"\n") if b":" in line)
        pending = int(rows[b"ShdPnd"], 16) | int(rows[b"SigPnd"], 16)
    except (OSError, KeyError, ValueError):
        return
    if pending >> (SIGKILL - 1) & 1:
        remove.thaw(hierarchies, record.text("group"))


def sweep(hierarchies: tuple[Hierarchy, ...], but: str = "", most: int = SWEEP_LIMIT) -> list[str]:
    """Remove what killed hooks, engines and runtimes have left; the limit groups of what was removed.

    *but* is a record that is in use, *most* how many are looked at. What cannot be removed is left for the next
    one, or for ``gc``.
    """
    found = []
    known = names()
    # Another part of them each time, where there are more.
    begin = int(time.monotonic() * 1000) % len(known) if len(known) > most else 0
    for name in (known[begin:] + known[:begin])[:most]:
        if name == but:
            continue
        try:
            record = open_record(name, patience=0)
        except NestrtError:
            continue
        if record is None:
            continue
        try:
            if record.values.get("engine") == "lxc" and record.values.get("started") is not True:
                from nestrt.act import lxc  # its monitor was killed, or starts it just now

                lxc.end_orphans(record, hierarchies)
            release(record, hierarchies)
            if is_over(record, hierarchies):
                take_back(record, hierarchies)
                found.append(record.text("group"))
        except (NestrtError, OSError):
            continue
        finally:
            record.close()
    return found
