"""Namespaces of a bundle's container: made, joined by path, shared with the host, and those that cannot be.

pod      net ipc uts (user pid) ──┐ /proc/PID/ns/…, or a bind mount of it
member   joins ───────────────────┘  and has the rest of its own
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Bundle
from support.hostside import hierarchies, processes
from support.need import SLOW, require
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]
# OCI name: name in /proc/PID/ns
FILES = {
    "network": "net",
    "ipc": "ipc",
    "uts": "uts",
    "pid": "pid",
    "mount": "mnt",
    "cgroup": "cgroup",
    "user": "user",
    "time": "time",
}


def link(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{FILES[kind]}")


def seen(bundle: Bundle) -> dict[str, str]:
    """The namespaces of the container's first process, and that exec enters the same."""
    found = {kind: link(bundle.pid, kind) for kind in FILES if os.path.exists(f"/proc/self/ns/{FILES[kind]}")}
    text = "".join(f"readlink /proc/self/ns/{FILES[kind]}; " for kind in found)
    told = bundle.exec("sh", "-c", text).ok().out.split()
    assert told == list(found.values())
    return found


# What the document names is made; what it leaves out is the host's.
def test_made_and_shared(new_bundle: NewBundle) -> None:
    bundle = new_bundle()
    bundle.namespace("cgroup").up()
    own = {kind: link("self", kind) for kind in FILES if os.path.exists(f"/proc/self/ns/{FILES[kind]}")}
    found = seen(bundle)
    new = {"network", "ipc", "uts", "pid", "mount", "cgroup"}
    assert {kind for kind in own if found[kind] != own[kind]} == new
    for kind in ("network", "ipc", "uts", "pid"):
        other = new_bundle()
        other.namespace(kind, None)
        del other.config["hostname"]
        other.up()
        assert link(other.pid, kind) == own[kind], kind
        other.delete("--force").ok()


# By path, one at a time, and several at once as in a pod.
@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "cgroup", "time"])
def test_joined(new_bundle: NewBundle, kind: str) -> None:
    require("time namespaces" if kind == "time" else "namespaces", _absent(kind))
    pod = new_bundle()
    pod.namespace(kind).up()
    bundle = new_bundle()
    bundle.namespace(kind, f"/proc/{pod.pid}/ns/{FILES[kind]}")
    if kind == "uts":
        del bundle.config["hostname"]
    bundle.up()
    assert seen(bundle)[kind] == link(pod.pid, kind)
    if kind == "pid":
        # Beside the pod's first process, with a number of its own there.
        assert bundle.exec("cat", "/proc/self/comm").ok().out == "cat\n"
        status = Path(f"/proc/{bundle.pid}/status").read_text()
        assert next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1] != "1"
        bundle.kill().ok()
        bundle.await_status("stopped")
        assert pod.status == "running"


def _absent(kind: str) -> str:
    return "" if os.path.exists(f"/proc/self/ns/{FILES[kind]}") else f"this kernel has no {kind} namespaces"


@pytest.mark.parametrize("user", [True, False])
@pytest.mark.parametrize("policy", [True, False])
def test_a_pod(new_bundle: NewBundle, user: bool, policy: bool) -> None:
    pod = new_bundle()
    if user:
        pod.user_namespace()
    pod.up()
    kinds = ["network", "ipc", "uts", *(["user"] if user else [])]
    bundle = new_bundle()
    for kind in kinds:
        bundle.namespace(kind, f"/proc/{pod.pid}/ns/{FILES[kind]}")
    del bundle.config["hostname"]
    if policy:
        bundle.virtual()
    bundle.up("hostname; exec sleep 600")
    found = seen(bundle)
    for kind in kinds:
        assert found[kind] == link(pod.pid, kind), kind
    for kind in ("mount", "pid"):
        assert found[kind] != link(pod.pid, kind)
    groups = {line.split(":", 2)[2] for line in bundle.exec("cat", "/proc/self/cgroup").ok().out.splitlines()}
    assert groups == {"/init" if policy else bundle.cgroup}
    if user:
        assert bundle.exec("cat", "/proc/self/uid_map").ok().out.split() == ["0", "1600000", "65536"]


# podman keeps network namespaces as bind mounts of the file.
@pytest.fixture
def kept_network(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "netns"
    file.write_text("")
    done = subprocess.run(["unshare", f"--net={file}", "true"], capture_output=True, text=True)
    require("unshare", done.stderr)
    yield str(file)
    subprocess.run(["umount", file], check=True)


def test_a_kept_network(bundle: Bundle, kept_network: str) -> None:
    bundle.namespace("network", kept_network).up()
    assert os.stat(f"/proc/{bundle.pid}/ns/net").st_ino == os.stat(kept_network).st_ino
    assert "state DOWN" not in bundle.exec("cat", "/sys/class/net/lo/operstate").out


# A mount namespace that exists: the container's root is attached there, and nothing of the host's is changed.
def test_a_mount_namespace_by_path(bundle: Bundle) -> None:
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "600"])
    try:
        wait_for(lambda: link(holder.pid, "mount") != link("self", "mount"), "unshare")
        before = Path("/proc/self/mountinfo").read_text()
        bundle.namespace("mount", f"/proc/{holder.pid}/ns/mnt")
        result = bundle.shell("ls /; readlink /proc/self/ns/mnt").run()
        if result.rc == 0:
            assert "bin" in result.out.split()
            assert link(holder.pid, "mount") in result.out
        else:
            assert len(result.err.splitlines()) == 1, result
        assert Path("/proc/self/mountinfo").read_text() == before
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "time"])
def test_what_cannot_be_joined(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    other = "ipc" if kind == "network" else "network"
    plain = tmp_path / "plain"
    plain.write_text("")
    for path, text in (
        (f"/proc/self/ns/{FILES[other]}", ""),
        (str(plain), ""),
        ("/proc/999999999/ns/net", "no such file or directory"),
        (str(tmp_path / "nowhere"), "no such file or directory"),
    ):
        bundle.namespace(kind, path)
        result = bundle.args("true").run()
        assert result.rc == 1, (path, result)
        lines = result.err.splitlines()
        assert len(lines) == 1, result
        assert text in lines[0], result
        assert kind in lines[0] or path in lines[0], result
        assert "Traceback" not in result.err, result
        assert "bug" not in result.err, result
        assert bundle.leftovers() == []


# Without a pid namespace there is no first process whose end takes the others along: delete finds them by their groups.
@pytest.mark.slow_on_vm(False)
def test_the_host_s_pids(bundle: Bundle) -> None:
    bundle.namespace("pid", None).up("sleep 600 & sleep 600 & exec sleep 600")
    wait_for(lambda: len(processes(bundle.cgroup)) == 3, "three")
    assert bundle.exec("sh", "-c", "readlink /proc/self").ok().out.strip().isdigit()
    bundle.kill("TERM").ok()
    bundle.await_status("stopped")
    assert len(processes(bundle.cgroup)) == 2
    bundle.delete().ok()
    assert bundle.leftovers() == []


# As under runc SIGKILL reaches all of them, with --all any signal.
@pytest.mark.slow_on_vm(False)
@pytest.mark.parametrize("options", [("KILL",), ("TERM", "--all")])
def test_kill_all_with_the_host_s_pids(bundle: Bundle, options: tuple[str, ...]) -> None:
    bundle.namespace("pid", None).up("sleep 600 & sleep 600 & exec sleep 600")
    wait_for(lambda: len(processes(bundle.cgroup)) == 3, "three")
    bundle.kill(*options).ok()
    wait_for(lambda: not processes(bundle.cgroup), "all to end")
    bundle.delete().ok()


def offsets(bundle: Bundle) -> dict[str, float]:
    answers = bundle.exec("cat", "/proc/uptime").ok().out.split()
    return {"inside": float(answers[0]), "outside": float(Path("/proc/uptime").read_text().split()[0])}


# Clocks of its own: what boottime is ahead by shows in /proc/uptime.
def test_time_offsets(bundle: Bundle) -> None:
    require("time namespaces", _absent("time"))
    bundle.namespace("time")
    bundle.config["linux"]["timeOffsets"] = {
        "boottime": {"secs": 1_000_000},
        "monotonic": {"secs": 2_000, "nanosecs": 5},
    }
    bundle.up()
    text = bundle.exec("cat", "/proc/self/timens_offsets").ok().out.split()
    assert text == ["monotonic", "2000", "5", "boottime", "1000000", "0"]
    found = offsets(bundle)
    assert 999_990 < found["inside"] - found["outside"] < 1_000_010 * SLOW


def test_time_offsets_without_a_namespace(bundle: Bundle) -> None:
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1}}
    result = bundle.args("true").run()
    assert (result.rc, len(result.err.splitlines())) == (1, 1), result
    assert bundle.leftovers() == []


# A namespace twice, or one that there is not.
@pytest.mark.parametrize("entries", [[{"type": "pid"}, {"type": "pid"}], [{"type": "nonsense"}], [{"type": ""}]])
def test_documents_that_cannot_be(bundle: Bundle, entries: list[dict[str, Any]]) -> None:
    bundle.config["linux"]["namespaces"] += entries
    result = bundle.args("true").run()
    assert (result.rc, len(result.err.splitlines())) == (1, 1), result
    assert "namespace" in result.err
    assert bundle.leftovers() == []


# Host name and domain name are those of the UTS namespace; without one they are refused.
def test_host_name(bundle: Bundle) -> None:
    bundle.config.update(hostname="inside", domainname="example")
    answers = bundle.ask({"host": "hostname", "domain": "cat /proc/sys/kernel/domainname"})
    assert (answers.text("host"), answers.text("domain")) == ("inside", "example")
    bundle.namespace("uts", None)
    result = bundle.args("true").run()
    assert (result.rc, len(result.err.splitlines())) == (1, 1), result
    assert os.uname().nodename != "inside"


# With a cgroup namespace but no policy: "/" is the engine's path, and the mount begins there.
@pytest.mark.slow_on_vm(False)
def test_a_cgroup_namespace_without_a_policy(bundle: Bundle) -> None:
    place = hierarchies()[0].mountpoint
    bundle.namespace("cgroup")
    answers = bundle.ask(
        {
            "own": "cut -d: -f3 /proc/self/cgroup | sort -u",
            "procs": f"cat {place}/cgroup.procs",
            "make": f"mkdir {place}/x",
        }
    )
    assert answers.text("own") == "/"
    assert "1" in answers.text("procs").split()
    assert "Read-only" in answers.refused("make")
