"""What nestrt.host.report makes, described: guests, limits, processes, groups; ``ls``, ``show`` and ``tree``."""

from __future__ import annotations

from nestrt.host.schema import anything, array, decimal, fields, flag, keyed, maybe, number, ref, said, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Schema = dict[str, Any]

PRESSURE = ("cpu", "memory", "io")
VALUE: Schema = {
    "description": "a limit's value: a number; the numbers of a set (0-3); of I/O one for each key; null: no limit",
    "type": ["integer", "string", "object", "null"],
    "additionalProperties": {"type": ["integer", "null"]},
}
BINDS: Schema = {
    "description": "the path of the group that sets what works, of I/O one for each key; null: none does",
    "type": ["string", "object", "null"],
    "additionalProperties": {"type": "string"},
}
PATH = "path below the mountpoints of the hierarchies"


def limit() -> Schema:
    """A limit of a group, as it stands and as it works."""
    return fields(
        "a limit of one group, as it stands and as it works",
        key=maybe(text("its file as v2 calls it (memory.max), v1's name where v2 has none like it")),
        controller=maybe(text("the controller, by v2's name")),
        hierarchy=maybe(text("the hierarchy; the v2 tree's name is empty")),
        unit=maybe(text("the unit of the values: bytes, count, us (in 100000 µs), numbers (of CPUs or nodes), keys")),
        limit=said(VALUE, "the group's own; null: no limit"),
        effective=said(VALUE, "what works: the tightest from here up; null: no limit"),
        binds=BINDS,
        usage=maybe(
            number("what the group and all below it use, in the same unit; null: the kernel does not count it")
        ),
    )


def process() -> Schema:
    """A process of a guest."""
    return fields(
        "a process",
        pid=maybe(number("as this level sees it; null: outside our pid namespace", least=1)),
        guest_pid=maybe(number("as its guest sees it", least=1)),
        pids=array("its numbers in every pid namespace from here inwards", number("", least=1)),
        uid=maybe(number("its real user, for this level")),
        guest_uid=maybe(number("its real user, in its own user namespace")),
        start=maybe(number("when it was started", "clock ticks since boot")),
        command=text("its command line, or [name]"),
        group=text("the path of its group"),
        elsewhere=keyed("hierarchies in which it is in another group", text("that group's path")),
    )


def guest_fields() -> dict[str, Schema]:
    """What every guest has."""
    return {
        "name": text("its name, with those of the guests around it in front: web/db"),
        "level": number("how many guests deep: 1 is made by the host", least=1),
        "state": text(
            "computed: running if any of its groups has a process", ("running", "paused", "stopped", "creating")
        ),
        "pid": maybe(number("its first process, as this level sees it; null: it has ended", least=1)),
        "claim": flag("what the mark says was said inside a guest, or by another user"),
        "mark": text("the extended attribute that says it is a guest: trusted.nestrt, user.nestrt"),
        "runtime": maybe(text("what made it: launch, nestrt or plugin")),
        "engine": maybe(text("what called that: podman, docker, lxc…")),
        "made_by": maybe(text("engine/runtime, or the one of them that is known")),
        "locked": maybe(flag("the guest cannot change its tree: nestrt lock; null: for root to know")),
        "owner": number("the user that owns the limit group, as a uid of this level", least=-1),
        "id": text("as the mark says; may be empty"),
        "path": text(f"the limit group: {PATH}"),
        "created": maybe(number("when it was made", "seconds since 1970")),
        "rootfs": text("its root filesystem, as the mark says; may be empty"),
        "command": array("its command, as the mark says", text("a word")),
        "cpus": maybe(text("the CPUs that it can run on: 0-3,5")),
        "cpu_quota": maybe(number("CPU time that it can have; null: no limit", "µs in 100000 µs")),
        "cpu_usec": maybe(number("CPU time that it used", "µs")),
        "memory": maybe(said(ref("limit"), "memory.max of the limit group")),
        "pids": maybe(said(ref("limit"), "pids.max of the limit group")),
        "group_count": number("all groups below the limit group, at every level"),
        "unread": array("groups that could not be looked into", text("a path")),
    }


def group(processes: bool) -> Schema:
    """A group of a guest."""
    members = {"processes": array("with --processes: those in the group itself", ref("process"))}
    found = fields(
        "a group of a guest",
        path=text(PATH),
        hierarchies=array("those that have the group; the v2 tree's name is empty", text("a name")),
        limits=array("all its limits", ref("limit")),
        **(members if processes else {}),
    )
    found["required"] = ["path", "hierarchies", "limits"]
    return found


def counters() -> Schema:
    """What a group has used."""
    count = {
        "cpu_usec": ("CPU time", "µs"),
        "user_usec": ("CPU time in programs", "µs"),
        "system_usec": ("CPU time in the kernel", "µs"),
        "throttled_usec": ("what CPUs had to wait for the next period of the quota", "µs"),
        "throttled_periods": ("periods in which the quota was used up", ""),
        "periods": ("periods of the CPU quota", ""),
        "memory": ("memory now, page cache included", "bytes"),
        "memory_peak": ("the most memory that it ever had", "bytes"),
        "swap": ("swap now", "bytes"),
        "cache": ("page cache now", "bytes"),
        "oom_kills": ("processes killed for want of memory", ""),
        "memory_limit_hits": ("how often the memory limit was reached", ""),
        "pids": ("processes and threads now", ""),
        "pids_limit_hits": ("forks that the limit has refused", ""),
        "io_read_bytes": ("read from devices", "bytes"),
        "io_write_bytes": ("written to devices", "bytes"),
        "io_reads": ("reads of devices", ""),
        "io_writes": ("writes to devices", ""),
    }
    known = {name: maybe(number(told, unit)) for name, (told, unit) in count.items()}
    known["frozen"] = maybe(flag("everything in it is stopped"))
    return fields("what the guest and all below it used since it was made; null: nothing counts it", **known)


def pressure() -> Schema:
    """Pressure stall information, by resource."""
    values = {
        "some_avg10": decimal("time in which some process waited, of the last 10 s", "percent"),
        "some_total_usec": number("time in which some process waited", "µs"),
        "full_avg10": decimal("time in which all that could run waited, of the last 10 s", "percent"),
        "full_total_usec": number("time in which all that could run waited", "µs"),
    }
    one = fields("pressure on one resource", **values)
    found = fields("pressure stall information; without the resources that the kernel does not watch", **{
        resource: said(one, f"waiting for {resource}") for resource in PRESSURE
    })  # fmt: skip
    found["required"] = []
    return found


def ls() -> Schema:
    """``ls --format json``."""
    return array("all guests in sight, outer ones first", ref("guest"))


def tree() -> Schema:
    """``tree --format json``."""
    return fields(
        "the guests that were asked for",
        level=number("the level that looks; 0: a host"),
        name=text("the name of the level that looks"),
        guests=array("guests with their groups and, in each, its own guests", ref("tree_guest")),
    )


def tree_guest() -> Schema:
    """A guest of ``tree``."""
    return fields(
        "a guest, its groups and its guests",
        **guest_fields(),
        groups=array("the limit group and all below it that are not of another guest", ref("tree_group")),
        guests=array("the guests inside it", ref("tree_guest")),
    )


def marked_fields() -> dict[str, Schema]:
    """What ``show`` says of a guest's mark, beyond guest_fields()."""
    return {
        "policy": text("the name of its policy; may be empty"),
        "virtualize": flag("it has a guest root of its own, as / of what it sees"),
        "max_level": maybe(number("the deepest level that may be made inside it")),
        "ids": maybe(
            array("its user ids: inside, outside, count; null: for root to know", array("a range", number("")))
        ),
        "view": maybe(anything("what it was to see, as the mark says")),
        "net": maybe(anything("its network, as the mark says")),
        "rm": maybe(flag("its groups are removed when it ends; null: for root to know")),
        "asked": maybe(anything("limits that were asked for, as the mark says")),
        "problems": array("what of the mark cannot be read", text("one problem")),
        "stamp": anything("what the guest root tells the guest about itself; empty: nothing"),
    }


def show() -> Schema:
    """``show --format json``."""
    rules = fields(
        "its device rules",
        rules=array("v1: as devices.list has them", text("a rule")),
        programs=array("v2: ids of the BPF programs on the limit group", number("")),
        inherited=array("v2: ids of those on the groups above", number("")),
    )
    caps = fields(
        "caps on what is below the limit group; null: none, or no v2 tree",
        groups=maybe(number("cgroup.max.descendants")),
        depth=maybe(number("cgroup.max.depth")),
    )
    mount = fields(
        "a cgroup mount that its first process sees",
        target=text("where it is in the guest"),
        version=number("1 or 2", least=1),
        controllers=text("v1: its controllers; empty on v2"),
        root=text("the group that is its root, as this level's mount shows it"),
        read_only=flag("it is mounted read-only"),
    )
    law = fields(
        "whether a law of nestrt holds",
        law=text("which"),
        holds=maybe(flag("null: not known")),
        what=text("what was seen"),
    )
    return fields(
        "a guest and all there is to say of it",
        **guest_fields(),
        **marked_fields(),
        caps=caps,
        limit_group=keyed("the limit group's directory, by hierarchy", text("a directory")),
        limits=array("all limits of the limit group", ref("limit")),
        groups=array("the groups below it that are not of another guest", ref("group")),
        processes=array("the processes in its own groups", ref("process")),
        devices=rules,
        guests=array("the guests inside it", text("a name")),
        namespaces=keyed("by kind: its first process has one of its own", flag("not ours")),
        mounts=array("the cgroup mounts of its view", mount),
        counters=counters(),
        pressure=maybe(pressure()),
        guest_limits=keyed("what the guest is shown of its limits, by key, CPUs in its own numbers", VALUE),
        laws=array("what nestrt check sees from outside; empty: the guest has ended", law),
    )


DEFS = {
    "guest": fields("a guest", **guest_fields()),
    "limit": limit(),
    "process": process(),
    "group": group(False),
    "tree_group": group(True),
    "tree_guest": tree_guest(),
}
