"""What commands print is what their schemas say, and nothing else: real guests, a hostile one among them.

/nestrt/T                  launched: 64M, 40 processes, 1.5 CPUs, CPU 0; two processes
  guest
    init                   its first process
    job                    a group made inside, with a limit of its own
      $(touch x)`y`…       a group with a mark that nobody can read: a guest by its own word
    nestrt/in              a guest's guest, marked with all that a mark can hold, and more
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nestrt.host.schema import rows
from nestrt.host.schema_all import SCHEMAS, schema
from support.hostside import guest_root, hierarchies
from support.runner import Nestrt, wait_for

HOSTILE = "$(touch x)`y`\"'\t\x1b[31m\\ é"
CLAIM = {
    "v": 1, "name": "in", "id": "\x1b[2J", "level": 99, "state": "running", "pid": 1, "start": 5, "created": 2**62,
    "rootfs": "../../", "command": ["sh", "\n", "=1+1"], "policy": "p", "max_level": 5, "ids": [[0, 0, 1]],
    "view": {"mount": "rw", "x": [1, {"y": None}]}, "limits": {"memory": -5, "unknown": {"deep": [1]}},
    "net": {"mode": "veth"}, "rm": "yes", "engine": "docker", "runtime": "plugin", "more": 1,
}  # fmt: skip


def make(path: Path) -> None:
    path.mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (path / file).exists() and (path / "tasks").exists():
            (path / file).write_text((path.parent / file).read_text())


@pytest.fixture
def guest(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> Iterator[str]:
    name = new_guest()
    limits = ("-m", "64M", "--pids", "40", "--cpu-quota", "1.5", "--cpus", "0")
    program = ("--", "sh", "-c", "sleep 600 & sleep 600")
    nestrt.run("launch", "--rootfs", busybox, "--name", name, "--detach", "--overlay", *limits, *program).ok()
    made = []
    for each in hierarchies():
        root = each.group(guest_root(name))
        for path in ("job", f"job/{HOSTILE}", "nestrt", "nestrt/in", "nestrt/in/guest"):
            if not (root / path).exists():
                make(root / path)
                made.append(root / path)
        if (root / "job/pids.max").exists():
            (root / "job/pids.max").write_text("10")
        os.setxattr(root / "job" / HOSTILE, "user.nestrt", b"\xff{")
        os.setxattr(root / "nestrt/in", "user.nestrt", json.dumps(CLAIM).encode())
    yield name
    for path in reversed(made):
        path.rmdir()


def valid(name: str, value: Any) -> None:
    """AssertionError with the place where *value* is not what the schema *name* says."""
    checker = jsonschema.Draft202012Validator(schema(name))
    mistakes = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in checker.iter_errors(value)
    ]
    assert not mistakes, (name, mistakes[:5])


def as_json(nestrt: Nestrt, *words: str) -> Any:
    result = nestrt.run(*words, "--format", "json", timeout=40)
    assert result.out.isascii()
    assert result.out, result
    return json.loads(result.out)


def test_every_field_is_described(nestrt: Nestrt, guest: str) -> None:
    everyone = as_json(nestrt, "ls", guest)
    valid("ls", everyone)
    shown = {row["name"]: row for row in everyone if row["name"].startswith(guest)}
    assert len(shown) == 3
    assert shown[guest]["memory"]["effective"] == 64 << 20
    assert {row["claim"] for row in shown.values()} == {True, False}
    for name in shown:
        valid("show", as_json(nestrt, "show", name))
    for words in (("tree", "-p", guest), ("tree", "--depth", "0", guest)):
        valid("tree", as_json(nestrt, *words))
    processes = as_json(nestrt, "ps", guest)
    valid("ps", processes)
    assert len(processes) >= 2
    pid = str(shown[guest]["pid"])
    for words in ((pid,), (f"{guest}:/job", "--all")):
        valid("why", as_json(nestrt, "why", *words))
    for words in (("--no-stream", "--by", "group", guest), ("--no-stream", "--by", "level", guest)):
        valid("top", as_json(nestrt, "top", *words))
    lines = nestrt.run("top", "-n", "2", "-d", "0.1", "--format", "json", guest, timeout=40).ok().out.splitlines()
    valid("top", [json.loads(line) for line in lines])
    valid("totals", as_json(nestrt, "events", "--totals", guest))
    valid("check", as_json(nestrt, "check", "--passive", guest))
    valid("hooks", as_json(nestrt, "hooks", "status"))
    valid("host", as_json(nestrt, "host", "status"))


def test_what_is_paused_and_what_has_ended_has_other_nulls(nestrt: Nestrt, guest: str) -> None:
    nestrt.run("freeze", guest).ok()
    wait_for(lambda: as_json(nestrt, "ls", guest)[0]["state"] == "paused", "the guest to be paused")
    valid("show", as_json(nestrt, "show", guest))
    nestrt.run("thaw", guest).ok()
    nestrt.run("kill", guest, "KILL").ok()
    wait_for(lambda: as_json(nestrt, "ls", guest)[0]["state"] == "stopped", "the guest to end")
    for name, words in (("show", ("show", guest)), ("tree", ("tree", "-p", guest))):
        valid(name, as_json(nestrt, *words))


@pytest.mark.slow_on_vm
def test_all_forms_say_the_same(nestrt: Nestrt, guest: str) -> None:
    """YAML is the JSON; CSV has columns that the schema knows; templates find every field of the schema."""
    first = as_json(nestrt, "ls", guest)
    second = yaml.safe_load(nestrt.run("ls", guest, "--format", "yaml").ok().out)
    still = [field for field in first[0] if field not in ("cpu_usec", "memory")]
    assert [[row[field] for field in still] for row in second] == [[row[field] for field in still] for row in first]
    table = list(csv.DictReader(io.StringIO(nestrt.run("ls", guest, "--format", "csv").ok().out)))
    known = {row["field"] for row in rows(schema("ls"))}
    assert set(table[0]) <= known
    assert [row["name"] for row in table] == [row["name"].replace("\\", "\\\\") for row in first]
    for name in ("ls", "show"):
        fields = [row["field"] for row in rows(schema(name)) if "[]" not in row["field"] and "{}" not in row["field"]]
        plain = [field for field in fields if not field.startswith("pressure.")]  # perhaps none
        camel = ["." + ".".join(word.title().replace("_", "") for word in field.split(".")) for field in plain]
        template = "".join(f"{{{{json {field}}}}};" for field in camel)
        text = nestrt.run(name, guest, "--format", template).ok().out.splitlines()[0]
        assert text.split(";")[0] == json.dumps(guest)
        assert text.count(";") >= len(camel)
    told = nestrt.run("ls", "--format", "table {{.Names}}\\t{{.Status}}\\t{{size .Memory.Effective}}", guest).ok().out
    assert [line.split() for line in told.splitlines()[:2]] == [
        ["NAMES", "STATUS", "EFFECTIVE"],
        [guest, "running", "64M"],
    ]
    # A guest has chosen its group's name. None of it comes out as it is but in JSON, where it is ASCII.
    for words in (("ls",), ("tree",), ("ls", "--format", "csv"), ("ls", "--format", "{{.Name}} {{.Path}} {{.Command}}"),
                  ("ls", "--format", "yaml"), ("tree", "--format", "yaml"), ("top", "--no-stream")):  # fmt: skip
        assert "\x1b" not in nestrt.run(*words, guest).ok().out


def test_events_are_as_described(nestrt: Nestrt, guest: str) -> None:
    """A line for each: groups made and removed, a fork that the limit refuses, the end."""
    stream = nestrt.start("events", "--follow", "--format", "json", guest)
    assert stream.stdout is not None
    root = hierarchies()[-1].group(guest_root(guest))
    found: list[dict[str, Any]] = []
    reader = stream.stdout
    os.set_blocking(reader.fileno(), False)
    text = b""

    def seen(kind: str) -> bool:
        nonlocal text
        text += reader.read() or b""
        found[:] = [json.loads(line) for line in text.split(b"\n")[:-1]]
        if kind == "created":
            again = root / f"more{len(text)}{len(os.listdir(root))}"
            again.mkdir()
            again.rmdir()
        return any(event["kind"] == kind for event in found)

    wait_for(lambda: seen("created"), "a group to be told of", 20)
    nestrt.run("kill", guest, "KILL").ok()
    wait_for(lambda: seen("ended"), "the end to be told of", 20)
    for event in found:
        valid("events", event)
    assert {"created", "removed", "ended"} <= {event["kind"] for event in found}


@pytest.mark.slow_on_vm
def test_the_schemas_are_schemas(nestrt: Nestrt) -> None:
    listed = nestrt.run("schema", "--format", "{{.Name}}").ok().out.split()
    assert listed == list(SCHEMAS)
    for name in listed:
        found = json.loads(nestrt.run("schema", name).ok().out)
        jsonschema.Draft202012Validator.check_schema(found)
        assert found == schema(name)
        for row in rows(found):
            assert row["description"], (name, row)
            assert row["type"], (name, row)
    result = nestrt.run("schema", "shwo")
    assert (result.rc, result.out) == (3, "")
    assert result.err.endswith("did you mean show?\n")
