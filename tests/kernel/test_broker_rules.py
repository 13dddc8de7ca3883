"""Rules: the kernel tells what processes do, and those of the guest that a rule fits are where it wants them.

    host                     the broker's classifier hears every exec of the machine
    ├ /nestrt/A/guest        has rules
    │ ├ init                 everything starts here, and rules may take it away
    │ ├ web, users/1000 …    made by rules: what is here may be placed anew
    │ └ hand                 the guest's own doing: what it puts here stays
    └ /nestrt/B/guest        has none
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from nestrt.broker import classify, guest_names, rules, rules_store
from nestrt.broker.audit import Audit
from nestrt.broker.classify import Classifier
from nestrt.broker.refusal import Refusal
from nestrt.kernel import namespaces
from nestrt.net.process_events import ProcessEvents
from support.broker import Broker, Refused, settled, start_guest
from support.broker import running as running_broker
from support.hostside import below, directories, groups, is_v2_only
from support.need import SLOW
from support.rootfs import CHECKOUT, PythonRoot, python_root
from support.runner import Nestrt, wait_for
from support.served import Direct, groups_of, serving
from support.silent_file import silent

METHODS = rules.METHODS
EXEC = 'os.execv("/usr/bin/sleep", ["sleep", "100000"])'
# Not by /proc/self/comm: that is root's where a process has changed its user.
NAMED = "import ctypes\nctypes.CDLL(None).prctl(15, {!r})"


class Parts:
    """What rules need of a broker: its classifier and its audit."""

    def __init__(self, directory: Path) -> None:
        self.audit = Audit(str(directory))
        self.classifier = Classifier(self)  # type: ignore[arg-type]
        self.directory = directory

    def entries(self, verdict: str = "done") -> list[dict[str, Any]]:
        """The audit's lines about processes, and about what could not be done."""
        lines = [line for path in sorted(self.directory.iterdir()) for line in path.read_text().splitlines()]
        return [entry for entry in map(json.loads, lines) if entry["verdict"] == verdict]


@pytest.fixture(scope="module")
def guests(scratch: Path) -> Iterator[Callable[[str], Direct]]:
    """A function that gives the module's guest of that name, each with a root filesystem of its own."""
    made: dict[str, Direct] = {}
    contexts = []

    def get(which: str) -> Direct:
        if which not in made:
            name = f"nestrt-r-{os.getpid():x}-{which}"
            mode = ("--userns", "none", "--capabilities", "all") if which == "nouserns" else ()
            root: PythonRoot = python_root(scratch / f"{name}-root")
            contexts.append(serving(Nestrt(), root, name, scratch / name, *mode))
            made[which] = contexts[-1].__enter__()
            made[which].rootfs = root.path  # type: ignore[attr-defined]
        return made[which]

    yield get
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.fixture
def one(guests: Callable[[str], Direct]) -> Iterator[Direct]:
    """A guest with a user namespace, without rules."""
    yield from tidy(guests("one"))


@pytest.fixture
def two(guests: Callable[[str], Direct]) -> Iterator[Direct]:
    """Another one."""
    yield from tidy(guests("two"))


def tidy(guest: Direct) -> Iterator[Direct]:
    yield guest
    guest.reset()
    for attribute in (rules_store.OWN, rules_store.HOST):
        rules_store.save(guest.served, attribute, rules_store.Stored())


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path / "audit")


def run(parts: Parts, action: Callable[[], Awaitable[None]]) -> None:
    """*action* while the classifier runs."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.classifier.run)
            await action()
            nursery.cancel_scope.cancel()

    trio.run(main)


async def set_rules(parts: Parts, guest: Direct, *lines: str) -> list[str]:
    found: list[str] = (await guest.ask(METHODS, guest.request("Rules", broker=parts, rules=list(lines))))["rules"]
    return found


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    with trio.move_on_after(seconds * SLOW):
        while not condition():
            await trio.sleep(0.01)
    assert condition(), what


async def moment(seconds: float = 0.3) -> None:
    """Time enough for what must not happen."""
    await trio.sleep(seconds * SLOW**0.5)


def refused(parts: Parts, guest: Direct, *lines: str) -> Refusal:
    """What setting *lines* is refused with."""

    async def main() -> None:
        await set_rules(parts, guest, *lines)

    with pytest.raises(Refusal) as error:
        trio.run(main)
    return error.value


# The first rule that fits says where: by user, group, name and program; what fits none stays.


def test_where_processes_go(one: Direct, parts: Parts) -> None:
    async def action() -> None:
        lines = (
            "1000:special * special",
            "1000:/usr/bin/sleep * users/%u-%G",
            "@2000 * members",
            "*:named* * by/%p",
        )
        assert await set_rules(parts, one, *lines) == list(lines)
        expected = {
            one.fork(1000, EXEC)[1]: "/users/user-1000",
            one.fork(1001, EXEC)[1]: "/init",
            one.fork(0, EXEC)[1]: "/init",
            one.fork(1001, EXEC, gids=(2000, 2000, 2000))[1]: "/members",
            one.fork(1001, EXEC, more=(3000, 2000))[1]: "/members",
            one.fork(1000, NAMED.format(b"special"))[1]: "/special",
            one.fork(0, NAMED.format(b"named-a"))[1]: "/by/named-a",
            one.fork(0, NAMED.format(b"not named"))[1]: "/init",
        }
        for pid, group in expected.items():
            await until(lambda pid=pid, group=group: one.group_of(pid) == group, f"{pid} in {group}")  # type: ignore[misc]
        await moment()
        assert {pid: one.group_of(pid) for pid in expected} == expected
        done = [(entry["old"], entry["new"], entry["method"], entry["peer"]) for entry in parts.entries()]
        assert ("/init", "/special", "Rules", None) in done

    run(parts, action)


def test_a_change_of_user_counts_without_exec(one: Direct, parts: Parts) -> None:
    async def action() -> None:
        await set_rules(parts, one, "1000 * users/%U", "@1002 * members")
        user = "time.sleep(0.2)\nos.setresuid(0, 1000, 0)"
        _, first = one.fork(0, user)
        _, second = one.fork(0, "time.sleep(0.2)\nos.setresgid(0, 1002, 0)")
        assert {one.group_of(first), one.group_of(second)} == {"/init"}
        await until(lambda: one.group_of(first) == "/users/1000", "the user's group")
        await until(lambda: one.group_of(second) == "/members", "the group's group")

    run(parts, action)


def test_those_that_there_are_already(one: Direct, parts: Parts) -> None:
    """Placed by the time that the answer comes; anew where other rules are set; left alone where none are."""

    async def action() -> None:
        pids = [one.fork(1000)[1] for _ in range(20)]

        async def placed(group: str) -> None:
            if SLOW > 1:  # the answer does not wait for ever
                await until(lambda: {one.group_of(pid) for pid in pids} == {group}, f"all in {group}")
            assert {one.group_of(pid) for pid in pids} == {group}

        await set_rules(parts, one, "1000 * a")
        await placed("/a")
        await set_rules(parts, one, "1000 * b/c")
        await placed("/b/c")
        await set_rules(parts, one)
        assert parts.classifier.events is None, "nobody listens where nobody has rules"
        assert {one.group_of(pid) for pid in pids} == {"/b/c"}
        _, pid = one.fork(1000, EXEC)
        await moment()
        assert one.group_of(pid) == "/init"
        assert one.group_of(one.agent_pid) == "/init"

    run(parts, action)


def test_what_the_guest_placed_by_hand_stays(one: Direct, parts: Parts) -> None:
    async def action() -> None:
        one.mkdir("/hand", "/init/below")
        await set_rules(parts, one, "1000:sleep * web/%U", "1000:other * web/other", "1000 * hand2")
        for place in ("/hand", "/init/below"):
            if place != "/hand" and is_v2_only():
                continue
            _, pid = one.fork(1000, "time.sleep(0.4)\n" + EXEC)
            one.enter(pid, place)
            comm = Path(f"/proc/{pid}/comm")
            await until(lambda comm=comm: "sleep" in comm.read_text(), "its exec")  # type: ignore[misc]
            await moment()
            assert one.group_of(pid) == place
        # What rules have placed is for rules to place again.
        _, pid = one.fork(1000, EXEC)
        await until(lambda: one.group_of(pid) == "/web/1000", "its group")
        _, pid = one.fork(1000, "time.sleep(0.3)\n" + NAMED.format(b"other"))
        await until(lambda: one.group_of(pid) == "/web/other", "its other group")

    run(parts, action)


@pytest.mark.v1
def test_controllers_and_continued_lines(one: Direct, parts: Parts) -> None:
    """Each part of a rule places in the hierarchies of its own controllers."""
    async def action() -> None:
        await set_rules(parts, one, "1000 memory big", "% pids,cpu few")
        _, pid = one.fork(1000, EXEC)
        wanted = {"memory": "/big", "pids": "/few", "cpu": "/few"}

        def found() -> dict[str, str]:
            return {key: place.removeprefix(one.top) for key, place in groups_of(pid).items()}

        await until(lambda: wanted.items() <= found().items(), "both")
        assert {place for key, place in found().items() if key not in wanted} == {"/init"}

    run(parts, action)


def test_the_hosts_rules_come_first(one: Direct, parts: Parts) -> None:
    class Asked:
        notes: list[Any] = []

        def note(self, *what: Any) -> None:
            self.notes.append(what)

    async def action() -> None:
        await set_rules(parts, one, "1000 * own", "1001 * own")
        asked = Asked()
        found = await rules.host_rules(parts, one.served, ["1000 * host"], asked)  # type: ignore[arg-type]
        assert found == {"rules": ["1000 * host"]}
        assert asked.notes == [("/", "host rules", [], ["1000 * host"])]
        assert await one.ask(METHODS, one.request("Rules", broker=parts)) == {"rules": ["1000 * own", "1001 * own"]}
        (_, first), (_, second) = one.fork(1000, EXEC), one.fork(1001, EXEC)
        await until(lambda: (one.group_of(first), one.group_of(second)) == ("/host", "/own"), "both")
        await rules.host_rules(parts, one.served, [], asked)  # type: ignore[arg-type]
        await until(lambda: one.group_of(first) == "/own", "the guest's own")

    run(parts, action)


# Kept in the kernel's tree.


def test_rules_survive_the_broker(one: Direct, parts: Parts, tmp_path: Path) -> None:
    async def first() -> None:
        await set_rules(parts, one, "user:sleep * users/%u", "nobody * %g")
        await rules.host_rules(parts, one.served, ["@user * host"], one.request("Rules"))  # type: ignore[arg-type]

    run(parts, first)
    mark = rules_store.place(one.served, rules_store.OWN)
    assert mark.endswith("/guest")
    assert not rules_store.place(one.served, rules_store.HOST).endswith("/guest")
    kept = json.loads(os.getxattr(mark, rules_store.OWN))
    assert kept["rules"] == ["user:sleep * users/%u", "nobody * %g"]
    assert (kept["users"]["user"], kept["groups"]["user"]) == (1000, 1000)
    inside = one.agent.order("shell", command="getfattr -m - -d / 2>&1; cat /sys/fs/cgroup/*rules* 2>&1; true")
    assert "host" not in inside["out"]
    other = Parts(tmp_path / "other")

    async def second() -> None:
        await rules.restore(other, one.served)  # type: ignore[arg-type]
        _, pid = one.fork(1000, EXEC, gids=(0, 0, 0))
        await until(lambda: one.group_of(pid) == "/users/user", "its group")
        rules.forget_guest(other, one.served)  # type: ignore[arg-type]
        _, pid = one.fork(1000, EXEC, gids=(0, 0, 0))
        await moment()
        assert one.group_of(pid) == "/init"
        assert other.classifier.events is None

    run(other, second)


MARKS = [
    b"", b"\xff", b"[]", b"{}", b'{"v":2,"rules":["* * x"]}', b'{"v":1,"rules":"* * x"}',
    b'{"v":1,"rules":[1,null,{}]}',
    b'{"v":1,"rules":["* * ../../x"]}', b'{"v":1,"rules":["no rule"]}', b'{"v":1,"rules":["a * x"],"users":{"a":-1}}',
    b'{"v":1,"rules":["* nonsense x"]}', b'{"v":1,"rules":["1000 * %u"],"users":{"../../..":1000}}', b"[" * 60000,
    b'{"v":1,"rules":["a * x"],"users":[1000],"groups":7}',
]  # fmt: skip


@pytest.mark.parametrize("content", MARKS)
@pytest.mark.slow_on_vm
def test_a_mark_that_somebody_else_wrote(one: Direct, parts: Parts, content: bytes) -> None:
    """As root of the guest with all capabilities can: nothing is placed elsewhere, and nothing fails."""
    os.setxattr(rules_store.place(one.served, rules_store.OWN), rules_store.OWN, content)
    before = sorted(map(str, directories(one.limit)))

    async def action() -> None:
        await rules.restore(parts, one.served)  # type: ignore[arg-type]
        _, pid = one.fork(1000, EXEC)
        await moment()
        assert one.group_of(pid) in ("/init", "/_._.._..")

    run(parts, action)
    after = sorted(map(str, directories(one.limit)))
    assert before == [path for path in after if "_._" not in path]


# Who may, and what is no rule.


@pytest.mark.slow_on_vm
def test_only_root_sets_rules(one: Direct, parts: Parts) -> None:
    user = one.peer(1000)

    async def action() -> None:
        with pytest.raises(Refusal) as error:
            await one.ask(METHODS, one.request("Rules", user, broker=parts, rules=["* * x"]))
        assert error.value.name == "NotPermitted"
        assert await one.ask(METHODS, one.request("Rules", user, broker=parts)) == {"rules": []}

    run(parts, action)


@pytest.mark.slow_on_vm
def test_rules_that_cannot_be(one: Direct, parts: Parts) -> None:
    for line in (
        "* nonsense web", "* * ../x", "nobody-here * x", "@no-group * x", "* cpu", "* * pids.max", "* * %p.x\n",
        "* * pids.%u",
    ):  # fmt: skip
        found = refused(parts, one, line)
        assert found.name == "BadValue", (line, found.message)
        assert found.remedy
    assert "it has: " in refused(parts, one, "* nonsense web").remedy
    assert "numbers" in refused(parts, one, "nobody-here * x").remedy
    assert rules_store.load(one.served, rules_store.OWN).lines == ()


# A guest's files, replaced by everything that they can be.


@pytest.mark.slow_on_vm
def test_names_from_hostile_files(one: Direct, parts: Parts) -> None:
    etc = Path(one.rootfs, "etc")  # type: ignore[attr-defined]
    passwd, group = etc / "passwd", etc / "group"
    good = passwd.read_text()

    def clear() -> None:
        if os.path.lexists(passwd):
            passwd.rmdir() if stat.S_ISDIR(os.lstat(passwd).st_mode) else passwd.unlink()

    def fifo() -> None:
        os.mkfifo(passwd)

    def big() -> None:
        with passwd.open("w") as file:
            file.truncate(1 << 40)

    def link(target: str) -> Callable[[], None]:
        return lambda: passwd.symlink_to(target)

    makers: list[Callable[[], object]] = [
        fifo, big, passwd.mkdir, lambda: os.mknod(passwd, 0o666 | 0o020000, os.makedev(1, 5)), link("/proc/kmsg"),
        link("/proc/self/environ"), link("/proc/1/fd/0"), link("/proc/1/root/etc/passwd"), link("passwd"),
        link("/nowhere"), link("/sys/fs/cgroup"), link("/dev/zero"), link("/proc/1/exe"), lambda: None,
    ]  # fmt: skip
    try:
        for maker in makers:
            clear()
            maker()
            began = time.monotonic()
            found = refused(parts, one, "user * x")
            assert time.monotonic() - began < 10 * SLOW
            assert (found.name, found.remedy) == ("NotPossible", guest_names.USE_NUMBERS), (maker, found.message)
        # A way out of the root ends in the root: the host's users are not the guest's.
        (etc / "other").write_text("user:x:1234:0::/:\n")

        async def action() -> None:
            for target in ("../../../../../../etc/other", "/etc/other", "/proc/../etc/./other"):
                clear()
                passwd.symlink_to(target)
                await set_rules(parts, one, "user * x")
                kept = rules_store.load(one.served, rules_store.OWN)
                assert kept.users == {"user": 1234}
            await set_rules(parts, one, "1000 * x")

        run(parts, action)
    finally:
        clear()
        passwd.write_text(good)
        assert group.exists()


@pytest.mark.slow_on_vm
def test_files_that_never_tell(one: Direct, parts: Parts) -> None:
    """A filesystem of the guest's own that does not answer: the call ends, others of the guest go on, numbers work."""

    async def action() -> None:
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(Refusal) as error:
                await set_rules(parts, one, "user * x")
            assert (error.value.name, error.value.remedy) == ("NotPossible", guest_names.USE_NUMBERS)
        assert time.monotonic() - began < 3 * guest_names.PATIENCE + 2 * SLOW
        await set_rules(parts, one, "1000 * x")
        _, pid = one.fork(1000, EXEC)
        await until(lambda: one.group_of(pid) == "/x", "its group")

    with silent(one.agent_pid, "/etc/passwd"):
        run(parts, action)


@pytest.mark.slow_on_vm
def test_more_names_than_fit(one: Direct, parts: Parts) -> None:
    etc = Path(one.rootfs, "etc")  # type: ignore[attr-defined]
    good = (etc / "passwd").read_text()
    try:
        (etc / "passwd").write_text(good + "".join(f"user{n:06}:x:{n}:0::/:\n" for n in range(2000, 9000)))
        assert refused(parts, one, "* * %u").name == "QuotaExceeded"
        assert parts.classifier.events is None

        async def action() -> None:
            await set_rules(parts, one, "user005000 * x")

        run(parts, action)
    finally:
        (etc / "passwd").write_text(good)


# Hostile processes.


@pytest.mark.slow_on_vm
def test_names_that_processes_give_themselves(one: Direct, parts: Parts) -> None:
    """%p of "..", of a slash, of a controller's file, of bytes that are no text: groups below, and no others."""
    names = [b"..", b".", b"a/b", b"../../x", b"cpu.max", b"cgroup.procs", b"\xff\xfe", b"a\nb", b"\\n", b"\x1b[31m"]

    async def action() -> None:
        await set_rules(parts, one, "1000 * by/%p")
        pids = [one.fork(1000, NAMED.format(name))[1] for name in names]
        await until(lambda: all(one.group_of(pid).startswith("/by/") for pid in pids), "all placed")
        await moment()
        found = {one.group_of(pid) for pid in pids}
        assert all(place.count("/") == 2 for place in found), found
        assert "/by/_." in found
        assert "/by/cgroup_procs" in found

    run(parts, action)
    assert not any(path.name in ("x", "b") for top in groups(one.limit) for path in top.iterdir() if path.is_dir())


def test_nobody_elses_processes(one: Direct, two: Direct, parts: Parts) -> None:
    """The host's, and those of a guest without rules, do the same things and are left where they are."""

    async def action() -> None:
        await set_rules(parts, one, "* * x")
        foreign = two.fork(1000, EXEC)[1]
        own = subprocess.Popen(["sleep", "1000"])
        before = groups_of(own.pid)
        _, mine = one.fork(1000, EXEC)
        await until(lambda: one.group_of(mine) == "/x", "the guest's own")
        await moment()
        assert two.group_of(foreign) == "/init"
        assert groups_of(own.pid) == before
        own.kill()
        own.wait()

    run(parts, action)


def test_guests_of_the_guest_are_their_own(one: Direct, parts: Parts) -> None:
    """
    guest
    └ nested/db          marked: a limit group of a guest of this guest
      └ guest/init       what is in there is not for these rules, though one of them could mean it
    """

    async def action() -> None:
        one.mkdir("/nested", "/nested/db")
        for directory in groups(one.top + "/nested/db"):
            os.setxattr(directory, "user.nestrt", b'{"v":1,"name":"db"}')
        one.mkdir("/nested/db/guest", "/nested/db/guest/init")
        _, inner = one.fork(1000, "time.sleep(0.5)\n" + EXEC)
        one.enter(inner, "/nested/db/guest/init")
        await set_rules(parts, one, "1000:other * nested/%p/guest/init", "1000:db * nested/%p/guest/init", "1000 * x")
        await moment(1.0)
        assert one.group_of(inner) == "/nested/db/guest/init"
        _, into = one.fork(1000, NAMED.format(b"db"))
        await moment()
        assert one.group_of(into) in ("/init", "/x")

    run(parts, action)


def test_more_groups_than_the_guest_may_have(scratch: Path, parts: Parts, new_guest: Callable[[], str]) -> None:
    """A rule with %U and a process of many users: groups end where the policy says, on v1 as on v2."""
    name = new_guest()
    policy = scratch / f"{name}.toml"
    policy.write_text("[partition]\nmax_groups = 8\n")
    root = python_root(scratch / f"{name}-root")
    with serving(Nestrt(), root, name, scratch / name, "--policy", str(policy)) as guest:

        async def action() -> None:
            await set_rules(parts, guest, "* * users/%U")
            body = f"for n in range(1000, 1020):\n    os.setresuid(-1, n, -1)\n    time.sleep({0.03 * SLOW})\n"
            guest.fork(0, body + "    os.setresuid(-1, 0, -1)")
            await until(lambda: bool(parts.entries("QuotaExceeded")), "the first that is one too many", 10)
            await moment(1.0)
            made = below(groups(guest.top)[0])[1:]
            assert len(made) < 8
            assert len(parts.entries("QuotaExceeded")) < 20, "told a few times, not each time"

        run(parts, action)


def forged(pids: list[int], listener: ProcessEvents) -> None:
    """Send execs of *pids* as if by the kernel, to the listener alone and to all."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11) as one:
        for pid in pids:
            event = listener.event.pack(listener.event.size, 3, 0, 0, 0, 1, 1, 0, 0, 40, 0, 2, 0, 0, pid, pid)
            one.sendto(event, (0, 1))
            try:
                one.sendto(event, listener.socket.getsockname())
            except ConnectionRefusedError:
                continue


@pytest.mark.slow_on_vm
def test_forged_events(one: Direct, parts: Parts) -> None:
    """CVE-2011-1022: whoever may send to the group says that a process has executed something. Nobody believes it."""

    async def action() -> None:
        await set_rules(parts, one, "1000 * x")
        rename = "ctypes.CDLL(None).prctl(15, b'y')"
        number, pid = one.fork(1000, f"import ctypes, signal\nsignal.signal(10, lambda *_: {rename})")
        await until(lambda: one.group_of(pid) == "/x", "the true events")
        one.enter(pid, "/init")
        events = parts.classifier.events
        assert events is not None
        for _ in range(20):
            forged([pid, os.getpid(), 1, 0, 1 << 31], events)
        await moment()
        assert one.group_of(pid) == "/init"
        assert events.forged >= 100
        one.agent.python(f"import os\nos.kill({number}, 10)\nresult = None")
        await until(lambda: one.group_of(pid) == "/x", "the kernel's own word")

    run(parts, action)


@pytest.mark.slow_on_vm
def test_the_sockets_own_reading() -> None:
    events = ProcessEvents()
    try:
        done = subprocess.Popen(["true"])
        done.wait()
        time.sleep(0.05 * SLOW)
        pids, lost = events.read(1000)
        assert done.pid in pids
        assert not lost
        forged([done.pid] * 5, events)
        pids, lost = events.read(1000)
        assert (done.pid in pids, lost) == (False, False)
        assert events.forged == 5
    finally:
        events.close()


@pytest.mark.slow_on_vm
def test_a_name_that_is_no_text(one: Direct) -> None:
    """An event carries a name, sixteen bytes of anybody's choice; nothing is decoded."""
    events = ProcessEvents()
    try:
        _, pid = one.fork(0, NAMED.format(bytes([255, 254, 128, 10, 47])))
        wait_for(lambda: pid in events.read(1000)[0], "its name")
    finally:
        events.close()


@pytest.mark.slow_on_vm
def test_lost_events_are_made_up_for(one: Direct, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of a few events, and nobody who reads while a thousand come: then all are looked through."""
    monkeypatch.setattr("nestrt.net.process_events.BUFFER", 4096)
    monkeypatch.setattr(ProcessEvents.__init__, "__defaults__", (4096,))

    async def action() -> None:
        await set_rules(parts, one, "1000 * x")
        looks: list[float] = []
        look_through = classify.Placing.look_through
        monkeypatch.setattr(
            classify.Placing, "look_through", lambda self: (looks.append(time.monotonic()), look_through(self))[1]
        )
        pids = [one.fork(1000, EXEC)[1] for _ in range(3)]
        # The whole process stands still, its event loop too.
        subprocess.run(["sh", "-c", "for i in $(seq 300); do /bin/true; done"])
        pids += [one.fork(1000, EXEC)[1] for _ in range(3)]
        await until(lambda: {one.group_of(pid) for pid in pids} == {"/x"}, "all of them", 10)
        assert looks

    run(parts, action)


@pytest.mark.slow_on_vm
def test_a_storm_in_one_guest_is_its_own(
    one: Direct, two: Direct, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One guest executes programs as fast as it can; the other's processes are placed all the same, and soon."""
    monkeypatch.setattr(classify, "MOST_WAITING", 32)
    monkeypatch.setattr(classify, "RATE", 20)  # less than a storm on any machine

    async def action() -> None:
        await set_rules(parts, one, "1000 * x")
        await set_rules(parts, two, "1000 * y")
        storm = 'while True:\n    if os.fork() == 0:\n        os.execv("/usr/bin/true", ["true"])\n    os.wait()'
        storms = [one.fork(1000, storm)[0] for _ in range(2)]
        await moment(1.0)
        waits = []
        for _ in range(10):
            began = time.monotonic()
            _, pid = two.fork(1000, EXEC)
            await until(lambda pid=pid: two.group_of(pid) == "/y", "the other guest's", 5)  # type: ignore[misc]
            waits.append(time.monotonic() - began)
        assert sorted(waits)[len(waits) // 2] < 3.0, waits
        before = os.times()
        await trio.sleep(1)
        used = os.times()
        share = (used.user + used.system - before.user - before.system) / (used.elapsed - before.elapsed)
        assert share < 0.8, "the broker's own share of the machine"
        stormy = parts.classifier.guests[one.served.root]
        await until(lambda: stormy.lost or stormy.waiting, "more than are looked at", 10)
        assert len(stormy.waiting) <= classify.MOST_WAITING + 20, "and those of one look through its groups"
        for number in storms:
            one.kill(number)
        _, pid = one.fork(1000, EXEC)
        await until(lambda: one.group_of(pid) == "/x", "the stormy guest's own, when it is over", 20)

    run(parts, action)


# Levels that the kernel does not tell.

INNER = """
import sys
sys.path[:0] = PATHS
from nestrt.errors import HostError
from nestrt.net.process_events import ProcessEvents
try:
    ProcessEvents()
    print("heard")
except HostError as error:
    print(error.status, error)
"""


@pytest.mark.parametrize("namespace", ["--pid", "--net", "--user"])
def test_no_events_within_other_namespaces(namespace: str) -> None:
    code = INNER.replace("PATHS", repr([str(CHECKOUT), *sys.path]))
    command = ["unshare", "--fork", namespace, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SLOW)
    assert done.stdout.startswith("5 "), done
    assert "ask the level above" in done.stdout


def test_rules_are_refused_where_nothing_is_heard(one: Direct, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is made in a network namespace where the kernel's side of it is not."""
    make = socket.socket

    def elsewhere(*arguments: Any, **named: Any) -> socket.socket:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            namespaces.unshare(namespaces.CLONE_NEWNET)
            return make(*arguments, **named)
        finally:
            namespaces.setns(own)
            os.close(own)

    monkeypatch.setattr("nestrt.net.process_events.socket.socket", elsewhere)
    found = refused(parts, one, "1000 * x")
    assert (found.name, bool(found.remedy)) == ("NotPossible", True), found.message
    assert rules_store.load(one.served, rules_store.OWN).lines == ()


# The whole way: guest, socket, daemon, audit.


@pytest.fixture
def broker() -> Iterator[Broker]:
    """The daemon, which outlives the test's guests."""
    with running_broker() as one:
        yield one


def test_through_the_daemon(
    broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str]
) -> None:
    """Rules of guest and host, over the end of the broker that was asked for them."""
    guest = start_guest(nestrt, python, new_guest())
    assert guest.call("Rules") == {"rules": []}
    assert guest.refused("Rules", user=1000, rules=["* * x"]).error == "NotPermitted"
    assert guest.refused("Rules", rules=["* * ../x"]).error == "BadValue"
    lines = ["user:sleep * users/%u", "1001 * others"]
    assert guest.call("Rules", rules=lines) == {"rules": lines}

    def group_of(number: int) -> str:
        found = guest.call("Processes", recursive=True)["processes"]
        return str({one["pid"]: one["group"] for one in found}.get(number))

    def placed(user: int, group: str) -> None:
        number = guest.spawn("exec sleep 1000", user=user)
        wait_for(lambda: group_of(number) == group, f"{user} in {group}")

    placed(1000, "/users/user")
    assert broker.call("Rules", guest=guest.name, rules=["1001 * hosts"]) == {"rules": ["1001 * hosts"]}
    placed(1001, "/hosts")
    broker.restart(signal.SIGKILL)
    wait_for(lambda: answers(guest), "the socket in the guest", 20)
    placed(1000, "/users/user")
    placed(1001, "/hosts")
    assert guest.call("Rules", rules=[]) == {"rules": []}
    assert broker.call("Rules", guest=guest.name)["rules"] == ["1001 * hosts"]
    with pytest.raises(Refused) as error:
        broker.call("Rules", guest=guest.name, rules=["no-such-user * x"])
    assert error.value.error == "BadValue"
    settled()
    found = [(one["method"], one["key"], one["new"], one["verdict"]) for one in broker.entries(guest.name)]
    assert ("Rules", "rules", lines, "done") in found
    assert any(one["key"].startswith("process ") and one["new"] == "/hosts" for one in broker.entries(guest.name))


def answers(guest: Any) -> bool:
    code = "try:\n    connect().close()\n    result = True\nexcept OSError:\n    result = False\n"
    return bool(guest.python(code))
