"""``nestrt wrap``: a runtime that prepares guests, and is the real one in all else.

::

    caller ──▶ nestrt wrap --runtime runc ──exec──▶ runc      the same process, descriptors, environment, words
                 │ a policy?
                 ├ no:  nothing is made, nothing is changed
                 └ yes: limit group, record, config.json  ──▶ createRuntime: guest root, first group
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bundles import PARENT, Bundle
from support.guests import inside
from support.hostside import groups, has_v1, hierarchies, mark, v2_hierarchy
from support.plugin import (
    COMMAND,
    CRUN,
    NOTE,
    RECORDS,
    RUNC,
    RUNTIMES,
    Wrapped,
    memberships,
    records,
    records_of,
    standing,
    with_etc,
    wrapped_bundles,
)
from support.runner import Nestrt, wait_for
from support.terminals import console_socket, read_until

NewWrapped = Callable[..., Wrapped]
MIB = 1 << 20
MEMORY = "memory", "memory.limit_in_bytes", "memory.max"
PIDS = "pids", "pids.max", "pids.max"
# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm
on_each_host = pytest.mark.slow_on_vm(False)


@pytest.fixture
def new_wrapped(nestrt: Nestrt, busybox: Path) -> Iterator[NewWrapped]:
    yield from wrapped_bundles(nestrt, busybox)


@pytest.fixture
def wrapped(new_wrapped: NewWrapped) -> Wrapped:
    return new_wrapped()


@pytest.fixture(params=RUNTIMES, ids=os.path.basename)
def each(nestrt: Nestrt, busybox: Path, request: pytest.FixtureRequest) -> Iterator[Wrapped]:
    """A bundle for each runtime of this host."""
    for new in wrapped_bundles(nestrt, busybox, str(request.param)):
        yield new()


def told(result: Any, text: str, rc: int | None = None) -> None:
    """The verb failed with one line of nestrt's that has *text* in it."""
    assert result.rc != 0 if rc is None else result.rc == rc, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("nestrt: cannot "), result
    assert text in lines[0], result


def expected_groups(bundle: Bundle, v1: str, v2: str) -> dict[str, str]:
    return {str(h.mountpoint): bundle.cgroup + (v1 if h.version == 1 else v2) for h in hierarchies()}


# The whole life. On v1 the first process waits in the limit group: there engines look for the container's group.
@on_each_host
def test_from_create_to_delete(each: Wrapped, tmp_path: Path) -> None:
    each.guest().resources(memory={"limit": 64 * MIB}, pids={"limit": 50})
    each.shell("sleep 600 & exec sleep 601").create("--pid-file", str(tmp_path / "pid")).ok()
    pid = int((tmp_path / "pid").read_text())
    assert each.status == "created"
    assert each.pid == pid
    assert memberships(pid) == expected_groups(each, "", "/guest/init")
    assert standing(*MEMORY[:1], each.cgroup, *MEMORY[1:]) == str(64 * MIB)
    found = mark(each.cgroup)
    assert (found["name"], found["level"], found["pid"]) == (each.id, 1, pid)
    record = each.record()
    assert record["group"] == each.cgroup
    assert each.document["linux"]["cgroupsPath"] == f"{each.cgroup}/guest"
    each.start().ok()
    wait_for(lambda: len(each.document["hooks"]) and each.status == "running", "it to run")
    assert memberships(pid) == expected_groups(each, "/guest/init", "/guest/init")
    assert mark(each.cgroup)["state"] == "running"
    shown = each.exec("cat", "/proc/self/cgroup", inside(MEMORY[0], "/", *MEMORY[1:])).ok().out.split()
    assert {row.split(":")[2] for row in shown[:-1]} <= {"/", "/init"}
    assert shown[-1] == str(64 * MIB)
    each.kill("KILL").ok()
    each.await_status("stopped")
    each.delete().ok()
    each.gone()


# run in the foreground: its output, its status; and all is away when it returns.
def test_run(each: Wrapped) -> None:
    each.guest()
    result = each.shell("echo out; echo wrong >&2; exit 7").run()
    assert (result.rc, result.out, result.err) == (7, "out\n", "wrong\n"), result
    assert each.leftovers() == []
    result = each.args("cat").run(input="given\n")
    assert (result.rc, result.out) == (0, "given\n"), result
    assert each.leftovers() == []


def without_names(text: str, bundle: Wrapped) -> str:
    """*text* without what differs from run to run: times, ids, numbers of processes."""
    words = []
    for word in text.split():
        if not word.startswith("time=") and "/proc/self/fd/" not in word:
            words.append(word.replace(bundle.id, "ID").replace(str(bundle.path), "BUNDLE"))
    return " ".join(words)


STATUSES = {
    "exit": ["sh", "-c", "exit 3"],
    "killed": ["sh", "-c", "kill -KILL $$"],
    "not there": ["nosuch"],
    "no such path": ["/nosuch/program"],
    "a directory": ["/etc"],
    "not executable": ["/etc/passwd"],
}


# What the runtime says of its own, it says with the plugin too, with the same status; and nothing stays.
@pytest.mark.parametrize("policy", ["", "nested"])
@pytest.mark.parametrize("name", STATUSES)
def test_statuses_and_texts(new_wrapped: NewWrapped, name: str, policy: str) -> None:
    one, other = new_wrapped(), new_wrapped()
    if policy:
        other.guest(policy)
    plain = one.args(*STATUSES[name]).plain(*one.words_of_runtime("run"))
    result = other.args(*STATUSES[name]).run()
    assert result.rc == plain.rc, (result, plain)
    assert without_names(result.out, other) == without_names(plain.out, one)
    assert without_names(result.err, other) == without_names(plain.err, one)
    other.gone()


def test_verbs_that_fail(wrapped: Wrapped) -> None:
    """Of a container that is not there, of one in another state, and with wrong options: the runtime's own words."""
    calls: list[list[str]] = [
        ["start", "nobody"],
        ["state", "nobody"],
        ["kill", "nobody", "TERM"],
        ["delete", "nobody"],
        ["delete", "--force", "nobody"],
        ["exec", "nobody", "true"],
        ["pause", "nobody"],
        ["update", "--memory", "1", "nobody"],
        ["ps", "nobody"],
        ["create"],
        ["create", "--nosuch", "x"],
        ["run", "--bundle", "/nosuch", "x"],
        ["run", "--bundle"],
        ["nosuch"],
        ["start"],
        ["delete"],
        ["update"],
        ["list"],
        ["--version"],
        ["create", "--help"],
        [],
    ]
    for words in calls:
        plain = wrapped.plain(*words)
        result = wrapped.nestrt.run(*wrapped.globals, *words)
        assert (result.rc, result.out) == (plain.rc, plain.out), (result, plain)
        assert without_names(result.err, wrapped) == without_names(plain.err, wrapped), words
    assert not [path for path in groups(f"{PARENT}/x") if path.exists()]


def test_verbs_that_fail_for_a_guest(wrapped: Wrapped) -> None:
    wrapped.guest().up()
    for words in (["create", "--bundle", str(wrapped.path), wrapped.id], ["start", wrapped.id], ["delete", wrapped.id]):
        plain = wrapped.plain(*words)
        result = wrapped.nestrt.run(*wrapped.globals, *words)
        assert result.rc == plain.rc, (result, plain)
        if words[0] != "create":  # that it lives nestrt says first
            assert without_names(result.err, wrapped) == without_names(plain.err, wrapped), words
        assert wrapped.status == "running"
    assert memberships(wrapped.pid) == expected_groups(wrapped, "/guest/init", "/guest/init")
    assert wrapped.record()


# Law 7, opt-in: no policy, no change, in the document to the byte, in the groups to the attribute.
@on_each_host
def test_without_a_policy(each: Wrapped) -> None:
    each.write()
    path = each.path / "config.json"
    path.write_text(path.read_text() + "  \n\n")
    before = path.read_bytes(), path.stat()
    each.nestrt.run(*each.globals, "create", "--bundle", str(each.path), each.id).ok()
    after = path.read_bytes(), path.stat()
    assert after[0] == before[0]
    assert [getattr(after[1], name) for name in ("st_ino", "st_mtime_ns", "st_ctime_ns")] == [
        getattr(before[1], name) for name in ("st_ino", "st_mtime_ns", "st_ctime_ns")
    ]
    assert not records_of(each)
    assert set(os.listdir(each.path)) == {"config.json"}
    assert memberships(each.pid) == expected_groups(each, "", "")
    for place in each.groups():
        assert not [name for name in os.listxattr(place) if "nestrt" in name]
        assert not [entry for entry in os.listdir(place) if (place / entry).is_dir()]
    each.start().ok()
    assert each.id not in each.nestrt.run("ls").ok().out


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a namespace twice": lambda c: c["linux"]["namespaces"].append({"type": "pid"}),
    "names in other cases": lambda c: c.update(Hostname="x", HOSTNAME="y"),
    "an unknown mount option": lambda c: c["mounts"][0].update(options=["nosuch"]),
    "no mounts": lambda c: c.pop("mounts"),
    "no linux": lambda c: c.pop("linux"),
    "a number as text": lambda c: c["process"]["user"].update(uid="0"),
    "a device without access": lambda c: c["linux"]["resources"].update(devices=[{"allow": True, "type": "c"}]),
    "a limit out of range": lambda c: c["linux"]["resources"].update(pids={"limit": 2**70}),
    "a word of ours in the environment": lambda c: c["process"]["env"].append("A=nestrt.level"),
    "another annotation": lambda c: c.update(annotations={"io.nestrt.limit-group.x": "1", "x": "nestrt.policy"}),
    "an annotation that is no text": lambda c: c.update(annotations={"x": 1}),
}


# A document that has no policy is the runtime's business, however odd: the same words, nothing made, nothing changed.
@pytest.mark.parametrize("name", ODD)
def test_odd_documents_without_a_policy(new_wrapped: NewWrapped, name: str) -> None:
    one, other = new_wrapped(), new_wrapped()
    for bundle in (one, other):
        bundle.shell("echo ran")
        ODD[name](bundle.config)
    plain = one.plain(*one.words_of_runtime("run"))
    result = other.run()
    assert (result.rc, result.out) == (plain.rc, plain.out), (result, plain)
    assert without_names(result.err, other) == without_names(plain.err, one)
    assert other.document == other.config


@pytest.mark.parametrize("content", ["", "{", "[]", "\ufeff{}", '{"x": NaN}', '{"linux": 1}', "nestrt."])
def test_what_is_no_document(wrapped: Wrapped, content: str) -> None:
    """The runtime says what is wrong with it; where a policy might be meant, nestrt does, in one line."""
    (wrapped.path / "config.json").write_text(content)
    words = ["run", "--bundle", str(wrapped.path), wrapped.id]
    plain, result = wrapped.plain(*words), wrapped.nestrt.run(*wrapped.globals, *words)
    assert result.rc == plain.rc != 0
    assert "Traceback" not in result.err
    if "nestrt." not in content:
        assert without_names(result.err, wrapped) == without_names(plain.err, wrapped)
    else:
        told(result, "config.json")
    assert (wrapped.path / "config.json").read_text() == content


def test_places_of_the_document(wrapped: Wrapped, tmp_path: Path) -> None:
    """No file, a directory, a link: without a policy as the runtime has it."""
    words = ["run", "--bundle", str(wrapped.path), wrapped.id]
    path = wrapped.path / "config.json"

    def alike() -> str:
        plain, result = wrapped.plain(*words), wrapped.nestrt.run(*wrapped.globals, *words)
        assert (result.rc, result.out) == (plain.rc, plain.out), (result, plain)
        assert without_names(result.err, wrapped) == without_names(plain.err, wrapped)
        return result.out

    alike()
    path.mkdir()
    alike()
    path.rmdir()
    path.symlink_to(tmp_path / "nosuch")
    alike()
    path.unlink()
    wrapped.shell("echo ran").write()
    path.rename(tmp_path / "real.json")
    path.symlink_to(tmp_path / "real.json")
    assert alike() == "ran\n"
    assert path.is_symlink()


# With a policy a link is followed, the file it names is changed or replaced, and the link's own mode is nobody's.
def test_a_link_to_the_document(wrapped: Wrapped, tmp_path: Path) -> None:
    wrapped.guest().shell("cut -d: -f3 /proc/self/cgroup | sort -u").write()
    path = wrapped.path / "config.json"
    path.chmod(0o640)
    path.rename(tmp_path / "real.json")
    path.symlink_to(tmp_path / "real.json")
    result = wrapped.nestrt.run(*wrapped.globals, "run", "--bundle", str(wrapped.path), wrapped.id)
    if result.rc == 0:
        assert result.out == "/init\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    else:
        told(result, "config.json")
        assert path.is_symlink()
    wrapped.gone()


def test_the_document_keeps_mode_and_owner(wrapped: Wrapped) -> None:
    wrapped.guest().args("true").write()
    path = wrapped.path / "config.json"
    path.chmod(0o640)
    os.chown(path, 12, 34)
    wrapped.nestrt.run(*wrapped.globals, "run", "--bundle", str(wrapped.path), wrapped.id).ok()
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 12, 34)
    # Again from what was written: the same document, and one that works.
    first = path.read_bytes()
    wrapped.nestrt.run(*wrapped.globals, "run", "--bundle", str(wrapped.path), wrapped.id).ok()
    assert path.read_bytes() == first


def test_a_directory_that_cannot_be_written(wrapped: Wrapped) -> None:
    """With a policy: one line, nothing made. Without: it runs."""
    wrapped.shell("echo ran").write()
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'

    def read_only(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(wrapped.path), COMMAND, *wrapped.globals, *words]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    done = read_only("run", "--bundle", str(wrapped.path), wrapped.id)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done
    wrapped.guest().write()
    done = read_only("run", "--bundle", str(wrapped.path), wrapped.id)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "read-only file system" in done.stderr.lower()
    assert str(wrapped.path) in done.stderr
    assert wrapped.leftovers() == []


def test_where_the_bundle_is(wrapped: Wrapped, tmp_path: Path) -> None:
    """Without --bundle it is the working directory; -b, -f and = are the same as the long words."""
    wrapped.guest().shell("cut -d: -f3 /proc/self/cgroup | sort -u").write()
    wrap = wrapped.globals
    for words, cwd in (
        (["run", wrapped.id], wrapped.path),
        (["run", "-b", ".", wrapped.id], wrapped.path),
        (["run", f"--bundle={wrapped.path}", wrapped.id], tmp_path),
        (["run", f"-bundle={wrapped.path}", "--", wrapped.id], tmp_path),
        (["run", "--bundle", os.path.relpath(wrapped.path, tmp_path), wrapped.id], tmp_path),
    ):
        result = wrapped.nestrt.run(*wrap, *words, cwd=cwd)
        assert (result.rc, result.out) == (0, "/init\n"), (words, result)
        wrapped.write()
    wrapped.gone()


# Runtimes keep containers apart by --root: the same id twice, each with its own group and record.
def test_one_id_under_two_roots(new_wrapped: NewWrapped, tmp_path: Path) -> None:
    one, other = (new_wrapped("nestrt-w-twice", state=tmp_path / name) for name in "ab")
    other.cgroup = other.config["linux"]["cgroupsPath"] = f"{PARENT}/twice-b"
    for bundle, limit in ((one, 40), (other, 60)):
        bundle.guest().resources(pids={"limit": limit}).up()
    assert standing("pids", one.cgroup, *PIDS[1:]) == "40"
    assert standing("pids", other.cgroup, *PIDS[1:]) == "60"
    one.delete("--force").ok()
    one.gone()
    assert other.status == "running"
    other.verb("update", "--pids-limit", "70", other.id).ok()
    assert standing("pids", other.cgroup, *PIDS[1:]) == "70"
    # The same group is one guest's.
    third = new_wrapped("nestrt-w-twice", state=tmp_path / "c").guest()
    third.cgroup = third.config["linux"]["cgroupsPath"] = other.cgroup
    result = third.args("true").run()
    told(result, "is not empty")
    assert other.status == "running"
    assert other.record()["root"] == str(tmp_path / "b")
    third.cgroup = f"{PARENT}/nobodys"


# --- terminals and descriptors ------------------------------------------------------------------------


def test_a_terminal_by_the_console_socket(each: Wrapped, tmp_path: Path) -> None:
    each.guest().config["process"].update(terminal=True, consoleSize={"height": 33, "width": 99})
    each.shell("tty; cut -d: -f3 /proc/self/cgroup | sort -u; echo end; read x; echo got $x")
    with console_socket(tmp_path) as (path, take):
        creating = each.begin(*each.words("create", "--console-socket", path))
        master = take()
        assert creating.finish().ok().err == ""
        try:
            each.start().ok()
            out = read_until(master, "end")
            assert "/dev/pts/0" in out
            assert "/init" in out
            os.write(master, b"word\n")
            assert "got word" in read_until(master, "got word")
            each.await_status("stopped")
            each.delete().ok()
        finally:
            os.close(master)
    each.gone()


def test_terminals_of_exec_and_run(wrapped: Wrapped, tmp_path: Path) -> None:
    wrapped.guest().up()
    with console_socket(tmp_path) as (path, take):
        options = ["--tty", "--detach", "--console-socket", path]
        program = ["sh", "-c", "tty; echo end; sleep 9"]
        executing = wrapped.begin(*wrapped.globals, "exec", *options, wrapped.id, *program)
        master = take()
        executing.finish().ok()
        assert "/dev/pts/0" in read_until(master, "end")
        os.close(master)
    wrapped.delete("--force").ok()
    wrapped.config["process"]["terminal"] = True
    plain = wrapped.plain(*wrapped.words_of_runtime("create"))
    result = wrapped.create()
    assert result.rc == plain.rc
    assert without_names(result.err, wrapped) == without_names(plain.err, wrapped)
    wrapped.delete("--force")
    wrapped.gone()


def test_preserved_descriptors(wrapped: Wrapped, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one\n")
    (tmp_path / "two").write_text("two\n")
    words = wrapped.guest().shell("cat <&3; cat <&4; ls /proc/self/fd | wc -l").words("run", "--preserve-fds", "2")
    shell = f'exec 3<{tmp_path}/one 4<{tmp_path}/two; exec "$@"'
    argv = ["sh", "-c", shell, "sh", COMMAND, *words]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.stdout.splitlines() == ["one", "two", "6"], done
    wrapped.gone()


# A stand-in that writes down what it was started with.
STAND_IN = """#!/bin/sh
{
  echo pid $$ $PPID; pwd; umask; ulimit -a
  for fd in /proc/$$/fd/*; do echo "${fd##*/} $(readlink $fd)"; done
  grep -E '^(Sig|Shd|Cap|NoNewPrivs|Seccomp|Threads)' /proc/$$/status | grep -v SigQ
  cut -d' ' -f5-8 /proc/$$/stat
  tr '\\0' '\\n' < /proc/$$/cmdline
  echo environment; env | sort
  wc -w < /proc/$$/task/$$/children; cat /proc/$$/oom_score_adj /proc/$$/timerslack_ns
  echo input; cat
} > "$OUT"
exit 9
"""


@pytest.mark.parametrize("policy", ["", "nested"])
def test_what_the_runtime_starts_with(wrapped: Wrapped, tmp_path: Path, policy: str) -> None:
    """The same process, descriptors, environment, signals, directory, limits: as without the plugin."""
    stand_in = tmp_path / "runtime"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    if policy:
        wrapped.guest(policy)
    words = wrapped.words_of_runtime("create", "--pid-file", "x")
    extra = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(extra, True)
    texts = []
    for prefix in ([], [COMMAND, "wrap", "--runtime"]):
        out = tmp_path / f"out-{len(texts)}"
        argv = [*prefix, str(stand_in), "--root", str(wrapped.state_root), *words]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"OUT": str(out), "A": "b c", "_OCI_SYNCPIPE": "3", "LISTEN_FDS": "1"},
            cwd=tmp_path,
            pass_fds=[extra],
            umask=0o037,
            start_new_session=True,
        )
        process.communicate(b"given\n")
        assert process.returncode == 9
        text = out.read_text().replace(str(out), "OUT")
        assert f"pid {process.pid} {os.getpid()}\n" in text, text
        texts.append(text.replace(str(process.pid), "PID"))
        if policy and prefix:
            assert wrapped.record()["maker"] == process.pid
    os.close(extra)
    texts = [re.sub(r"pipe:\[\d+\]", "pipe", text) for text in texts]
    assert texts[0].splitlines() == texts[1].splitlines()
    assert "given" in texts[0]
    row = next(line for line in texts[1].splitlines() if line.startswith("SigIgn:"))
    ignored = int(row.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
    # The stand-in has made no container: delete by force takes back what was prepared for it.
    if policy:
        assert wrapped.groups()
        wrapped.delete("--force")
        wrapped.gone()


def test_a_runtime_that_is_not_there(wrapped: Wrapped, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = tmp_path / "log.json"
    for name in ("/nosuch/runc", "nosuch", str(tmp_path), str(tmp_path / "file"), COMMAND, ""):
        words = ["--log", str(log), "--log-format", "json", "create", "--bundle", str(wrapped.path), wrapped.id]
        told(wrapped.nestrt.run("wrap", "--runtime", name, *words), "runtime", 1)
        *_, last = log.read_text().splitlines()
        assert json.loads(last)["level"] == "error"
    told(wrapped.nestrt.run("wrap", "create", "x"), "none is named", 2)
    told(wrapped.nestrt.run("wrap", "--runtime"), "--runtime", 2)
    told(wrapped.nestrt.run("wrap", "--runtime", RUNC, "--policy"), "--policy", 2)
    assert "usage: nestrt wrap" in wrapped.nestrt.run("wrap", "--help").ok().out


# --- what cannot be a guest -----------------------------------------------------------------------------

HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "the root group": (lambda c: c["linux"].update(cgroupsPath="/"), "root group"),
    "above it": (lambda c: c["linux"].update(cgroupsPath="/.."), "root group"),
    "dots": (lambda c: c["linux"].update(cgroupsPath="/a/../../."), "root group"),
    "a scope": (lambda c: c["linux"].update(cgroupsPath="system.slice:runc:x"), "systemd scope"),
    "a forged note": (lambda c: c["annotations"].update({NOTE: "/elsewhere"}), NOTE),
    "a note without a path": (lambda c: c["annotations"].update({NOTE: ""}), NOTE),
    "the host's groups": (lambda c: c["annotations"].update({NOTE: "/"}), NOTE),
    "no mount namespace": (lambda c: c["linux"].update(namespaces=[{"type": "pid"}]), "mount namespace"),
    "a joined namespace": (
        lambda c: c["linux"]["namespaces"].append({"type": "cgroup", "path": "/proc/1/ns/cgroup"}),
        "cgroup namespace",
    ),
    "another spelling": (lambda c: c["linux"].update(CgroupsPath="/x"), "in another case"),
    "an unknown policy": (lambda c: c["annotations"].update({"nestrt.policy": "nosuch"}), "nosuch"),
    "an unknown annotation": (lambda c: c["annotations"].update({"nestrt.nosuch": "x"}), "nestrt.nosuch"),
    "more than the host allows": (
        lambda c: c["annotations"].update({"nestrt.partition.max_groups": "5000"}),
        "nestrt.partition.max_groups",
    ),
    "a wrong type": (lambda c: c.update(mounts={}), "mounts"),
    "a NUL": (lambda c: c["linux"].update(cgroupsPath="/a\0b"), "NUL"),
    "a deep path": (lambda c: c["linux"].update(cgroupsPath=f"/nestrt-deep-{'x' * 240}" * 20), "too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_a_guest(wrapped: Wrapped, tmp_path: Path, name: str) -> None:
    """One line, in the log too; the document is as it was, and nothing has been made."""
    wrapped.guest().args("true")
    change, text = HOSTILE[name]
    change(wrapped.config)
    path = wrapped.config["linux"]["cgroupsPath"]
    tops = {"/guest", "/" + path.strip("/").partition("/")[0], "/elsewhere"} - {"/", "/..", PARENT}
    wrapped.write()
    content = (wrapped.path / "config.json").read_bytes()
    log = tmp_path / "log"
    words = ["--log", str(log), "--log-format", "json", "create", "--bundle", str(wrapped.path), wrapped.id]
    result = wrapped.nestrt.run(*wrapped.globals, *words)
    told(result, text, 1)
    entry = json.loads(log.read_text())
    assert entry["level"] == "error"
    assert result.err == f"nestrt: {entry['msg']}\n"
    assert (wrapped.path / "config.json").read_bytes() == content
    assert not records_of(wrapped)
    left = [place for top in tops if "\0" not in top for place in groups(top)]
    for place in left:
        for directory, _, _ in os.walk(place, topdown=False):
            os.rmdir(directory)
    assert not left


def test_a_relative_path_is_below_the_callers_group(wrapped: Wrapped) -> None:
    """As under runc on v1; in the v2 tree beside it. Two dots do not lead out."""
    wrapped.guest().config["linux"]["cgroupsPath"] = f"nestrt-w-relative-{os.getpid()}/../x"
    wrapped.shell("cut -d: -f3 /proc/self/cgroup | sort -u")
    result = wrapped.run()
    assert (result.rc, result.out) == (0, "/init\n"), result
    group = wrapped.document["annotations"][NOTE]
    assert ".." not in group
    assert group.endswith("/x")
    assert not groups(group)
    assert not [r for r in records().values() if r.get("group") == group]


# systemd's driver cannot be divided by another runtime: said before anything is made.
def test_the_systemd_driver(wrapped: Wrapped) -> None:
    wrapped.guest().args("true").write()
    words = ["--systemd-cgroup", "create", "--bundle", str(wrapped.path), wrapped.id]
    told(wrapped.nestrt.run(*wrapped.globals, *words), "systemd", 1)
    assert wrapped.leftovers() == []


def test_policies_of_the_command_line(wrapped: Wrapped) -> None:
    """--policy is the host's word: it holds without an annotation, and an annotation cannot leave it."""
    wrapped.host_policy = "strict"
    place = hierarchies()[0].mountpoint
    result = wrapped.shell(f"cut -d: -f3 /proc/self/cgroup | sort -u; mkdir {place}/x").run()
    assert "Read-only file system" in result.err, result
    assert result.out == "/init\n"
    wrapped.gone()
    wrapped.annotate(level__virtualize="false")
    told(wrapped.args("true").run(), "nestrt.level.virtualize", 1)
    wrapped.host_policy = "nosuch"
    told(wrapped.args("true").run(), "nosuch", 1)
    assert wrapped.leftovers() == []


# --- update -----------------------------------------------------------------------------------------------


def limits(bundle: Wrapped) -> tuple[str, str, str, str]:
    """(memory, pids) of the limit group, and of the guest root."""
    found = [standing(file[0], bundle.cgroup + below, *file[1:]) for below in ("", "/guest") for file in (MEMORY, PIDS)]
    return found[0], found[1], found[2], found[3]


@on_each_host
def test_update(each: Wrapped) -> None:
    """Down and up, by flags and by JSON: limit group, guest root and what the guest reads go together."""
    each.guest().resources(memory={"limit": 64 * MIB}, pids={"limit": 50}).up()
    assert limits(each) == (str(64 * MIB), "50", str(64 * MIB), "50")
    each.verb("update", "--memory", str(32 * MIB), "--pids-limit", "20", each.id).ok()
    assert limits(each) == (str(32 * MIB), "20", str(32 * MIB), "20")
    resources = json.dumps({"memory": {"limit": 96 * MIB}, "pids": {"limit": 90}})
    each.verb("update", "--resources", "-", each.id, input=resources).ok()
    assert limits(each) == (str(96 * MIB), "90", str(96 * MIB), "90")
    shown = each.exec("cat", inside("pids", "/", *PIDS[1:])).ok().out
    assert shown == "90\n"
    # What was not named stays.
    each.verb("update", "--pids-limit", "30", each.id).ok()
    assert limits(each) == (str(96 * MIB), "30", str(96 * MIB), "30")
    assert mark(each.cgroup)["limits"]["pids"] == 30


# The host's [limits] hold beside the document's and beside every update's.
def test_update_within_a_policy(wrapped: Wrapped, tmp_path: Path) -> None:
    (tmp_path / "etc/nestrt/policies").mkdir(parents=True)
    (tmp_path / "etc/nestrt/bindings.toml").write_text('[[rule]]\npolicy = "bounded"\n')
    (tmp_path / "etc/nestrt/policies/bounded.toml").write_text('[limits]\nmemory = "48M"\npids = 40\n')
    wrapped.nestrt = with_etc(tmp_path / "etc", tmp_path)
    wrapped.resources(memory={"limit": 64 * MIB}, pids={"limit": 30}).up()
    assert limits(wrapped) == (str(48 * MIB), "30", str(48 * MIB), "30")
    wrapped.verb("update", "--memory", str(1 << 30), "--pids-limit", "-1", wrapped.id).ok()
    assert limits(wrapped) == (str(48 * MIB), "40", str(48 * MIB), "40")
    wrapped.verb("update", "--pids-limit", "10", wrapped.id).ok()
    assert limits(wrapped) == (str(48 * MIB), "10", str(48 * MIB), "10")
    wrapped.verb("update", "--memory", str(16 * MIB), wrapped.id).ok()
    assert limits(wrapped) == (str(16 * MIB), "10", str(16 * MIB), "10")


REFUSED = (
    ["--memory", "much"],
    ["--cpu-period", "5", "--cpu-quota", "2000", "--pids-limit", "9"],
    ["--cpuset-cpus", "99", "--memory", str(16 * MIB)],
    ["--blkio-weight", "5"],
    ["--resources", "/nosuch"],
    ["--nosuch", "1"],
)


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_an_update_that_is_refused(wrapped: Wrapped, words: list[str]) -> None:
    """Whoever refuses it: one line, and every group has what it had."""
    wrapped.guest().resources(memory={"limit": 64 * MIB}, pids={"limit": 50}).up()
    before = limits(wrapped), wrapped.record(), mark(wrapped.cgroup)
    result = wrapped.verb("update", *words, wrapped.id)
    assert result.rc != 0
    assert "Traceback" not in result.err
    assert (limits(wrapped), wrapped.record(), mark(wrapped.cgroup)) == before
    assert wrapped.verb("update", "--pids-limit", "40", wrapped.id).rc == 0
    assert limits(wrapped)[1] == "40"


def test_an_update_that_the_runtime_refuses(wrapped: Wrapped, tmp_path: Path) -> None:
    """The limit group has been written by then: it goes back."""
    wrapped.guest().resources(memory={"limit": 64 * MIB}, pids={"limit": 50}).up()
    stand_in = tmp_path / "runtime"
    stand_in.write_text(f'#!/bin/sh\ncase "$*" in *update*) echo "no, never" >&2; exit 6;; esac\nexec {RUNC} "$@"\n')
    stand_in.chmod(0o755)
    before = limits(wrapped), wrapped.record(), mark(wrapped.cgroup)
    wrapped.runtime = str(stand_in)
    result = wrapped.verb("update", "--pids-limit", "30", "--memory", str(32 * MIB), wrapped.id)
    assert (result.rc, result.err) == (6, "no, never\n"), result
    assert (limits(wrapped), wrapped.record(), mark(wrapped.cgroup)) == before


@pytest.mark.v1
def test_less_memory_than_is_in_use(wrapped: Wrapped) -> None:
    wrapped.guest().resources(memory={"limit": 256 * MIB})
    wrapped.config["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["rw"]})
    wrapped.up("dd if=/dev/zero of=/mnt/x bs=1M count=60; exec sleep 600")
    wait_for(lambda: int(standing("memory", wrapped.cgroup, "memory.usage_in_bytes", "")) > 60 * MIB, "its memory")
    before = limits(wrapped)
    result = wrapped.verb("update", "--memory", str(8 * MIB), "--memory-swap", str(8 * MIB), wrapped.id)
    told(result, "linux.resources.memory")
    assert limits(wrapped) == before


# --- the rest of the command line -------------------------------------------------------------------------


def test_verbs_that_are_the_runtimes_own(wrapped: Wrapped) -> None:
    """ps, list, events, pause, resume, kill --all: for a guest with a child group, of which runc knows nothing."""
    place = " ".join(f"{h.mountpoint}/web" for h in hierarchies())
    program = f"mkdir {place}; (for p in {place}; do echo 0 > $p/cgroup.procs; done; exec sleep 600) & exec sleep 601"
    wrapped.guest().up(program)
    web = hierarchies()[0].group(f"{wrapped.cgroup}/guest/web/cgroup.procs")
    wait_for(lambda: web.exists() and web.read_text(), "its child group to have a process")
    rows = json.loads(wrapped.verb("ps", "--format", "json", wrapped.id).ok().out)
    assert len(rows) == 2
    assert wrapped.id in wrapped.verb("list", "-q").ok().out.split()
    stats = json.loads(wrapped.verb("events", "--stats", wrapped.id).ok().out)
    assert stats["data"]["pids"]["current"] == 2
    wrapped.verb("pause", wrapped.id).ok()
    assert wrapped.status == "paused"
    wrapped.verb("resume", wrapped.id).ok()
    assert wrapped.status == "running"
    wrapped.kill("KILL", "--all").ok()
    wrapped.await_status("stopped")
    wrapped.delete().ok()
    wrapped.gone()


# A container with frozen groups of its own, deleted by force: they go too.
@on_each_host
def test_delete_by_force(each: Wrapped) -> None:
    place = " ".join(f"{h.mountpoint}/web" for h in hierarchies())
    freeze = "echo FROZEN > $p/freezer.state" if has_v1("freezer") else "echo 1 > $p/cgroup.freeze"
    program = (
        f"mkdir {place}; (for p in {place}; do echo 0 > $p/cgroup.procs; done; exec sleep 600) & sleep 1;"
        f"for p in {place}; do [ ! -e $p/freezer.state -a ! -e $p/cgroup.freeze ] || {freeze}; done 2>/dev/null;"
        "exec sleep 601"
    )
    each.guest().up(program)
    web = hierarchies()[0].group(f"{each.cgroup}/guest/web")
    wait_for(lambda: web.exists() and (web / "cgroup.procs").read_text(), "its child group to have a process")
    each.delete("--force", timeout=30).ok()
    each.gone()


def test_hooks_of_others(wrapped: Wrapped, tmp_path: Path) -> None:
    """They run before nestrt's; one that fails ends the container, and all goes."""
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\ncat > {tmp_path}/state; echo "$*" >> {tmp_path}/ran\n')
    hook.chmod(0o755)
    for stage in ("prestart", "createRuntime", "poststart", "poststop"):
        wrapped.hook(stage, str(hook), stage)
    wrapped.guest().args("true").run().ok()
    ran = (tmp_path / "ran").read_text().split()
    assert [word for word in ran if word != str(hook)] == ["prestart", "createRuntime", "poststart", "poststop"]
    assert json.loads((tmp_path / "state").read_text())["annotations"][NOTE] == wrapped.cgroup
    wrapped.gone()


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_hook_that_fails(wrapped: Wrapped, tmp_path: Path, stage: str) -> None:
    """It ends the container, and all goes with it."""
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    hook.chmod(0o755)
    (tmp_path / "rootfs").mkdir()
    if stage == "startContainer":  # runs in the container
        wrapped.guest().hook(stage, "/bin/false")
    else:
        wrapped.guest().hook(stage, str(hook))
    result = wrapped.args("true").run()
    assert result.rc == 1, result
    assert "no such thing" in result.err or stage == "startContainer"
    wrapped.gone()


@pytest.mark.parametrize("stage", ["poststart", "poststop"])
def test_a_hook_that_fails_later(wrapped: Wrapped, tmp_path: Path, stage: str) -> None:
    """runc leaves out what stands behind a hook that fails: nestrt's clean-up is not behind others'."""
    wrapped.guest().hook(stage, "/bin/false").args("true").run()
    wrapped.gone()


def test_again_and_again(wrapped: Wrapped) -> None:
    """The bundle's rewritten document is one to begin with: what engines restart is a guest again."""
    wrapped.guest().resources(pids={"limit": 50}).shell("cut -d: -f3 /proc/self/cgroup | sort -u").write()
    for _ in range(3):
        result = wrapped.nestrt.run(*wrapped.globals, "run", "--bundle", str(wrapped.path), wrapped.id)
        assert (result.rc, result.out) == (0, "/init\n"), result
        wrapped.gone()
    # Past the plugin nobody has made the limit group: it does not run with looser limits than were asked for.
    result = wrapped.plain("run", "--bundle", str(wrapped.path), wrapped.id)
    for top in groups(wrapped.cgroup):
        for place in (*top.glob("guest"), top):
            place.rmdir()
    assert result.rc != 0, result
    assert result.out == ""


NAMES = ("libpod-" + "0a" * 32, "docker-x.scope", "x" * 200, "ü", "a b", "..a", "nestrt")


# A guest is known by its container's id, of which its group's name is made; two names are never one guest's.
def test_names(wrapped: Wrapped) -> None:
    found = []
    for number, name in enumerate(NAMES):
        wrapped.guest().config["linux"]["cgroupsPath"] = f"{wrapped.cgroup}/{name}"
        wrapped.shell("exec sleep 600").run("--detach").ok()
        rows = json.loads(wrapped.nestrt.run("ls", "--format", "json").ok().out)
        (row,) = (row for row in rows if row["path"] == f"{wrapped.cgroup}/{name}")
        found.append(row["name"])
        if number == 0:
            assert row["name"] == "0a" * 32
        wrapped.delete("--force").ok()
        wrapped.gone()
    assert len(set(found)) == len(NAMES)


def test_the_state_of_the_record(wrapped: Wrapped) -> None:
    """root's alone, one for each guest, gone with it."""
    wrapped.guest().up()
    (name,) = (name for name, values in records().items() if values.get("group") == wrapped.cgroup)
    found = (RECORDS / name).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0)
    assert stat.S_IMODE(RECORDS.stat().st_mode) == 0o700
    values = wrapped.record()
    assert (values["root"], values["container"]) == (str(wrapped.state_root), wrapped.id)
    assert (values["bundle"], values["pid"]) == (str(wrapped.path), wrapped.pid)
    wrapped.delete("--force").ok()
    assert not (RECORDS / name).exists()


@pytest.mark.v2
@on_each_host
def test_the_v2_tree(each: Wrapped) -> None:
    """Controllers are enabled below the guest root, the caps stand on the limit group, and crun's own group is none."""
    tree = v2_hierarchy()
    assert tree is not None
    each.guest().annotate(partition__max_groups="7", partition__max_depth="4").resources(pids={"limit": 50}).up()
    group = tree.group(each.cgroup)
    assert (group / "cgroup.max.descendants").read_text() == "7\n"
    assert (group / "cgroup.max.depth").read_text() == "4\n"
    assert not (group / "cgroup.procs").read_text()
    enabled = set((group / "guest/cgroup.subtree_control").read_text().split())
    assert {"cpu", "memory", "pids", "io", "cpuset"} <= enabled
    assert sorted(path.name for path in group.iterdir() if path.is_dir()) == ["guest"]
    inner = sorted(path.name for path in (group / "guest").iterdir() if path.is_dir())
    assert inner == ["init"], inner
    assert each.runtime in (RUNC, CRUN)
