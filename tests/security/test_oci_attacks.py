"""Containers that attack the runtime: its program, its descriptors, its processes, and the limits that it sets.

    host:       nestrt exec ──▶ process that enters ──▶ trampoline ──▶ program
                                  ▲
    container:  processes that look, write, signal, fork and move at that very moment
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.attack import open_directories
from support.attack_oci import CATCHER, Isolated, isolated
from support.bundles import ALL_CAPABILITIES, Bundle
from support.hostside import groups, hierarchies, processes, v2_hierarchy
from support.need import SLOW
from support.runner import wait_for

NewBundle = Callable[..., Bundle]
MakeBusybox = Callable[[], Path]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Isolated]:
    """nestrt, with an interpreter that may be lost."""
    with isolated(tmp_path) as found:
        yield found
        found.stop()


def pod(first: Bundle, other: Bundle) -> None:
    """Have *other* share the processes of *first*, which runs."""
    other.namespace("pid", f"/proc/{first.pid}/ns/pid")


def caught(root: Path) -> list[str]:
    """What a CATCHER has found other processes running."""
    return (root / "found").read_text().split("\n")


# CVE-2019-5736. Whoever may look into all processes of its pid namespace waits for one that enters. Each way to
# come to that right is tried: by the document, by an earlier exec, and in a container that shares the processes.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("way", ["document", "exec", "privileged exec", "pod", "create in a pod"])
def test_the_interpreter_is_not_overwritten(
    host: Isolated, new_bundle: NewBundle, make_busybox: MakeBusybox, tmp_path: Path, way: str
) -> None:
    root = make_busybox()
    first, second, third = (new_bundle(rootfs=root) for _ in range(3))
    for bundle in (first, second, third):
        bundle.nestrt = host
    if way == "document":
        first.config["process"]["capabilities"]["bounding"].append("CAP_SYS_PTRACE")
        first.config["process"]["capabilities"]["effective"].append("CAP_SYS_PTRACE")
        first.config["process"]["capabilities"]["permitted"].append("CAP_SYS_PTRACE")
        first.up(CATCHER)
    else:
        first.up()
    if way == "exec":
        first.exec("sh", "-c", CATCHER, options=("--detach", "--cap", "CAP_SYS_PTRACE")).ok()
    elif way == "privileged exec":
        second.capabilities(ALL_CAPABILITIES).shell(CATCHER)
        file = tmp_path / "process.json"
        file.write_text(json.dumps(second.config["process"]))
        first.verb("exec", "--detach", "--process", str(file), first.id).ok()
    elif way.endswith("pod"):
        pod(first, second)
        second.capabilities("CAP_SYS_PTRACE").up(CATCHER)
    wait_for((root / "found").exists, "the attacker")
    for _ in range(6):
        if way.startswith("create"):
            pod(first, third)
            third.args("true").run().ok()
        else:
            first.exec("true").ok()
        assert host.intact
    time.sleep(0.2)
    assert host.intact
    # It did catch the process that enters: by its own program, on a mount that cannot be written.
    assert "/" in caught(root), set(caught(root))


# The program leads to /proc/self/exe, by its name, by a link or by the first line of a script: that is the sealed
# trampoline, which is no interpreter and cannot be written to.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("kind", ["name", "link", "script"])
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_the_program_leads_to_the_runtimes_own(
    host: Isolated, new_bundle: NewBundle, make_busybox: MakeBusybox, kind: str, verb: str
) -> None:
    root = make_busybox()
    (root / "evil-link").symlink_to("/proc/self/exe")
    (root / "evil-script").write_text("#!/proc/self/exe\nimport os; os.mkdir('/tmp/python')\n")
    (root / "evil-script").chmod(0o755)
    name = {"name": "/proc/self/exe", "link": "/evil-link", "script": "/evil-script"}[kind]
    bundle, attacker = new_bundle(rootfs=root), new_bundle(rootfs=root)
    bundle.nestrt = attacker.nestrt = host
    if verb == "run":
        process = host.start(*bundle.args(name, "-c", "import os; os.mkdir('/tmp/python')").words("run"))
    else:
        bundle.up(CATCHER)
        words = (*bundle.globals, "exec", bundle.id, name, "-c", "import os; os.mkdir('/tmp/python')")
        process = host.start(*words)
    try:
        assert process.wait(3) != 0
    except subprocess.TimeoutExpired:
        assert kind == "script"  # its own interpreter runs it, over and over: the container's time
        bundle.delete("--force").ok()
    assert host.intact
    assert not (root / "tmp/python").exists()


# CVE-2024-21626. A careless engine leaves descriptors of the host's directories open; whatever their number, and
# whichever descriptors the runtime itself has, they are no way out as a working directory.
INSIDE = "test -e ./../../../../../../../../../../inside && echo inside || echo OUTSIDE; ls -d * 2>/dev/null"


@pytest.mark.parametrize("verb", ["run", "exec", "process"])
@pytest.mark.parametrize("text", ["/proc/self/fd/N", "/link-N", "/proc/self/fd/N/../..", "/proc/1/fd/N", "/proc/self/cwd/.."])
def test_no_working_directory_leads_out(
    new_bundle: NewBundle, make_busybox: MakeBusybox, tmp_path: Path, verb: str, text: str
) -> None:
    root = make_busybox()
    (root / "inside").mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "of-the-host").mkdir()
    bundle = new_bundle(rootfs=root)
    if verb != "run":
        bundle.up()
    file = tmp_path / "process.json"
    numbers = range(3, 13, 3) if "N" in text else [0]
    with open_directories(str(secret), "/", "/sys/fs/cgroup") as leaked:
        for number in [*numbers, *leaked] if "N" in text else numbers:
            (root / f"link-{number}").unlink(missing_ok=True)
            (root / f"link-{number}").symlink_to(f"/proc/self/fd/{number}")
            cwd = text.replace("N", str(number))
            bundle.shell(INSIDE).config["process"]["cwd"] = cwd
            if verb == "run":
                words = bundle.words("run")
            elif verb == "exec":
                words = [*bundle.globals, "exec", "--cwd", cwd, bundle.id, "sh", "-c", INSIDE]
            else:
                file.write_text(json.dumps(bundle.config["process"]))
                words = [*bundle.globals, "exec", "--process", str(file), bundle.id]
            done = subprocess.run(
                [bundle.nestrt.command, *words],
                pass_fds=leaked,
                cwd=secret,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30 * SLOW,
            )
            assert "OUTSIDE" not in done.stdout, (cwd, done)
            assert "of-the-host" not in done.stdout, (cwd, done)
            assert done.returncode or done.stdout.startswith("inside\n"), (cwd, done)
            assert len(done.stderr.splitlines()) <= 1, (cwd, done)


# Descriptors that a careless engine leaves open get into no hook, no program, and no process that exec adds.
@pytest.mark.parametrize("keep", [0, 1])
def test_no_descriptor_of_the_callers_is_handed_on(bundle: Bundle, tmp_path: Path, keep: int) -> None:
    script = tmp_path / "hook"
    script.write_text('#!/bin/sh\ncat > /dev/null\nls -l /proc/$$/fd > "$1"\n')
    script.chmod(0o755)
    stages = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    for stage in stages:
        bundle.hook(stage, str(script), str(tmp_path / stage))
    bundle.shell("exec > /tmp/fds; ls -l /proc/$$/fd; exec sleep 600")
    options = ("--preserve-fds", str(keep)) if keep else ()
    for words in (
        bundle.words("create", *options),
        [*bundle.globals, "start", bundle.id],
        [*bundle.globals, "exec", *options, bundle.id, "sh", "-c", "ls -l /proc/$$/fd"],
    ):
        careless = f'exec 3<{tmp_path} 4<{tmp_path} 7<{tmp_path} 9</ >{tmp_path}/out 2>&1; "$@"'
        argv = ["bash", "-c", careless, "bash", bundle.nestrt.command, *words]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=30 * SLOW)
        assert done.returncode == 0, (tmp_path / "out").read_text()
    exec_fds = (tmp_path / "out").read_text()
    program_fds = bundle.exec("cat", "/tmp/fds").ok().out
    bundle.delete("--force").ok()
    for text in (exec_fds, program_fds):
        found = dict(line.split()[-3::2] for line in text.splitlines() if " -> " in line)
        assert sorted(found) == ["0", "1", "2", "3"][: 3 + keep], text
    for stage in stages:
        text = (tmp_path / stage).read_text()
        found = dict(line.split()[-3::2] for line in text.splitlines() if " -> " in line)
        assert {number for number, target in found.items() if target != str(script)} == {"0", "1", "2"}, (stage, text)
