"""What holds a group for a reaction, on files that look like a group's: what a thread still does that is at work when
the group is released. nestrt/broker/reacting_acts.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nestrt.broker import reacting_acts as acts
from nestrt.broker.reaction_text import MIB, Reaction
from nestrt.guest import client
from nestrt.kernel import freezer

END: dict[str, Callable[[acts.Hold, Any], None]] = {
    "release": lambda hold, tree: hold.release(tree),
    "let_go": lambda hold, tree: hold.let_go(),
}
each_end = pytest.mark.parametrize("end", [*END])


class Guard:
    """What would be written if the broker died."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, str]] = {}

    def hold(self, key: str, path: str, text: str) -> None:
        self.held[key] = path, text

    def drop(self, key: str, put_back: bool = False) -> None:
        path, text = self.held.pop(key, ("", ""))
        if path and put_back:
            client.write(path, text)


class Group:
    """A guest with one group /web, and how a reaction holds it. *writing*: called before each write."""

    def __init__(self, place: Path, version: int, patch: pytest.MonkeyPatch) -> None:
        self.web = place / "web"
        self.web.mkdir()
        hierarchy = client.Hierarchy(version, ("memory",), str(place), "/", "/", "", "")
        view: Any = client.View((hierarchy,), {}, None)
        self.tree: Any = SimpleNamespace(view=view)
        self.guard: Any = Guard()
        self.writing: Callable[[str, str], None] = lambda path, text: None
        patch.setattr(client, "write", self.write)
        for name, text in {"memory.max": str(64 * MIB), "memory.high": "max", "cgroup.controllers": "memory",
                           "memory.limit_in_bytes": str(64 * MIB)}.items():  # fmt: skip
            (self.web / name).write_text(text)
        if version == 1:
            self.write(f"{self.web}/{acts.CONTROL}", "0")

    def write(self, path: str, text: str) -> None:
        self.writing(path, text)
        if path.endswith(acts.CONTROL):
            text = f"oom_kill_disable {text}\nunder_oom 1\noom_kill 0\n"
        Path(path).write_text(text)

    def hold(self, key: str) -> acts.Hold:
        reaction = Reaction("/web", "oom", "freeze")
        return acts.Hold(reaction, acts.before(self.tree, reaction), self.guard, key)

    @property
    def off(self) -> bool:
        return "oom_kill_disable 1" in (self.web / acts.CONTROL).read_text()


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(tmp_path, 1, monkeypatch)


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(tmp_path, 2, monkeypatch)


def meanwhile(patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do it while the killer is to do its work, or processes are to stop."""

    def until(*_: Any) -> bool:
        action()
        return True

    patch.setattr(acts, "_until", until)


@each_end
@pytest.mark.parametrize("what", ["let_kernel", "freeze"])
def test_the_killer_stays_on_when_the_group_is_released(
    v1: Group, what: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = v1.hold("1")
    hold.set(v1.tree)
    assert v1.off
    meanwhile(monkeypatch, lambda: END[end](hold, v1.tree))
    monkeypatch.setattr(acts, "_freezer", lambda *_: (str(v1.web), 1))
    monkeypatch.setattr(freezer, "freeze", lambda *_: True)
    if what == "freeze":
        acts.freeze(v1.tree, "/web", hold)
    else:
        hold.let_kernel(v1.tree)
    assert not v1.off
    assert v1.hold("2").was == {acts.CONTROL: "0"}
    assert not v1.guard.held


def test_the_killer_goes_again_when_it_is_not_released(v1: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = v1.hold("1")
    hold.set(v1.tree)
    seen: list[bool] = []
    meanwhile(monkeypatch, lambda: seen.append(v1.off))
    hold.let_kernel(v1.tree)
    assert seen == [False]
    assert v1.off
    hold.release(v1.tree)
    assert not v1.off


# The next one has it by then.
@each_end
def test_what_is_released_does_nothing_any_more(v1: Group, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = v1.hold("1")
    old.set(v1.tree)
    END[end](old, v1.tree)
    old.set(v1.tree)
    assert not v1.off
    assert not v1.guard.held
    new = v1.hold("2")
    new.set(v1.tree)
    meanwhile(monkeypatch, lambda: None)
    old.let_kernel(v1.tree)
    assert v1.off
    assert [*v1.guard.held] == ["2"]


# The write to memory.high comes just after release() has looked, or before.
@each_end
@pytest.mark.parametrize("late", [False, True])
def test_memory_high_is_what_it_was_when_the_group_is_released(v2: Group, end: str, late: bool) -> None:
    hold = v2.hold("1")
    ended: list[str] = []

    def writing(path: str, text: str) -> None:
        if text.isdigit() and not ended:
            ended.append(text)
            if not late:
                Path(path).write_text(text)
            END[end](hold, v2.tree)

    v2.writing = writing
    hold.set(v2.tree)
    assert ended
    assert (v2.web / "memory.high").read_text() == "max"
    assert not v2.guard.held
    hold.tighten(v2.tree)
    hold.let_kernel(v2.tree)
    assert (v2.web / "memory.high").read_text() == "max"
