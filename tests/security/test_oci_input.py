"""Input that is wrong, or hostile: documents, ids, state directories, and files that verbs are to write.

Whatever it is: one line on standard error, the same in the log, a failure as exit status, nothing left behind,
and nobody else's processes, groups or files touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from support.bundles import PARENT, Bundle
from support.hostside import groups, hierarchies
from support.runner import Result

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]
VERBS: dict[str, tuple[str, ...]] = {
    "state": ("state", "ID"),
    "start": ("start", "ID"),
    "kill": ("kill", "ID", "KILL"),
    "kill --all": ("kill", "--all", "ID", "KILL"),
    "exec": ("exec", "ID", "true"),
    "ps": ("ps", "--format", "json", "ID"),
    "pause": ("pause", "ID"),
    "resume": ("resume", "ID"),
    "update": ("update", "--pids-limit", "7", "ID"),
    "events": ("events", "--stats", "ID"),
    "list": ("list",),
    "list -q": ("list", "-q"),
    "delete": ("delete", "ID"),
    "delete --force": ("delete", "--force", "ID"),
}


def plain(result: Result) -> None:
    """What was said is lines for a reader: no traceback, no bug, nothing that a terminal would obey."""
    assert result.rc >= 0, result
    for text in (result.err, result.out):
        assert all(line.isprintable() for line in text.splitlines()), result
    assert "Traceback" not in result.err, result
    assert "this is a bug" not in result.err, result


def refused(result: Result, text: str = "", log: Path | None = None) -> None:
    """It failed with one line that has *text* in it, and the last entry of *log* is the same."""
    plain(result)
    assert result.rc in (1, 2, 3, 4, 5, 255), result
    lines = result.err.splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("nestrt: "), result
    assert text in lines[0], result
    if log is None:
        return
    entry = log.read_text().splitlines()[-1]
    if entry.startswith("{"):
        assert json.loads(entry)["msg"] == lines[0].removeprefix("nestrt: ")
        assert json.loads(entry)["level"] == "error"
    else:
        assert json.loads(entry.partition(" msg=")[2]) == lines[0].removeprefix("nestrt: ")
        assert " level=error " in entry


def logged(bundle: Bundle, log: Path, form: str) -> Path:
    """Have *bundle*'s verbs write to *log*."""
    bundle.globals += ["--log", str(log), "--log-format", form]
    return log


# What an image's or an engine's document can get wrong, and the words that name it.
ESCAPES = "\x1b[31m\x07\r\nX"


def _set(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def put(config: dict[str, Any], value: Any) -> None:
        found: Any = config
        for key in path[:-1]:
            found = found.setdefault(key, {}) if isinstance(key, str) else found[key]
        found[path[-1]] = value

    return put


def _mount(**keys: Any) -> Callable[[dict[str, Any], Any], None]:
    def put(config: dict[str, Any], value: Any) -> None:
        entry = {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": []}
        entry.update({key: [value] if key == "options" else prefix + value for key, prefix in keys.items()})
        config["mounts"].append(entry)

    return put


PLACES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "version": _set("ociVersion"),
    "args": lambda config, value: _set("process", "args")(config, [value]),
    "env": lambda config, value: _set("process", "env")(config, [value]),
    "label": _set("process", "selinuxLabel"),
    "profile": _set("process", "apparmorProfile"),
    "root": _set("root", "path"),
    "mount type": _mount(type=""),
    "mount source": lambda config, value: _mount(source="/nowhere/")(config, value)
    or config["mounts"][-1].update(type="bind", options=["bind"]),
    "mount option": _mount(options=""),
    "hook": lambda config, value: _set("hooks", "createRuntime")(config, [{"path": f"/nowhere/{value}"}]),
    "own hook": lambda config, value: _set("hooks", "startContainer")(config, [{"path": f"/nowhere/{value}"}]),
    "sysctl": lambda config, value: _set("linux", "sysctl")(config, {value: "1"}),
    "namespace": lambda config, value: config["linux"]["namespaces"].append({"type": value}),
    "namespace path": lambda config, value: config["linux"]["namespaces"].append(
        {"type": "cgroup", "path": f"/nowhere/{value}"}
    ),
    "unified": lambda config, value: _set("linux", "resources")(config, {"unified": {value: value}}),
    "cpus": lambda config, value: _set("linux", "resources")(config, {"cpu": {"cpus": value}}),
    "page size": lambda config, value: _set("linux", "resources")(
        config, {"hugepageLimits": [{"pageSize": value, "limit": 1}]}
    ),
    "propagation": _set("linux", "rootfsPropagation"),
    "seccomp": lambda config, value: _set("linux", "seccomp")(config, {"defaultAction": value}),
    "policy": lambda config, value: _set("annotations")(config, {"nestrt.policy": value}),
    "annotation": lambda config, value: _set("annotations")(config, {f"nestrt.level.{value}": "1"}),
    "annotation's value": lambda config, value: _set("annotations")(config, {"nestrt.level.virtualize": value}),
    "capability": lambda config, value: _set("process", "rlimits")(config, [{"type": value, "soft": 1, "hard": 1}]),
    "scheduler": lambda config, value: _set("process", "scheduler")(config, {"policy": value}),
}


@pytest.mark.parametrize("place", PLACES)
def test_wrong_texts_in_a_document(bundle: Bundle, tmp_path: Path, place: str) -> None:
    log = logged(bundle, tmp_path / "log", "json")
    whole = json.dumps(bundle.config)
    for value in (ESCAPES, "a\0b", "../../../../../../nowhere", "x" * 5000, "\u202e\x85é"):
        bundle.config = json.loads(whole)
        PLACES[place](bundle.config, value)
        refused(bundle.run(), log=log)
        assert bundle.leftovers() == []
    # Half of a surrogate pair, as only JSON's escapes can have it.
    bundle.config = json.loads(whole)
    PLACES[place](bundle.config, "a\ud800b")
    refused(bundle.run(), log=log)
    assert bundle.leftovers() == []


DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "line 1, column 1"),
    "null": (b"null", "it is null"),
    "cut short": (b'{"ociVersion": "1.0.2",\n  "process": {', "line 2, column"),
    "comma": (b'{"ociVersion": "1.0.2",\n}', "line 2, column 1"),
    "bytes": (bytes(range(256)) * 100, "line 1, column 1"),
    "UTF-16": ('{"ociVersion": "1.0.2"}'.encode("utf-16"), "line 1, column 1"),
    "NaN": (b'{"ociVersion": NaN}', "NaN"),
    "deep": (b"[" * 200_000, "too deeply"),
    "deep objects": (b'{"a":' * 200_000, "too deeply"),
    "huge": (b" " * (16 << 20) + b"{}", "longer than 16 MiB"),
    "number": (b'{"ociVersion": ' + b"9" * 100_000 + b"}", "digits"),
    "version": (b'{"ociVersion": "2.0.0", "root": {"path": "/"}}', "2.0.0"),
    "no root": (b'{"ociVersion": "1.0.2"}', "root: it is missing"),
    "type": (b'{"ociVersion": "1.0.2", "root": {"path": ["/"]}}', "root.path: it is an array"),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("form", ["text", "json"])
def test_documents_that_are_none(bundle: Bundle, tmp_path: Path, kind: str, form: str) -> None:
    log = logged(bundle, tmp_path / "log", form)
    data, text = DOCUMENTS[kind]
    (bundle.path / "config.json").write_bytes(data)
    for verb in ("create", "run"):
        refused(bundle.verb(verb, "--bundle", str(bundle.path), bundle.id), text, log)
    assert bundle.leftovers() == []


@pytest.mark.parametrize("kind", ["directory", "loop", "zeros", "missing"])
def test_a_document_that_is_no_file(bundle: Bundle, kind: str) -> None:
    path = bundle.path / "config.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    refused(bundle.verb("run", "--bundle", str(bundle.path), bundle.id))
    assert bundle.leftovers() == []


# An id names a directory below --root, and nothing else; it is no regular expression, path or option.
@pytest.mark.parametrize(
    "id", [".", "/", "..", "a/../b", "a\nb", "\x1b[31m", "٣", "a\x7f", "x" * 1025, "../etc", " ", "*"]
)
def test_ids_are_names(bundle: Bundle, id: str, tmp_path: Path) -> None:
    log = logged(bundle, tmp_path / "log", "json")
    bundle.write()
    # What ".." and the like would lead to.
    bundle.state_root.mkdir()
    witnesses = [bundle.state_root / "witness", bundle.state_root.parent / "witness"]
    for witness in witnesses:
        witness.write_text("keep")
    for verb in VERBS if id == ".." else ("state", "kill --all", "delete --force"):
        if "ID" in VERBS[verb]:
            words = (id if word == "ID" else word for word in VERBS[verb])
            refused(bundle.verb(*words), "invalid container ID format", log)
    refused(bundle.verb("create", "--bundle", str(bundle.path), id), "invalid container ID format", log)
    refused(bundle.verb("state", os.fsdecode(b"\xff")), "invalid container ID format", log)
    assert all(witness.exists() for witness in witnesses)
    assert os.listdir(bundle.state_root) == ["witness"]
    for witness in witnesses:
        witness.unlink()


# --- files that a verb is to write ---------------------------------------------------------------


# A symlink is replaced, never followed, a named pipe is not waited for, and what fails leaves no half of a file.
def test_pid_files_that_are_something_else(new_bundle: NewBundle, tmp_path: Path) -> None:
    victim, link, pipe, directory = (tmp_path / name for name in ("victim", "link", "pipe", "directory"))
    victim.write_text("mine")
    link.symlink_to(victim)
    os.mkfifo(pipe)
    directory.mkdir()
    for place in (link, pipe):
        bundle = new_bundle()
        bundle.args("sleep", "600").create("--pid-file", str(place)).ok()
        assert stat.S_ISREG(place.lstat().st_mode)
        assert place.read_text() == str(bundle.pid)
        bundle.start().ok()
        bundle.exec("true", options=("--pid-file", str(place))).ok()
    assert victim.read_text() == "mine"
    for place in (directory, tmp_path / "no/such", Path("/dev/full/x")):
        bundle = new_bundle()
        refused(bundle.create("--pid-file", str(place)))
        assert bundle.leftovers() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "link", "pipe", "victim"]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("debug", [False, True])
def test_logs_that_are_something_else(new_bundle: NewBundle, tmp_path: Path, form: str, debug: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "directory", "loop", "no/such", "/dev/full", "\x1b[31m\n"):
        bundle = new_bundle()
        bundle.globals += ["--log", str(tmp_path / name), "--log-format", form, *(["--debug"] if debug else [])]
        bundle.args("true").run().ok()
        result = bundle.verb("state", "nowhere")
        plain(result)
        assert result.err.splitlines()[-1].startswith("nestrt: cannot find container nowhere"), result
        assert len(result.err.splitlines()) <= 2, result


@pytest.mark.parametrize("option", ["--console-socket", "--pidfd-socket"])
def test_sockets_that_are_something_else(bundle: Bundle, tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(str(tmp_path / "datagrams"))
    bundle.config["process"]["terminal"] = option == "--console-socket"
    try:
        for name in ("pipe", "file", "link", "dead", "datagrams", ".", "no/such", "\x1b[31m"):
            refused(bundle.create(option, str(tmp_path / name)))
            assert bundle.leftovers() == []
    finally:
        datagrams.close()
    assert (tmp_path / "file").read_text() == "mine"


# --- state directories ---------------------------------------------------------------------------


@contextmanager
def bystander(name: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process of somebody else's, in a group of somebody else's."""
    group = f"{PARENT}-{name}"
    process = subprocess.Popen(["sleep", "600"])
    for hierarchy in hierarchies():
        hierarchy.group(group).mkdir()
        for file in ("cpuset.mems", "cpuset.cpus"):
            if (hierarchy.group(group) / file).exists() and hierarchy.version == 1:
                (hierarchy.group(group) / file).write_text((hierarchy.mountpoint / file).read_text())
        (hierarchy.group(group) / "cgroup.procs").write_text(str(process.pid))
    try:
        yield process, group
        assert process.poll() is None
        assert len(groups(group)) == len(hierarchies())
    finally:
        process.kill()
        process.wait()
        for directory in groups(group):
            directory.rmdir()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def forge(bundle: Bundle, document: object) -> Path:
    """A state directory of *bundle*'s container with this state in it."""
    place = bundle.state_root / bundle.id
    place.mkdir(parents=True, exist_ok=True)
    (place / "state.json").write_text(document if isinstance(document, str) else json.dumps(document))
    (place / "config.json").write_text(json.dumps(bundle.config))
    return place


def genuine(bundle: Bundle) -> dict[str, Any]:
    """The state file of a container that has ended, as create wrote it."""
    bundle.args("true").run("--detach").ok()
    found = json.loads((bundle.state_root / bundle.id / "state.json").read_text())
    bundle.delete("--force").ok()
    assert isinstance(found, dict)
    return found


def every_verb(bundle: Bundle) -> None:
    """Each verb on what was forged, the removing ones last: all end, and say what they have to in a line."""
    for words in VERBS.values():
        result = bundle.verb(*(bundle.id if word == "ID" else word for word in words))
        plain(result)
        assert len(result.err.splitlines()) <= 2, result


# A state file that names the process of another: another pid, the right pid of another time, another boot.
# And one that names groups above or beside its own.
@pytest.mark.parametrize(
    "cgroup",
    ["/", "//", "/..", "/../..", "/./", "/../../SHARED", "SHARED", "/nestrt/../SHARED", "relative", "/a//b", 7],
)
def test_a_forged_group_is_not_removed(bundle: Bundle, cgroup: object) -> None:
    state = genuine(bundle)
    with bystander("b") as (process, group):
        text = cgroup.replace("SHARED", group.strip("/")) if isinstance(cgroup, str) else cgroup
        for key in ("cgroup", "parents"):
            forged = {**state, key: text if key == "cgroup" else [text]}
            if text == "":
                continue
            place = forge(bundle, forged)
            for verb in (("kill", "--all", bundle.id, "KILL"), ("delete", bundle.id), ("pause", bundle.id)):
                refused(bundle.verb(*verb), "it is damaged")
            assert process.poll() is None
            plain(bundle.verb("delete", "--force", bundle.id))
            assert process.poll() is None
            assert len(groups(group)) == len(hierarchies())
            assert not place.exists()


@pytest.mark.parametrize("boot", ["", "another"])
def test_a_forged_process_is_not_killed(bundle: Bundle, boot: str) -> None:
    state = genuine(bundle)
    with bystander("p") as (process, _):
        for start in (start_time(process.pid) + 1, 0, *([start_time(process.pid)] if boot else [])):
            forged = {**state, "pid": process.pid, "start": start, "boot": boot or state["boot"], "cgroup": ""}
            forge(bundle, forged)
            assert bundle.status == "stopped"
            refused(bundle.kill("KILL"), "container not running")
            refused(bundle.exec("true"), "container not running")
            bundle.delete("--force").ok()
            assert process.poll() is None
        for pid in (-1, 2**31, 2**70, "1", 1.5, True):
            forge(bundle, {**state, "pid": pid})
            every_verb(bundle)
            assert process.poll() is None


# The file itself is something else: each verb says so, none waits, none follows.
@pytest.mark.parametrize(
    "kind", ["link", "pipe", "directory", "huge", "device", "loop", "bytes", "array", "empty", "cut"]
)
def test_a_state_file_that_is_something_else(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    state = genuine(bundle)
    victim = tmp_path / "victim"
    victim.write_text(json.dumps(state))
    for verb in VERBS if kind in ("pipe", "cut") else ("state", "list", "kill --all", "delete", "delete --force"):
        place = forge(bundle, state)
        path = place / "state.json"
        path.unlink()
        if kind == "link":
            path.symlink_to(victim)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 34)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "loop":
            path.symlink_to("state.json")
        else:
            data = {"bytes": b"\xff\xfe\0", "array": b"[1]", "empty": b"", "cut": json.dumps(state).encode()[:-40]}
            path.write_bytes(data[kind])
        result = bundle.verb(*(bundle.id if word == "ID" else word for word in VERBS[verb]))
        plain(result)
        if verb.startswith("list"):
            assert "is damaged" in result.err or kind == "directory", result
        elif verb != "delete --force":
            refused(result)
        shutil.rmtree(place, ignore_errors=True)
    assert json.loads(victim.read_text()) == state


# Each key with each wrong type.
def test_a_state_file_with_wrong_types(bundle: Bundle) -> None:
    state = genuine(bundle)
    values = ("x\x1b[31m/../", 2**80, [[]], {"a": {"b": 1}}, None, 1e300)
    for number, key in enumerate([*state, "resources", "board", "unit"]):
        # A type in turn for each key, with the first process of somebody who is not there.
        for value in (values[number % 6], values[(number + 2) % 6]):
            forge(bundle, {**state, "pid": 1, key: value})
            plain(bundle.verb("kill", "--all", bundle.id, "KILL") if number % 2 else bundle.verb("state", bundle.id))
            plain(bundle.delete("--force"))
    assert bundle.leftovers() == []


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    *("v", "id", "pid", "start", "boot", "cgroup", "parents", "unit"),
    *("driver", "annotations", "bound", "board", "resctrl"),
)


# The same with whatever comes to mind, in process, for thousands: what load() lets pass has the types that others use.
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(document=some.dictionaries(some.sampled_from(KEYS), JSON, max_size=6) | JSON)
def test_whatever_a_state_file_says(tmp_path: Path, document: object) -> None:
    from nestrt.act import containers
    from nestrt.errors import NestrtError

    place = tmp_path / "c1"
    place.mkdir(exist_ok=True)
    (place / "state.json").write_text(json.dumps(document))
    try:
        found = containers.load(str(tmp_path), "c1")
    except NestrtError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "damaged" in message
        return
    assert found.cgroup == "" or (found.cgroup[:1] == "/" and os.path.normpath(found.cgroup) == found.cgroup)
    assert found.cgroup not in ("/", "//")
    assert all(os.path.normpath(path) == path and path != "/" for path in found.document.get("parents", ()))
    assert 0 <= found.pid + 1 <= 2**31
    assert all(isinstance(value, str) for value in found.annotations.values())
    assert found.status() in ("stopped", "running", "created", "paused", "creating")


# The directory is a link, or another user's: nothing there is believed, nothing in it is removed.
@pytest.mark.parametrize("kind", ["link", "owner", "root's owner", "anybody's root"])
@pytest.mark.parametrize("verb", [verb for verb in VERBS if not verb.startswith("list")])
def test_a_state_directory_of_another(bundle: Bundle, tmp_path: Path, kind: str, verb: str) -> None:
    with bystander("d") as (process, group):
        state = {"pid": process.pid, "start": start_time(process.pid), "cgroup": group, "id": bundle.id, "v": 1}
        state["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = forge(bundle, state)
        (place / "precious").write_text("keep")
        if kind == "link":
            place.rename(tmp_path / "elsewhere")
            place.symlink_to(tmp_path / "elsewhere")
        elif kind == "owner":
            os.chown(place, 1000, 1000)
        elif kind == "root's owner":
            os.chown(bundle.state_root, 1000, 1000)
        else:
            bundle.state_root.chmod(0o777)
        try:
            refused(bundle.verb(*(bundle.id if word == "ID" else word for word in VERBS[verb])), "cannot use")
            assert (place / "precious").exists()
            assert process.poll() is None
        finally:
            os.chown(bundle.state_root, 0, 0)
            bundle.state_root.chmod(0o755)
            place.unlink() if place.is_symlink() else shutil.rmtree(place)


# A --root that cannot be: not a directory, read-only, in a place that is not there.
@pytest.mark.parametrize("kind", ["file", "pipe", "device", "read-only"])
def test_a_root_that_cannot_be(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    paths = {"file": "file", "pipe": "pipe", "device": "/dev/null", "read-only": "/proc/nestrt"}
    log = tmp_path / "log"
    bundle.globals = ["--root", str(tmp_path / paths[kind]), "--log", str(log), "--log-format", "json"]
    refused(bundle.run(), log=log)
    refused(bundle.verb("state", bundle.id), log=log)
    bundle.globals = ["--root", str(bundle.state_root)]
    assert bundle.leftovers() == []


# A group that holds the processes of others is not taken, and what fails on the way does not end them.
@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("policy", [False, True])
def test_a_group_of_others_is_not_taken(bundle: Bundle, policy: bool) -> None:
    with bystander("g") as (process, group):
        if policy:
            bundle.virtual()
        for path in (group, f"/nowhere/..{group}", f"{group}/../{group.strip('/')}", "/", "/../.."):
            bundle.config["linux"]["cgroupsPath"] = path
            refused(bundle.run())
            assert process.poll() is None
            assert len(groups(group)) == len(hierarchies())


# Nothing that a document asks for goes above the hierarchies.
@pytest.mark.slow_on_vm(False)
def test_dots_in_a_groups_path(bundle: Bundle) -> None:
    bundle.config["linux"]["cgroupsPath"] = f"/../..{PARENT}/../../..{bundle.cgroup}"
    bundle.up()
    assert len(bundle.groups()) == len(hierarchies())
    os.kill(bundle.pid, signal.SIGKILL)
    bundle.await_status("stopped")
    bundle.delete().ok()
