"""Which file of a group says what, on v1 and on v2, and how the kernel lets one know: data first. Pure.

TOLD: inotify(7) says so; EVENTFD: cgroup.event_control does (cgroup-v1/memory.rst, sections 9 and 10);
ASKED: nobody says so, the file is read once a second as long as somebody wants to know. v2's events are those of the
group itself (``….local``) where the kernel has them: a group that is at its limit is one event, not one more for
each group above it. Linux 6.18 does not notify for v1's pids.events, older kernels do: both ways are gone.

cgroup-v2.rst: cgroup.events, memory.events, memory.swap.events, pids.events; cgroup-v1: freezer-subsystem.rst.
"""

from __future__ import annotations

from typing import Iterator

from nestrt.record import record

TOLD, ASKED, EVENTFD = "told", "asked", "eventfd"

# What a subscriber may ask for, in the order of the interface's text.
KINDS = (
    "oom", "oom_kill", "limit", "high", "pressure", "empty", "populated", "frozen", "thawed", "created", "removed",
    "cpus", "reaction", "lost",
)  # fmt: skip
# What only reactions listen to: the kernel has killed a group as one, memory.max is another one, a v1 group or one
# above it has no memory.
OOM_GROUP, RESIZED, STARVING = "oom_group", "resized", "starving"
TREE = frozenset(("created", "removed"))
STATES = {"populated": ("empty", "populated"), "frozen": ("thawed", "frozen")}

RESOURCES = ("memory", "cpu", "io")


@record
class Source:
    """A *file* of hierarchies of *version* with *controller* ("": each). *kinds*: (field, kind of event); a field of
    STATES is 0 or 1, of RESIZED a value, the others count. *whole*: the counts of groups below are in it. *instead*
    is the file's name where the kernel lacks it. *lacking*: only where no hierarchy of v2 says the same."""

    file: str
    version: int
    controller: str
    how: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]
    whole: bool = False
    instead: str = ""
    lacking: bool = False

    @property
    def all_kinds(self) -> frozenset[str]:
        """The kinds of events that it tells of."""
        return frozenset(kind for field, one in self.kinds for kind in STATES.get(field, (one,)))


SOURCES = (
    Source("cgroup.events", 2, "", (TOLD,), (("populated", ""), ("frozen", ""))),
    Source(
        "memory.events.local", 2, "memory", (TOLD,),
        (("high", "high"), ("max", "limit"), ("oom", "oom"), ("oom_kill", "oom_kill"), ("oom_group_kill", OOM_GROUP)),
        instead="memory.events",
    ),
    Source("memory.swap.events", 2, "memory", (TOLD,), (("max", "limit"),), whole=True),
    Source("memory.max", 2, "memory", (TOLD,), (("", RESIZED),)),
    Source("pids.events.local", 2, "pids", (TOLD,), (("max", "limit"),), instead="pids.events"),
    Source("pids.events", 1, "pids", (TOLD, ASKED), (("max", "limit"),)),
    Source(
        "memory.oom_control", 1, "memory", (EVENTFD, ASKED),
        (("oom", "oom"), ("oom_kill", "oom_kill"), ("starving", STARVING)),
    ),
    Source("memory.limit_in_bytes", 1, "memory", (TOLD,), (("", RESIZED),)),
    Source("memory.failcnt", 1, "memory", (ASKED,), (("", "limit"),)),
    Source("freezer.state", 1, "freezer", (ASKED,), (("frozen", ""),)),
    Source("cgroup.procs", 1, "", (ASKED,), (("populated", ""),), lacking=True),
)  # fmt: skip

# The guest's own limits stand on the group above its root, which has a little more in use, so it is there that memory
# runs out; v1 tells those below of that itself.
ABOVE = "../"
OF_ROOT = (
    Source(
        ABOVE + "memory.events.local", 2, "memory", (TOLD,), (("high", "high"), ("max", "limit"), ("oom", "oom")),
        instead=ABOVE + "memory.events",
    ),
    Source(ABOVE + "memory.failcnt", 1, "memory", (ASKED,), (("", "limit"),)),
)  # fmt: skip


def fitting(
    version: int, controllers: tuple[str, ...], kinds: frozenset[str], only: bool, root: bool = False
) -> Iterator[Source]:
    """The sources for *kinds* in a hierarchy. *only*: the one to ask where there is no v2 tree; *root*: of the guest
    root."""
    for source in SOURCES + OF_ROOT if root else SOURCES:
        fits = source.version == version and (not source.controller or source.controller in controllers)
        if fits and source.all_kinds & kinds and (only or not source.lacking):
            yield source


def parse_counts(file: str, text: str) -> dict[str, int]:
    """What a file says, by field ("" of a file with one value; -1 stands for "max"); lines of another form are left
    out."""
    if file == "freezer.state":
        return {"frozen": int(text.strip() == "FROZEN")}
    if file == "cgroup.procs":
        return {"populated": int(bool(text.strip()))}
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
        elif len(words) == 1 and (words[0] == "max" or words[0].isdigit()):
            found[""] = -1 if words[0] == "max" else int(words[0])
    return found


def changes(source: Source, old: dict[str, int], new: dict[str, int]) -> Iterator[tuple[str, int | None, str | None]]:
    """(kind, count so far, detail) of each event between two looks at a file."""
    for field, kind in source.kinds:
        if field not in new or field not in old or new[field] == old[field]:
            continue
        if field in STATES:
            yield STATES[field][new[field] != 0], None, None
        elif kind == RESIZED:
            yield kind, new[field], None
        elif new[field] > old[field]:
            more = new[field] - old[field]
            yield kind, new[field], f"{more} since the last report" if more > 1 else None
