"""checkpoint and restore: processes by CRIU, and with them the groups that the guest had made.

::

    /…/ID                      limit group: the bundle's limits, at restore those of the bundle restored to
        └ guest                guest root
           ├ init              the first process: counts
           ├ web               pids.max 7, holds a sleeper
           │  └ inner          pids.max 3
           └ empty             pids.max 33

Which criu is taken: NESTRT_CRIU, else the one on PATH. CRIU 3.17 works up to Linux 6.12, 4.1 and later also on newer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Bundle
from support.hostside import group_file, has_v1, processes
from support.need import SLOW, require
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]
# Standard input and output are no files of the test's: CRIU would want them again.
QUIET = "exec </dev/null >/dev/null 2>&1; "
COUNT = f"{QUIET}i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n; sleep 0.1; done"
PIDS = "cd /sys/fs/cgroup; [ ! -d pids ] || cd pids"
GROUPS = (
    f"{PIDS}; mkdir -p web/inner empty; "
    "[ ! -e web/cgroup.subtree_control ] || echo +pids > web/cgroup.subtree_control; "
    "echo 7 > web/pids.max; echo 3 > web/inner/pids.max; echo 33 > empty/pids.max; "
)
SLEEPER = "sleep 900 </dev/null >/dev/null 2>&1 & echo $! > {group}/cgroup.procs"


def program() -> str:
    return os.environ.get("NESTRT_CRIU") or shutil.which("criu", path=f"{os.environ['PATH']}:/usr/sbin") or "criu"


def attempt() -> tuple[str, str]:
    """What ``criu check`` has to say against this kernel: (last line, all)."""
    try:
        done = subprocess.run([program(), "check"], capture_output=True, text=True)
    except FileNotFoundError:
        return "criu is not there", ""
    said = done.stderr + done.stdout
    return ("" if done.returncode == 0 else said.strip().splitlines()[-1]), said


@pytest.fixture
def criu() -> str:
    require("criu", attempt()[0])
    return program()


@pytest.fixture
def image(bundle: Bundle) -> Path:
    return bundle.path / "image"


def by(bundle: Bundle, criu: str) -> Bundle:
    bundle.globals += ["--criu", criu]
    return bundle


def save(bundle: Bundle, image: Path, *options: str, **named: Any) -> Any:
    return bundle.verb("checkpoint", "--image-path", str(image), *options, bundle.id, **named)


def load(bundle: Bundle, image: Path, *options: str, **named: Any) -> Any:
    words = ("restore", "--detach", "--bundle", str(bundle.path), "--image-path", str(image))
    return bundle.write().verb(*words, *options, bundle.id, **named)


def count(bundle: Bundle) -> int:
    # The shell empties the file before it writes.
    return int(wait_for(lambda: bundle.exec("cat", "/dev/shm/n").ok().out, "its number"))


def counts(bundle: Bundle) -> int:
    """That the first process goes on; how far it is."""
    before = count(bundle)
    wait_for(lambda: count(bundle) > before, "it to count on")
    return before


def pids_max(group: str) -> str:
    return group_file("pids", group, "pids.max", "pids.max").read_text().strip()


def in_pids(group: str) -> list[str]:
    return group_file("pids", group, "cgroup.procs", "cgroup.procs").read_text().split()


# Without a policy: as under runc. It ends with the dump, and goes on where it was, with the new pid in the state.
@pytest.mark.slow_on_vm(False)
def test_a_container_goes_on_where_it_was(bundle: Bundle, image: Path, criu: str, tmp_path: Path) -> None:
    by(bundle, criu).up(COUNT)
    wait_for(lambda: count(bundle) > 2, "it to count")
    pid = bundle.pid
    save(bundle, image).ok()
    assert bundle.leftovers() == []
    assert not os.path.exists(f"/proc/{pid}/exe")
    pid_file = tmp_path / "pid"
    load(bundle, image, "--pid-file", str(pid_file)).ok()
    assert counts(bundle) > 2
    assert bundle.status == "running"
    assert bundle.pid == int(pid_file.read_text())
    assert str(bundle.pid) in in_pids(bundle.cgroup)


# The guest's tree, values and members too, below the limit group of another bundle; the view is locked as before.
@pytest.mark.slow_on_vm(False)
def test_the_guests_groups_come_along(new_bundle: NewBundle, criu: str) -> None:
    first = by(new_bundle(), criu).virtual().resources(pids={"limit": 100})
    image = first.path / "image"
    first.up(COUNT)
    first.exec("sh", "-c", GROUPS + SLEEPER.format(group="web/inner")).ok()
    save(first, image).ok()
    assert first.leftovers() == []

    second = by(new_bundle(), criu).virtual().resources(pids={"limit": 50})
    second.shell(COUNT)
    load(second, image).ok()
    counts(second)
    root = f"{second.cgroup}/guest"
    assert pids_max(second.cgroup) == "50"
    values = {name: pids_max(f"{root}/{name}") for name in ("web", "web/inner", "empty")}
    assert values == {"web": "7", "web/inner": "3", "empty": "33"}
    (sleeper,) = in_pids(f"{root}/web/inner")
    assert Path(f"/proc/{sleeper}/cmdline").read_bytes() == b"sleep\x00900\x00"
    assert str(second.pid) in in_pids(f"{root}/init")
    # What the guest sees: its own root, its limits locked, its groups its own.
    seen = second.ask_running(
        {
            "own": "cat /proc/1/cgroup | cut -d: -f3 | sort -u",
            "locked": f"{PIDS}; echo 90 > pids.max",
            "free": f"{PIDS}; mkdir more && echo 2 > more/pids.max && cat more/pids.max",
        }
    )
    assert seen.text("own") == "/init", seen
    seen.refused("locked")
    assert seen.text("free") == "2", seen


def test_leave_running(bundle: Bundle, image: Path, criu: str) -> None:
    by(bundle, criu).virtual().up(COUNT)
    pid = bundle.pid
    save(bundle, image, "--leave-running").ok()
    assert bundle.pid == pid
    counts(bundle)
    assert (image / "nestrt-groups.json").exists()


# Memory first while it runs, then the rest relative to that.
def test_pre_dump_and_parent(bundle: Bundle, image: Path, criu: str) -> None:
    tracking = subprocess.run([criu, "check", "--feature", "mem_dirty_track"], capture_output=True, text=True)
    require("mem_dirty_track", tracking.stderr.strip().splitlines()[-1] if tracking.returncode else "")
    by(bundle, criu).up(COUNT)
    parent = image.with_name("parent")
    save(bundle, parent, "--pre-dump").ok()
    assert bundle.status == "running"
    assert not (parent / "nestrt-groups.json").exists()
    save(bundle, image, "--parent-path", "../parent").ok()
    load(bundle, image).ok()
    counts(bundle)


# A dump that CRIU refuses (here: an open file of the host's) leaves the container as it was, not frozen, in one line.
def test_a_failed_dump_changes_nothing(bundle: Bundle, image: Path, criu: str, tmp_path: Path) -> None:
    by(bundle, criu).virtual().up(COUNT)
    (tmp_path / "held").write_text("")
    with (tmp_path / "held").open("w") as held:
        words = [*bundle.globals, "exec", bundle.id, "sh", "-c", "sleep 600 &"]
        subprocess.run([bundle.nestrt.command, *words], stdin=subprocess.DEVNULL, stdout=held, check=True)
    done = save(bundle, image)
    assert done.rc == 1
    assert done.err.count("\n") == 1, done
    assert "criu failed: " in done.err
    assert bundle.status == "running"
    counts(bundle)


# Debian 12's CRIU on a newer kernel: said what it is, and what helps.
@pytest.mark.v1
def test_a_criu_too_old_for_the_kernel(bundle: Bundle, image: Path) -> None:
    said = attempt()[1]
    require("old-criu", "" if "Unexpected rt vDSO" in said else "this criu knows the vDSO of this kernel")
    by(bundle, program()).virtual().up(COUNT)
    done = save(bundle, image)
    assert done.rc == 1
    assert done.err.count("\n") == 1, done
    assert "does not know the vDSO of this kernel" in done.err
    assert "install CRIU 4.1 or later" in done.err
    counts(bundle)


def test_no_criu(bundle: Bundle, image: Path) -> None:
    by(bundle, "/nowhere/criu").up(COUNT)
    done = save(bundle, image)
    assert done.rc == 1
    assert "executable file not found in $PATH" in done.err
    counts(bundle)


# Whatever a restore fails by, nothing of it stays: the fixture looks for groups, state and mounts.
@pytest.mark.parametrize("wrong", ["no image", "cut image", "hook", "escape", "source", "no policy"])
def test_a_failed_restore_leaves_nothing(bundle: Bundle, image: Path, criu: str, tmp_path: Path, wrong: str) -> None:
    by(bundle, criu).virtual()
    if wrong == "source":
        bundle.mount(str(tmp_path), "/mnt")
    bundle.up(COUNT)
    bundle.exec("sh", "-c", GROUPS + SLEEPER.format(group="web")).ok()
    save(bundle, image).ok()
    if wrong == "no image":
        shutil.rmtree(image)
    elif wrong == "cut image":
        (image / "core-1.img").write_bytes((image / "core-1.img").read_bytes()[:40])
    elif wrong == "hook":
        bundle.hook("prestart", "/bin/false")
    elif wrong == "escape":
        place = image / "nestrt-groups.json"
        found = json.loads(place.read_text())
        found["hierarchies"][0]["groups"].append({"path": "../../escaped"})
        place.write_text(json.dumps(found))
    elif wrong == "no policy":
        del bundle.config["annotations"]
    else:
        bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] != "/mnt"]
    done = load(bundle, image)
    assert done.rc == 1, done
    assert done.err.count("\n") == 1, done
    assert bundle.leftovers() == []
    assert not processes(bundle.cgroup)


# Groups that somebody lives in are not taken over, and not taken down with what fails.
def test_occupied_groups_are_left_alone(new_bundle: NewBundle, criu: str) -> None:
    first = by(new_bundle(), criu).up(COUNT)
    save(first, first.path / "image", "--leave-running").ok()
    second = by(new_bundle(), criu)
    second.config["linux"]["cgroupsPath"] = first.cgroup
    second.shell(COUNT)
    done = load(second, first.path / "image")
    assert done.rc == 1
    assert "cgroup is not empty" in done.err
    counts(first)


# Binds come from the bundle that is restored to, never from the image; hooks of the runtime's side run again.
def test_binds_and_hooks_are_the_new_bundles(new_bundle: NewBundle, criu: str, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
        (place / "name").write_text(place.name)
    first = by(new_bundle(), criu).mount(str(places[0]), "/mnt").up(COUNT)
    assert first.exec("cat", "/mnt/name").ok().out == "one"
    save(first, first.path / "image").ok()
    second = by(new_bundle(), criu).mount(str(places[1]), "/mnt").shell(COUNT)
    seen = tmp_path / "seen"
    second.hook("createRuntime", "/bin/sh", "-c", f"cat > {seen}")
    load(second, first.path / "image").ok()
    assert second.exec("cat", "/mnt/name").ok().out == "two"
    assert json.loads(seen.read_text())["pid"] == second.pid


# Pipes that the first process had as 0, 1, 2 are those of whoever restores it, as conmon needs it.
def test_standard_output_is_the_restorers(bundle: Bundle, image: Path, criu: str) -> None:
    by(bundle, criu)
    bundle.shell("while :; do echo tick; sleep 0.1; done")
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([bundle.nestrt.command, *bundle.words("run", "--detach")], **quiet)
    assert process.stdout is not None
    assert process.stdout.readline() == b"tick\n"
    assert process.wait() == 0
    save(bundle, image).ok()
    words = [
        *bundle.globals,
        "restore",
        "--detach",
        "--bundle",
        str(bundle.path),
        "--image-path",
        str(image),
        bundle.id,
    ]
    again = subprocess.Popen([bundle.nestrt.command, *words], **quiet)
    assert again.wait() == 0
    assert again.stdout is not None
    assert again.stdout.readline() == b"tick\n"
    bundle.kill().ok()
    process.stdout.close()
    again.stdout.close()


# The terminal's master goes to whoever listens now.
def test_a_terminal_by_the_console_socket(bundle: Bundle, image: Path, criu: str, tmp_path: Path) -> None:
    by(bundle, criu)
    bundle.config["process"]["terminal"] = True
    bundle.shell("while read x; do echo got $x; done")
    masters: list[int] = []

    def console(name: str) -> str:
        path = str(tmp_path / name)
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(1)

        def take() -> None:
            with server, server.accept()[0] as end:
                masters.extend(socket.recv_fds(end, 64, 1)[1])

        threading.Thread(target=take, daemon=True).start()
        return path

    bundle.run("--detach", "--console-socket", console("one")).ok()
    wait_for(lambda: masters, "the terminal")
    os.write(masters[0], b"before\n")
    _await(masters[0], b"got before")
    save(bundle, image).ok()
    load(bundle, image, "--console-socket", console("two")).ok()
    wait_for(lambda: len(masters) == 2, "the terminal")
    os.write(masters[1], b"after\n")
    _await(masters[1], b"got after")
    for master in masters:
        os.close(master)


def _await(fd: int, text: bytes) -> None:
    found = b""
    end = time.monotonic() + 20 * SLOW
    os.set_blocking(fd, False)
    while text not in found:
        assert time.monotonic() < end, found
        try:
            found += os.read(fd, 4096)
        except BlockingIOError:
            time.sleep(0.02)


# In the foreground restore stays, hands back the exit status, and removes the container.
def test_in_the_foreground(bundle: Bundle, image: Path, criu: str) -> None:
    by(bundle, criu).up(QUIET + "while [ ! -e /dev/shm/end ]; do sleep 0.1; done; exit 7")
    save(bundle, image).ok()
    words = [*bundle.globals, "restore", "--bundle", str(bundle.path), "--image-path", str(image), bundle.id]
    process = bundle.nestrt.start(*words)
    wait_for(lambda: bundle.verb("state", bundle.id).rc == 0 and bundle.status == "running", "it to run")
    bundle.exec("touch", "/dev/shm/end").ok()
    assert process.wait(30 * SLOW) == 7
    assert bundle.leftovers() == []


# In a user namespace the guest's groups are the guest root's; they are so again.
def test_with_a_user_namespace(bundle: Bundle, image: Path, criu: str) -> None:
    by(bundle, criu).virtual().user_namespace().up(COUNT)
    bundle.exec("sh", "-c", GROUPS + SLEEPER.format(group="web/inner")).ok()
    save(bundle, image).ok()
    load(bundle, image).ok()
    counts(bundle)
    root = f"{bundle.cgroup}/guest"
    assert pids_max(f"{root}/web/inner") == "3"
    assert len(in_pids(f"{root}/web/inner")) == 1
    bundle.exec("sh", "-c", GROUPS.replace("33", "32")).ok()
    assert pids_max(f"{root}/empty") == "32"


# To other groups than it was saved from, by CRIU's own account of them.
@pytest.mark.parametrize("kind", ["policy and user namespace", "cgroup namespace", "nothing"])
def test_to_other_groups(new_bundle: NewBundle, criu: str, kind: str) -> None:
    def make() -> Bundle:
        found = by(new_bundle(), criu)
        if kind == "policy and user namespace":
            found.virtual().user_namespace()
        elif kind == "cgroup namespace":
            found.namespace("cgroup")
        return found.resources(pids={"limit": 60})

    first = make().up(COUNT)
    virtual = kind.startswith("policy")
    if virtual:
        first.exec("sh", "-c", GROUPS + SLEEPER.format(group="web/inner")).ok()
    save(first, first.path / "image").ok()
    second = make()
    second.shell(COUNT)
    load(second, first.path / "image").ok()
    counts(second)
    assert first.leftovers() == []
    place = f"{second.cgroup}/guest/init" if virtual else second.cgroup
    assert str(second.pid) in in_pids(place)
    if virtual:
        assert pids_max(f"{second.cgroup}/guest/web/inner") == "3"
        assert len(in_pids(f"{second.cgroup}/guest/web/inner")) == 1
    if kind != "nothing":
        own = {line.split(":")[2] for line in second.exec("cat", "/proc/1/cgroup").ok().out.split()}
        assert own == {"/init" if virtual else "/"}


# CRIU cannot save what the guest has frozen, and would wait for it for ever: said at once.
@pytest.mark.slow_on_vm(False)
def test_what_the_guest_has_frozen(bundle: Bundle, image: Path) -> None:
    by(bundle, "/bin/false").virtual().up(COUNT)
    v1 = has_v1("freezer")
    place, text = ("freezer", "FROZEN > ice/freezer.state") if v1 else ("", "1 > ice/cgroup.freeze")
    bundle.exec("sh", "-c", f"cd /sys/fs/cgroup/{place}; mkdir ice; echo {text}").ok()
    done = save(bundle, image)
    assert done.rc == 1
    assert "the guest has frozen" in done.err
    counts(bundle)


# A paused container stays so where it lives on, and goes on where it is restored.
@pytest.mark.slow_on_vm(False)
def test_a_paused_container(bundle: Bundle, image: Path, criu: str) -> None:
    by(bundle, criu).virtual().up(COUNT)
    bundle.verb("pause", bundle.id).ok()
    save(bundle, image, "--leave-running").ok()
    assert bundle.status == "paused"
    save(bundle, image).ok()
    assert bundle.leftovers() == []
    load(bundle, image).ok()
    counts(bundle)


def test_states_that_cannot_be_saved(bundle: Bundle, image: Path) -> None:
    assert "container does not exist" in save(bundle, image).err
    bundle.shell("sleep 60").create().ok()
    done = save(bundle, image)
    assert done.rc == 1
    assert "cannot be checkpointed in created state" in done.err
    assert not image.exists()
