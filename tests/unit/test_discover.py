"""Completion knows what commands take from the commands themselves: of every one, and without doing anything."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import Any

import pytest

from nestrt.__main__ import COMMANDS, VERBS, WIDER
from nestrt.cli import _discover, completion, options
from nestrt.cli._discover import Command, discover
from nestrt.cli._formats import Format
from nestrt.cli.completion import complete
from nestrt.host.schema_all import SCHEMAS

MODULES = [*((name, False) for name in COMMANDS), *((name, True) for name in VERBS),
           *((f"_host_{name}", False) for name in WIDER)]  # fmt: skip


def exists(name: str) -> bool:
    return importlib.util.find_spec(f"nestrt.cli.{name}") is not None


@pytest.mark.parametrize(("name", "verb"), [row for row in MODULES if exists(row[0])], ids=str)
def test_every_command_is_stopped_at_its_command_line(name: str, verb: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens, starts and changes nothing before it has read its words."""

    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError(f"{name} did something: {given}")

    importlib.import_module(f"nestrt.cli.{name}")
    for inner in (
        "os.mkdir",
        "os.fork",
        "os.execv",
        "os.execve",
        "os.unlink",
        "os.kill",
        "subprocess.Popen",
        "socket.socket",
    ):
        monkeypatch.setattr(inner, never)
    found = discover(name, verb, "")
    assert found.options, "it takes not even --help"
    for option in found.options:
        assert option.text or name in ("guest",), option.flags
        assert all(flag.startswith("-") for flag in option.flags)


def test_a_module_that_is_no_command_takes_nothing() -> None:
    assert discover("version", False, "x") == discover("nowhere", False, "x") == Command("x")


def test_values() -> None:
    def taken(name: str, verb: bool, flag: str) -> tuple[str, tuple[str, ...]]:
        option = next(option for option in discover(name, verb, "").options if flag in option.flags)
        return option.kind, option.choices

    assert taken("launch", False, "--rootfs") == ("directories", ())
    assert taken("launch", False, "--policy") == ("files", ())
    assert taken("launch", False, "-m") == ("", ())
    assert taken("launch", False, "--net") == ("", ("none", "host", "veth"))
    assert taken("ps", True, "--format") == ("", ("table", "json"))
    assert "oom_kill" in taken("_host_events", False, "--kinds")[1]
    assert discover("why", False, "").operands[1].choices[:2] == ("memory", "pids")
    assert taken("hook", False, "--policy") == ("policies", ())
    assert taken("wrap", False, "--runtime") == ("files", ())
    assert taken("check", False, "--format") == ("", ("table", "json", "yaml", "csv"))
    form = argparse.ArgumentParser()
    form.add_argument("--format", type=Format(("a", "b")))
    assert _discover._of_parser(form, "").options[-1].choices == ("a", "b")
    assert {flag for option in discover("launch", False, "").options for flag in option.flags} == {
        f"--{option.name}" for option in importlib.import_module("nestrt.cli.request").OPTIONS
    } | {f"-{option.short}" for option in importlib.import_module("nestrt.cli.request").OPTIONS if option.short}


def test_operands() -> None:
    def operands(name: str, verb: bool) -> list[tuple[str, bool]]:
        return [(taken.kind, taken.repeats) for taken in discover(name, verb, "").operands]

    assert operands("show", False) == [("guests", False)]
    assert operands("check", False) == [("guests", True)]
    assert operands("state", True) == [("containers", False)]
    assert operands("kill", True)[0] == ("containers", False)
    policy = discover("policy", False, "").commands
    assert policy is not None
    assert [(taken.kind, taken.repeats) for taken in policy["check"].operands] == [("files", True)]


def words(*typed: str) -> list[str]:
    return [word for word, _ in complete(list(typed)).words]


def test_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_guests", lambda: ["web", "web/db"])
    assert set(COMMANDS) | set(VERBS) <= set(words(""))
    assert words("completion", "") == ["bash", "zsh", "fish"]
    assert words("policy", "") == ["check", "explain"]
    assert words("broker", "") == ["status", "rules", "release", "drain"]
    assert "--requests" in words("broker", "--")
    assert words("broker", "--requests", "7", "--") == words("broker", "--")
    assert words("broker", "rules", "--") == ["--help", "--clear", "--format"]
    assert words("broker", "rules", "") == words("broker", "release", "") == ["web", "web/db"]
    assert complete(["broker", "rules", "web", ""]).kind == "files"
    assert words("broker", "status", "--format", "")[:2] == ["table", "json"]
    assert words("broker", "drain", "") == []
    assert "--annotation" in words("policy", "explain", "--")
    assert words("ls", "--format=")[:2] == ["--format=table", "--format=json"]
    assert words("--cgroup-manager", "") == ["cgroupfs", "systemd", "disabled"]
    assert set(words("--root", "/nowhere", "")) == set(VERBS)
    assert words("--root", "/nowhere", "state", "") == []
    assert words("create", "") == []  # an id that is to be made
    assert words("nonsense", "") == []
    assert words("show", "") == words("show", "--", "--") == ["web", "web/db"]
    assert words("show", "web", "") == []
    assert words("check", "web", "--passive", "") == ["web", "web/db"]
    assert words("audit", "--lines", "") == []
    assert complete(["launch", "--rootfs", ""]).kind == "directories"
    assert complete(["launch", "--rootfs=x"]) == completion.Answer("directories", "--rootfs=")
    assert complete(["policy", "check", "x"]).kind == "files"
    assert "TERM" in words("kill", "x", "")
    assert "--help" in words("ls", "-")
    assert "-q" in words("ls", "-")
    assert "-q" not in words("ls", "--")
    assert words("ls", "--nothing=") == []
    assert words("tree", "--depth", "") == []
    assert words("tree", "--controller", "")[:3] == ["cpuset", "cpu", "memory"]
    assert words("schema", "") == list(SCHEMAS)
    assert {"rss", "-rss", "cpu", "guest"} <= set(words("ps", "--sort", ""))
    assert {"name=", "state=running", "locked=true"} <= set(words("ls", "--filter", ""))


def test_containers_are_those_of_the_root(tmp_path: Any) -> None:
    (tmp_path / "one").mkdir()
    assert "one" in words("--root", str(tmp_path), "state", "")


def test_finding_out_leaves_the_parsers_as_they_were() -> None:
    before = argparse.ArgumentParser.parse_args, options._find
    discover("ls", False, "")
    discover("launch", False, "")
    assert (argparse.ArgumentParser.parse_args, options._find) == before
