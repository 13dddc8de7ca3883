"""Engines from the distribution's packages, started by the tests themselves, with nestrt as their runtime.

::

    the host             its processes and control groups are the engines' too
      └ Nest             a mount namespace (own /run, what is written to /etc is thrown away), a network namespace
          ├ podman, buildah, dockerd, containerd, and what they start
          └ STORE        a tmpfs: their images, states, sockets and configurations

What an engine mounts, names and bridges is gone with the Nest's holder, whatever a test did. Groups
and processes are the host's: those have the Nest's name in their path, and it removes them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from support.hostside import directories, processes
from support.need import SLOW
from support.rootfs import CHECKOUT
from support.runner import Result, wait_for

# NESTRT_ENGINES_RUNTIME=/usr/sbin/runc shows what a test finds with another runtime.
RUNTIME = os.environ.get("NESTRT_ENGINES_RUNTIME", str(CHECKOUT / "hooks" / "nestrt"))
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# Where a container's state is, in the Nest's own /run.
STATE = "run/nestrt/oci"
SUBIDS = "containers:600000:300000"
# podman makes its monitor's groups for v1 controllers that are not mounted, too: files on the tmpfs below
# /sys/fs/cgroup, which it cannot remove. So the Nest has a tmpfs of its own there, with the same hierarchies.
_HOLD = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
for name in subuid subgid; do echo "$2" > "/etc/$name"; done
mount -t tmpfs -o mode=755 tmpfs "$1"
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then  # not a pure v2 host
  mkdir /run/cgroup
  mount -t tmpfs -o mode=755 tmpfs /run/cgroup
  for place in /sys/fs/cgroup/*; do
    name=${place##*/}
    if [ -L "$place" ]; then cp -P "$place" "/run/cgroup/$name"
    elif mountpoint -q "$place"; then mkdir "/run/cgroup/$name"; mount --bind "$place" "/run/cgroup/$name"
    fi
  done
  mount --move /run/cgroup /sys/fs/cgroup
fi
ip link set lo up
echo ready
exec sleep infinity
"""


def image_archive(root: Path, archive: Path, name: str) -> Path:
    """Write *root* as an image *name* to *archive*, in the form that ``docker save`` has; return it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".", filter=_as_root)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "2024-01-01T00:00:00Z"}],
        "created": "2024-01-01T00:00:00Z",
    }
    text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}.tar"]}]
    with tarfile.open(archive, "w") as tar:
        parts = {config_name: text, f"{digest}.tar": layer.getvalue(), "manifest.json": json.dumps(manifest).encode()}
        for file, content in parts.items():
            row = tarfile.TarInfo(file)
            row.size = len(content)
            tar.addfile(row, io.BytesIO(content))
    return archive


def _as_root(row: tarfile.TarInfo) -> tarfile.TarInfo:
    row.uid = row.gid = row.mtime = 0
    row.uname = row.gname = "root"
    return row


def command(
    argv: Iterable[str],
    *,
    input: str = "",
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run *argv* and wait for it alone, not for what it leaves in the background, for *timeout* s at most.

    Files take its output: a pipe would stay open in the background.
    """
    words = tuple(argv)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input.encode())
        given.seek(0)
        done = subprocess.run(words, stdin=given, stdout=out, stderr=err, timeout=timeout * SLOW, env=env)
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode(errors="replace") for file in (out, err)]
        return Result(words, done.returncode, *texts)


class Nest:
    """Where engines run; *store* is the directory on which they have a tmpfs, *group* the parent of their groups."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.group = f"/nestrt-engines-{os.getpid()}"
        self.env = {
            "PATH": PATH,
            "HOME": f"{store}/home",
            "TMPDIR": f"{store}/tmp",
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm",
            "NESTRT_AUDIT": f"{store}/audit",
        }
        store.mkdir()
        self.holder = subprocess.Popen(
            ("unshare", "--mount", "--net", "sh", "-c", _HOLD, "sh", str(store), SUBIDS),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"PATH": PATH},
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            self.close()
            raise AssertionError("the engines' namespaces cannot be made: see standard error")
        for name in ("home", "tmp"):
            self.inside(f"{store}/{name}").mkdir()

    def write(self, name: str, text: str) -> str:
        """Write *text* to the file *name* of the store; return its path in the Nest."""
        path = f"{self.store}/{name}"
        self.inside(path).write_text(text)
        return path

    def copy(self, file: Path, name: str) -> str:
        """Copy *file* to the file *name* of the store; return its path in the Nest."""
        path = f"{self.store}/{name}"
        shutil.copyfile(file, self.inside(path))
        return path

    def words(self, *argv: str) -> tuple[str, ...]:
        """*argv* as a command line that runs in the Nest."""
        pid = self.holder.pid
        return ("nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--net=/proc/{pid}/ns/net", "--", *argv)

    def run(self, *argv: str, env: Mapping[str, str] | None = None, **named: Any) -> Result:
        """Run *argv* in the Nest (see command)."""
        return command(self.words(*argv), env={**self.env, **(env or {})}, **named)

    def nestrt(self, *argv: str) -> Result:
        """Run the runtime itself in the Nest, where it sees the engines' containers."""
        return self.run(RUNTIME, *argv)

    def inside(self, path: str) -> Path:
        """*path* of the Nest, as the host reaches it."""
        return Path(f"/proc/{self.holder.pid}/root") / path.lstrip("/")

    def mounts(self, *places: str) -> list[str]:
        """The mount points in the Nest below one of *places*, sorted."""
        rows = Path(f"/proc/{self.holder.pid}/mountinfo").read_text().splitlines()
        return sorted(row.split()[4] for row in rows if row.split()[4].startswith(places))

    def processes(self) -> dict[int, str]:
        """The processes in the Nest's mount or network namespace, its holder aside, with their command lines."""
        found = {}
        own = {os.readlink(f"/proc/{self.holder.pid}/ns/{name}") for name in ("mnt", "net")}
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and own & {os.readlink(f"/proc/{entry}/ns/{name}") for name in ("mnt", "net")}:
                    found[int(entry)] = Path("/proc", entry, "cmdline").read_text().replace("\0", " ").strip()
            except OSError:  # it has ended
                continue
        found.pop(self.holder.pid, None)
        return found

    def close(self) -> None:
        """End all that still runs in the Nest or in its groups, and remove the groups."""
        end = time.monotonic() + 20 * SLOW
        while (pids := set(self.processes()) | processes(self.group)) and time.monotonic() < end:
            kill(pids)
            thaw(self.group)
            time.sleep(0.02)
        self.holder.kill()
        self.holder.wait()
        if self.holder.stdout is not None:
            self.holder.stdout.close()
        remove_groups(self.group)


def kill(pids: Iterable[int]) -> None:
    """Kill *pids*; one of them may have ended with another."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def thaw(group: str) -> None:
    """Let go on what a test froze in *group* and below, so that it can end."""
    for directory in directories(group):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (directory / name).exists():
                with suppress(OSError):  # gone meanwhile
                    (directory / name).write_text(value)


def remove_groups(group: str) -> None:
    """Remove *group* and what is below it, in every hierarchy; OSError if a process is left there."""
    for directory in reversed(directories(group)):
        wait_for(partial(removed, directory), f"{directory} to be empty")


def removed(directory: Path) -> bool:
    """Remove the group *directory*; False if something is left there."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def group_of(pid: int) -> dict[str, str]:
    """The groups of the process *pid*: {"memory": PATH, …, "": PATH in the v2 tree}, a key for each controller."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found
