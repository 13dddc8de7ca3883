"""containerd and dockerd in a Nest: stores, sockets and configurations of their own, nestrt as the runtime."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from support.engines import RUNTIME, STATE, Nest
from support.hostside import groups
from support.need import SLOW
from support.podman import IMAGE, split
from support.runner import Result, wait_for

DOCKER = "/usr/bin/docker"
# Of docker's only bridge, in the Nest's network namespace.
ADDRESS = "10.213.0.1/24"
_CONTAINERD = """
version = 2
root = "STORE/root"
state = "STORE/state"
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "STORE/c.sock"
[plugins."io.containerd.runtime.v1.linux"]
no_shim = true
"""


class Daemon:
    """A daemon in a Nest, with its log; ready when *socket* answers to *probe*."""

    def __init__(self, nest: Nest, name: str) -> None:
        self.nest = nest
        self.store = f"{nest.store}/{name}"
        nest.inside(self.store).mkdir()
        self.log = nest.inside(f"{self.store}/log")
        self.process: subprocess.Popen[bytes] | None = None
        self.idle: list[str] = []

    def begin(self, *argv: str) -> None:
        """Start it and wait until it answers; AssertionError with the end of its log if it does not."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.nest.words(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.nest.env
            )
        process = self.process

        def answers() -> bool:
            assert process.poll() is None, f"{argv[0]} ended:\n{self.told()}"
            return self.answers()

        try:
            wait_for(answers, f"{argv[0]} to answer", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None
        self.idle = self.nest.mounts(f"{self.store}/")

    def answers(self) -> bool:
        raise NotImplementedError

    def told(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def close(self) -> None:
        """End it as an administrator does, by SIGTERM."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def leftovers(self) -> list[str]:
        """What is there of containers when there should be none: groups, state, mounts, shims."""
        found = [f"group {group}" for top in groups(self.nest.group) for group in top.glob(self.pattern)]
        for root in self.roots:
            state = self.nest.inside(root)
            found += [f"state {entry}" for entry in (state.iterdir() if state.exists() else ())]
        found += [f"mount {point}" for point in self.nest.mounts(f"{self.store}/") if point not in self.idle]
        running = self.nest.processes().items()
        found += [f"process {pid} {words}" for pid, words in running if "-shim-" in words and self.store in words]
        return found

    def wait_until_clear(self) -> list[str]:
        """leftovers(), once what goes by itself has had 10 s to go."""
        try:
            wait_for(lambda: not self.leftovers(), "the engine to clean up")
        except AssertionError:
            return self.leftovers()
        return []

    # The names of containers' groups below the Nest's, and where the runtime's state of them is.
    pattern = "*"
    roots: tuple[str, ...] = (STATE,)


class Containerd(Daemon):
    """containerd, and ``ctr`` to ask it; containers are in the groups NEST/ctr-ID."""

    pattern = "ctr-*"

    def __init__(self, nest: Nest, archive: str) -> None:
        super().__init__(nest, "containerd")
        self.roots = ("run/containerd/runc/nestrt",)
        self.runtime = RUNTIME
        path = nest.write("containerd/config.toml", _CONTAINERD.replace("STORE", self.store))
        self.begin("containerd", "--config", path, "--log-level", "warn")
        self("image", "import", archive).ok()
        self.idle = nest.mounts(f"{self.store}/")

    def __call__(self, *argv: str, **named: Any) -> Result:
        """Run ``ctr ARGV`` in the Nest, in the namespace "nestrt"."""
        return self.nest.run("ctr", "--address", f"{self.store}/c.sock", "--namespace", "nestrt", *argv, **named)

    def answers(self) -> bool:
        return self("version").rc == 0

    def run(self, name: str, *argv: str, **named: Any) -> Result:
        """Run ``ctr run OPTIONS IMAGE NAME COMMAND``, the two parts of *argv* separated by "--"."""
        options, program = split(argv)
        words = ("--runc-binary", RUNTIME, "--cgroup", self.group(name), *options)
        return self("run", *words, IMAGE, name, *program, **named)

    def group(self, name: str) -> str:
        """The group that the container *name* is told to have."""
        return f"{self.nest.group}/ctr-{name}"

    def clear(self) -> list[str]:
        """Remove every container; what is left of them afterwards."""
        for name in self("task", "ls", "-q").out.split():
            self("task", "delete", "--force", name)
        for name in self("container", "ls", "-q").out.split():
            self("container", "delete", name)
        return self.wait_until_clear()


class Docker(Daemon):
    """dockerd with a containerd of its own, and ``docker`` to ask it; containers are in the groups NEST/ID."""

    pattern = "[0-9a-f]" * 64

    def __init__(self, nest: Nest, archive: str) -> None:
        super().__init__(nest, "docker")
        self.roots = (f"{self.store}/exec/runtime-runc/moby",)
        self.env = {"DOCKER_HOST": f"unix://{self.store}/d.sock", "DOCKER_CONFIG": f"{self.store}/client"}
        configuration = {
            "runtimes": {"nestrt": {"path": RUNTIME}},
            "default-runtime": "nestrt",
            "data-root": f"{self.store}/data",
            "exec-root": f"{self.store}/exec",
            "pidfile": f"{self.store}/pid",
            "hosts": [f"unix://{self.store}/d.sock"],
            "bip": ADDRESS,
            "storage-driver": "overlay2",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": nest.group,
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 4096}},
            "log-level": "warn",
        }
        path = nest.write("docker/daemon.json", json.dumps(configuration))
        self.begin("dockerd", "--config-file", path)
        self("load", "-q", "-i", archive).ok()
        # The host's network namespace gets a mount that stays.
        self("run", "--rm", "--network", "host", IMAGE, "true").ok()
        self.idle = nest.mounts(f"{self.store}/")

    def __call__(self, *argv: str, **named: Any) -> Result:
        """Run ``docker ARGV`` in the Nest."""
        return self.nest.run(DOCKER, *argv, env=self.env, **named)

    def answers(self) -> bool:
        return self("version").rc == 0

    def run(self, *argv: str, **named: Any) -> Result:
        """Run ``docker run OPTIONS IMAGE COMMAND``, the two parts of *argv* separated by "--"."""
        options, program = split(argv)
        return self("run", *options, IMAGE, *program, **named)

    def start(self, *argv: str, **named: Any) -> str:
        """``docker run -d`` (see run); the new container's id."""
        return self.run("-d", *argv, **named).ok().out.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name).ok().out)[0]
        return found

    def group(self, name: str) -> str:
        """The group that docker has named for the container *name*."""
        return f"{self.nest.group}/{self.inspect(name)['Id']}"

    def clear(self) -> list[str]:
        """Remove every container; what is left of them afterwards."""
        ids = self("ps", "-aq").out.split()
        if ids:
            self("rm", "-f", *ids)
        return self.wait_until_clear()
