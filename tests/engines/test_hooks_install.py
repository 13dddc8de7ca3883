"""``nestrt hooks install`` on a machine with engines: they read what it writes, and runc's containers are guests.

::

    Nest                       /etc and /usr/local are thrown away with it
      ├ podman                 /etc/containers/containers.conf, hooks from /usr/local/share/nestrt/hooks.d
      ├ dockerd                /etc/docker/daemon.json -> STORE/docker/daemon.json, read again at SIGHUP
      └ containerd             /etc/containerd/config.toml with the CRI plugin
"""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import Containerd, Daemon, Docker
from support.engines import Nest
from support.need import require
from support.podman import IMAGE, Podman
from support.rootfs import CHECKOUT
from support.runner import Result, wait_for

COMMAND = str(CHECKOUT / "hooks" / "nestrt")
RUNC = "/usr/sbin/runc"
# In /proc/self/cgroup a guest sees its own root and what is below it.
CGROUPS = ("sed", "s/.*://", "/proc/self/cgroup")
_WRITABLE = """
set -e
mkdir -p /run/local/upper /run/local/work
mount -t overlay -o lowerdir=/usr/local,upperdir=/run/local/upper,workdir=/run/local/work overlay /usr/local
"""
_CONTAINERD = """version = 2
root = "STORE/root"
state = "STORE/state"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "STORE/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
enable_cdi = false
[plugins."io.containerd.runtime.v1.linux"]
no_shim = true
"""


def is_guest(result: Result) -> bool:
    """Whether the container of *result*, which ran CGROUPS, had a view of its own in every hierarchy."""
    return set(result.ok().out.split()) <= {"/", "/init"}


class Installed(Nest):
    """A Nest in which the command installs as on a machine of its own."""

    def __init__(self, store: Path) -> None:
        super().__init__(store)
        # Closing it must not end what is in the session's other Nest.
        self.group = f"/nestrt-hooks-{os.getpid()}"
        self.run("sh", "-c", _WRITABLE).ok()

    def hooks(self, *words: str) -> Result:
        return self.run(COMMAND, "hooks", *words)


@pytest.fixture(scope="module")
def machine(scratch: Path) -> Iterator[Installed]:
    require("runc", None if os.access(RUNC, os.X_OK) else "not installed: runc")
    found = Installed(scratch / "hooks")
    yield found
    found.close()


@pytest.fixture(scope="module")
def image(machine: Installed, archive: str, nest: Nest) -> str:
    return machine.copy(nest.inside(archive), "image.tar")


@pytest.fixture(scope="module")
def podman_here(machine: Installed, image: str) -> Podman:
    """podman that reads /etc/containers, with runc as its runtime."""
    found = Podman(machine, image)
    text = machine.inside(found.env.pop("CONTAINERS_CONF")).read_text()
    machine.inside("/etc/containers/containers.conf").write_text(text.replace('runtime = "nestrt"', 'runtime = "runc"'))
    return found


@pytest.fixture
def podman(podman_here: Podman, machine: Installed) -> Iterator[Podman]:
    yield podman_here
    left = podman_here.clear()
    machine.hooks("uninstall").ok()
    assert left == []


def test_podman_calls_the_hooks_that_were_installed(podman: Podman, machine: Installed) -> None:
    """A container with an annotation of ours is a guest of runc, another one is not, and neither is one afterwards."""
    asked = ("--rm", "--net", "none", "--annotation", "nestrt.policy=nested", "--", *CGROUPS)
    assert not is_guest(podman.run(*asked))
    machine.hooks("install", "--engine", "podman").ok()
    assert json.loads(machine.hooks("status", "--engine", "podman", "--format", "json").ok().out)["podman"]["right"]
    assert is_guest(podman.run(*asked))
    assert not is_guest(podman.run("--rm", "--net", "none", "--", *CGROUPS))
    assert podman.leftovers() == []
    machine.hooks("uninstall", "--engine", "podman").ok()
    assert not is_guest(podman.run(*asked))


def test_podman_s_conditions(podman: Podman, machine: Installed) -> None:
    """A policy for containers without any annotation: for a program, and for all."""
    machine.hooks("install", "--engine", "podman", "--command", "^sed$", "--policy", "nested").ok()
    assert is_guest(podman.run("--rm", "--net", "none", "--", *CGROUPS))
    assert not is_guest(podman.run("--rm", "--net", "none", "--", "cat", "/proc/self/cgroup"))
    machine.hooks("install", "--engine", "podman", "--always", "--policy", "nested").ok()
    assert is_guest(podman.run("--rm", "--net", "none", "--", "busybox", *CGROUPS))


def test_podman_told_of_a_prefix_s_directory(podman: Podman, machine: Installed) -> None:
    """``--prefix``, as a package is made: the directory is named on podman's command line."""
    prefix = f"{machine.store}/package"
    machine.inside(prefix).mkdir()
    machine.hooks("install", "--engine", "podman", "--prefix", prefix).ok()
    words = ("run", "--cgroup-parent", machine.group, "--rm", "--net", "none", "--annotation", "nestrt.policy=nested")
    assert is_guest(podman("--hooks-dir", f"{prefix}/usr/local/share/nestrt/hooks.d", *words, IMAGE, *CGROUPS))
    assert not is_guest(podman(*words, IMAGE, *CGROUPS))
    machine.hooks("uninstall", "--engine", "podman", "--prefix", prefix).ok()
    assert not [path for path in machine.inside(prefix).rglob("*") if path.is_file()]


def test_builds_go_on(podman: Podman, machine: Installed) -> None:
    """buildah and ``podman build`` fail at the stage "precreate" in podman's own directory: ours is another."""
    machine.hooks("install", "--engine", "podman", "--always").ok()
    machine.inside(f"{machine.store}/context").mkdir()
    machine.write("context/Dockerfile", f"FROM {IMAGE}\nRUN echo built > /built\n")
    words = ("--isolation", "oci", "--network", "none", "--no-cache", "-t", "built", f"{machine.store}/context")
    podman("build", "--cgroup-parent", f"{machine.group}/build", *words).ok()
    env = {**podman.env, "BUILDAH_RUNTIME": RUNC}
    # What buildah calls a parent is the container's own group.
    machine.run("buildah", "bud", "--cgroup-parent", f"{machine.group}/build", *words, env=env).ok()
    assert podman.run("--rm", "--net", "none", "--", "cat", "/built", image="built").ok().out == "built\n"
    podman("rmi", "-f", "built").ok()


def test_a_hook_that_others_may_write_is_not_installed(machine: Installed) -> None:
    """The checkout with one module that anybody may write, as the command sees it: nothing is written."""
    prefix = f"{machine.store}/untrusted"
    machine.inside(prefix).mkdir()
    place = f"{machine.store}/checkout"
    copy = f"mkdir {place} && cp -a {CHECKOUT}/hooks {CHECKOUT}/nestrt {place}/ && chmod 666 {place}/nestrt/errors.py"
    machine.run("sh", "-c", copy).ok()
    result = machine.run(f"{place}/hooks/nestrt", "hooks", "install", "--engine", "podman", "--prefix", prefix)
    assert result.rc == 5
    assert f"others than its owner may write {place}/nestrt/errors.py" in result.err
    assert result.err.count("\n") == 1
    assert list(machine.inside(prefix).iterdir()) == []
    machine.run("rm", "-r", place).ok()


def test_dockerd_reads_the_runtime_at_a_reload(machine: Installed, image: str) -> None:
    """install, SIGHUP: ``--runtime nestrt-runc`` makes guests; uninstall, SIGHUP: it is not known any more."""
    docker = Docker(machine, image)
    try:
        file = machine.inside(f"{docker.store}/daemon.json")
        as_it_was = file.read_text()
        machine.run("sh", "-c", f"mkdir -p /etc/docker; ln -sf {machine.store}/docker/daemon.json /etc/docker/").ok()
        machine.hooks("install", "--engine", "docker", "--policy", "nested").ok()
        assert machine.run("readlink", "/etc/docker/daemon.json").ok().out == f"{machine.store}/docker/daemon.json\n"
        _reload(docker, present=True)
        words = ("--rm", "--network", "none", "--", *CGROUPS)
        assert is_guest(docker.run("--runtime", "nestrt-runc", *words))
        assert not is_guest(docker.run("--runtime", "runc", *words))
        assert docker.wait_until_clear() == []
        machine.hooks("uninstall", "--engine", "docker").ok()
        assert file.read_text() == as_it_was
        _reload(docker, present=False)
        assert docker.run("--runtime", "nestrt-runc", *words).rc != 0
        docker.clear()
    finally:
        docker.close()


def _reload(docker: Docker, present: bool) -> None:
    pid = int(docker.nest.inside(f"{docker.store}/pid").read_text())
    os.kill(pid, signal.SIGHUP)
    asked = ("info", "--format", "{{json .Runtimes}}")
    wait_for(lambda: ("nestrt-runc" in json.loads(docker(*asked).ok().out)) == present, "dockerd to reload")


class Configured(Daemon):
    """containerd with the configuration of the machine."""

    pattern = "ctr-*"
    roots = ("run/containerd/runc/nestrt",)

    def __call__(self, *argv: str) -> Result:
        return self.nest.run("ctr", "--address", f"{self.store}/c.sock", "--namespace", "nestrt", *argv)

    def answers(self) -> bool:
        return self("version").rc == 0

    def run(self, name: str, *argv: str) -> Result:
        words = ("--runc-binary", "/usr/local/libexec/nestrt/containerd/nestrt-runc", "--rm")
        return self("run", *words, "--cgroup", f"{self.nest.group}/ctr-{name}", *argv)

    clear = Containerd.clear


@pytest.mark.parametrize("text", [_CONTAINERD, ""], ids=["debian", "none"])
def test_containerd_starts_with_the_runtime(machine: Installed, image: str, text: str) -> None:
    """The CRI plugin has two runtimes, its own default and ours, and ours makes guests."""
    containerd = Configured(machine, f"containerd-{len(text)}")
    machine.run("mkdir", "-p", "/etc/containerd").ok()
    file = machine.inside("/etc/containerd/config.toml")
    file.unlink(missing_ok=True)
    if text:
        file.write_text(text.replace("STORE", containerd.store))
    machine.hooks("install", "--engine", "containerd", "--policy", "nested").ok()
    dumped = tomllib.loads(machine.run("containerd", "config", "dump").ok().out)
    runtimes = dumped["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert set(runtimes) == {"runc", "nestrt-runc"}
    ours = runtimes["nestrt-runc"]
    assert ours["runtime_type"] == "io.containerd.runc.v2"
    assert ours["pod_annotations"] == ours["container_annotations"] == ["nestrt.*"]
    assert ours["options"]["BinaryName"] == "/usr/local/libexec/nestrt/containerd/nestrt-runc"
    if text:
        _starts(containerd, image)
    machine.hooks("uninstall", "--engine", "containerd").ok()
    assert file.read_text() == text.replace("STORE", containerd.store) if text else not file.exists()


def _starts(containerd: Configured, image: str) -> None:
    containerd.begin("containerd", "--log-level", "warn")
    try:
        rows = [row.split() for row in containerd("plugins", "ls").ok().out.splitlines()]
        cri = [row[-1] for row in rows if row[:2] == ["io.containerd.grpc.v1", "cri"]]
        assert cri == ["ok"], containerd.told()
        containerd("image", "import", image).ok()
        containerd.idle = containerd.nest.mounts(f"{containerd.store}/")
        assert is_guest(containerd.run("one", "--annotation", "nestrt.policy=nested", IMAGE, "one", *CGROUPS))
        assert containerd.wait_until_clear() == []
    finally:
        containerd.close()
