"""Errors name the operation, the object, the reason and the remedy, in one printable line."""

from __future__ import annotations

import errno
import importlib

import pytest

from nestrt import errors
from nestrt.__main__ import WIDER, main

STATUSES = {
    errors.NestrtError: 1,
    errors.InputError: 2,
    errors.NotFound: 3,
    errors.StateError: 4,
    errors.HostError: 5,
}


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.__name__)
def test_each_kind_has_its_documented_status(kind: type[errors.NestrtError]) -> None:
    assert kind("start", "guest web", "no").status == STATUSES[kind]


def test_the_line_has_all_four_parts() -> None:
    error = errors.InputError("set", "memory.max of web", "2G is more than 1G", "ask for 1G or less")
    assert str(error) == "cannot set memory.max of web: 2G is more than 1G; ask for 1G or less"


def test_the_line_without_a_remedy_ends_with_the_reason() -> None:
    assert str(errors.NotFound("show", "guest web", "there is none")) == "cannot show guest web: there is none"


def test_a_kernel_error_says_what_errno_means_and_keeps_it() -> None:
    error = errors.KernelError("write", "/sys/fs/cgroup/x", errno.EBUSY, "move the processes first")
    assert (error.errno, error.status) == (errno.EBUSY, 1)
    assert str(error) == "cannot write /sys/fs/cgroup/x: Device or resource busy; move the processes first"


@pytest.mark.parametrize("status", [126, 127])
def test_a_program_error_has_the_status_of_a_shell(status: int) -> None:
    assert errors.ProgramError("run", "/bin/x", "no such program", "", status).status == status


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a\rb", "\u202etxt.exe", "\x9b31m", "\udcff", "a\u2028b"])
def test_names_from_users_cannot_break_the_line_or_speak_to_a_terminal(text: str) -> None:
    line = str(errors.InputError("start", f"guest {text}", "bad name", "choose another"))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert line.startswith("cannot start guest ")
    line.encode()  # a name that is no UTF-8 can be printed too


def test_every_kind_is_one_that_the_command_line_catches() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert kinds
    assert all(issubclass(kind, errors.NestrtError) for kind in kinds)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["exec", "nestrt-nosuch", "sh"], 255),
        (["exec", "-it", "nestrt-nosuch", "sh"], 255),
        (["exec", "-w", "/", "nestrt-nosuch", "sh"], 255),
        (["ps", "nestrt-nosuch"], 3),
        (["ps", "--format", "json", "nestrt-nosuch"], 3),
        (["ps", "--format", "yaml", "nestrt-nosuch"], 3),
        (["events", "nestrt-nosuch"], 3),
        (["events", "--since", "1m", "nestrt-nosuch"], 3),
        (["kill", "nestrt-nosuch"], 1),
        (["kill", "--signal", "TERM", "nestrt-nosuch"], 3),
        (["update", "--memory", "5M", "nestrt-nosuch"], 1),
        (["update", "-m", "5M", "nestrt-nosuch"], 3),
        # With a global option it is the runtime's form, and has runc's status.
        (["--debug", "ps", "--format", "json", "nestrt-nosuch"], 1),
        (["--debug", "events", "--stats", "nestrt-nosuch"], 1),
    ],
    ids=str,
)
def test_the_status_for_a_name_that_nobody_has(
    words: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(argv: list[str]) -> int:
        raise errors.NotFound("find", "guest nestrt-nosuch", "there is no such guest", "nestrt ls shows all guests")

    for verb in WIDER:
        monkeypatch.setattr(importlib.import_module(f"nestrt.cli._host_{verb}"), "main", nobody)
    assert main(["nestrt", *words]) == status
    assert "nestrt-nosuch" in capsys.readouterr().err
