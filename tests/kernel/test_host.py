"""What the host sees, on groups made by hand in every hierarchy of this host."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nestrt.cli import ls, show, tree, why
from nestrt.errors import InputError, NotFound
from nestrt.host import metrics, spread
from nestrt.host import sight as sight_module
from nestrt.host.processes import processes, start_time
from nestrt.host.render import word
from nestrt.host.sample import Sampler
from nestrt.host.schema_all import schema
from nestrt.host.sight import Sight, find
from nestrt.host.spread import FEWEST
from nestrt.host.walk import DEEPEST, Guest, View, walk, walk_to
from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import primary, read_hierarchies
from nestrt.record import replace
from support.hostside import hierarchies as host_hierarchies
from support.hostside import pids_below
from support.need import SLOW, require
from support.nest import nest
from support.rootfs import CHECKOUT
from support.runner import wait_for

TOP = f"/nestrt-test-host-{os.getpid()}"


def attempt_marks() -> str:
    """What making a group with a trusted mark comes back with, "" if it works."""
    path = host_hierarchies()[0].group(TOP + "-attempt")
    try:
        path.mkdir()
    except OSError as error:
        return str(error)
    try:
        os.setxattr(path, "trusted.nestrt", b"{}")
    except OSError as error:
        return str(error)
    finally:
        path.rmdir()
    return ""


class Groups:
    """Makes groups, marks and processes below TOP, in all hierarchies or some, and removes them all."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        for hierarchy in host_hierarchies():
            hierarchy.group(TOP).mkdir()
            if hierarchy.version == 2:
                # "/" has the controllers wherever guests can be: nestrt's own parent group needs them too.
                self.enable(hierarchy.mountpoint, hierarchy.controllers)
                self.enable(hierarchy.group(TOP), hierarchy.controllers)
            self.fill(hierarchy.group(TOP))

    @staticmethod
    def enable(directory: Path, controllers: frozenset[str]) -> None:
        for name in controllers:
            (directory / "cgroup.subtree_control").write_text("+" + name)

    @staticmethod
    def fill(directory: Path) -> None:
        """v1: a cpuset takes no process before it has CPUs and memory nodes."""
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (directory / file).exists() and (directory / "tasks").exists():
                (directory / file).write_text((directory.parent / file).read_text())

    def make(self, path: str, controllers: tuple[str, ...] = (), enable: bool = False) -> None:
        """The group TOP/path in every hierarchy; with *controllers* (v2 names), on v1 only in theirs."""
        for hierarchy in host_hierarchies():
            wanted = not controllers or hierarchy.version == 2 or set(controllers) & hierarchy.controllers
            if wanted:
                directory = hierarchy.group(f"{TOP}/{path}")
                directory.mkdir()
                self.fill(directory)
                if enable and hierarchy.version == 2:
                    self.enable(directory, hierarchy.controllers)

    def mark(self, path: str, attribute: str, value: dict[str, Any] | bytes) -> None:
        """The mark *value* in the first hierarchy that counts, and its short form in the others."""
        first = primary(read_hierarchies()).mountpoint
        for hierarchy in host_hierarchies():
            directory = hierarchy.group(f"{TOP}/{path}")
            if isinstance(value, bytes):
                os.setxattr(directory, attribute, value)
                continue
            whole = value if str(hierarchy.mountpoint) == first else {key: value[key] for key in ("v", "name", "id")}
            os.setxattr(directory, attribute, json.dumps(whole).encode())

    def set(self, path: str, v1: str, v2: str, value: str) -> None:
        """Write *value* to the file of the group, wherever it is."""
        written = 0
        for hierarchy in host_hierarchies():
            file = hierarchy.group(f"{TOP}/{path}") / (v2 if hierarchy.version == 2 else v1)
            if file.exists():
                file.write_text(value)
                written += 1
        assert written == 1, (v1, v2)

    def enter(self, path: str, pid: int) -> None:
        for hierarchy in host_hierarchies():
            (hierarchy.group(f"{TOP}/{path}") / "cgroup.procs").write_text(str(pid))

    def start(self, *argv: str) -> int:
        self.started.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
        return self.started[-1].pid

    def remove(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for hierarchy in host_hierarchies():
            top = hierarchy.group(TOP)
            wait_for(lambda top=top: not pids_below(top), f"processes below {top} to end")  # type: ignore[misc]
            for directory, _, _ in os.walk(top, topdown=False):
                os.rmdir(directory)


@pytest.fixture
def groups() -> Iterator[Groups]:
    require("root", attempt_marks())
    made = Groups()
    yield made
    made.remove()


def whole_mark(name: str, **more: Any) -> dict[str, Any]:
    mark = {"v": 1, "name": name, "id": f"{name}-id", "level": 1, "state": "running", "command": ["sleep", "1000"]}
    return {**mark, "created": 1763770000, "rootfs": "/srv/x", "policy": "default", **more}


def child_of(pid: int) -> int:
    """The first child of *pid*, once there is one."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return int(wait_for(lambda: file.read_text().split(), f"a child of {pid}")[0])


def here(view: View) -> list[Guest]:
    """The guests that this test made: others may run on the machine."""
    return [guest for guest in view.everyone() if guest.path.startswith(TOP + "/")]


class Scene:
    """Three levels, with a process at the first two."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.name = f"nestrt-th-{os.getpid()}"
        groups.make("a", enable=True)
        groups.make("a/guest", enable=True)
        groups.make("a/guest/init")
        groups.make("a/guest/jobs", controllers=("memory",))
        groups.make("a/guest/nestrt", enable=True)
        groups.make("a/guest/nestrt/b", enable=True)
        groups.make("a/guest/nestrt/b/guest", enable=True)
        groups.make("a/guest/nestrt/b/guest/init")
        groups.make("a/guest/nestrt/b/guest/c", enable=True)
        groups.make("a/guest/nestrt/b/guest/c/guest")
        for path, size in (("a", 64), ("a/guest", 64), ("a/guest/jobs", 16), ("a/guest/nestrt/b", 1024)):
            groups.set(path, "memory.limit_in_bytes", "memory.max", str(size << 20))
        groups.set("a", "pids.max", "pids.max", "50")
        groups.set("a/guest/nestrt/b", "pids.max", "pids.max", "20")
        # pid namespaces within each other: unshare, sh (1 in a), unshare (2 in a), sleep (1 in b)
        inner = "unshare -fp --kill-child sleep 1000 & exec sleep 1000"
        outside = groups.start("unshare", "-fp", "--kill-child", "sh", "-c", inner)
        self.first = child_of(outside)
        self.second = child_of(child_of(self.first))
        wait_for(lambda: "sleep" in Path(f"/proc/{self.second}/comm").read_text(), "sleep in b")
        wait_for(lambda: "sleep" in Path(f"/proc/{self.first}/comm").read_text(), "sleep in a")
        groups.enter("a/guest/init", self.first)
        groups.enter("a/guest/nestrt/b/guest/init", self.second)
        status = Path(f"/proc/{self.second}/status").read_text()
        inside_a = int(status.split("NSpid:")[1].split("\n")[0].split()[1])
        groups.mark("a", "trusted.nestrt", whole_mark(self.name, pid=self.first, start=start_time(self.first)))
        groups.mark("a/guest/nestrt/b", "user.nestrt", whole_mark("b", pid=inside_a, start=start_time(self.second)))
        groups.mark("a/guest/nestrt/b/guest/c", "user.nestrt", whole_mark("c", level=1, pid=1, start=1))

    @property
    def names(self) -> list[str]:
        return [self.name, self.name + "/b", self.name + "/b/c"]


@pytest.fixture
def scene(groups: Groups) -> Scene:
    return Scene(groups)


def run(main: Callable[[list[str]], int], capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    capfd.readouterr()
    assert main(list(argv)) == 0
    return capfd.readouterr().out


# The scene of most tests, in every hierarchy; ● has a process, [64M] is a memory limit:
#
#   TOP
#   └ a                       trusted mark, level 1       [64M] pids 50
#     └ guest                                             [64M]
#       ├ init ●              pid 1 in the guest
#       ├ jobs                v1: memory only             [16M]
#       └ nestrt
#         └ b                 user mark: claim, level 2   [1G: 64M effective, a binds] pids 20
#           └ guest
#             ├ init ●        pid 1 in the guest
#             └ c             user mark: claim, level 3, that lies about its level and pid
#               └ guest       no process: stopped


def test_every_guest_at_every_level(scene: Scene) -> None:
    view = walk(read_hierarchies())
    a, b, c = here(view)
    assert [guest.name for guest in (a, b, c)] == scene.names
    assert [guest.level for guest in (a, b, c)] == [1, 2, 3]
    assert [guest.claim for guest in (a, b, c)] == [False, True, True]
    assert a.guests == [b]
    assert b.guests == [c]
    everywhere = {hierarchy.name for hierarchy in view.hierarchies}
    assert {frozenset(guest.hierarchies) for guest in (a, b, c)} == {frozenset(everywhere)}
    below = {group.path.removeprefix(TOP + "/a/"): set(group.hierarchies) for group in a.groups}
    assert list(below) == ["guest", "guest/init", "guest/jobs", "guest/nestrt"]
    expected = {h.name for h in view.hierarchies if h.version == 2 or "memory" in h.controllers}
    assert below.pop("guest/jobs") == expected
    assert all(names == everywhere for names in below.values())
    assert walk(read_hierarchies(), everywhere=True) == view


# A second guest beside it: only the one that is named is looked into.
def test_a_name_leads_to_its_guest_alone(scene: Scene) -> None:
    for path in ("z", "z/guest"):
        scene.groups.make(path)
    scene.groups.mark("z", "trusted.nestrt", whole_mark(f"{scene.name}z"))
    hierarchies = read_hierarchies()
    a, b, c, z = here(walk(hierarchies))
    inner = f"{TOP}/a/guest/jobs"
    for names in ([a.name], [b.name], [f"{c.name}:/x"], [f"{a.name}:/"], [a.path], [b.path], [inner], [b.name, a.path]):
        assert here(walk_to(hierarchies, names)) == [a, b, c, replace(z, groups=[])], names
    for names in ([a.name, z.path], [a.name, "nestrt-none"], [TOP], [f"{a.path}z"], [""]):
        assert here(walk_to(hierarchies, names)) == [a, b, c, z], names
    assert here(walk_to(hierarchies, [])) == here(walk(hierarchies, inside=False))


# More guests than one process tells of: what several say is what one says.
@pytest.mark.slow_on_vm
def test_the_tree_of_many_guests(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with nest(FEWEST + 7, 2, processes=1, parent=TOP):
        said = []
        for cpus in (1, 2, 7):
            monkeypatch.setattr(spread.os, "sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)))
            text = run(tree.main, capfd, "--format", "json")
            # What is in use goes on changing.
            found = json.loads(re.sub(r'"(usage|cpu_usec)": [0-9]+', r'"\1": 0', text))["guests"]
            said.append([guest for guest in found if guest["path"].startswith(TOP)])
    assert len(said[0]) == FEWEST + 7
    assert all(len(guest["groups"]) >= 5 for guest in said[0])
    assert said[0] == said[1] == said[2]


def test_state_and_pids_of_nested_guests(scene: Scene) -> None:
    view = walk(read_hierarchies())
    sight = Sight(view)
    a, b, c = here(view)
    assert [sight.state(guest) for guest in (a, b, c)] == ["running", "running", "stopped"]
    assert [sight.pid(guest) for guest in (a, b, c)] == [scene.first, scene.second, -1]
    (in_a,), (in_b,) = processes(a, view), processes(b, view)
    assert (in_a.pid, in_a.guest_pid, in_a.command) == (scene.first, 1, "sleep 1000")
    assert (in_b.pid, in_b.guest_pid, len(in_b.pids)) == (scene.second, 1, 3)
    assert in_b.group == b.root + "/init"
    assert in_b.elsewhere == ()
    assert (in_b.uid, in_b.guest_uid) == (0, 0)
    assert processes(c, view) == []


def test_an_ended_process_and_a_reused_pid_are_not_shown(scene: Scene) -> None:
    scene.groups.mark("a", "trusted.nestrt", whole_mark(scene.name, pid=scene.first, start=start_time(scene.first) - 1))
    view = walk(read_hierarchies())
    assert Sight(view).pid(here(view)[0]) == -1


# The last process of a guest has ended, and its parent has not asked how.
def test_a_process_that_nobody_reaps_is_none(groups: Groups) -> None:
    for path in ("a", "a/guest"):
        groups.make(path, enable=True)
    groups.make("a/guest/init")
    pid = groups.start("sleep", "1000")
    groups.enter("a/guest/init", pid)
    groups.mark("a", "trusted.nestrt", whole_mark("nestrt-test-zombie", pid=pid, start=start_time(pid)))
    path = f"{TOP}/a"

    def said() -> tuple[int, str, str, str]:
        view = walk(read_hierarchies())
        (guest,), sight = here(view), Sight(view)
        sampler = Sampler(view.hierarchies, below=(TOP,))
        sampler.find_all(10)
        sampler.sample()
        (usage,) = (usage for usage in sampler.usages if usage.path == path)
        sampler.close()
        text = "".join(metrics.exposition(sight, [guest], groups=False))
        state = re.search(r'nestrt_guest_state="(.*)"} 1', text)
        assert state
        assert usage.counters.pids == 1
        return sight.pid(guest), sight.state(guest), usage.state, state[1]

    assert said() == (pid, "running", "running", "running")
    groups.started[-1].kill()
    wait_for(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text(), "its end")
    wait_for(lambda: not any(pids_below(h.group(TOP)) for h in host_hierarchies()), "an empty group")
    assert said() == (-1, "stopped", "stopped", "stopped")


def test_frozen_is_paused(scene: Scene) -> None:
    scene.groups.set("a", "no such file", "cgroup.freeze", "1")
    try:
        view = walk(read_hierarchies())
        a, b, _ = here(view)
        wait_for(lambda: Sight(view).state(a) == "paused", "the frozen state")
        assert Sight(view).state(b) == "paused"
    finally:
        scene.groups.set("a", "no such file", "cgroup.freeze", "0")


def test_a_held_lock_is_creating(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher holds the lock of NAME while it starts the guest; a dead one does not. A claim is never asked."""
    monkeypatch.setattr(sight_module, "STATE_DIR", str(tmp_path))
    for path, name in (("a", scene.name), ("a/guest/nestrt/b", "b")):
        attribute = "trusted.nestrt" if path == "a" else "user.nestrt"
        scene.groups.mark(path, attribute, whole_mark(name, state="creating"))
        (tmp_path / name).touch()
    view = walk(read_hierarchies())
    a, b, _ = here(view)
    assert Sight(view).state(a) == "running"
    with (tmp_path / scene.name).open() as of_a, (tmp_path / "b").open() as of_b:
        fcntl.flock(of_a, fcntl.LOCK_EX)
        fcntl.flock(of_b, fcntl.LOCK_EX)
        assert Sight(view).state(a) == "creating"
        assert Sight(view).state(b) == "running"


def test_limits_and_who_binds(scene: Scene) -> None:
    view = walk(read_hierarchies())
    sight = Sight(view)
    a, b, _ = here(view)
    own, of_b = sight.limit(a, "memory.max"), sight.limit(b, "memory.max")
    assert own
    assert of_b
    assert (own.limit, own.effective, own.binds) == (64 << 20, 64 << 20, a.path)
    assert (of_b.limit, of_b.effective, of_b.binds) == (1 << 30, 64 << 20, a.path)
    pids = sight.limit(b, "pids.max")
    assert pids
    assert (pids.limit, pids.effective, pids.binds, pids.usage) == (20, 20, b.path, 1)
    jobs = [limit for limit in sight.limits(a.root + "/jobs", a.groups[2].hierarchies) if limit.key == "memory.max"]
    assert [(limit.limit, limit.binds) for limit in jobs] == [(16 << 20, a.root + "/jobs")]


def test_ls(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    lines = run(ls.main, capfd).splitlines()
    rows = [line.split(maxsplit=11) for line in lines if line.startswith(scene.name)]
    assert lines[0].split()[:4] == ["NAME", "LEVEL", "STATE", "PID"]
    shown = [row[:4] + [row[9]] for row in rows]
    assert shown == [
        [scene.names[0], "1", "running", str(scene.first), "host"],
        [scene.names[1], "2", "running", str(scene.second), "claim"],
        [scene.names[2], "3", "stopped", "-", "claim"],
    ]
    assert rows[1][5].endswith("/64M")
    assert rows[1][6] == "1/20"
    assert rows[0][8] == "2025-11-22T00:06:40Z"
    assert rows[0][10:] == ["-", "sleep 1000"]
    assert [name for name in run(ls.main, capfd, "-q").split() if name.startswith(scene.name)] == scene.names
    listed = json.loads(run(ls.main, capfd, "--format", "json"))
    (b,) = [guest for guest in listed if guest["name"] == scene.names[1]]
    assert b["memory"]["effective"] == 64 << 20
    assert b["memory"]["binds"] == f"{TOP}/a"
    assert b["claim"]


def test_tree(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    lines = run(tree.main, capfd, scene.name, "--processes").splitlines()
    assert lines[0].startswith(f"{scene.name}  level 1, running, pid {scene.first}, ")
    words = [line.split("  memory")[0].split("  pids")[0] for line in lines[1:]]
    v1 = any(hierarchy.version == 1 for hierarchy in host_hierarchies())
    assert words[:2] == ["├─ init", f"│  └─ {scene.first} (1) sleep 1000"]
    assert words[2].startswith("├─ jobs")
    assert ("[" in lines[3]) == v1
    assert "/16M" in lines[3]
    assert words[3] == "└─ nestrt"
    assert lines[5].startswith(f"   └─ {scene.names[1]}  level 2, running, pid {scene.second}, ")
    assert "claim" in lines[5]
    assert words[5].startswith(f"      ├─ {scene.names[2]}  level 3, stopped")
    assert words[6:] == ["      └─ init", f"         └─ {scene.second} (1) sleep 1000"]
    shallow = run(tree.main, capfd, scene.name, "--depth", "0").splitlines()
    assert [line.split()[1] for line in shallow[1:]] == scene.names[1:]
    (shown,) = json.loads(run(tree.main, capfd, scene.name, "--format", "json", "-p"))["guests"]
    assert [group["path"] for group in shown["groups"]][1:3] == [f"{TOP}/a/guest", f"{TOP}/a/guest/init"]
    assert shown["groups"][2]["processes"][0]["pid"] == scene.first
    assert shown["guests"][0]["guests"][0]["name"] == scene.names[2]


def test_tree_and_why_as_csv(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    name = scene.name
    rows = list(csv.DictReader(run(tree.main, capfd, "--format", "csv", name).splitlines()))
    found = {(row["group"].removeprefix(TOP), row["key"]): row for row in rows}
    assert len(found) == len(rows)
    inner = found["/a/guest/nestrt/b", "memory.max"]
    assert (inner["guest"], inner["level"], inner["unit"]) == (f"{name}/b", "2", "bytes")
    assert (inner["limit"], inner["effective"], inner["binds"]) == (str(1 << 30), str(64 << 20), f"{TOP}/a")
    assert found["/a", "pids.max"]["limit"] == "50"
    assert ("/a/guest/jobs", "memory.max") in found
    few = run(tree.main, capfd, "--format", "csv", "--depth", "0", "--controller", "pids", name)
    kept = [(row["group"].removeprefix(TOP), row["key"]) for row in csv.DictReader(few.splitlines())]
    assert kept == [(path, "pids.max") for path in
                    ("/a", "/a/guest", "/a/guest/nestrt/b", "/a/guest/nestrt/b/guest", "/a/guest/nestrt/b/guest/c",
                     "/a/guest/nestrt/b/guest/c/guest")]  # fmt: skip
    with pytest.raises(InputError, match="nestrt ps"):
        tree.main(["--format", "csv", "-p"])
    steps = list(csv.DictReader(run(why.main, capfd, "--format", "csv", f"{name}/b", "memory.max").splitlines()))
    assert steps[-1]["group"] == f"{TOP}/a/guest/nestrt/b/guest"
    assert {step["effective"] for step in steps} == {str(64 << 20)}
    assert [step["group"] for step in steps if step["binds"] == "true"] == [f"{TOP}/a"]


def test_a_child_group_that_asks_for_too_much(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.groups.set("a/guest/nestrt", "memory.limit_in_bytes", "memory.max", str(2 << 30))
    (line,) = [line for line in run(tree.main, capfd, scene.name).splitlines() if line.startswith("└─ nestrt")]
    assert f"/2G (64M: {scene.name} binds)" in line


def test_show(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    text = run(show.main, capfd, scene.names[1])
    assert "claims: user.nestrt" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["level", "2"] in lines
    (memory,) = [line for line in lines if line[0] == "memory.max"]
    assert memory[1:3] == ["1G", "64M"]
    assert memory[5] == scene.name
    assert [str(scene.second), "1", "0", "0", "/init", "sleep", "1000"] in lines
    shown = json.loads(run(show.main, capfd, scene.name, "--format", "json"))
    assert shown["processes"][0]["guest_pid"] == 1
    assert shown["guests"] == [scene.names[1]]
    assert shown["devices"]["rules"] or shown["devices"]["programs"] == []
    assert set(shown["limit_group"].values()) == {str(h.group(f"{TOP}/a")) for h in host_hierarchies()}
    with pytest.raises(NotFound, match=f"did you mean {scene.name}/b"):
        show.main([scene.name + "/x"])


def test_the_view_from_inside_a_guest(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In guest a, whose root is a/guest, b is a guest of its own making, and the levels go on from the stamp."""
    stamp = json.dumps({"v": 1, "name": "a", "level": 1}).encode()
    inside = []
    for hierarchy in read_hierarchies():
        root = hierarchy.path(TOP + "/a/guest")
        os.setxattr(root, "security.nestrt" if hierarchy.version == 2 else "user.nestrt", stamp)
        inside.append(Hierarchy(hierarchy.name, hierarchy.version, hierarchy.controllers, hierarchy.options, root))
    view = walk(tuple(inside))
    assert (view.level, view.name) == (1, "a")
    b, c = view.everyone()
    assert [(guest.name, guest.level, guest.claim) for guest in (b, c)] == [("b", 2, False), ("b/c", 3, True)]
    assert b.path == "/nestrt/b"
    assert Sight(view).state(b) == "running"
    assert [word(Sight(view), guest) for guest in (b, c)] == ["own", "claim"]
    # Another user's group: whoever looks did not make this mark.
    for hierarchy in inside:
        os.chown(hierarchy.path("/nestrt/b"), 12345, 12345)
    assert next(walk(tuple(inside)).everyone()).claim
    # The stamp on its guest root does not make a guest of it in the host's eyes.
    assert [guest.name for guest in here(walk(read_hierarchies()))] == scene.names


def as_nobody(*words: str) -> str:
    program = f"from nestrt.__main__ import main; raise SystemExit(main({['nestrt', *words]}))"
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd=CHECKOUT)
    assert done.returncode == 0, done
    assert "run it as root" in done.stderr
    return done.stdout


def test_a_user_without_privileges_sees_guests_by_their_stamps(scene: Scene) -> None:
    """trusted.* is for root to read; security.* on the guest root is not, and only root can have written it."""
    stamp = json.dumps({"v": 1, "name": scene.name, "level": 1}).encode()
    os.setxattr(primary(read_hierarchies()).path(TOP + "/a/guest"), "security.nestrt", stamp)
    rows = [line.split() for line in as_nobody("ls").splitlines() if line.startswith(scene.name)]
    assert [row[:3] + [row[9]] for row in rows] == [
        [scene.names[0], "1", "running", "host"],
        [scene.names[1], "2", "running", "claim"],
        [scene.names[2], "3", "stopped", "claim"],
    ]


# What is for root to know is not told as if it were known.
def test_what_a_user_without_privileges_is_told(scene: Scene) -> None:
    stamp = json.dumps({"v": 1, "name": scene.name, "level": 1}).encode()
    os.setxattr(primary(read_hierarchies()).path(TOP + "/a/guest"), "security.nestrt", stamp)
    shown = json.loads(as_nobody("show", scene.name, "--format", "json"))
    assert (shown["locked"], shown["ids"], shown["rm"]) == (None, None, None)
    jsonschema.validate(shown, schema("show"))
    text = as_nobody("show", scene.name)
    for key in ("locked", "user ids", "removed at end"):
        assert re.search(rf"^ *{key} +-$", text, re.MULTILINE), text
    for name in (scene.name, f"{TOP}/a/guest/jobs"):
        said = json.loads(as_nobody("why", name, "memory", "--format", "json"))
        assert (said["guest"], said["level"], said["claim"]) == (scene.name, 1, False)
        assert [step["set_by"] for step in said["limits"][0]["chain"] if step["group"] == f"{TOP}/a"] == ["host"]
    assert scene.name in as_nobody("top", "-b", "-n1", scene.name)
    assert f'guest="{scene.name}"' in as_nobody("metrics", scene.name)


HOSTILE = {
    "large": b'{"v":1,"name":"large","x":"' + b"x" * 60000 + b'"}',
    "bytes": bytes(range(256)) * 10,
    "deep": b"[" * 16000,
    "types": b'{"v":"1","name":{},"pid":"x","command":7,"ids":[[1]],"view":[],"limits":3,"state":[]}',
    "escapes": json.dumps(whole_mark("x", command=["\x1b]0;own\x07\x1b[31m", "\n\u202e"], rootfs="\r\x9b2J")).encode(),
    "numbers": b'{"v":1,"name":"n","pid":' + b"9" * 5000 + b"}",
    "surrogate": b'{"v":1,"name":"s","state":"running","command":["\\ud800"],"policy":"\\u0000"}',
}


def test_hostile_marks(groups: Groups, capfd: pytest.CaptureFixture[str]) -> None:
    """
    TOP/a              the host's guest
      └ guest          marked too: ignored
        ├ large, …     groups with marks that no launcher wrote, and one whose own name is an escape sequence
        └ …
    TOP/a-twin         a claim of the same name, outside every guest
    """
    name = f"nestrt-th-{os.getpid()}"
    groups.make("a")
    groups.mark("a", "trusted.nestrt", whole_mark(name))
    groups.make("a/guest")
    groups.mark("a/guest", "user.nestrt", whole_mark("root"))
    groups.make("a/guest/\x1b[31mred")
    groups.mark("a/guest/\x1b[31mred", "user.nestrt", b"{}")
    for key, raw in HOSTILE.items():
        groups.make(f"a/guest/{key}")
        groups.mark(f"a/guest/{key}", "user.nestrt", raw)
    groups.make("a-twin")
    groups.mark("a-twin", "user.nestrt", whole_mark(name))

    view = walk(read_hierarchies())
    assert find(view, name).path == TOP + "/a"
    twin = find(view, TOP + "/a-twin")
    assert (twin.name, twin.claim) == (name, True)
    assert len(find(view, name).guests) == len(HOSTILE) + 1
    outputs = [run(ls.main, capfd), run(tree.main, capfd, "-p"), run(show.main, capfd, name)]
    for guest in find(view, name).guests:
        assert guest.level == 2
        assert guest.claim
        outputs.append(run(show.main, capfd, guest.path))
    for text in outputs:
        assert all(line.isprintable() for line in text.splitlines()), ascii(text)
    for main in (ls.main, tree.main):
        json.loads(run(main, capfd, "--format", "json"))


def test_groups_that_come_and_go_during_a_walk(groups: Groups, capfd: pytest.CaptureFixture[str]) -> None:
    """A thread makes and removes a/guest/N/inner and marks, while everything is looked at again and again."""
    name = f"nestrt-th-{os.getpid()}"
    groups.make("a")
    groups.mark("a", "trusted.nestrt", whole_mark(name))
    groups.make("a/guest")
    roots = [hierarchy.group(TOP + "/a/guest") for hierarchy in host_hierarchies()]
    done = threading.Event()
    rounds = 0

    def churn() -> None:
        nonlocal rounds
        while not done.is_set():
            for number in range(4):
                for root in roots:
                    (root / f"{number}").mkdir()
                    (root / f"{number}/inner").mkdir()
                    os.setxattr(root / f"{number}", "user.nestrt", b'{"v":1,"name":"gone"}')
            for number in range(4):
                for root in roots:
                    (root / f"{number}/inner").rmdir()
                    (root / f"{number}").rmdir()
            rounds += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        end = time.monotonic() + 2 * SLOW**0.5
        seen = set()
        while time.monotonic() < end:
            view = walk(read_hierarchies())
            seen.add(len(find(view, name).guests))
            run(ls.main, capfd)
            run(tree.main, capfd, name, "-p")
            run(show.main, capfd, name)
    finally:
        done.set()
        thread.join()
    assert rounds > 3
    assert seen


def test_a_very_deep_tree(groups: Groups) -> None:
    """v1 bounds no depth, and paths become longer than PATH_MAX: seen down to 256 groups, and said so."""
    groups.make("a")
    groups.mark("a", "trusted.nestrt", whole_mark(f"nestrt-th-{os.getpid()}"))
    hierarchy = primary(read_hierarchies())
    made = []
    parent = os.open(hierarchy.path(TOP + "/a"), os.O_RDONLY)
    try:
        for _ in range(DEEPEST + 20):
            os.mkdir("guest-of-forty-letters-that-makes-it-long", dir_fd=parent)
            made.append(parent)
            parent = os.open("guest-of-forty-letters-that-makes-it-long", os.O_RDONLY, dir_fd=parent)
        view = walk(read_hierarchies())
        (guest,) = here(view)
        assert len(guest.groups) == DEEPEST - 2
        assert len(guest.groups[-1].path) > 4096
        assert guest.unread == [guest.groups[-1].path]
        assert Sight(view).state(guest) == "stopped"
        assert processes(guest, view) == []
    finally:
        os.close(parent)
        for parent in reversed(made):
            os.rmdir("guest-of-forty-letters-that-makes-it-long", dir_fd=parent)
            os.close(parent)


def test_speed(groups: Groups) -> None:
    """Three thousand groups that are no guests': 100,000 would take 33 times as long."""
    hierarchy = primary(read_hierarchies())
    top = Path(hierarchy.path(TOP))
    count = 3000 if SLOW == 1 else 300
    for number in range(count // 30):
        (top / f"{number}").mkdir()
        for inner in range(29):
            (top / f"{number}/{inner}").mkdir()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        walk((hierarchy,))
        times.append(time.perf_counter() - start)
    print(f"{min(times) / count * 1e6:.1f} µs a group")
    assert min(times) / count < 60e-6 * SLOW
