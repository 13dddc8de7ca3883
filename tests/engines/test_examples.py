"""examples/engines: each engine takes its file as it is, and runs a container by it.

The command is where the checkout is, and not in /usr/local/bin; nothing else is changed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from support.daemons import ADDRESS, Containerd, Docker
from support.engines import CHECKOUT, PATH, RUNTIME, Nest
from support.need import require
from support.podman import IMAGE, Podman

EXAMPLES = CHECKOUT / "examples" / "engines"
INSTALLED = "/usr/local/bin/nestrt"
NESTED = "nestrt.policy=nested"
# What a guest's first process reads of its groups.
ROOTED = "/init"


def example(name: str) -> str:
    """The file with the command's place on this machine."""
    text = (EXAMPLES / name).read_text()
    assert INSTALLED in text
    return text.replace(INSTALLED, RUNTIME)


def rooted(text: str) -> bool:
    """Whether /proc/self/cgroup has a guest's view in every line."""
    return {line.split(":", 2)[2] for line in text.split()} == {ROOTED}


def test_podman(podman: Podman) -> None:
    """As an administrator does it: the file beside podman's own, in /etc."""
    nest = podman.nest
    own = nest.inside(podman.env["CONTAINERS_CONF"]).read_text()
    lines = [line for line in own.splitlines() if not line.startswith(("runtime", "nestrt", "[engine.runtimes]"))]
    nest.inside("/etc/containers/containers.conf").write_text("\n".join(lines))
    dropin = nest.inside("/etc/containers/containers.conf.d")
    dropin.mkdir(exist_ok=True)
    (dropin / "nestrt.conf").write_text(example("podman.conf"))
    env = {key: value for key, value in podman.env.items() if key != "CONTAINERS_CONF"}
    words = ("podman", *podman.flags, "--runtime", "nestrt")
    try:
        info = json.loads(nest.run(*words, "info", "--format", "json", env=env).ok().out)["host"]
        assert (info["ociRuntime"]["name"], info["ociRuntime"]["path"]) == ("nestrt", RUNTIME)
        options = ("run", "--rm", "--cgroup-parent", nest.group)
        plain = nest.run(*words, *options, IMAGE, "cat", "/proc/self/cgroup", env=env).ok().out
        assert not rooted(plain)
        assert rooted(
            nest.run(*words, *options, "--annotation", NESTED, IMAGE, "cat", "/proc/self/cgroup", env=env).ok().out
        )
    finally:
        (dropin / "nestrt.conf").unlink()
        nest.inside("/etc/containers/containers.conf").unlink()


def test_podman_keeps_its_own_lists() -> None:
    """A list in a drop-in takes the place of podman's: it must have what is built in, as its manual page says."""
    engine = tomllib.loads((EXAMPLES / "podman.conf").read_text())["engine"]
    assert {"crun", "runc"} < set(engine["runtime_supports_json"])
    assert "crun" in engine["runtime_supports_nocgroups"]


def test_containerd_dumps_it(tmp_path: Path) -> None:
    program = shutil.which("containerd", path=PATH)
    require("engines", None if program else "not installed: containerd")
    assert program
    file = tmp_path / "config.toml"
    file.write_text(example("containerd.toml"))
    done = subprocess.run((program, "--config", str(file), "config", "dump"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plugins = tomllib.loads(done.stdout)["plugins"]
    runtime = plugins["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["nestrt"]
    assert runtime["runtime_type"] == "io.containerd.runc.v2"
    assert runtime["pod_annotations"] == runtime["container_annotations"] == ["nestrt.*"]
    assert runtime["options"] == {"BinaryName": RUNTIME, "SystemdCgroup": True}


def test_ctr(containerd: Containerd) -> None:
    """The command line in the file's head."""
    done = containerd.run("nestrt-example", "--rm", "--annotation", NESTED, "--", "cat", "/proc/self/cgroup")
    assert rooted(done.ok().out)


class Configured(Docker):
    """dockerd with the example and what keeps it in its Nest."""

    def __init__(self, nest: Nest, archive: str) -> None:
        super(Docker, self).__init__(nest, "docker-example")
        self.roots = (f"{self.store}/exec/runtime-nestrt/moby",)
        self.env = {"DOCKER_HOST": f"unix://{self.store}/d.sock", "DOCKER_CONFIG": f"{self.store}/client"}
        path = nest.write("docker-example/daemon.json", example("daemon.json"))
        flags = {
            "config-file": path,
            "data-root": f"{self.store}/data",
            "exec-root": f"{self.store}/exec",
            "pidfile": f"{self.store}/pid",
            "host": f"unix://{self.store}/d.sock",
            "bip": ADDRESS,
            "exec-opt": "native.cgroupdriver=cgroupfs",
            "cgroup-parent": nest.group,
            "default-ulimit": "nofile=1024:4096",
            "log-level": "warn",
        }
        self.begin("dockerd", *(f"--{key}={value}" for key, value in flags.items()))
        self("load", "-q", "-i", archive).ok()


def test_docker(nest: Nest, archive: str) -> None:
    """docker has no annotations before version 24: the host binds a policy to its containers, as README.md says."""
    missing = [name for name in ("dockerd", "docker", "containerd", "iptables") if not shutil.which(name, path=PATH)]
    require("engines", f"not installed: {' '.join(missing)}" if missing else None)
    readme = (EXAMPLES / "README.md").read_text()
    rule = readme.partition("```toml\n")[2].partition("```")[0]
    daemon = Configured(nest, archive)
    bindings = nest.inside("/etc/nestrt")
    try:
        words = ("--rm", "--network", "none", "--runtime", "nestrt", "--", "cat", "/proc/self/cgroup")
        runtimes: dict[str, Any] = json.loads(daemon("info", "--format", "{{json .Runtimes}}").ok().out)
        assert runtimes["nestrt"] == {"path": RUNTIME}
        assert not rooted(daemon.run(*words).ok().out)
        bindings.mkdir()
        (bindings / "bindings.toml").write_text(rule)
        assert rooted(daemon.run(*words).ok().out)
    finally:
        shutil.rmtree(bindings, ignore_errors=True)
        left = daemon.clear()
        daemon.close()
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


def test_crio() -> None:
    """The keys of crio.conf(5), "CRIO.RUNTIME.RUNTIMES TABLE"."""
    runtime = tomllib.loads(example("crio.conf"))["crio"]["runtime"]["runtimes"]["nestrt"]
    assert runtime == {"runtime_path": RUNTIME, "runtime_type": "oci", "runtime_root": "/run/nestrt/crio"}


def test_runtime_class() -> None:
    """Its handler is the runtime's name in the other files; the annotations are some that nestrt knows."""
    from nestrt.level.annotations import KNOWN, PROFILES

    text = (EXAMPLES / "runtimeclass.yaml").read_text()
    assert "\nhandler: nestrt\n" in text
    assert "runtimeClassName: nestrt\n" in text
    found = dict(line.strip().split(": ") for line in text.splitlines() if line.strip().startswith("nestrt."))
    assert set(found) <= set(KNOWN)
    assert found["nestrt.policy"] in PROFILES
