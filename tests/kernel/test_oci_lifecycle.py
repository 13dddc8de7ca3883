"""The life of a container: what each verb does in each state, what hooks see of it, and what a caller may be like.

create ──▶ created ──start──▶ running ──pause──▶ paused
              │                  │  ◀──resume──────┘
              └──── kill ────────┴──▶ stopped ──delete──▶ (nothing)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import PARENT, Bundle
from support.hostside import hierarchies, processes
from support.killing import gone
from support.need import SLOW
from support.runner import wait_for
from support.stream import is_listening
from support.terminals import console_socket, read_until

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]


def told(result: Any, text: str, rc: int | None = None) -> None:
    """The verb failed with one line that has *text* in it."""
    assert result.rc != 0 if rc is None else result.rc == rc, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    assert text in lines[0], result


# Each verb in each state. The parked first process has the container's groups and the pid of the state file.
def test_from_create_to_delete(bundle: Bundle, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert bundle.shell("sleep 600 & wait").create("--pid-file", str(pid_file)).ok().out == ""
    state = bundle.state()
    assert (state["id"], state["status"], state["bundle"]) == (bundle.id, "created", str(bundle.path))
    assert state["pid"] == int(pid_file.read_text())
    assert state["ociVersion"]
    assert state["rootfs"] == str(bundle.rootfs)
    assert state["created"].endswith("Z")
    assert len(bundle.groups()) == len(hierarchies())
    for hierarchy in hierarchies():
        assert (hierarchy.group(bundle.cgroup) / "cgroup.procs").read_text() == f"{state['pid']}\n"

    told(bundle.create(), "container with given ID already exists", 1)
    assert bundle.status == "created"
    bundle.start().ok()
    assert bundle.status == "running"
    wait_for(lambda: len(processes(bundle.cgroup)) == 2, "sleep to run")
    told(bundle.start(), "cannot start an already running container", 1)
    told(bundle.delete(), "that is not stopped", 1)
    told(bundle.create(), "already exists", 1)
    told(bundle.run(), "already exists", 1)
    assert bundle.status == "running"

    bundle.verb("pause", bundle.id).ok()
    assert bundle.status == "paused"
    told(bundle.start(), "cannot start an already running container")
    told(bundle.delete(), "that is not stopped")
    bundle.verb("resume", bundle.id).ok()
    assert bundle.status == "running"

    bundle.kill("KILL").ok()
    bundle.await_status("stopped")
    state = bundle.state()
    told(bundle.kill("KILL"), "container not running", 1)
    told(bundle.start(), "cannot start a container that has stopped", 1)
    told(bundle.exec("true"), "container not running", 255)
    assert bundle.delete().ok().out == ""
    assert bundle.leftovers() == []
    for verb in ("state", "start", "kill", "delete", "exec"):
        told(bundle.verb(verb, bundle.id, *(["true"] if verb == "exec" else [])), "container does not exist")
    bundle.delete("--force").ok()


# What never was started can be killed and deleted; a signal that its default would end it ends it.
def test_a_created_container_is_killed_or_deleted(new_bundle: NewBundle) -> None:
    for kill in ("KILL", "TERM", ""):
        bundle = new_bundle()
        bundle.shell("echo ran > /tmp/ran; sleep 600").create().ok()
        pid = bundle.pid
        if kill:
            bundle.kill(kill).ok()
            if kill == "KILL":
                bundle.await_status("stopped")
        bundle.delete().ok()
        assert gone(pid)
        assert bundle.leftovers() == []


# A running one goes with --force, its children too, even those that ignore everything and are frozen.
@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("own_pids", [True, False])
def test_delete_by_force(bundle: Bundle, own_pids: bool) -> None:
    if not own_pids:
        bundle.namespace("pid", None)
    bundle.up("trap '' TERM; (trap '' TERM HUP; while :; do sleep 1; done) & sleep 600 & wait")
    wait_for(lambda: len(processes(bundle.cgroup)) >= 3, "children")
    bundle.verb("pause", bundle.id).ok()
    bundle.delete("--force").ok()
    assert bundle.leftovers() == []


def test_run_passes_the_status_on(new_bundle: NewBundle) -> None:
    for text, status in (("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 0)):
        bundle = new_bundle()
        result = bundle.shell(text).run()
        assert result.rc == status, result  # the first process of a pid namespace does not die of its own signal
        assert bundle.leftovers() == []
    bundle = new_bundle()
    bundle.namespace("pid", None)
    assert bundle.shell("kill -9 $$").run().rc == 137
    bundle = new_bundle()
    assert bundle.shell("exit 3").run("--keep").rc == 3
    assert bundle.status == "stopped"
    bundle.delete().ok()


# Input, output and error are the caller's, through create and start too.
def test_standard_streams(bundle: Bundle) -> None:
    result = bundle.shell("cat; echo wrong >&2").run(input="given")
    assert (result.rc, result.out, result.err) == (0, "given", "wrong\n")
    assert bundle.shell("cat; echo wrong >&2").create(input="").ok().err == ""


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["nowhere"], "executable file not found in $PATH"),
        (["/bin/nowhere"], "no such file or directory"),
        (["/etc/passwd"], "permission denied"),
        (["/etc"], "permission denied"),
    ],
)
def test_programs_that_cannot_be(bundle: Bundle, args: list[str], reason: str) -> None:
    bundle.args(*args)
    result = bundle.run()
    told(result, reason)
    assert bundle.leftovers() == []


# A bundle by a relative path, the current directory, another document, and a --root longer than a socket's name.
def test_paths(new_bundle: NewBundle, tmp_path: Path) -> None:
    bundle = new_bundle()
    bundle.shell("echo here").write()
    words = [*bundle.globals, "run"]
    run = bundle.nestrt.run
    assert run(*words, "--bundle", bundle.path.name, bundle.id, cwd=bundle.path.parent).ok().out == "here\n"
    assert run(*words, bundle.id, cwd=bundle.path).ok().out == "here\n"
    (bundle.path / "config.json").rename(bundle.path / "other.json")
    assert run(*words, "--config", "other.json", bundle.id, cwd=bundle.path).ok().out == "here\n"
    told(run(*words, bundle.id, cwd=bundle.path), "no such file or directory")
    (bundle.path / "rootfs").symlink_to(bundle.rootfs)
    bundle.config["root"]["path"] = "rootfs"
    assert bundle.run().ok().out == "here\n"
    bundle.config["root"]["path"] = "nowhere"
    told(bundle.run(), "no such file or directory")

    deep = tmp_path / ("long-" * 20) / ("long-" * 20)
    far = new_bundle(state=deep)
    far.shell("sleep 600").create().ok()
    assert len(f"{deep}/{far.id}/start.sock") > 108
    far.start().ok()
    assert far.status == "running"
    far.delete("--force").ok()
    assert not (deep / far.id).exists()


@pytest.mark.parametrize("id", ["", "..", "a/b", "a b", "x" * 1025, "é"])
def test_ids_that_cannot_be(bundle: Bundle, id: str) -> None:
    bundle.write()
    result = bundle.nestrt.run(*bundle.globals, "create", "--bundle", str(bundle.path), id)
    told(result, "invalid container ID format", 1)
    assert not bundle.state_root.exists() or not os.listdir(bundle.state_root)


# Ten at once, under one parent group that does not exist.
def test_ten_at_once(new_bundle: NewBundle) -> None:
    bundles = [new_bundle() for _ in range(10)]
    for bundle in bundles:
        bundle.shell("sleep 600")
    for verb in (["create"], ["start"], ["delete", "--force"]):
        started = [
            bundle.begin(*(bundle.words("create") if verb == ["create"] else [*bundle.globals, *verb, bundle.id]))
            for bundle in bundles
        ]
        for one in started:
            result = one.finish().ok()
            assert (result.out, result.err) == ("", "")
        if verb == ["start"]:
            assert {bundle.status for bundle in bundles} == {"running"}
    assert [line for bundle in bundles for line in bundle.leftovers()] == []


# create and run while others with the same parent group go away: a parent is never pulled from under a container.
def test_creates_and_deletes_side_by_side(new_bundle: NewBundle) -> None:
    bundles = [new_bundle() for _ in range(4)]
    loop = (
        "n=0; while [ $n -lt 6 ]; do n=$((n+1)); nestrt --root ROOT run -d -b DIR ID || exit 1; "
        "nestrt --root ROOT delete --force ID || exit 1; done"
    )
    started = []
    for bundle in bundles:
        bundle.shell("sleep 600").write()
        text = loop.replace("nestrt", bundle.nestrt.command, 2)
        for word, value in (("ROOT", bundle.state_root), ("DIR", bundle.path), ("ID", bundle.id)):
            text = text.replace(word, str(value))
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(["sh", "-c", text], stdin=subprocess.DEVNULL, **pipes))
    for process in started:
        out, _ = process.communicate(timeout=60 * SLOW)
        assert (process.returncode, out) == (0, "")


# The same id from several callers: one has it, the others are told, and nobody's container is damaged.
def test_one_id_for_many(bundle: Bundle) -> None:
    words = bundle.shell("sleep 600").words("create")
    results = [one.finish() for one in [bundle.begin(*words) for _ in range(5)]]
    assert sorted(result.rc for result in results) == [0, 1, 1, 1, 1]
    for result in results:
        if result.rc:
            # The group of the first may have its process before the id is looked at again.
            assert "already exists" in result.err or "cgroup is not empty" in result.err, result
    bundle.start().ok()
    assert bundle.status == "running"


# delete --force in the middle of create: it waits, or finds nothing; in the end nothing is there, or a whole container.
def test_delete_races_create(bundle: Bundle) -> None:
    for delay in (0.0, 0.05, 0.1, 0.2):
        creating = bundle.begin(*bundle.shell("sleep 600").words("create"))
        time.sleep(delay * SLOW)
        bundle.delete("--force", timeout=30).ok()
        result = creating.finish()
        assert "Traceback" not in result.err
        assert "bug" not in result.err
        if result.rc == 0:
            bundle.delete("--force").ok()
        assert bundle.leftovers() == [], (delay, result)


# Callers are what they are: podman's clean-up has no environment, a shell may ignore SIGCHLD, a daemon has no streams.
CALLERS = {
    "no environment": 'exec env -i "$@"',
    "child signal ignored": "trap '' CHLD; \"$@\"",
    "umask": 'umask 077; "$@"',
    "closed streams": '"$@" <&- >&- 2>&-',
    "no directory": 'mkdir -p gone && cd gone && rmdir ../gone && "$@"',
    "signals ignored": "trap '' PIPE HUP INT TERM; \"$@\"",
}


def by(how: str, bundle: Bundle, words: list[str], place: Path) -> None:
    argv = ["sh", "-c", CALLERS[how], "sh", bundle.nestrt.command, *words]
    with open(place / "out", "w") as out:
        done = subprocess.run(argv, cwd=place, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=30 * SLOW)
    assert done.returncode == 0, (how, words, (place / "out").read_text())


@pytest.mark.parametrize("how", CALLERS)
def test_callers(bundle: Bundle, tmp_path: Path, how: str) -> None:
    witness = tmp_path / "witness"
    witness.mkdir()
    witness.chmod(0o777)
    bundle.mount(str(witness), "/witness").virtual()
    bundle.shell("umask > /witness/umask; pwd > /witness/pwd; exec sleep 600")
    by(how, bundle, bundle.words("create"), tmp_path)
    by(how, bundle, [*bundle.globals, "start", bundle.id], tmp_path)
    wait_for(lambda: (witness / "pwd").exists() and (witness / "pwd").read_text() == "/\n", "the program")
    assert (witness / "umask").read_text() == "0022\n"
    # Its own signal mask and dispositions are not the caller's, but for what nohup(1) means.
    status = Path(f"/proc/{bundle.pid}/status").read_text()
    assert "SigBlk:\t0000000000000000" in status
    by(how, bundle, [*bundle.globals, "exec", "--detach", bundle.id, "sh", "-c", "echo a > /witness/exec"], tmp_path)
    wait_for((witness / "exec").exists, "exec")
    for verb in (["state", bundle.id], ["pause", bundle.id], ["resume", bundle.id], ["kill", bundle.id, "KILL"]):
        by(how, bundle, [*bundle.globals, *verb], tmp_path)
    bundle.await_status("stopped")
    by(how, bundle, [*bundle.globals, "delete", bundle.id], tmp_path)
    assert bundle.leftovers() == []


def open_files(pid: int) -> dict[int, str]:
    place = f"/proc/{pid}/fd"
    return {int(name): os.readlink(f"{place}/{name}") for name in os.listdir(place)}


# Neither a parked process nor the program has a descriptor more than it is to have.
def test_descriptors(new_bundle: NewBundle, tmp_path: Path) -> None:
    extra = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    for fd in extra:
        os.set_inheritable(fd, True)
    try:
        bundle = new_bundle()
        words = bundle.args("sleep", "600").words("create")
        done = subprocess.run(
            [bundle.nestrt.command, *words], pass_fds=extra, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        assert done.returncode == 0
        held = open_files(bundle.pid)
        assert not [target for target in held.values() if target == str(tmp_path)], held
        assert len([target for target in held.values() if target.startswith("socket:")]) == 1, held
        bundle.start().ok()
        assert sorted(open_files(bundle.pid)) == [0, 1, 2]
        assert Path(f"/proc/{bundle.pid}/comm").read_text() == "sleep\n"
        assert os.readlink(f"/proc/{bundle.pid}/exe") == "/bin/busybox"
    finally:
        for fd in extra:
            os.close(fd)


# --preserve-fds, and those of socket activation, which come with their variables.
def test_descriptors_that_are_handed_on(new_bundle: NewBundle, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    text = "cat <&3; cat <&4; echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | wc -l"
    for listening, options in ((False, "--preserve-fds 2"), (True, ""), (True, "--preserve-fds 1")):
        first.write_text("one\n")
        second.write_text("two\n")
        bundle = new_bundle()
        words = bundle.shell(text).words("run", *options.split())
        variables = "LISTEN_FDS=2" if not options else "LISTEN_FDS=1" if listening else "NONE=1"
        shell = f'exec 3<{first} 4<{second}; exec env {variables} LISTEN_PID=$$ "$@"'
        done = subprocess.run(
            ["sh", "-c", shell, "sh", bundle.nestrt.command, *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        count = variables.partition("=")[2] if listening else ""
        expected = ["one", "two", f"{count} 1" if listening else "", "6"]
        assert done.stdout.splitlines() == expected, done
    bundle = new_bundle()
    told(bundle.shell(text).run("--preserve-fds", "7"), "please check that preserved-fd")
    assert bundle.leftovers() == []


# The master is sent at create; its size is the document's; the slave is the container's own, and its /dev/console.
def test_a_terminal_by_the_console_socket(bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"].update(terminal=True, consoleSize={"height": 33, "width": 99})
    bundle.shell("stty size; tty; ls -l /dev/console /proc/self/fd; echo > /dev/console; echo end; read x; echo got $x")
    with console_socket(tmp_path) as (path, take):
        creating = bundle.begin(*bundle.words("create", "--console-socket", path))
        master = take()
        assert creating.finish().ok().err == ""
        try:
            bundle.start().ok()
            out = read_until(master, "end")
            assert "33 99" in out
            assert "/dev/pts/0" in out
            os.write(master, b"word\n")
            assert "got word" in read_until(master, "got word")
            bundle.await_status("stopped")
            bundle.delete().ok()
        finally:
            os.close(master)


def test_a_terminal_for_exec(bundle: Bundle, tmp_path: Path) -> None:
    bundle.up()
    with console_socket(tmp_path) as (path, take):
        options = ["--tty", "--detach", "--console-socket", path]
        words = [*bundle.globals, "exec", *options, bundle.id, "sh", "-c", "tty; echo end; sleep 9"]
        executing = bundle.begin(*words)
        master = take()
        assert executing.finish().ok().err == ""
        assert "/dev/pts/0" in read_until(master, "end")
        os.close(master)
    told(bundle.exec("true", options=["--tty", "--detach"]), "without setting console socket", 255)


# In the foreground with no console socket the terminal is passed through.
def test_a_terminal_in_the_foreground(bundle: Bundle) -> None:
    bundle.config["process"]["terminal"] = True
    result = bundle.shell("tty; stty size; exit 5").run()
    assert result.rc == 5, result
    assert "/dev/pts/0" in result.out


def test_terminals_that_cannot_be(bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["process"]["terminal"] = True
    told(bundle.create(), "without setting console socket")
    told(bundle.run("--detach"), "without setting console socket")
    told(bundle.create("--console-socket", str(tmp_path / "nobody")), "no such file or directory")
    assert bundle.leftovers() == []
    bundle.config["process"]["terminal"] = False
    told(bundle.create("--console-socket", str(tmp_path / "nobody")), "cannot use console socket")
    assert bundle.leftovers() == []


# What --pidfd-socket takes: a pidfd of the first process.
def test_a_pidfd_by_socket(bundle: Bundle, tmp_path: Path) -> None:
    with console_socket(tmp_path) as (path, take):
        creating = bundle.begin(*bundle.args("sleep", "600").words("create", "--pidfd-socket", path))
        fd = take()
        assert creating.finish().ok().err == ""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    os.close(fd)
    assert f"Pid:\t{bundle.pid}\n" in info


STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
# stage: (status in its document, whether it sees the container's host name)
EXPECTED = {
    "prestart": ("creating", False),
    "createRuntime": ("creating", False),
    "createContainer": ("creating", True),
    "startContainer": ("created", True),
    "poststart": ("running", False),
    "poststop": ("stopped", False),
}


def with_hooks(bundle: Bundle, place: Path, stages: tuple[str, ...] = STAGES) -> Bundle:
    """Hooks that leave their document, their host name and their environment in *place*, in order of the clock."""
    place.mkdir()
    place.chmod(0o777)
    bundle.mount(str(place), "/hooks")
    for stage in stages:
        where = "/hooks" if stage == "startContainer" else str(place)
        text = f"cat > {where}/{stage}; hostname > {where}/{stage}.host; env > {where}/{stage}.env; echo {stage} >> "
        bundle.hook(
            stage,
            "/bin/sh",
            "-c",
            f"{text}{where}/order; ls /proc/self/fd > {where}/{stage}.fd",
            env=["A=1", "PATH=/bin"],
        )
    return bundle


# All six stages: in order, each with the state document, its namespaces, its own environment, no descriptor of ours.
def test_hooks_of_all_stages(bundle: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "hooks"
    with_hooks(bundle, place).config.setdefault("annotations", {})["org.example"] = "word"
    bundle.shell("echo program >> /hooks/order; sleep 600").create().ok()
    pid = bundle.pid
    assert (place / "order").read_text().split() == list(STAGES[:3])
    bundle.start().ok()
    wait_for(lambda: len((place / "order").read_text().split()) == 6, "program and poststart")
    words = (place / "order").read_text().split()
    assert words[3] == "startContainer"
    assert sorted(words[4:]) == ["poststart", "program"]
    bundle.kill().ok()
    bundle.await_status("stopped")
    assert not (place / "poststop").exists()
    bundle.delete().ok()
    assert (place / "order").read_text().split()[-1] == "poststop"
    host = os.uname().nodename
    for stage, (status, inside) in EXPECTED.items():
        document = json.loads((place / stage).read_text())
        assert (document["id"], document["status"], document["bundle"]) == (bundle.id, status, str(bundle.path)), stage
        assert document["annotations"] == {"org.example": "word"}
        assert document["ociVersion"]
        if status != "stopped":
            # As runc has it: what runs in the container's namespaces gets the number that the process has there.
            assert document["pid"] == (1 if inside else pid), stage
        assert (place / f"{stage}.host").read_text().strip() == ("nestrt" if inside else host), stage
        env = dict(line.split("=", 1) for line in (place / f"{stage}.env").read_text().splitlines())
        assert (env["A"], env["PATH"]) == ("1", "/bin")
        assert "HOME" not in env
        assert len((place / f"{stage}.fd").read_text().split()) == 4, stage  # ls has the directory open


# A hook that fails: before the program runs it stops the container and takes everything back; after, it is a warning.
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_hook_that_fails(bundle: Bundle, tmp_path: Path, stage: str, verb: str) -> None:
    witness = tmp_path / "ran"
    witness.write_text("")
    bundle.mount(str(witness), "/ran")
    bundle.hook(stage, "/bin/sh", "-c", "echo no such luck >&2; exit 9")
    bundle.shell("echo ran > /ran")
    text = f"error running {stage} hook #0: exit status 9"
    if verb == "run":
        result = bundle.run()
        failed = result
    else:
        result = bundle.create()
        if stage in STAGES[:3]:
            failed = result
        else:
            result.ok()
            started = bundle.start()
            bundle.await_status("stopped")
            deleted = bundle.delete()
            failed = {"startContainer": started, "poststart": started, "poststop": deleted}[stage]
    assert text in failed.err, failed
    assert "no such luck" in failed.err
    if stage in ("poststart", "poststop"):
        assert failed.rc == 0, failed
        assert witness.read_text() == "ran\n"
    else:
        assert failed.rc == 1, failed
        assert witness.read_text() == ""
    assert bundle.leftovers() == []


def test_a_hook_past_its_time(bundle: Bundle) -> None:
    bundle.hook("createRuntime", "/bin/sh", "-c", "sleep 60", timeout=1)
    began = time.monotonic()
    told(bundle.run(), "hook ran past specified timeout of 1.0s", 1)
    assert time.monotonic() - began < 20 * SLOW
    assert bundle.leftovers() == []


# createRuntime gets the container as it is: a network hook can enter its namespaces by the pid.
def test_a_hook_finds_the_namespaces(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "net"
    text = f"pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); readlink /proc/$pid/ns/net /proc/self/ns/net > {out}"
    bundle.hook("createRuntime", "/bin/sh", "-c", text, env=["PATH=/usr/bin:/bin"])
    inside = bundle.shell("readlink /proc/self/ns/net").run().ok().out.strip()
    theirs, ours = out.read_text().split()
    assert theirs == inside != ours


# A caller that ends early leaves nothing undone: what create was asked for is there when it comes back.
@pytest.mark.parametrize("detach", [True, False])
def test_signals_in_the_foreground(bundle: Bundle, detach: bool) -> None:
    text = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    if detach:
        bundle.shell(text).run("--detach").ok()
        comm = Path(f"/proc/{bundle.pid}/comm")
        wait_for(lambda: comm.read_text() == "sh\n" and is_listening(bundle.pid), "the trap")
        bundle.kill("TERM").ok()
        bundle.await_status("stopped")
        bundle.delete().ok()
        return
    process = bundle.nestrt.start(*bundle.shell(text).words("run"))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(20 * SLOW) == 7
    assert bundle.leftovers() == []


# kill in every spelling; --all reaches all that stand in the groups.
def test_signals_by_name_and_number(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("")
    bundle.mount(str(out), "/out")
    bundle.up(
        'for s in USR1 USR2 HUP INT; do trap "echo $s >> /out" $s; done; echo up >> /out; while :; do sleep 0.05; done'
    )
    wait_for(lambda: "up" in out.read_text(), "the traps")
    for word, name in (("10", "USR1"), ("USR2", "USR2"), ("SIGHUP", "HUP"), ("int", "INT")):
        bundle.kill(word).ok()
        wait_for(lambda name=name: name in out.read_text(), f"{word}")
    told(bundle.kill("NOTHING"), "unknown signal")
    told(bundle.kill("99"), "unknown signal")
    bundle.kill("KILL", "--all").ok()
    bundle.await_status("stopped")
    wait_for(lambda: not processes(bundle.cgroup), "all to end")


# The documents of engines: the log in both formats, one entry with what is on standard error.
@pytest.mark.parametrize("kind", ["json", "text"])
def test_the_log(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    bundle.globals += ["--log", str(log), "--log-format", kind]
    told(bundle.args("/bin/nowhere").run(), "no such file or directory")
    lines = log.read_text().splitlines()
    assert len(lines) == 1
    if kind == "json":
        entry = json.loads(lines[0])
        assert entry["level"] == "error"
        assert "no such file or directory" in entry["msg"]
    bundle.args("true").run().ok()
    assert log.read_text().splitlines() == lines


# A root filesystem that has gone since: state and delete need nothing of the bundle.
def test_the_bundle_has_gone(bundle: Bundle) -> None:
    bundle.up()
    (bundle.path / "config.json").unlink()
    shutil.rmtree(bundle.path)
    assert bundle.status == "running"
    assert bundle.exec("echo", "still").ok().out == "still\n"
    bundle.delete("--force").ok()
    assert bundle.leftovers() == []
    bundle.path.mkdir()


# No group at all, and groups below the caller's own.
@pytest.mark.slow_on_vm(False)
def test_without_groups(bundle: Bundle) -> None:
    bundle.globals += ["--cgroup-manager", "disabled"]
    own = Path("/proc/self/cgroup").read_text()
    assert bundle.shell("cat /proc/self/cgroup; sleep 600").create().ok().out == ""
    assert Path(f"/proc/{bundle.pid}/cgroup").read_text() == own
    bundle.start().ok()
    assert bundle.groups() == []
    assert bundle.exec("echo", "a").ok().out == "a\n"
    bundle.kill("KILL", "--all").ok()
    bundle.await_status("stopped")
    bundle.delete().ok()


# Processes stand in the group above, which can give no controllers then. Trying does not make it "domain threaded",
# where none of its children could have processes.
@pytest.mark.v2
@pytest.mark.slow_on_vm(False)
def test_below_a_group_with_processes(bundle: Bundle) -> None:
    above = hierarchies()[0].group(PARENT)
    above.mkdir(exist_ok=True)
    other = subprocess.Popen(["sleep", "600"])
    try:
        (above / "cgroup.procs").write_text(str(other.pid))
        assert bundle.shell("cat /proc/self/cgroup").run().ok().out == f"0::{bundle.cgroup}\n"
        assert (above / "cgroup.type").read_text() == "domain\n"
        assert (above / "cgroup.subtree_control").read_text().strip() == ""
        result = bundle.resources(pids={"limit": 9}).run()
        assert (result.rc, len(result.err.splitlines())) == (1, 1), result
        assert "linux.resources.pids.limit" in result.err
        assert "processes stand in a group above" in result.err
        assert bundle.leftovers() == []
    finally:
        other.kill()
        other.wait()
