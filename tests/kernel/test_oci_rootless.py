"""An ordinary user's containers: ``nestrt spec --rootless``, with no groups, and in a group that root has handed over.

root      makes /nestrt-rl-PID in the v2 tree and gives it to uid 61234
61234     nestrt run … in its own user namespace: one id, or a range by newuidmap
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.bundles import Bundle
from support.hostside import is_v2_only, processes, v2_hierarchy
from support.need import require
from support.runner import Nestrt, wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

UID = 61234
RANGE = 700_000
NewBundle = Callable[..., Bundle]
AS_USER = f"setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all"


class User:
    """The user's own place: state, bundles, and the command as that user runs it."""

    def __init__(self, place: Path, new_bundle: NewBundle) -> None:
        self.place = place
        self.new_bundle = new_bundle
        self.before = ""
        self.script = place / "nestrt"

    def own(self, path: Path) -> Path:
        path.mkdir(exist_ok=True)
        os.chown(path, UID, UID)
        return path

    def command(self) -> Nestrt:
        """``nestrt`` as the user has it, after *before*, which root does."""
        nestrt = Nestrt()
        self.script.write_text(
            f"#!/bin/sh\n{self.before}\ncd {self.place}/home\nexec env HOME={self.place}/home {AS_USER} "
            f'{shlex.quote(Nestrt.command)} "$@"\n'
        )
        self.script.chmod(0o755)
        nestrt.command = str(self.script)
        return nestrt

    def bundle(self) -> Bundle:
        """What ``spec --rootless`` writes, with no terminal and the test's root filesystem."""
        bundle = self.new_bundle(state=self.place / "home" / "state")
        bundle.nestrt = self.command()
        os.chown(bundle.path, UID, UID)
        bundle.nestrt.run("spec", "--rootless", "--bundle", str(bundle.path)).ok()
        bundle.config = json.loads((bundle.path / "config.json").read_text())
        bundle.config["process"]["terminal"] = False
        bundle.config["root"]["path"] = str(bundle.rootfs)
        return bundle


@pytest.fixture
def user(tmp_path: Path, new_bundle: NewBundle) -> User:
    """The user, in a directory that can be reached; skipped where the kernel gives users no namespaces."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o111)
    done = subprocess.run([*AS_USER.split(), "unshare", "--user", "true"], capture_output=True, text=True)
    require("user namespaces", done.stderr)
    found = User(tmp_path, new_bundle)
    found.own(tmp_path / "home")
    return found


# No group can be made: said once, and everything else works.
@pytest.mark.slow_on_vm(False)
def test_without_groups(user: User) -> None:
    bundle = user.bundle()
    result = bundle.shell("id -u; cat /proc/self/uid_map; hostname").run()
    assert result.rc == 0, result
    assert result.out.split() == ["0", "0", str(UID), "1", "nestrt"]
    assert "no groups and no limits" in result.err
    assert len(result.err.splitlines()) == 1
    assert bundle.leftovers() == []


def test_every_verb(user: User) -> None:
    bundle = user.bundle()
    bundle.shell("echo up; exec sleep 600").create().ok()
    assert bundle.status == "created"
    bundle.start().ok()
    assert bundle.status == "running"
    assert Path(f"/proc/{bundle.pid}").stat().st_uid == UID
    assert bundle.exec("id", "-u").ok().out == "0\n"
    assert bundle.exec("sh", "-c", "exit 7").rc == 7
    assert bundle.exec("cat", "/proc/1/comm").ok().out == "sleep\n"
    rows = json.loads(bundle.verb("list", "--format", "json").ok().out)
    assert [row["id"] for row in rows] == [bundle.id]
    assert bundle.delete().rc == 1
    bundle.kill("KILL").ok()
    bundle.await_status("stopped")
    bundle.delete().ok()
    bundle.up()
    bundle.delete("--force").ok()
    assert bundle.leftovers() == []


# Limits that cannot be had are an error, which names them; never a container with less than was asked for.
@pytest.mark.parametrize(
    ("resources", "names"),
    [
        ({"memory": {"limit": 64 << 20}}, ["memory"]),
        ({"pids": {"limit": 9}, "cpu": {"quota": 50000, "period": 100000}}, ["cpu", "pids"]),
    ],
)
def test_limits_that_cannot_be(user: User, resources: dict[str, object], names: list[str]) -> None:
    bundle = user.bundle()
    bundle.config["linux"]["resources"] = resources
    result = bundle.args("true").run()
    assert result.rc == 1, result
    assert len(result.err.splitlines()) == 1
    assert all(name in result.err for name in names), result
    assert bundle.leftovers() == []


def test_a_policy_takes_groups(user: User) -> None:
    bundle = user.bundle().virtual()
    result = bundle.args("true").run()
    assert result.rc == 1, result
    assert len(result.err.splitlines()) == 1
    assert "Traceback" not in result.err
    assert "bug" not in result.err
    assert bundle.leftovers() == []


def test_a_bundle_that_is_root_s(user: User) -> None:
    bundle = user.bundle()
    bundle.namespace("user", None)
    del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]
    result = bundle.args("true").run()
    assert result.rc == 1
    assert "rootless container requires user namespaces" in result.err
    assert bundle.leftovers() == []


# Ids that are not the user's: refused, by whoever is to map them.
def test_ids_of_others(user: User) -> None:
    bundle = user.bundle()
    ids = [{"containerID": 0, "hostID": 0, "size": 10}]
    bundle.config["linux"].update(uidMappings=ids, gidMappings=ids)
    result = bundle.args("true").run()
    assert result.rc == 1, result
    assert "ids that /etc/subuid" in result.err or "newuidmap" in result.err
    assert bundle.leftovers() == []


# A range of /etc/subuid, given by newuidmap; the files are ours in a mount namespace that nobody else sees.
def test_a_range_of_ids(user: User) -> None:
    require("newuidmap", "" if os.path.exists("/usr/bin/newuidmap") else "uidmap is not installed")
    passwd = Path("/etc/passwd").read_text() + f"nestrt-t:x:{UID}:{UID}::/:/bin/sh\n"
    group = Path("/etc/group").read_text() + f"nestrt-t:x:{UID}:\n"
    given = f"nestrt-t:{RANGE}:65536\n"
    lines = []
    for name, text in (("passwd", passwd), ("group", group), ("subuid", given), ("subgid", given)):
        (user.place / name).write_text(text)
        lines.append(f"mount --bind {user.place}/{name} /etc/{name}")
    user.before = (
        'if [ -z "$NESTRT_T" ]; then NESTRT_T=1 exec unshare --mount --propagation private "$0" "$@"; fi\n'
        + "\n".join(lines)
    )
    bundle = user.bundle()
    ids = [{"containerID": 0, "hostID": UID, "size": 1}, {"containerID": 1, "hostID": RANGE, "size": 65535}]
    bundle.config["linux"].update(uidMappings=ids, gidMappings=ids)
    bundle.capabilities("CAP_SETUID", "CAP_SETGID", "CAP_CHOWN")
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    result = bundle.shell("id -u; id -G; cat /proc/self/uid_map").run()
    words = ["1000", "1000", "7", "0", str(UID), "1", "1", str(RANGE), "65535"]
    assert result.ok().out.split() == words
    bundle.up()
    assert bundle.exec("id", "-u", options=["--user", "33:44"]).ok().out == "33\n"
    assert Path(f"/proc/{bundle.pid}").stat().st_uid == RANGE + 999
    bundle.delete("--force").ok()


# An ordinary user is not to have what is root's: the state of containers that another has made.
def test_containers_of_root(user: User, new_bundle: NewBundle) -> None:
    theirs = new_bundle().up()
    own = user.command()
    for verb in (["state"], ["kill"], ["delete", "--force"], ["exec"]):
        words = [*verb, theirs.id, *(["true"] if verb == ["exec"] else [])]
        result = own.run(*theirs.globals, *words)
        assert result.rc != 0, result
        assert "Traceback" not in result.err, result
        assert "bug" not in result.err, result
    assert theirs.status == "running"


@pytest.fixture
def delegated(user: User) -> Iterator[str]:
    """A v2 group that is the user's, with what controllers there are; the user's commands start in a leaf of it."""
    v2 = v2_hierarchy()
    require("cgroup-v2", None if v2 else "no v2 tree")
    assert v2 is not None
    top = v2.mountpoint / "cgroup.subtree_control"
    for name in v2.controllers - set(top.read_text().split()):
        top.write_text(f"+{name}")
    group = f"/nestrt-rl-{os.getpid()}"
    place = v2.group(group)
    own = place / "own"
    own.mkdir(parents=True)
    for directory in (place, own):
        os.chown(directory, UID, UID)
        for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(directory / file, UID, UID)
    (place / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in v2.controllers))
    user.before = f"echo $$ > {own}/cgroup.procs"
    yield group
    for pid in processes(group):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes(group), f"{group} to be empty")
    for directory, _, _ in os.walk(place, topdown=False):
        os.rmdir(directory)


# In a group that is the user's: the container has groups again, and what the kernel delegates of limits.
@pytest.mark.slow_on_vm(False)
def test_in_a_delegated_group(user: User, delegated: str) -> None:
    bundle = user.bundle()
    bundle.cgroup = f"{delegated}/box"
    bundle.config["linux"]["cgroupsPath"] = bundle.cgroup
    if is_v2_only():
        bundle.config["linux"]["resources"] = {"pids": {"limit": 9}, "memory": {"limit": 64 << 20}}
    bundle.namespace("cgroup")
    bundle.shell("sleep 600 & exec sleep 600").run("--detach").ok()
    v2 = v2_hierarchy()
    assert v2 is not None
    place = v2.group(bundle.cgroup)
    wait_for(lambda: len((place / "cgroup.procs").read_text().split()) == 2, "two processes")
    assert place.stat().st_uid == UID
    if is_v2_only():
        assert (place / "pids.max").read_text() == "9\n"
        assert (place / "memory.max").read_text() == f"{64 << 20}\n"
    assert "0::/\n" in bundle.exec("cat", "/proc/self/cgroup").ok().out
    bundle.verb("pause", bundle.id).ok()
    assert bundle.status == "paused"
    bundle.verb("resume", bundle.id).ok()
    bundle.kill("KILL", "--all").ok()
    bundle.await_status("stopped")
    bundle.delete().ok()
    assert not place.exists()


# A policy there: the guest root is the user's own, and divides what was given.
@pytest.mark.slow_on_vm(False)
def test_a_policy_in_a_delegated_group(user: User, delegated: str) -> None:
    bundle = user.bundle().virtual()
    bundle.cgroup = f"{delegated}/box"
    bundle.config["linux"]["cgroupsPath"] = bundle.cgroup
    # The host's /sys, which spec --rootless binds, has the host's groups below it: not with a view.
    bundle.namespace("network")
    bundle.config["mounts"] = [
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"} if mount["destination"] == "/sys" else mount
        for mount in bundle.config["mounts"]
    ]
    v2 = v2_hierarchy()
    assert v2 is not None
    answers = bundle.ask(
        {"own": "grep ^0:: /proc/self/cgroup", "make": f"mkdir {v2.mountpoint}/web && ls -d {v2.mountpoint}/web"}
    )
    assert answers.text("own") == "0::/init"
    answers.text("make")
    assert bundle.leftovers() == []
