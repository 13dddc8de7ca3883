"""Commands that change guests: what they do of several names, and what they say where they do nothing; no guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from nestrt.cli import lock, unlock
from nestrt.errors import HostError, NotFound

LOCKS = pytest.mark.parametrize("command", [lock, unlock], ids=["lock", "unlock"])


@LOCKS
def test_of_several_the_others_are_done(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def locks_of(names: list[str], *given: str) -> Iterator[Any]:
        for name in names:
            asked.append(name)
            if name == "gone":
                raise NotFound("find", "guest gone", "there is no such guest")
        yield from ()

    monkeypatch.setattr(command, "locks_of", locks_of)
    assert command.main(["one", "gone", "two"]) == NotFound.status
    assert asked == ["one", "gone", "two"]
    assert capsys.readouterr().err == "nestrt: cannot find guest gone: there is no such guest\n"
    assert command.main(["one", "two"]) == 0


@LOCKS
def test_a_user_is_told_what_only_root_can(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    name = command.__name__.rpartition(".")[2]
    with pytest.raises(HostError, match=f"^cannot {name} guests: "):
        command.main(["one"])
