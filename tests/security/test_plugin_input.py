"""Input of the plugin that is wrong, or hostile: documents, states, bundles, names of groups, annotations.

::

    author of a container ──▶ config.json ──▶ nestrt hook precreate, nestrt wrap     one clear line, a status that keeps
    runtime               ──▶ state       ──▶ nestrt hook createRuntime …            the container from starting,
                                                                                     and nothing left behind

Nobody else's groups, processes or files are touched, whatever the input names.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.bundles import PARENT
from support.hostside import groups, hierarchies, processes
from support.need import SLOW
from support.plugin_attack import (
    NOTE,
    RECORDS,
    RUNC,
    Wrapped,
    age,
    new_wrapped_fixture,  # noqa: F401
    records,
    wrapped_fixture,  # noqa: F401
)
from support.runner import Result, wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewWrapped = Callable[..., Wrapped]
HOOKS = ("createRuntime", "poststart", "poststop")
# Exit statuses of nestrt hook (nestrt/errors.py).
STATUSES = (1, 2, 3, 4, 5)
ESCAPES = "\x1b[31m\x07\r\nX"


def refused(result: Result, text: str = "", statuses: tuple[int, ...] = STATUSES) -> None:
    """It failed with one line for a reader that has *text* in it: no traceback, nothing that a terminal would obey."""
    assert result.rc in statuses, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("nestrt: "), result
    assert lines[0].isprintable(), result
    assert len(lines[0]) < 16384, result
    assert text in lines[0], result
    assert "Traceback" not in result.err, result
    assert not result.out, result


def nothing_left(*found: Wrapped) -> None:
    """No group, record, state, mount or temporary file of theirs, nor the group that was made for them."""
    for one in found:
        assert one.leftovers() == []
    assert [str(group) for group in groups(PARENT)] == []


def refused_by_both(one: Wrapped, data: bytes, text: str = "") -> None:
    """``wrap run`` and ``hook precreate`` refuse the document *data*, the one in its log too."""
    log = one.path / "log"
    (one.path / "config.json").write_bytes(data)
    ran = one.verb("--log", str(log), "--log-format", "json", "run", "--bundle", str(one.path), one.id)
    refused(ran, text, (1,))
    entry = json.loads(log.read_text().splitlines()[-1])
    assert (entry["level"], entry["msg"]) == ("error", ran.err.strip().removeprefix("nestrt: "))
    log.unlink()
    refused(one.stage("precreate", data), text)
    assert (one.path / "config.json").read_bytes() == data
    nothing_left(one)


def document(one: Wrapped, **changes: Any) -> bytes:
    return json.dumps({**one.config, **changes}).encode()


# --- documents that are none ---------------------------------------------------------------------


def _with(tail: bytes) -> Callable[[bytes], bytes]:
    """One more member at the document's end."""
    return lambda whole: whole[:-1] + b"," + tail + b"}"


DOCUMENTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "array": (lambda whole: b'["nestrt.policy"]', "not an object"),
    "cut short": (lambda whole: whole[:-1], "line 1, column"),
    "more behind it": (lambda whole: whole + whole, "line 1, column"),
    "NUL behind it": (lambda whole: whole + b"\0", "line 1, column"),
    "UTF-16": (lambda whole: b'"nestrt."' + whole.decode().encode("utf-16"), "line 1, column"),
    "byte order mark": (lambda whole: b"\xef\xbb\xbf" + whole, "line 1, column 1"),
    "NaN": (_with(b'"x":NaN'), "NaN"),
    "Infinity": (_with(b'"x":-Infinity'), "Infinity"),
    "10,000 brackets": (_with(b'"x":' + b"[" * 10_000 + b"]" * 10_000), "nested too deeply"),
    "brackets without end": (_with(b'"x":' + b"[" * 1_000_000), "nested too deeply"),
    "900 brackets": (_with(b'"x":' + b"[" * 900 + b"]" * 900), "nested too deeply"),
    "5,000 digits": (_with(b'"x":' + b"9" * 5000), "digits"),
    "control character": (_with(b'"x":"\x1b"'), "line 1, column"),
    "a 100 MB annotation": (
        lambda whole: whole.replace(b'"annotations": {', b'"annotations": {"x": "' + b"y" * 100_000_000 + b'", '),
        "longer than 16 MiB",
    ),
    "type": (lambda whole: whole.replace(b'"mounts": [', b'"mounts": [7, '), "mounts[0]"),
    "NUL in a text": (lambda whole: whole.replace(PARENT.encode(), b"/a\\u0000b"), "linux.cgroupsPath"),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_that_are_none(wrapped: Wrapped, kind: str) -> None:
    change, text = DOCUMENTS[kind]
    data = change(json.dumps(wrapped.config).encode())
    begun = time.monotonic()
    refused_by_both(wrapped, data, text)
    assert time.monotonic() - begun < 8 * SLOW
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB, of any child of this test run
    assert largest < 1 << 20, "a document of 16 MiB is read at most"


# What runc takes and json does not say twice: left as it is where nobody looks, and the guest starts.
@pytest.mark.parametrize(
    "tail", [b'"x":1e999', b'"x":' + b"9" * 4000, b'"x":0.' + b"1" * 5000, b'"x":"\xff\xfe"', b'"x":"\\ud800"']
)
def test_odd_values_of_no_concern(wrapped: Wrapped, tail: bytes) -> None:
    data = _with(tail)(document(wrapped.args("true")))
    (wrapped.path / "config.json").write_bytes(data)
    wrapped.verb("run", "--bundle", str(wrapped.path), wrapped.id).ok()
    nothing_left(wrapped)


# Engine ──▶ pipe, 16 MiB and never an end ──▶ precreate: it stops reading, says so, and had made nothing.
def test_a_document_that_never_ends(wrapped: Wrapped) -> None:
    process = wrapped.nestrt.start("hook", "precreate", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    os.set_blocking(process.stdin.fileno(), True)
    sent, chunk = 0, b'{"annotations": {"nestrt.policy": "' + b" " * 65000
    try:
        while sent < 100_000_000:
            sent += os.write(process.stdin.fileno(), chunk)
    except BrokenPipeError:
        pass
    assert process.wait(20 * SLOW) == 2
    assert sent < 18 << 20
    told = process.stderr.read().decode()
    assert told == "nestrt: cannot read the container's config: it is longer than 16 MiB; shorten it\n"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1 << 20
    nothing_left(wrapped)


# One that comes byte by byte and then stays open: nothing is made before it is whole, and SIGTERM ends the hook.
def test_a_document_that_drips(wrapped: Wrapped) -> None:
    process = wrapped.nestrt.start("hook", "precreate", stdin=subprocess.PIPE)
    assert process.stdin is not None
    for byte in document(wrapped)[:-1][:300]:
        os.write(process.stdin.fileno(), bytes([byte]))
    time.sleep(0.2 * SLOW)
    nothing_left(wrapped)
    process.terminate()
    assert process.wait(10 * SLOW) == -15
    nothing_left(wrapped)


# --- names in another spelling -------------------------------------------------------------------

# Go's decoder takes a name in any case, ſ (U+017F) for s and K (U+212A) for k, and the last of two. Were the rewrite to
# look for the usual spelling alone, the runtime would follow the other one.
SPELLINGS: dict[str, Callable[[dict[str, Any]], None]] = {}


def spelling(call: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    SPELLINGS[call.__name__] = call
    return call


@spelling
def linux(config: dict[str, Any]) -> None:
    config["Linux"] = config.pop("linux")


@spelling
def two_linux(config: dict[str, Any]) -> None:
    config["LINUX"] = {"cgroupsPath": f"{PARENT}/elsewhere"}


@spelling
def path(config: dict[str, Any]) -> None:
    config["linux"]["CGROUPSPATH"] = f"{PARENT}/elsewhere"


@spelling
def long_s(config: dict[str, Any]) -> None:
    config["linux"]["cgroup\u017fPath"] = f"{PARENT}/elsewhere"


@spelling
def kelvin(config: dict[str, Any]) -> None:
    config["linux"]["ma\u017f\u212aedPaths"] = []


@spelling
def kelvin_hooks(config: dict[str, Any]) -> None:
    config["hoo\u212as"] = {}


@spelling
def hook_stages(config: dict[str, Any]) -> None:
    config["hooks"] = {"CREATERUNTIME": []}


@spelling
def namespaces(config: dict[str, Any]) -> None:
    config["linux"]["Namespaces"] = [
        {"type": "pid"},
        {"type": "mount"},
        {"type": "cgroup", "path": "/proc/1/ns/cgroup"},
    ]


@spelling
def namespace_path(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "cgroup", "PATH": "/proc/1/ns/cgroup"})


@spelling
def namespace_type(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "uts", "TYPE": "cgroup", "path": "/proc/1/ns/cgroup"})


@spelling
def mount_options(config: dict[str, Any]) -> None:
    entry = {
        "destination": "/mnt",
        "type": "none",
        "source": "/nowhere",
        "SOURCE": "/sys/fs/cgroup",
        "options": ["rbind"],
    }
    config["mounts"].append(entry)


@spelling
def mounts(config: dict[str, Any]) -> None:
    config["Mounts"] = [{"destination": "/mnt", "type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind"]}]


@spelling
def annotations(config: dict[str, Any]) -> None:
    config["Annotations"] = {"nestrt.level.virtualize": "false"}


@spelling
def process(config: dict[str, Any]) -> None:
    config["Process"] = config.pop("process")


@spelling
def resources(config: dict[str, Any]) -> None:
    config["linux"]["Resources"] = {"pids": {"limit": 1000}}


@spelling
def resource_devices(config: dict[str, Any]) -> None:
    config["linux"]["resources"]["DEVICES"] = [{"allow": True, "access": "rwm"}]


@spelling
def seccomp(config: dict[str, Any]) -> None:
    config["linux"]["Seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}


@spelling
def seccomp_names(config: dict[str, Any]) -> None:
    entry = {"Names": ["open_by_handle_at"], "action": "SCMP_ACT_ALLOW"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [entry]}


@spelling
def seccomp_two_names(config: dict[str, Any]) -> None:
    entry = {"names": ["read"], "name\u017f": ["open_by_handle_at"], "action": "SCMP_ACT_ALLOW"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [entry]}


@spelling
def seccomp_action(config: dict[str, Any]) -> None:
    entry = {"names": ["open_by_handle_at"], "action": "SCMP_ACT_ERRNO", "Action": "SCMP_ACT_ALLOW", "errnoRet": 1}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]}


@spelling
def seccomp_default(config: dict[str, Any]) -> None:
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO", "DefaultAction": "SCMP_ACT_ALLOW", "syscalls": []}


@spelling
def capabilities(config: dict[str, Any]) -> None:
    config["process"]["Capabilities"] = {"bounding": ["CAP_DAC_READ_SEARCH"], "effective": ["CAP_DAC_READ_SEARCH"]}


@spelling
def capability_sets(config: dict[str, Any]) -> None:
    config["process"]["capabilities"] = {"BOUNDING": ["CAP_DAC_READ_SEARCH"], "Effective": ["CAP_DAC_READ_SEARCH"]}


@spelling
def mappings(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": 100000, "HOSTID": 0, "size": 65536}]
    config["linux"].update(uidMappings=ids, gidMappings=ids)


def fold(name: str) -> str:
    """*name* as Go's encoding/json compares it (foldName: the smallest of the runes that fold to one another)."""
    return name.replace("\u017f", "s").replace("\u212a", "k").lower()


def as_go(value: Any) -> Any:
    """*value* as Go has decoded it: names in one spelling, of two the last, and objects of the same name merged."""
    if isinstance(value, list):
        return [as_go(item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        name, new = fold(key), as_go(item)
        old = found.get(name)
        found[name] = {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new
    return found


# The runtime reads what comes out of the rewrite as Go does: it keeps the laws, or the document has been refused.
@pytest.mark.parametrize("way", SPELLINGS)
def test_names_in_another_case(wrapped: Wrapped, way: str) -> None:
    wrapped.capabilities("CAP_DAC_READ_SEARCH")
    SPELLINGS[way](wrapped.config)
    result = wrapped.stage("precreate", wrapped.config)
    if result.rc:
        refused(result)
        return nothing_left(wrapped)
    found = as_go(json.loads(result.out))
    try:
        assert result.rc == 0, result
        assert found["linux"]["cgroupspath"] == f"{wrapped.cgroup}/guest"
        assert [e for e in found["linux"]["namespaces"] if e["type"] == "cgroup"] == [{"type": "cgroup"}]
        for stage in ("createRuntime", "poststop"):
            assert [hook["args"][-1] for hook in found["hooks"][fold(stage)]] == [stage]
        for mount in found["mounts"]:
            assert not str(mount.get("source", "")).startswith("/sys/fs"), mount
        covered = found["linux"]["readonlypaths"]
        assert any(name.endswith("pids.max") for name in covered)
        users = [e for e in found["linux"]["namespaces"] if e["type"] == "user"]
        assert users or not _opens_handles(found["linux"].get("seccomp"))
        if users:
            assert _locked(found, covered)
    finally:
        wrapped.stage("poststop", wrapped.hook_state(annotations=json.loads(result.out)["annotations"]))
    nothing_left(wrapped)


def _opens_handles(profile: dict[str, Any] | None) -> bool:
    """Whether open_by_handle_at(2) is allowed under *profile*, as Go has decoded it."""
    if profile is None:
        return True
    actions = [e.get("action") for e in profile.get("syscalls") or [] if "open_by_handle_at" in (e.get("names") or [])]
    return "SCMP_ACT_ALLOW" in (actions or [profile.get("defaultaction")])


def _locked(found: dict[str, Any], covered: list[str]) -> bool:
    """Where the container's root is the host's, covers lock; else ownership."""
    outside = [entry["hostid"] for entry in found["linux"]["uidmappings"]]
    return 0 not in outside or any("memory" in name for name in covered)


# --- the group's path, ids and annotations -------------------------------------------------------

# What the limit group is (None: refused) for a path that an engine, or whoever names a parent group to it, chooses.
PLACES: dict[str, str | None] = {
    "/": None,
    "/..": None,
    "//": None,
    ".": None,
    "..": None,
    "../../../..": None,
    "/nestrt-oci-t/../../..": None,
    "a\nb": None,
    "PARENT/a\nb": None,
    "PARENT/a\0b": None,
    "PARENT/" + "y" * 5000: None,
    "system.slice:nestrt:x": None,
    ":": None,
    "PARENT/tasks": None,
    "PARENT/cgroup.procs": None,
    "PARENT/cgroup.procs/x": None,
    "PARENT/x/../../../PARENT/y": "PARENT/y",
    "PARENT/./x//": "PARENT/x",
    "PARENT/..x": "PARENT/..x",
    "PARENT/guest": "PARENT/guest",
    "PARENT/guest/guest": "PARENT/guest/guest",
    "PARENT/-rf": "PARENT/-rf",
    "PARENT/a b": "PARENT/a b",
    "PARENT/a:b:c": "PARENT/a:b:c",
    "PARENT/\x1b[31m": "PARENT/\x1b[31m",
    "PARENT/\u202e\u017f": "PARENT/\u202e\u017f",
    "PARENT/" + "y" * 300: "PARENT/" + "y" * 300,
}


@pytest.mark.parametrize("place", PLACES, ids=[ascii(place)[1:24] for place in PLACES])
def test_paths_of_groups(new_wrapped: NewWrapped, tmp_path: Path, place: str) -> None:
    one = new_wrapped()
    wanted = PLACES[place]
    one.config["linux"]["cgroupsPath"] = place.replace("PARENT", PARENT)
    one.cgroup = f"{PARENT}/x" if wanted is None else wanted.replace("PARENT", PARENT)
    if wanted is None:
        refused_by_both(one, document(one.args("true")))
    else:
        running = one.shell("echo ran; read word").begin(*one.words("run"), stdin=subprocess.PIPE)
        assert running.process.stdin is not None
        wait_for(lambda: os.pread(running.out.fileno(), 3, 0) or running.process.poll() is not None, "the guest")
        assert running.process.poll() is None, running.finish()
        for hierarchy in hierarchies():
            assert (hierarchy.group(one.cgroup) / "guest").is_dir()
        running.process.stdin.close()
        assert running.finish().rc in (0, 1)
    # As an engine removes it; an id of a container that never was is no error to --force.
    one.delete("--force").ok()
    nothing_left(one)


def test_look_alikes_stay_apart(new_wrapped: NewWrapped) -> None:
    """web and web1, and one whose path is below another's limit group: each has a record and groups of its own."""
    first, second, third = (new_wrapped() for _ in range(3))
    second.config["linux"]["cgroupsPath"] = second.cgroup = first.cgroup + "1"
    first.resources(pids={"limit": 50}).up()
    second.resources(pids={"limit": 60}).up()
    third.config["linux"]["cgroupsPath"] = first.cgroup + "/guest/../../" + third.id
    third.up()
    assert len({records_of(one) for one in (first, second, third)}) == 3
    third.delete("--force").ok()
    second.delete("--force").ok()
    assert (first.status, len(groups(second.cgroup))) == ("running", 0)


def records_of(one: Wrapped) -> str:
    return next(name for name, values in records().items() if values.get("group") == one.cgroup)


@pytest.mark.parametrize("id", ["x" * 1025, "x" * 100_000, "\x1b[31m", "a\nb", "..", "a/../../b", "/", " ", "٣"])
def test_ids_that_runc_refuses(wrapped: Wrapped, id: str) -> None:
    """What runc says is runc's; of what was prepared nothing stays that delete and gc do not take."""
    wrapped.args("true").write()
    result = wrapped.verb("run", "--bundle", str(wrapped.path), id)
    assert result.rc, result
    assert "Traceback" not in result.err, result
    wrapped.verb("delete", "--force", id)
    age(wrapped)
    wrapped.nestrt.run("gc").ok()
    nothing_left(wrapped)


ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no such policy": ({"nestrt.policy": "nosuch"}, '"nosuch"'),
    "a path": ({"nestrt.policy": "../../../tmp/x"}, "nestrt.policy"),
    "escapes": ({"nestrt.policy": ESCAPES}, "nestrt.policy"),
    "escapes in a name": ({f"nestrt.{ESCAPES}": "1"}, "annotation"),
    "long": ({"nestrt.policy": "x" * 1_000_000}, "nestrt.policy"),
    "half of a pair": ({"nestrt.policy": "nes\ud800ted"}, "nestrt.policy"),
    "unknown": ({"nestrt.level.everything": "true"}, "nestrt.level.everything"),
    "more than allowed": ({"nestrt.level.override": "true"}, "nestrt.level.override"),
    "deeper than allowed": ({"nestrt.level.max_level": "32"}, "nestrt.level.max_level"),
    "more groups": ({"nestrt.partition.max_groups": "1000000"}, "nestrt.partition.max_groups"),
    "more than a number": ({"nestrt.partition.max_groups": "9" * 5000}, "nestrt.partition.max_groups"),
    "no text": ({"nestrt.policy": 7}, "nestrt.policy"),
    "an object": ({"nestrt.policy": {"x": []}}, "nestrt.policy"),
    "forged": ({NOTE: f"{PARENT}/other"}, NOTE),
    "forged, escapes": ({NOTE: ESCAPES}, NOTE),
    "forged, no text": ({NOTE: ["/"]}, NOTE),
    "forged, above": ({NOTE: "/.."}, NOTE),
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations(wrapped: Wrapped, kind: str) -> None:
    values, text = ANNOTATIONS[kind]
    wrapped.config["annotations"].update(values)
    refused_by_both(wrapped, document(wrapped), text)


# --policy is the host's word; what it names is there or nothing starts.
def test_a_policy_of_the_command_line_that_is_not_there(wrapped: Wrapped) -> None:
    del wrapped.config["annotations"]
    wrapped.write()
    for name in ("nosuch", "../x", ESCAPES):
        words = ["wrap", "--runtime", RUNC, "--policy", name, *wrapped.globals[3:], *wrapped.words("run")[5:]]
        found = wrapped.nestrt.run(*words)
        refused(found, "policy", (1,))
        refused(wrapped.stage("precreate", wrapped.config, "--policy", name), "policy")
        nothing_left(wrapped)


@pytest.mark.parametrize(
    "words",
    [
        ("hook",),
        ("hook", "prestart"),
        ("hook", ESCAPES),
        ("hook", "poststop", "poststop"),
        ("hook", "--policy"),
        ("hook", "--nosuch", "poststop"),
        ("hook", "x" * 5000),
        ("wrap",),
        ("wrap", "--runtime"),
        ("wrap", "--runtime", "/nowhere/runc", "create", "x"),
        ("wrap", "--runtime", ESCAPES, "create", "x"),
        ("wrap", "--runtime", "nosuch", "create", "x"),
        ("wrap", "--runtime", "/etc", "create", "x"),
        ("wrap", "create", "--bundle", "/tmp", "x"),
    ],
)
def test_command_lines_that_are_wrong(wrapped: Wrapped, words: tuple[str, ...]) -> None:
    refused(wrapped.nestrt.run(*words))
    nothing_left(wrapped)


# What getopt_long(3) and argp take and Go's flag package does not: crun reads its command line so. A bundle that wrap
# does not find in it would be run without its policy; it is found, or the call is refused.
@pytest.mark.parametrize(
    "words",
    [
        ("run", "-bBUNDLE", "ID"),
        ("run", "-dbBUNDLE", "ID"),
        ("run", "-db", "BUNDLE", "ID"),
        ("run", "--bun", "BUNDLE", "ID"),
        ("run", "--bundl=BUNDLE", "ID"),
        ("run", "ID", "--bundle", "BUNDLE"),
        ("run", "ID", "-b", "BUNDLE"),
        ("create", "--pid-fil", "/dev/null", "--bundle", "BUNDLE", "ID"),
        ("--log-level", "debug", "run", "--bundle", "BUNDLE", "ID"),
        ("run", "--bundle", "BUNDLE", "--", "ID"),
        ("run", "-f", "BUNDLE/config.json", "ID"),
        ("run", "-fBUNDLE/config.json", "ID"),
        ("run", "--config=BUNDLE/config.json", "ID"),
    ],
)
def test_command_lines_of_another_runtime(wrapped: Wrapped, tmp_path: Path, words: tuple[str, ...]) -> None:
    called = tmp_path / "called"
    runtime = tmp_path / "crun"
    runtime.write_text(f"#!/bin/sh\necho called > {called}\n")
    runtime.chmod(0o755)
    wrapped.write()
    given = [word.replace("BUNDLE", str(wrapped.path)).replace("ID", wrapped.id) for word in words]
    result = wrapped.nestrt.run("wrap", "--runtime", str(runtime), *given, cwd=tmp_path)
    assert (result.rc == 0) == called.exists(), result
    if result.rc:
        refused(result, "", (1,))
    else:
        config = json.loads((wrapped.path / "config.json").read_text())
        assert config["linux"]["cgroupsPath"] == f"{wrapped.cgroup}/guest", result
        assert wrapped.limits()
    age(wrapped)
    wrapped.nestrt.run("gc").ok()
    nothing_left(wrapped)


# --- states --------------------------------------------------------------------------------------

MARKER = b'{"x": "io.nestrt.limit-group"'
STATES: dict[str, bytes] = {
    "empty object": MARKER + b"}",
    "no JSON": b"io.nestrt.limit-group",
    "cut short": MARKER,
    "bytes": MARKER + b', "bundle": "/\xff\xfe"} \xff',
    "array": b'["io.nestrt.limit-group"]',
    "brackets": MARKER + b', "y":' + b"[" * 10_000,
    "NaN": MARKER + b', "pid": NaN}',
    "digits": MARKER + b', "pid": ' + b"9" * 5000 + b"}",
    "17 MiB": MARKER + b', "y": "' + b"y" * (17 << 20) + b'"}',
}


@pytest.mark.parametrize("kind", STATES)
def test_states_that_are_none(wrapped: Wrapped, kind: str) -> None:
    for stage in HOOKS:
        refused(wrapped.stage(stage, STATES[kind]), "cannot read the container's state")
    nothing_left(wrapped)


FIELDS: tuple[tuple[str, Any], ...] = (
    ("id", 7),
    ("id", ["x"]),
    ("bundle", 7),
    ("bundle", ""),
    ("bundle", "relative"),
    ("bundle", "/\0"),
    ("pid", "1"),
    ("pid", -1),
    ("pid", 1.5),
    ("pid", True),
    ("pid", 1 << 31),
    ("pid", 1 << 70),
    ("annotations", "nestrt."),
    ("annotations", {NOTE: 7}),
    ("annotations", {NOTE: "/..", "io.nestrt.record": ".."}),
    ("annotations", {NOTE: "/x", "io.nestrt.record": "../guests/x"}),
    ("annotations", {NOTE: "/x", "io.nestrt.record": ESCAPES + "/"}),
)
# A well-formed state that is not the guest's: what is looked for is not there, or is another's.
STRANGE: tuple[tuple[str, Any], ...] = (
    ("bundle", f"/nowhere/{ESCAPES}"),
    ("bundle", "/" + "x" * 5000),
    ("bundle", "/tmp/\ud800x"),
    ("annotations", {NOTE: ESCAPES, "io.nestrt.record": ESCAPES}),
    ("annotations", {NOTE: "/\ud800", "io.nestrt.record": "\ud800"}),
    ("annotations", {NOTE: "/", "io.nestrt.record": ""}),
    ("annotations", {NOTE: "/" + "x" * 5000, "io.nestrt.record": "x" * 5000}),
)


def calm(result: Result) -> None:
    """Whatever it says of a state that is another's is one line; a hook that has nothing to do says nothing."""
    if result.rc:
        refused(result)
    else:
        assert (result.out, result.err) == ("", "")


# The victim runs all the while, with what it was given; hooks are called with states that name it, and are not its own.
def test_states_of_wrong_types_or_of_nobody(wrapped: Wrapped) -> None:
    wrapped.resources(pids={"limit": 40}).up()
    state = json.loads(wrapped.runc("state", wrapped.id).out)
    before = wrapped.limits()
    for stage in HOOKS:
        for field, value in FIELDS:
            refused(wrapped.stage(stage, {**state, field: value}), "state")
        for field, value in STRANGE:
            calm(wrapped.stage(stage, {**state, field: value}))
    assert wrapped.status == "running"
    assert wrapped.limits() == before


@contextmanager
def victim(one: Wrapped, how: str) -> Iterator[Wrapped]:
    """*one*, "running", "created", or only "prepared": its engine has not called the runtime yet."""
    one.resources(pids={"limit": 40}).shell("exec sleep 600")
    if how != "prepared":
        (one.run("--detach") if how == "running" else one.create()).ok()
        yield one
        assert one.status == how
        return
    rewritten = json.loads(one.stage("precreate", one.config).ok().out)
    try:
        yield one
    finally:
        (one.path / "config.json").write_text(json.dumps(rewritten))  # as engines keep it
        one.stage("poststop", one.hook_state(annotations=rewritten["annotations"])).ok()


#   own      its bundle and id, but the notes of …                      ┐
#   victim   another guest: running, created, or only prepared          ┘  stays as it is, whatever hooks are told
@pytest.mark.parametrize("how", ["running", "created", "prepared"])
def test_a_forged_note_removes_nobody_else(new_wrapped: NewWrapped, how: str) -> None:
    own = new_wrapped()
    own.up()
    theirs = json.loads(own.runc("state", own.id).out)
    with victim(new_wrapped(), how) as other:
        stands, names = other.limits(), records().keys()
        for group in (other.cgroup, f"{other.cgroup}/guest", PARENT):
            for record in (records_of(other), records_of(own)):
                forged = {**theirs["annotations"], NOTE: group, "io.nestrt.record": record}
                for stage in HOOKS:
                    calm(own.stage(stage, {**theirs, "annotations": forged}))
                    calm(own.stage(stage, {**theirs, "bundle": "/nowhere", "annotations": forged}))
                    assert other.limits() == stands, (stage, group, record)
        assert records().keys() == names
        assert own.status == "running"


# A document that claims to be rewritten, for the limit group of another: with its own id, and a bundle of its own.
@pytest.mark.parametrize("how", ["running", "created", "prepared"])
def test_a_document_in_anothers_limit_group(new_wrapped: NewWrapped, how: str) -> None:
    own = new_wrapped()
    with victim(new_wrapped(), how) as other:
        stands = other.limits()
        own.config["linux"]["cgroupsPath"] = f"{other.cgroup}/guest"
        own.config["annotations"][NOTE] = other.cgroup
        refused(own.args("true").run(), "", (1,))
        assert other.limits() == stands


# A second one of the same name, by either way: refused, and the first runs on.
@pytest.mark.parametrize("state", ["running", "created"])
def test_the_same_container_once_more(wrapped: Wrapped, state: str) -> None:
    wrapped.resources(pids={"limit": 40}).shell("exec sleep 600")
    (wrapped.run("--detach") if state == "running" else wrapped.create()).ok()
    pid, stands, names = wrapped.pid, wrapped.limits(), records()
    original = copy.deepcopy(wrapped.config)
    wrapped.resources(pids={"limit": 4000})
    for verb in ("run", "create"):
        again = wrapped.verb(verb, "--bundle", str(wrapped.write().path), wrapped.id)
        assert (again.rc, again.out, len(again.err.splitlines())) == (1, "", 1), again
        assert (wrapped.status, wrapped.pid) == (state, pid), again
        assert wrapped.limits() == stands
    refused(wrapped.stage("precreate", wrapped.config))
    assert (wrapped.status, wrapped.pid) == (state, pid)
    assert wrapped.limits() == stands
    assert records() == names
    wrapped.config = original
    if state == "created":
        wrapped.start().ok()


#   pid      0 · a process of the host's · another guest's · a zombie · not there
# The host's process is one of this test's own: were it taken, nothing else would be moved.
def test_first_processes_that_are_others(new_wrapped: NewWrapped) -> None:
    own, other = new_wrapped(), new_wrapped()
    other.up()
    rewritten = json.loads(own.stage("precreate", own.config).ok().out)
    (own.path / "config.json").write_text(json.dumps(rewritten))
    host, zombie = subprocess.Popen(["sleep", "300"]), subprocess.Popen(["true"])
    try:
        wait_for(lambda: "\nState:\tZ" in Path(f"/proc/{zombie.pid}/status").read_text(), "the zombie")
        before = Path(f"/proc/{host.pid}/cgroup").read_text()
        for pid in (0, host.pid, other.pid, zombie.pid, (1 << 31) - 1, 4_194_304):
            state = own.hook_state(pid=pid, status="creating", annotations=rewritten["annotations"])
            refused(own.stage("createRuntime", state), "first process", (4,))
        assert Path(f"/proc/{host.pid}/cgroup").read_text() == before
    finally:
        host.kill()
        host.wait()
        zombie.wait()
    assert other.status == "running"
    assert processes(own.cgroup) == set()
    own.stage("poststop", own.hook_state(annotations=rewritten["annotations"])).ok()
    assert own.leftovers() == []


# --- bundles -------------------------------------------------------------------------------------


def _make(kind: str, path: Path, good: bytes) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "device":
        os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        os.mknod(path, 0o140666)
    elif kind == "sparse":
        path.write_bytes(good)
        os.truncate(path, 1 << 30)
    elif kind == "host's file":
        path.symlink_to("/etc/shadow")


# config.json is something else. A hook that opens it neither waits nor reads without end; nor does wrap.
@pytest.mark.parametrize(
    "kind",
    ["FIFO", "directory", "link to itself", "device", "link to a device", "socket", "sparse", "host's file", "missing"],
)
def test_bundles_that_are_something_else(wrapped: Wrapped, kind: str) -> None:
    path = wrapped.path / "config.json"
    _make(kind, path, document(wrapped))
    state = wrapped.hook_state(annotations={"nestrt.policy": "nested"})
    for stage in HOOKS:
        result = wrapped.stage(stage, state, timeout=10)
        refused(result) if stage == "createRuntime" else calm(result)
    result = wrapped.verb("run", "--bundle", str(wrapped.path), wrapped.id, timeout=10)
    assert result.rc, result
    assert all(line.isprintable() for line in result.err.splitlines()), result
    assert "root:" not in result.err, result
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1 << 20
    nothing_left(wrapped)


@pytest.mark.parametrize("kind", ["FIFO", "device", "file", "missing"])
def test_bundles_that_are_no_directory(wrapped: Wrapped, kind: str) -> None:
    place = wrapped.path / "bundle"
    if kind == "file":
        place.write_text("")
    else:
        _make(kind, place, b"")
    state = wrapped.hook_state(bundle=str(place), annotations={"nestrt.policy": "nested"})
    refused(wrapped.stage("createRuntime", state, timeout=10))
    for stage in HOOKS[1:]:
        calm(wrapped.stage(stage, state, timeout=10))
    assert wrapped.verb("run", "--bundle", str(place), wrapped.id, timeout=10).rc
    nothing_left(wrapped)


# With no policy anywhere it is as without nestrt: what only nestrt would refuse is none of its business.
def test_without_a_policy_nothing_is_refused(wrapped: Wrapped) -> None:
    wrapped.config["annotations"] = {"x": "y" * 1000}
    real = wrapped.path / "real.json"
    real.write_bytes(_with(b'"x":1e999')(document(wrapped.args("true"))))
    (wrapped.path / "config.json").symlink_to(real)
    wrapped.verb("run", "--bundle", str(wrapped.path), wrapped.id).ok()
    assert not RECORDS.is_dir() or not any(values.get("group") == wrapped.cgroup for values in records().values())
