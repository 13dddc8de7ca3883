"""``nestrt hook lxc HOOK``: the plugin for LXC, called by a container's monitor as root of the host.

What LXC says stands in the environment, and is only where to look: that a process is the container's first, which
groups it is in and what limits stand there is asked of the kernel. The container's configuration is read where it says
which groups an earlier start may have left; nothing below the root filesystem is opened but in the container's own
mount namespace.

    pre-start    on the host, before the groups are made: the record; what a killed start has left is removed
    start-host   the first process waits, all set up: mark, policy, guest root, view; the laws are read back
    post-stop    LXC has removed its groups: whatever is left goes, and the record
"""

from __future__ import annotations

import errno
import os
import sys
import time

from nestrt.act import plugin, records, remove
from nestrt.cli.options import Option, parse, usage
from nestrt.errors import HostError, InputError, StateError
from nestrt.host.laws_subject import key_of, namespace_roots
from nestrt.kernel import pidfd
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.plan import lxc
from nestrt.plan.standing import is_everything
from nestrt.probe.facts import read_hierarchies
from nestrt.probe.standing import alike_on, device_programs, identity_of, limits_on
from nestrt.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.level.policy import Policy
    from nestrt.plan.facts import Facts, Hierarchy
    from nestrt.plan.ids import Identity

HEAD = """usage: nestrt hook lxc [OPTION …] pre-start | start-host | post-stop
       nestrt hook lxc config NAME

What LXC calls for each container whose configuration has the lines that config prints."""
OPTIONS = (
    Option("policy", "NAME", "for containers that no rule of the host matches (default: nested)"),
    Option("help", "", "this text", "h"),
)
USUAL = "nested"
ENGINE = (("io.container.manager", "lxc"),)  # by which rules know it
CONFIG_LIMIT = 1 << 20  # bytes
DYING = 5.0  # seconds that a first process may take to end after its monitor was killed
HOOK = f"{os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))}/hooks/nestrt"


@record
class Call:
    """What LXC says to a hook: the container's *name*, its configuration's path, its first process, 0 if not said."""

    name: str
    config: str
    pid: int

    @property
    def key(self) -> str:
        """The name of its record, the same for every hook of a container."""
        return records.key(f"lxc\0{self.config}\0{self.name}")

    @property
    def directory(self) -> str:
        """Where the container is kept, "" where LXC does not say."""
        return os.path.dirname(self.config)


def call(environment: dict[str, str]) -> Call:
    """Raises InputError where it is not LXC that calls."""
    name = environment.get("LXC_NAME", "")
    if not name:
        raise InputError("run", "a hook of LXC", "LXC_NAME is not set", "let LXC call it: nestrt hook lxc config NAME")
    config = environment.get("LXC_CONFIG_FILE", "")
    pid = environment.get("LXC_PID", "0")
    if not (pid.isascii() and pid.isdigit() and len(pid) < 11):
        raise InputError("run", "a hook of LXC", "LXC_PID is no process's number", "let LXC call it")
    return Call(lxc.check_name(name), config if config.startswith("/") else "", int(pid))


def _text(path: str) -> str:
    """A regular file's text, "" where there is none or it is too long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        content = os.pread(fd, CONFIG_LIMIT + 1, 0)
    except OSError:  # a FIFO, a directory
        return ""
    finally:
        os.close(fd)
    return content.decode("utf-8", "replace") if len(content) <= CONFIG_LIMIT else ""


def require_root(remedy: str) -> None:
    """Raises HostError for a hook that is not run as root of the host: marks and limits would not be its word."""
    from nestrt.kernel.id_maps import read_id_map
    from nestrt.probe.level import ALL_IDS

    if os.geteuid() != 0 or read_id_map("uid_map") != [(0, 0, ALL_IDS)]:
        raise HostError("make a guest of", "a container", "its hooks do not run as root of the host", remedy)


def _monitor() -> dict[str, object]:
    """The process that calls, LXC's monitor of the container, as a record names it (/bin/sh has exec'd us).

    Raises StateError where it has ended: whoever has inherited this process is of another session.
    """
    pid = os.getppid()
    started = pidfd.start_time(pid)
    if started is None or os.getsid(pid) != os.getsid(0):
        raise StateError("make a guest of", "a container", "its monitor has ended", "start it again")
    return {"maker": pid, "began": started}


def _is_mine(found: records.Record) -> bool:
    monitor = _monitor()
    return all(found.values.get(key) == value for key, value in monitor.items())


# --- pre-start -----------------------------------------------------------------------------------


def pre_start(said: Call, policy: str) -> int:
    """Remove what a killed start has left, and make the record."""
    require_root("let root start it, with lxc.idmap for ids of its own")
    hierarchies = read_hierarchies()
    found = _record(said)
    try:
        if found.values and not _is_mine(found):
            _clear(found, said, hierarchies)
            found = _record(said)
        groups = _groups(said)
        _remove_empty(groups[1], hierarchies, DYING)  # where a hook of a killed monitor may be at work still
        if plugin.marked_id(hierarchies, groups[0]) and not _living(hierarchies, groups[0]):
            remove.remove_tree(groups[0], hierarchies)  # of a start whose record is lost
        found.values = {
            "group": groups[0],
            "id": os.urandom(8).hex(),
            "made": bool(groups[0]) and not _exists(groups[0], hierarchies),
            "parents": [groups[1]] if groups[1] and not _exists(groups[1], hierarchies) else [],
            "bundle": "",
            "created": int(time.time()),
            "container": said.name,
            "engine": "lxc",
            **_monitor(),
        }
        found.save()
        plugin.sweep(hierarchies, found.name)
    finally:
        found.close()
    return 0


def _record(said: Call) -> records.Record:
    found = records.open_record(said.key, make=True)
    assert found is not None
    return found


def _groups(said: Call) -> tuple[str, str]:
    """The limit group and the monitor's group that the configuration names, "" where it does not."""
    places = lxc.places(_text(said.config)) if said.config else lxc.Places()
    base = next((path for path in read_cgroups("self" if places.relative else "1").values()), "/")
    return lxc.below(base, places.container), lxc.below(base, places.monitor)


def _clear(found: records.Record, said: Call, hierarchies: tuple[Hierarchy, ...]) -> None:
    """Remove what an earlier start of the container has left, its record too. Raises StateError where it lives."""
    from nestrt.act.lxc import end_orphans

    group = found.text("group")
    deadline = time.monotonic() + DYING
    while pidfd.alive(found.number("maker"), found.number("began")) or _living(hierarchies, group):
        if time.monotonic() > deadline:
            raise StateError(
                "start",
                f"container {said.name}",
                f"an earlier start of it lives, in {group or 'its groups'}",
                f"end it: lxc-stop -k {said.name}, or its processes, where its monitor was killed",
            )
        end_orphans(found, hierarchies)
        time.sleep(0.02)
    plugin.take_back(found, hierarchies)


def _remove_empty(group: str, hierarchies: tuple[Hierarchy, ...], patience: float) -> None:
    """Remove a monitor's *group*, in which nothing stands any more: LXC refuses to start where it is there, and leaves
    it where its first process takes a moment to end."""
    deadline = time.monotonic() + patience
    for h in hierarchies if group.strip("/") else ():
        while True:
            try:
                os.rmdir(h.path(group))
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
            break


def _exists(group: str, hierarchies: tuple[Hierarchy, ...]) -> bool:
    return any(os.path.isdir(h.path(group)) for h in hierarchies)


def _living(hierarchies: tuple[Hierarchy, ...], group: str) -> bool:
    return bool(group.strip("/")) and bool(remove.living(hierarchies, group))


# --- start-host ----------------------------------------------------------------------------------


@record
class Guest:
    """A container that waits for its start-host hook: *host* is the policy as the host has bound it."""

    host: Policy
    container: lxc.Container
    facts: Facts
    who: Identity


def start_host(said: Call, policy: str) -> int:
    """Make the container a guest, its first process waiting; look whether the laws hold."""
    require_root("let root start it, with lxc.idmap for ids of its own")
    start = pidfd.start_time(said.pid) if said.pid else None
    if start is None or pidfd.parent(said.pid) != os.getppid():
        raise StateError(
            "make a guest of", f"container {said.name}", "LXC_PID is no child of who calls", "let LXC call it"
        )
    found = records.open_record(said.key)
    if found is None or not _is_mine(found):
        raise StateError(
            "make a guest of",
            f"container {said.name}",
            "it has no record",
            f"have the pre-start hook too: nestrt hook lxc config {said.name}",
        )
    try:
        guest = find(said, policy)
        if guest is None:
            found.forget()
            return 0
        _adopt(said, guest, found)
    finally:
        found.close()
    return 0


def find(said: Call, usual: str) -> Guest | None:
    """The guest that a policy makes of the container; None where the host gives it none. Raises NestrtError."""
    from nestrt.level.binding import Bundle
    from nestrt.level.check import check
    from nestrt.level.limits import Limits
    from nestrt.plan.request import Request
    from nestrt.probe.bundle import gather_bundle
    from nestrt.probe.policies import policy_of

    hierarchies = read_hierarchies()
    places = read_cgroups(str(said.pid))
    group = lxc.limit_group_of(_by_name(hierarchies, places), said.name)
    who = identity_of(said.pid)
    host = policy_of(ENGINE, Bundle(group, said.directory, (0, who.root_uid or 0)), usual=usual)
    if host is None or not host.virtualize:
        return None
    name = guest_name(said.name, group)
    stands = limits_on(hierarchies, group)
    policy = lxc.within(host, stands, who)
    origin = (("runtime", "plugin"), ("engine", "lxc"), ("record", said.key))
    request = Request(name, "/", (), policy, cgroup=group, net="bundle", origin=origin)
    facts = gather_bundle(group, request)
    if facts.hierarchies != hierarchies:
        facts = replace(facts, hierarchies=tuple(h for h in facts.hierarchies if h in hierarchies))
    check(policy, policy.limits if facts.level.number else Limits(), facts.has)
    request = replace(request, rootfs=said.directory or "/")
    container = lxc.Container(request, stands, device_programs(hierarchies, group), alike_on(hierarchies, group))
    lxc.require(container, facts, who)
    return Guest(host, container, facts, who)


def _by_name(hierarchies: tuple[Hierarchy, ...], groups: dict[tuple[str, ...], str]) -> dict[str, str]:
    """The path of a process's group by hierarchy's name; *groups* as /proc/PID/cgroup has them."""
    return {h.name: groups.get(key_of(h), "/") for h in hierarchies}


def guest_name(name: str, group: str) -> str:
    from nestrt.host.marks import valid_name

    return name if valid_name(name) else f"lxc-{records.key(group)[:12]}"


def _adopt(said: Call, guest: Guest, found: records.Record) -> None:
    from nestrt.act.groups import Worker
    from nestrt.act.lxc import mount_view, require_filter
    from nestrt.cli import _verdict
    from nestrt.probe.policies import to_fields

    request, facts = guest.container.request, guest.facts
    _require_namespace(said, request.guest_root, facts)
    if not guest.who.uids:
        require_filter(said.pid, said.name)
    found.values.update(
        name=request.name,
        group=request.limit_group,
        made=True,
        hierarchies=records.rows(facts.hierarchies),
        policy=to_fields(request.policy),
        mark=facts.mark,
        every_device=is_everything(request.policy.limits.devices),
        first=request.first_group,
        pid=said.pid,
        start=pidfd.start_time(said.pid) or 0,
        started=True,
    )
    found.save()
    steps = lxc.adopt(
        guest.container, facts, guest.who, guest.host.limits.devices, found.text("id"), found.number("created")
    )
    Worker(request.name, said.pid).run(steps)
    mount_view(said.pid, request.guest_root, lxc.view(request, facts, guest.who))
    if request.served:
        from nestrt.cli._broker import put_socket

        put_socket(request, said.pid)
    _verdict.check(found, said.pid, started=True)


def _require_namespace(said: Call, root: str, facts: Facts) -> None:
    """The view is mounted from the container's cgroup namespace: that has to begin at the guest root."""
    roots = namespace_roots(said.pid)
    for h in facts.hierarchies:
        if roots.get(key_of(h)) != root:
            raise HostError(
                "make a guest of",
                f"container {said.name}",
                f"its cgroup namespace begins at {roots.get(key_of(h), 'another group')} and not at {root}",
                "leave cgroup out of lxc.namespace.keep, and lxc.namespace.share.cgroup out",
            )


# --- post-stop -----------------------------------------------------------------------------------


def post_stop(said: Call, policy: str) -> int:
    """Remove what is the guest's. LXC calls this after a start that failed, too, maybe of another one's guest."""
    hierarchies = read_hierarchies()
    found = records.open_record(said.key)
    if found is not None:
        try:
            if _is_mine(found):
                for group in found.parents:
                    _remove_empty(group, hierarchies, DYING / 5)
                plugin.take_back(found, hierarchies)
        finally:
            found.close()
    plugin.sweep(hierarchies)
    return 0


RUN = {"pre-start": pre_start, "start-host": start_host, "post-stop": post_stop}


def main(argv: list[str]) -> int:
    """*argv* are the words after ``hook lxc``. Returns the exit status."""
    single, _, rest = parse(OPTIONS, argv, "hook lxc")
    if rest and not single:
        single, _, more = parse(OPTIONS, rest[1:], "hook lxc")
        rest = rest[:1] + more
    if "help" in single:
        sys.stdout.write(usage(HEAD, OPTIONS))
        return 0
    if rest[:1] == ["config"] and len(rest) == 2:
        sys.stdout.write(lxc.configuration(rest[1], HOOK))
        return 0
    hook = rest[0] if rest else ""
    # lxc.hook.version = 0 adds three words: the container's name, "lxc", the hook's name.
    if hook not in RUN or (len(rest) > 1 and rest[2:] != ["lxc", hook]):
        words = " ".join(rest)
        raise InputError("run", f"hook lxc {words!a}", "no such hook", f"known: {', '.join(RUN)}, config NAME")
    return RUN[hook](call(dict(os.environ)), single.get("policy", USUAL))
