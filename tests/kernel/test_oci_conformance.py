"""What the runtime specification and runc have in common, and engines rely on: words, statuses, keys, and nothing left.

A bundle that cannot be made into a container:

    create ──▶ one line on standard error, the same in the log, status 1, and neither group, state, mount nor process
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Bundle
from support.hostside import hierarchies, processes
from support.need import SLOW
from support.runner import Result, wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]
Change = Callable[[dict[str, Any]], object]


def refused(bundle: Bundle, result: Result, log: Path, kind: str, *texts: str, rc: int = 1) -> None:
    """One line on standard error and one entry in the log, which say the same; nothing of the container is there."""
    assert result.rc == rc, result
    assert result.out == ""
    (line,) = result.err.splitlines()
    (entry,) = log.read_text().splitlines()
    message = line.removeprefix("nestrt: ")
    for text in texts:
        assert text in message
    if kind == "json":
        assert json.loads(entry).keys() == {"level", "msg", "time"}
        assert json.loads(entry)["level"] == "error"
        assert json.loads(entry)["msg"] == message
    else:
        assert entry.startswith('time="')
        assert f"level=error msg={json.dumps(message, ensure_ascii=False)}" in entry
    assert bundle.leftovers() == []


def _set(path: str, value: object) -> Change:
    """Set ``a.b.c`` of the document."""

    def change(config: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            config = config[key]
        config[last] = value

    return change


# A document that is not what it should be: the error names the place in it.
@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (_set("process.args", "sh"), ("config.json, process.args:",)),
        (_set("process.args", []), ("process.args", "must not be empty")),
        (_set("process.args", ["sh", 1]), ("process.args[1]",)),
        (_set("process.cwd", "tmp"), ("process.cwd",)),
        (_set("process.user", {"uid": "root"}), ("process.user.uid",)),
        (_set("process.user", {"uid": -1, "gid": 0}), ("process.user.uid",)),
        (_set("process.rlimits", [{"type": "RLIMIT_TALK", "hard": 1, "soft": 1}]), ("RLIMIT_TALK",)),
        (_set("mounts", {"a": 1}), ("config.json, mounts:",)),
        (_set("mounts", [{"type": "proc"}]), ("mounts[0].destination",)),
        (_set("linux.namespaces", [{"type": "pidd"}]), ("linux.namespaces[0]", "pidd")),
        (_set("linux.namespaces", [{"type": "pid"}, {"type": "pid"}]), ("linux.namespaces[1]", "pid")),
        (_set("linux.resources", {"memory": {"limit": "1G"}}), ("linux.resources.memory.limit",)),
        (_set("linux.seccomp", {"defaultAction": "SCMP_ACT_DREAM"}), ("SCMP_ACT_DREAM",)),
        (_set("ociVersion", "2.0.0"), ("ociVersion", "2.0.0")),
        (_set("ociVersion", "one"), ("ociVersion", "one")),
        (_set("root", {"path": "nowhere"}), ("nowhere", "no such file or directory")),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_documents_that_cannot_be(bundle: Bundle, tmp_path: Path, kind: str, change: Change, texts: tuple[str]) -> None:
    log = tmp_path / "log"
    bundle.globals += ["--log", str(log), "--log-format", kind]
    change(bundle.config)
    refused(bundle, bundle.create(), log, kind, *texts)


# Not even a document: none, half of one, and one that is too deep.
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "no such file or directory"),
        ("", "line 1, column 1"),
        ('{\n  "ociVersion": "1.0.2",\n  "process": {]\n}', "line 3, column 15"),
        ('{"ociVersion": "1.0.2"', "line 1, column"),
        ("[" * 100_000, "config.json"),
        ('"text"', "config.json"),
    ],
    ids=["none", "empty", "broken", "half", "deep", "no-object"],
)
def test_no_document(bundle: Bundle, tmp_path: Path, text: str | None, found: str) -> None:
    log = tmp_path / "log"
    words = bundle.words("create")
    file = bundle.path / "config.json"
    file.unlink()
    if text is not None:
        file.write_text(text)
    result = bundle.nestrt.run("--log", str(log), "--log-format", "json", *words)
    refused(bundle, result, log, "json", found)


# An id twice, a state directory that is a file or read-only, and state that says nothing or is of another boot.
def test_state_that_cannot_be(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bundle.up()
    pid = bundle.pid
    bundle.globals += ["--log", str(log)]
    again = bundle.create()
    assert again.rc == 1
    assert "container with given ID already exists" in again.err
    assert bundle.pid == pid

    file = bundle.state_root / bundle.id / "state.json"
    whole = file.read_text()
    for text in (whole[: len(whole) // 2], "", "[]", "\0" * 10):
        file.write_text(text)
        for verb in ("state", "kill", "start", "delete"):
            result = bundle.verb(verb, bundle.id)
            assert result.rc != 0
            assert len(result.err.splitlines()) == 1, result
            assert bundle.id in result.err
        assert bundle.verb("list").rc == 0
    document = json.loads(whole)
    file.write_text(json.dumps({**document, "boot": "00000000-0000-0000-0000-000000000000"}))
    assert bundle.status == "stopped"
    assert "container not running" in bundle.kill().err
    assert os.path.exists(f"/proc/{pid}"), "a pid of another boot is somebody else's"
    file.write_text(whole)
    bundle.delete("--force").ok()
    assert bundle.leftovers() == []

    blocked = tmp_path / "file"
    blocked.write_text("")
    bundle.globals[:2] = ["--root", str(blocked)]
    result = bundle.create()
    assert result.rc == 1
    assert str(blocked) in result.err
    assert len(result.err.splitlines()) == 1


# What is there already is another's: two containers do not share a group, and in a frozen one nothing would start.
@pytest.mark.slow_on_vm(False)
def test_a_group_in_use_is_not_taken(new_bundle: NewBundle) -> None:
    first, second = new_bundle(), new_bundle()
    first.up()
    second.config["linux"]["cgroupsPath"] = first.cgroup
    result = second.create()
    assert result.rc == 1
    assert "container's cgroup is not empty: 1 process(es) found" in result.err
    second.config["linux"]["cgroupsPath"] = first.cgroup.rsplit("/", 1)[0]
    assert "is not empty" in second.run().err
    assert first.status == "running", "and what was refused has removed nothing"
    assert len(first.groups()) == len(hierarchies())


@pytest.mark.v1
def test_a_frozen_group_is_not_taken(bundle: Bundle) -> None:
    (freezer,) = (h for h in hierarchies() if "freezer" in h.controllers)
    group = freezer.group(bundle.cgroup)
    group.mkdir(parents=True)
    (group / "freezer.state").write_text("FROZEN")
    result = bundle.run()
    assert result.rc == 1
    assert "container's cgroup unexpectedly frozen" in result.err
    assert group.is_dir(), "it is not the container's to remove"
    (group / "freezer.state").write_text("THAWED")
    group.rmdir()


# execve(2) itself refuses: in the words that engines look for, and by the program's name.
@pytest.mark.parametrize(
    ("text", "words"),
    [("#!/no/interpreter\n", "exec /bad: no such file or directory"), ("junk", "exec /bad: exec format error")],
)
def test_a_program_that_the_kernel_refuses(new_bundle: NewBundle, tmp_path: Path, text: str, words: str) -> None:
    script = tmp_path / "bad"
    script.write_text(text)
    script.chmod(0o755)
    bundle = new_bundle()
    bundle.mount(str(script), "/bad")
    result = bundle.args("/bad").run()
    assert words in result.err
    assert result.rc != 0
    bundle.up()
    result = bundle.exec("/bad")
    assert words in result.err
    assert result.rc == 255
    bundle.delete("--force").ok()
    bundle.args("/bad").create().ok()
    result = bundle.start()
    assert words in result.err
    assert result.rc == 1
    bundle.await_status("stopped")


# The right to pass over file modes counts when the program is looked for, as it does in execve(2).
def test_a_program_by_capability(bundle: Bundle, tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.write_bytes((bundle.rootfs / "bin/busybox").read_bytes())
    program.chmod(0o700)
    bundle.mount(str(program), "/only/echo")
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    bundle.args("/only/echo", "run")
    assert "permission denied" in bundle.run().err
    names = ["CAP_DAC_OVERRIDE"]
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    bundle.config["process"]["capabilities"] = dict.fromkeys(kinds, names)
    assert bundle.run().ok().out == "run\n"


# kill: all where the processes share the host's pid namespace, even those that outlive the first.
@pytest.mark.slow_on_vm(False)
def test_kill_where_pids_are_shared(bundle: Bundle) -> None:
    bundle.namespace("pid", None).up("sleep 600 & exec sleep 600")
    wait_for(lambda: len(processes(bundle.cgroup)) == 2, "both")
    first = bundle.pid
    os.kill(first, 9)
    bundle.await_status("stopped")
    assert len(processes(bundle.cgroup)) == 1
    bundle.kill("KILL").ok()
    wait_for(lambda: not processes(bundle.cgroup), "the other to end")
    assert "container not running" in bundle.kill("KILL").err
    bundle.kill("KILL", "--all").ok()
    bundle.delete().ok()


# All namespaces of another, the user's too: the pid that is written down is this level's, and not the one in there.
def test_joining_all_namespaces(new_bundle: NewBundle) -> None:
    first, second = new_bundle(), new_bundle()
    first.user_namespace().up()
    for entry in first.config["linux"]["namespaces"]:
        if entry["type"] != "mount":
            name = {"network": "net"}.get(entry["type"], entry["type"])
            second.namespace(entry["type"], f"/proc/{first.pid}/ns/{name}")
    second.up("echo $$ > /tmp/pid; exec sleep 600")
    assert processes(second.cgroup) == {second.pid}
    assert os.readlink(f"/proc/{second.pid}/ns/pid") == os.readlink(f"/proc/{first.pid}/ns/pid")
    assert second.exec("cat", "/tmp/pid").ok().out.strip() != str(second.pid)
    second.delete("--force").ok()
    assert first.status == "running"


# A container that was never started ends by the signals that end a program, and not by others.
def test_signals_before_start(new_bundle: NewBundle) -> None:
    for name in ("TERM", "INT", "HUP", "QUIT"):
        bundle = new_bundle()
        bundle.shell("exec sleep 600").create().ok()
        bundle.kill("WINCH").ok()
        bundle.kill("0").ok()
        assert bundle.status == "created"
        bundle.kill(name).ok()
        bundle.await_status("stopped")
        bundle.delete().ok()


# The steps of --debug: in the log, whatever the container's root has at its path; else on standard error.
def test_debug(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bundle.globals += ["--debug"]
    result = bundle.args("echo", "out").run()
    assert result.ok().out == "out\n"
    assert "level=debug" in result.err
    bundle.globals += ["--log", str(log), "--log-format", "json"]
    result = bundle.run().ok()
    assert result.err == ""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["level"] for entry in entries} == {"debug"}
    sides = {entry["msg"].partition(":")[0] for entry in entries}
    assert sides == {"host", "guest"}
    bundle.up()
    log.unlink()
    bundle.exec("true").ok()
    assert "level" in log.read_text()
    assert not (bundle.rootfs / log.relative_to("/")).exists()


# A terminal of run without one outside: the program's own bytes, as a pipe wants them.
def test_newlines_of_a_terminal(bundle: Bundle) -> None:
    bundle.config["process"]["terminal"] = True
    assert bundle.args("printf", "a\\nb\\n").run().ok().out == "a\nb\n"
    bundle.config["process"]["terminal"] = False
    bundle.up()
    assert bundle.exec("printf", "a\\n", options=["--tty"]).ok().out == "a\n"


# exec --cap: ambient too where the document has inheritable ones, and only there.
@pytest.mark.parametrize("inheritable", [True, False])
def test_exec_with_one_more_capability(bundle: Bundle, inheritable: bool) -> None:
    caps = bundle.config["process"]["capabilities"]
    caps["bounding"] = [*caps["bounding"], "CAP_SYSLOG"]
    if inheritable:
        caps["inheritable"] = ["CAP_KILL", "CAP_SYSLOG"]
    bundle.up()
    status = bundle.exec("cat", "/proc/self/status", options=["--cap", "CAP_SYSLOG"]).ok().out
    rows = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    bit = 1 << 34
    assert int(rows["CapEff"], 16) & bit
    assert int(rows["CapBnd"], 16) & bit
    assert bool(int(rows["CapAmb"], 16) & bit) is inheritable


@pytest.mark.slow_on_vm(False)
def test_exec_in_a_group_that_cannot_be(bundle: Bundle) -> None:
    bundle.up()
    for path in ("..", "a/../..", "../other"):
        result = bundle.exec("true", options=["--cgroup", path])
        assert result.rc == 255
        assert f" {path} is not a sub cgroup path" in result.err
    assert "unknown controller 'nosuch'" in bundle.exec("true", options=["--cgroup", "nosuch:/"]).err
    result = bundle.exec("true", options=["--cgroup", "nowhere"])
    assert result.rc == 255
    assert "/nowhere/cgroup.procs: no such file or directory" in result.err


# Socket activation: descriptors are handed on only if they are meant for this process (sd_listen_fds(3)).
def test_descriptors_of_another_service(bundle: Bundle) -> None:
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    bundle.shell("echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | wc -l")
    assert bundle.run(env=environment).ok().out == "\n4\n"


# What list, state and ps print has the keys of runc, and ps takes the options of ps(1).
def test_what_is_printed(bundle: Bundle) -> None:
    bundle.config["annotations"] = {"a": "b"}
    bundle.up()
    state = bundle.state()
    keys = {"ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"}
    assert state.keys() == keys
    (row,) = json.loads(bundle.verb("list", "--format", "json").ok().out)
    assert row.keys() == keys
    assert {key: row[key] for key in ("id", "pid", "status", "bundle")} == {
        key: state[key] for key in ("id", "pid", "status", "bundle")
    }
    head, line = bundle.verb("list").ok().out.splitlines()
    assert head.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert line.split()[:3] == [bundle.id, str(state["pid"]), "running"]
    assert bundle.verb("list", "-q").ok().out == f"{bundle.id}\n"
    assert json.loads(bundle.verb("ps", "-f", "json", bundle.id).ok().out) == [state["pid"]]
    head, line = bundle.verb("ps", bundle.id).ok().out.splitlines()
    assert head.split()[:3] == ["UID", "PID", "PPID"]
    assert "sleep 600" in line
    head, line = bundle.verb("ps", bundle.id, "-o", "pid,comm").ok().out.splitlines()
    assert line.split() == [str(state["pid"]), "sleep"]
    assert "format" in bundle.verb("ps", "--format", "yaml", bundle.id).err


# The same bundle and verbs by Debian's runc: exit statuses, and the keys of what is printed.
@pytest.mark.v1
def test_as_under_runc(bundle: Bundle, tmp_path: Path) -> None:
    bundle.shell("exec sleep 600").write()
    rows: dict[str, list[object]] = {}
    for command in ([bundle.nestrt.command], ["/usr/sbin/runc"]):
        root = ["--root", str(tmp_path / "root")]
        told: list[object] = rows.setdefault(command[0], [])

        def verb(*words: str, command: list[str] = command, root: list[str] = root, told: list[object] = told) -> str:
            done = subprocess.run(
                [*command, *root, *words], cwd=bundle.path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            told.append((words[0], done.returncode))
            return done.stdout.decode()

        name = bundle.id
        (tmp_path / "null").write_text("")
        for words in (("state", name), ("start", name), ("kill", name), ("delete", name), ("exec", name, "true")):
            verb(*words)
        verb("delete", "--force", name)
        subprocess.run([*command, *root, "create", name], cwd=bundle.path, stdin=subprocess.DEVNULL, check=True)
        verb("create", name)
        state = json.loads(verb("state", name))
        told += [sorted(state), state["status"], state["bundle"]]
        verb("delete", name)
        if json_there(verb("list", "-f", "json")):
            verb("delete", "-f", name)
        subprocess.run([*command, *root, "run", "-d", name], cwd=bundle.path, stdin=subprocess.DEVNULL, check=True)
        for words in (("start", name), ("delete", name), ("exec", name, "false")):
            verb(*words)
        verb("exec", name, "sh", "-c", "exit 42")
        verb("exec", name, "nowhere")
        verb("pause", name)
        verb("pause", name)
        told.append(json.loads(verb("state", name))["status"])
        verb("exec", name, "true")
        verb("resume", name)
        verb("resume", name)
        told.append(sorted(json.loads(verb("list", "--format", "json"))[0]))
        verb("kill", name, "NONSENSE")
        verb("kill", name, "KILL")
        end = time.monotonic() + 10 * SLOW
        while json.loads(verb_quiet(command, root, "state", name))["status"] != "stopped":
            assert time.monotonic() < end
        verb("kill", name, "KILL")
        verb("start", name)
        verb("delete", name)
    ours, runcs = rows.values()
    assert ours == runcs


def json_there(text: str) -> bool:
    return bool(json.loads(text or "null"))


def verb_quiet(command: list[str], root: list[str], *words: str) -> str:
    return subprocess.run([*command, *root, *words], stdout=subprocess.PIPE, check=True).stdout.decode()
