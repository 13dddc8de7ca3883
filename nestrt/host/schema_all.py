"""The schemas of all commands, by name; those of guests are in schema_guest."""

from __future__ import annotations

from nestrt.host.event import KINDS
from nestrt.host.schema import (
    anything,
    array,
    decimal,
    document,
    fields,
    flag,
    keyed,
    maybe,
    number,
    ref,
    said,
    text,
)
from nestrt.host.schema_guest import BINDS, DEFS, PATH, VALUE, counters, ls, pressure, show, tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Schema = dict[str, Any]

TIME = "seconds since 1970"


def why() -> Schema:
    """``why --format json``."""
    step = fields(
        "a group on the way to the root",
        group=text(PATH),
        guest_group=maybe(text("as the guest names it; null: it cannot see it")),
        has=flag("the group has such a file"),
        limit=said(VALUE, "its own limit; null: none"),
        usage=maybe(number("what it and all below it use, in the unit")),
        left=maybe(number("what is left until its limit, in the unit; null: no limit")),
        set_by=maybe(text("who set it")),
        binds=flag("this is the limit that works"),
    )
    other = fields("a group that uses what is left", group=text(PATH), usage=maybe(number("in the unit")))
    one = fields(
        "a limit and where it comes from",
        key=text("its file as v2 calls it, v1's name where v2 has none like it"),
        controller=text("the controller, by v2's name"),
        hierarchy=text("the hierarchy; the v2 tree's name is empty"),
        unit=text("the unit of the values: bytes, count, us (in 100000 µs), numbers, keys"),
        effective=said(VALUE, "what works; null: no limit"),
        binds=BINDS,
        machine=maybe(number("what the machine has, in the unit; null: it has no end")),
        left=maybe(number("what is left until the first limit on the way, in the unit")),
        tightest=maybe(text("the path of the group that has the least left")),
        in_the_way=array("what else there uses it", other),
        chain=array("from the group up to the root", step),
    )
    return fields(
        "what really limits a group or a process",
        group=text(PATH),
        groups=keyed("by hierarchy", text("its path there")),
        guest=maybe(text("the guest whose group it is; null: none's")),
        guest_group=maybe(text("the group as the guest names it; null: it cannot see it")),
        level=number("of that guest, else the level that looks"),
        claim=flag("it is a guest by the word of another guest, or of another user"),
        process=maybe(said(ref("process"), "the process that was asked for; null: a group was")),
        limits=array("the limits", one),
    )


def ps() -> Schema:
    """``ps --format json``, the host's form."""
    one = fields(
        "a process of a guest",
        **DEFS["process"]["properties"],
        guest=text("the innermost guest that it is in"),
        level=number("of that guest", least=1),
        guest_group=maybe(text("its group as the guest names it")),
        user=maybe(text("its real user's name on this level, the number where there is none")),
        name=maybe(text("the kernel's name for it (comm)")),
        parent=maybe(number("its parent, as this level sees it; null: outside our pid namespace", least=1)),
        state=maybe(text("a letter of proc_pid_stat(5): R, S, D, T, Z...")),
        started=maybe(number("when it was started", TIME)),
        elapsed=maybe(number("how long ago that was", "s")),
        cpu_usec=maybe(number("CPU time that it used", "µs")),
        rss=maybe(number("memory that is resident", "bytes")),
        threads=maybe(number("how many it has")),
    )
    return array("processes, by guest; nestrt ps ID of a container is a list of pids", one)


def finding() -> dict[str, Schema]:
    """Of ``check``."""
    return {
        "law": text("which law"),
        "holds": maybe(flag("null: it could not be told")),
        "what": text("what was seen"),
        "remedy": text("what to do where it does not hold; may be empty"),
    }


def check() -> Schema:
    """``check --format json``."""
    one = fields(
        "a guest and its laws",
        name=text("the guest"),
        path=text(f"its limit group: {PATH}"),
        level=number("how many guests deep", least=1),
        pid=number("the process that was looked at", least=1),
        holds=flag("all laws do"),
        laws=array("one for each law", fields("a law", **finding())),
        findings=array("all that was looked at", fields("one thing", **finding())),
        left=array("groups that could not be removed again", text("a path")),
    )
    return array("the guests that were checked", one)


def event() -> Schema:
    """A line of ``events --format json``."""
    return fields(
        "an event; one on each line",
        time=decimal("when", TIME),
        kind=text("what: " + "; ".join(f"{kind}: {told}" for kind, told in KINDS.items()), tuple(KINDS)),
        name=maybe(text("the guest; null with lost where it may have been any")),
        level=maybe(number("of the guest", least=1)),
        claim=flag("it is a guest by the word of another guest, or of another user"),
        path=maybe(text(f"the group: {PATH}")),
        group=maybe(text("the group as the guest names it; null: it cannot see it")),
        key=maybe(text("the limit that was hit, or the resource that there is pressure on")),
        count=maybe(number("how often, since the event of this kind before this one")),
        total=maybe(number("how often since the group is there")),
        detail=maybe(text("a text for people; of started the command")),
        task=maybe(text("who was killed: the process's name")),
        pid=maybe(number("and its number, as this level sees it")),
        uid=maybe(number("and its user")),
        binds=maybe(text("the group that had no memory left, for which it was killed; null: the machine")),
        source=text("who says so: groups (their files), kernel (its log), mark, audit, nestrt"),
    )


def totals() -> Schema:
    """``events --totals --format json``."""
    known = counters()["properties"]
    names = ("oom_kills", "memory_limit_hits", "pids_limit_hits", "throttled_periods", "throttled_usec", "frozen")
    one = fields(
        "a guest",
        name=text("its name"),
        level=number("how many guests deep", least=1),
        claim=flag("it is a guest by the word of another guest, or of another user"),
        path=text(f"its limit group: {PATH}"),
        **{name: known[name] for name in names},
    )
    return array("how often what has happened to guests so far", one)


def usage() -> Schema:
    """A row of ``top --format json``."""
    return fields(
        "what a guest, a group or a level uses",
        time=decimal("when it was looked", TIME),
        name=text("the guest, the group or the level"),
        kind=text("what the row is of", ("guest", "group", "level")),
        level=number("how many guests deep"),
        path=maybe(text(f"its group; null: of a level. {PATH}")),
        id=text("of the guest, as its mark says; may be empty"),
        state=maybe(text("of the guest", ("running", "paused", "stopped", "creating"))),
        claim=flag("it is a guest by the word of another guest, or of another user"),
        made_by=maybe(text("engine/runtime, or the one of them that is known")),
        cpu_percent=maybe(decimal("of one CPU, since the pass before; null: there was none", "percent")),
        cpu_quota=maybe(number("CPU time that it can have; null: no limit", "µs in 100000 µs")),
        cpu_quota_percent=maybe(decimal("of the CPU quota", "percent")),
        cpu_usec=maybe(number("CPU time that it used", "µs")),
        throttled_percent=maybe(decimal("of the quota's periods: those in which it was used up", "percent")),
        memory=maybe(said(ref("limit"), "memory.max, with the usage of this pass")),
        memory_percent=maybe(decimal("of the limit that works", "percent")),
        swap=maybe(number("swap now", "bytes")),
        io_read_bytes=maybe(number("read from devices", "bytes")),
        io_write_bytes=maybe(number("written to devices", "bytes")),
        io_read_rate=maybe(decimal("reading now", "bytes per second")),
        io_write_rate=maybe(decimal("writing now", "bytes per second")),
        pids=maybe(said(ref("limit"), "pids.max, with the usage of this pass")),
        pressure=maybe(pressure()),
        oom_kills=maybe(number("processes killed for want of memory")),
    )


def top() -> Schema:
    """``top --format json``."""
    return array("one pass, largest first; with several passes each row is a line of its own", usage())


def audit() -> Schema:
    """A line of ``audit --format json``."""
    peer = fields(
        "who asked",
        pid=number("its process, as this level sees it"),
        uid=number("its user"),
        gid=number("its group"),
        user=number("its user, as the guest counts; -1: it has no number there", least=-1),
        guest_pid=maybe(number("its process, as the guest counts; null: it has no number there")),
        guest_gid=maybe(number("its group, as the guest counts; null: it has no number there")),
        login=number("of root: the user who logged in, where su or sudo came after; absent: nobody did"),
    )
    peer["required"].remove("login")
    value: Schema = {"type": ["string", "number", "boolean", "array", "object", "null"]}
    found = fields(
        "a change that a guest asked for, or root made by a command; one on each line",
        time=text("when: ISO 8601, UTC, with µs"),
        guest=text("which guest; empty: the level itself"),
        method=text("of the broker: Set, Devices…; or SetLimits, Freeze, Thaw, Kill, Exec, Lock, Unlock, Split"),
        peer=maybe(peer),
        group=text("as the guest names it"),
        key=text("what of it"),
        old={"description": "what it was", **value},
        new={"description": "what it is now, or was to be", **value},
        verdict=text("done, or the error's name"),
        message=text("of a refusal: the reason"),
        repeated=number("so many more like it came, of which there is no line"),
        lost=number("so many lines before this one could not be written"),
    )
    found["required"] = [name for name in found["required"] if name not in ("message", "repeated", "lost")]
    return found


def broker() -> Schema:
    """``broker status --format json``."""
    quota = fields(
        "what it may ask, by the broker's options or its policy; null: an older broker does not say",
        requests_per_second=maybe(number("more wait")),
        connections=maybe(number("at a time; more are refused")),
        message_bytes=maybe(number("of one call, at most", "bytes")),
    )
    one = fields(
        "a guest that the broker serves",
        name=text("its name; several may have one"),
        level=maybe(number("how many guests deep; null: it has not been made yet", least=1)),
        group=text(f"its limit group: {PATH}"),
        pid=maybe(number("its first process, as this level sees it; null: it has not been made yet")),
        connections=number("that its processes have now"),
        requests=number("that they have made, since the broker has served it"),
        refused=number("of these"),
        host_rules=maybe(number("lines of the host's rules for its processes; null: an older broker does not say")),
        rules=maybe(number("lines of its own rules; null likewise")),
        reactions=maybe(number("that it has set; null likewise")),
        quota=maybe(quota),
        socket=text("where the broker listens for it, on this level"),
    )
    return array("the guests that are served, by name", one)


def host() -> Schema:
    """``host status --format json``."""
    share = "of the level's CPU time, where everybody wants all"
    group = fields(
        "a group right below the root",
        path=text(PATH),
        role=text("what nestrt host init made it: guests or system; empty: nothing"),
        cpu_weight=number("cpu.weight, or cpu.shares on v1"),
        cpu_share=decimal(share, "of 1"),
        cpu_share_alone=maybe(decimal("of the system's groups: where it alone wants all beside guests", "of 1")),
        cpu_quota=maybe(decimal("its CPU limit; null: none", "CPUs")),
        memory_limit=maybe(number("null: none", "bytes")),
        memory_usage=maybe(number("with all below it", "bytes")),
    )
    root = fields(
        "processes of the root group itself, each of whose threads counts as a group",
        processes=number("how many"),
        threads=number("of these"),
        cpu_share=decimal("of one of them: " + share, "of 1"),
        cpu_share_alone=maybe(decimal("of one of them, alone beside guests", "of 1")),
    )
    one = fields(
        "a guest right below a group of guests",
        name=text("its name"),
        path=text(f"its limit group: {PATH}"),
        cpu_share=decimal(share, "of 1"),
    )
    return fields(
        "how a level is divided between the system and guests",
        split=flag("nestrt host init has divided it"),
        version=number("of the hierarchy that has the cpu controller: 1 or 2", least=1),
        cpus=decimal("of the level", "CPUs"),
        memory=number("of the level", "bytes"),
        groups=array("the groups right below the root", group),
        root=root,
        guests=array("what each gets at worst", one),
        guests_elsewhere=array("groups right below the root that are the system's and that guests are in", text(PATH)),
        note=maybe(text("what to do about those; null: there are none")),
    )


def state() -> Schema:
    """``state ID``, and a row of ``list --format json``: runc's form of the runtime specification's state."""
    found = fields(
        "a container of this runtime",
        ociVersion=text("the specification's version"),
        id=text("its id"),
        pid=number("its first process, as this level sees it; 0: stopped"),
        status=text("what it does", ("creating", "created", "running", "paused", "stopped")),
        bundle=text("the directory of its bundle"),
        rootfs=text("its root filesystem"),
        created=text("when: RFC 3339, with ns"),
        annotations=keyed("of its document", text("a value")),
        owner=text("who made it; empty in state"),
    )
    found["required"].remove("annotations")
    return found


def hooks() -> Schema:
    """``hooks status --format json``."""
    file = fields(
        "a file",
        path=text("where"),
        state=text("how it is: ok, changed, missing, unreadable…"),
        why=text("what is wrong with it; may be empty"),
    )
    settings = fields(
        "what was installed",
        command=text("the program that is called"),
        policy=maybe(text("for containers that no rule of the host matches")),
        runtime=text("the real runtime that is wrapped"),
        when=anything("the containers that hooks are for, as the engine has it"),
    )
    settings["required"] = ["command", "policy"]
    one = fields(
        "an engine",
        found=maybe(text("its program; null: not on this machine")),
        installed=flag("nestrt is bound to it"),
        right=flag("nothing is wrong"),
        settings=maybe(settings),
        files=array("the files that are nestrt's, or have something of it", file),
        problems=array("what is wrong", text("one problem")),
        note=text("what else there is to say; may be empty"),
    )
    return keyed("by engine", one)


# Command: what it prints, and its schema.
SCHEMAS: dict[str, tuple[str, Schema]] = {
    "ls": ("the guests of this level and below", ls()),
    "show": ("one guest in full", show()),
    "tree": ("every group of every guest", tree()),
    "ps": ("the processes of guests", ps()),
    "why": ("what really limits a group or process", why()),
    "top": ("what guests use", top()),
    "events": ("what happens to guests: a line", event()),
    "totals": ("what has happened to guests: events --totals", totals()),
    "check": ("whether the laws hold", check()),
    "audit": ("what guests asked the broker, and root changed: a line", audit()),
    "broker": ("the guests that the broker serves: broker status", broker()),
    "host": ("how the host is divided: host status", host()),
    "state": ("a container of this runtime", state()),
    "list": ("the containers of this runtime; null: none", maybe(array("below the state directory", state()))),
    "hooks": ("the plugin at engines: hooks status", hooks()),
}


def schema(name: str) -> Schema:
    """The schema of what the command *name* prints. KeyError."""
    title, found = SCHEMAS[name]
    return document(name, f"nestrt, {name}: {title}", found, DEFS)
