"""podman and buildah in a Nest, with stores of their own and nestrt as their runtime."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from support.engines import PATH, RUNTIME, STATE, Nest
from support.hostside import directories
from support.need import SLOW
from support.runner import Result

# Without CAP_SYS_RESOURCE the hard limits that an engine would like cannot be raised.
_CONFIGURATION = f"""
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1000:1000"]
env = ["PATH={PATH}"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "nestrt"
runtime_supports_json = ["nestrt"]
runtime_supports_nocgroups = ["nestrt"]
[engine.runtimes]
nestrt = ["{RUNTIME}"]
[network]
network_backend = "netavark"
network_config_dir = "STORE/networks"
"""
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
IMAGE = "localhost/busybox:latest"


class Podman:
    """The command; *nest* is where it runs."""

    def __init__(self, nest: Nest, archive: str) -> None:
        self.nest = nest
        store = f"{nest.store}/podman"
        for name in ("", "/root", "/run", "/tmp", "/networks"):
            nest.inside(store + name).mkdir()
        self.env = {
            "CONTAINERS_CONF": nest.write("podman/containers.conf", _CONFIGURATION.replace("STORE", store)),
            "CONTAINERS_STORAGE_CONF": nest.write(
                "podman/storage.conf",
                f'[storage]\ndriver = "overlay"\ngraphroot = "{store}/root"\nrunroot = "{store}/run"\n',
            ),
            "CONTAINERS_REGISTRIES_CONF": nest.write("podman/registries.conf", "unqualified-search-registries = []\n"),
        }
        nest.inside("/etc/containers").mkdir(exist_ok=True)
        nest.inside("/etc/containers/policy.json").write_text(_POLICY)
        self.flags = ("--tmpdir", f"{store}/tmp")
        self("load", "-q", "-i", archive).ok()
        self.run("--rm", "--", "true").ok()
        # What stays for good: the images' store, and the directory of network namespaces.
        self.places = (f"{store}/", "/run/netns")
        self.idle = [f"{store}/root/overlay", *nest.mounts(*self.places)]

    def __call__(self, *argv: str, **named: Any) -> Result:
        """Run ``podman ARGV`` in the Nest (see command)."""
        return self.nest.run("podman", *self.flags, *argv, env=self.env, **named)

    def run(self, *argv: str, image: str = IMAGE, **named: Any) -> Result:
        """Run ``podman run OPTIONS IMAGE COMMAND``, the two parts of *argv* separated by "--"."""
        options, program = split(argv)
        return self("run", "--cgroup-parent", self.nest.group, *options, image, *program, **named)

    def start(self, *argv: str, **named: Any) -> str:
        """``podman run -d`` (see run); the new container's id."""
        return self.run("-d", *argv, **named).ok().out.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """What ``podman inspect`` says about the container *name*."""
        found: dict[str, Any] = json.loads(self("inspect", name).ok().out)[0]
        return found

    def group(self, name: str) -> str:
        """The group that podman has named for the container *name*."""
        return f"{self.nest.group}/libpod-{self.inspect(name)['Id']}"

    def pid(self, name: str) -> int:
        """The host's number of the container's first process."""
        return int(self.inspect(name)["State"]["Pid"])

    def buildah(self, *argv: str, **named: Any) -> Result:
        """Run ``buildah ARGV`` in the Nest, on the same store."""
        return self.nest.run("buildah", *argv, env={**self.env, "BUILDAH_RUNTIME": RUNTIME}, **named)

    def clear(self) -> list[str]:
        """Remove every container and pod; what is left of them afterwards, as lines for a reader."""
        if self("pod", "ps", "-q").out:
            self("pod", "rm", "-af", "-t", "0")
        if self("ps", "-aq").out:
            self("rm", "-af", "-t", "0")
        end = time.monotonic() + 10 * SLOW
        while (left := self.leftovers()) and time.monotonic() < end:
            time.sleep(0.05)  # conmon's own clean-up may still be at it
        return left

    def leftovers(self) -> list[str]:
        """What is there of containers when there should be none: groups, state, mounts, processes."""
        found = [f"group {group}" for group in directories(self.nest.group) if group.name.startswith("libpod-")]
        state = self.nest.inside(STATE)
        found += [f"state {entry}" for entry in (os.listdir(state) if state.exists() else ())]
        found += [f"mount {point}" for point in self.nest.mounts(*self.places) if point not in self.idle]
        found += [f"process {pid} {words}" for pid, words in self.nest.processes().items() if "conmon" in words]
        return found


def split(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words before the first "--" and those after it; all are the latter's where there is none."""
    words = list(argv)
    if "--" not in words:
        return [], words
    place = words.index("--")
    return words[:place], words[place + 1 :]


def on_terminal(
    argv: Iterable[str], typed: str, *, env: dict[str, str], rows: int = 24, columns: int = 80, timeout: float = 30.0
) -> tuple[int, str]:
    """Run *argv* on a terminal of that size, type *typed* once it has written something: (status, what it wrote)."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(tuple(argv), stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    text, end = b"", time.monotonic() + timeout * SLOW
    try:
        while time.monotonic() < end:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    chunk = os.read(master, 4096)
                except OSError:  # EIO: nobody has the other end any more
                    break
                if typed and chunk:
                    os.write(master, typed.encode())
                    typed = ""
                text += chunk
            elif process.poll() is not None:
                break
        return process.wait(max(1.0, end - time.monotonic())), text.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(master)
