"""A bundle's mounts on the real kernel, without a container: the steps carried out, and then a look around.

test ── HOST steps ── clone ──── FIRST steps: enter, mounts, leave, finish
                        │        probe(): what it returns is the answer (JSON)
                        └ id map
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nestrt.act import bundle_mounts as act
from nestrt.act import guest as launch_guest
from nestrt.act.process import Guest
from nestrt.errors import NestrtError
from nestrt.kernel import id_maps, mount, namespaces
from nestrt.oci.model import Mount, Namespace, Spec
from nestrt.plan.bundle_mounts import Context, bundle_mounts
from nestrt.probe.facts import read_hierarchies
from nestrt.record import replace

IDS = ((0, 1_000_000_000, 65536),)

PROC = Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev"))
SYS = Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro"))
DEV = Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k"))
PTS = Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"))
SHM = Mount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k"))
QUEUE = Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev"))
USUAL = (PROC, DEV, PTS, SHM, QUEUE, SYS)


def spec(*mounts: Mount, userns: bool = False, cgroupns: bool = False, **fields: Any) -> Spec:
    """A document with these mounts in a mount namespace of its own."""
    kinds = ["mount", "pid", "ipc", "network"] + ["user"] * userns + ["cgroup"] * cgroupns
    ids = IDS if userns else ()
    names = tuple(Namespace(kind) for kind in kinds)
    return replace(Spec("1.2.0", mounts=mounts), namespaces=names, uid_mappings=ids, gid_mappings=ids, **fields)


class Refused(Exception):
    """A step's error, as the user would read it."""


class _Quiet:
    """Stands for the channel, that no step of these uses."""


def _carry_out(steps: Any, process: Any, extra: dict[Any, Any]) -> None:
    table = {**extra, **(act.FIRST if isinstance(process, Guest) else act.HOST)}
    for step in steps:
        table[type(step)](process, step)


def _first(made: Any, held: Guest, probe: Callable[[], Any], userns: bool, hook: Callable[[Guest], None] | None) -> Any:
    # As in the real first process: nothing can be imported any more.
    sys.meta_path.clear()
    sys.path.clear()
    _carry_out(made.enter, held, launch_guest.STEPS)
    if userns:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if held.cgroupns:  # type: ignore[attr-defined]
        namespaces.unshare(namespaces.CLONE_NEWCGROUP)
    _carry_out(made.mounts, held, launch_guest.STEPS)
    if hook:
        hook(held)
    _carry_out(made.leave, held, launch_guest.STEPS)
    _carry_out(made.finish, held, launch_guest.STEPS)
    return probe()


def mounted(
    document: Spec,
    root: Path,
    probe: Callable[[], Any],
    *,
    hook: Callable[[Guest], None] | None = None,
    own_network: bool = True,
    **context: Any,
) -> Any:
    """What *probe* returns, called in the finished root. *hook* is called before the pivot, with the first process.

    Raises Refused with the error's one line, AssertionError with a traceback's last line.
    """
    userns = document.namespace("user") is not None
    named = {"group": "/", "hierarchies": read_hierarchies(), "userns": userns, **context}
    launcher = SimpleNamespace(tree=-1, binds={}, pid=0)
    pidfd = -1
    if userns:
        subprocess.run(["chown", "-Rh", f"{IDS[0][1]}:{IDS[0][1]}", root], check=True)
    try:
        try:
            made = bundle_mounts(document, Context(str(root), str(root.parent), **named))
            _carry_out(made.before, launcher, {})
        except NestrtError as error:
            raise Refused(str(error)) from error
        answer, theirs = os.pipe()
        wait, go = os.pipe()
        flags = namespaces.CLONE_NEWPID | namespaces.CLONE_NEWIPC
        flags |= namespaces.CLONE_NEWNS if document.namespace("mount") else 0
        flags |= (namespaces.CLONE_NEWUSER if userns else 0) | (namespaces.CLONE_NEWNET if own_network else 0)
        launcher.pid, pidfd = namespaces.clone(flags)
        if launcher.pid == 0:
            os.close(go)
            os.close(answer)
            if os.read(wait, 1) == b"g":
                held = Guest(_Quiet(), launcher.tree, launcher.binds, -1, set())  # type: ignore[arg-type]
                held.cgroupns = document.namespace("cgroup") is not None  # type: ignore[attr-defined]
                try:
                    text = {"value": _first(made, held, probe, userns, hook)}
                except NestrtError as error:
                    text = {"refused": str(error)}
                except BaseException as error:
                    text = {"failed": f"{type(error).__name__}: {error}"}
                os.write(theirs, json.dumps(text).encode())
            os._exit(0)
        os.close(theirs)
        os.close(wait)
        if userns:
            for kind in ("uid_map", "gid_map"):
                id_maps.write_id_map(launcher.pid, kind, IDS)
        refused = ""
        try:
            _carry_out(made.mapped, launcher, {})
        except NestrtError as error:
            refused = str(error)
        if not refused:
            os.write(go, b"g")
        os.close(go)
        with open(answer, "rb") as file:
            got = json.loads(file.read() or b"{}")
        os.waitpid(launcher.pid, 0)
        if refused or "refused" in got:
            raise Refused(refused or got["refused"])
        assert "value" in got, got
        return got["value"]
    finally:
        for fd in {launcher.tree, pidfd, *launcher.binds.values()} - {-1}:
            os.close(fd)


def mounts_of(text: str) -> dict[str, tuple[str, set[str], str, set[str]]]:
    """mountinfo: target → (type, options, propagation, superblock's options); of a stack the top one."""
    found = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        words, tail = left.split(), right.split()
        found[words[4]] = (tail[0], set(words[5].split(",")), " ".join(words[6:]), set(tail[2].split(",")))
    return found


def mounts_at(*places: object) -> list[str]:
    """The lines of this process's mountinfo whose target is one of *places* or below: others may mount meanwhile."""
    names = [str(place) for place in places]
    lines = read("/proc/self/mountinfo").splitlines()
    return [line for line in lines if any(line.split()[4] == n or line.split()[4].startswith(f"{n}/") for n in names)]


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


@contextmanager
def shared_mount(directory: Path) -> Iterator[Path]:
    """*directory* bound on itself as a shared mount, as systemd makes every mount of a host."""
    mount.mount(str(directory), str(directory), "", 0x1000)
    try:
        mount.propagation(str(directory), mount.MS_SHARED)
        yield directory
    finally:
        mount.umount(str(directory), mount.MNT_DETACH)
