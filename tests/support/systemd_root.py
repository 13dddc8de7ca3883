"""A real systemd: a Debian root filesystem, and a guest of nestrt whose first process it is.

    $XDG_CACHE_HOME/nestrt/systemd/NAME/    made once by mmdebstrap, from the machine's own package sources
        usr/                                bound into each guest, read-only
        etc/ var/                           copied for each guest, which writes to them

    host ── nestrt launch ── /sbin/init ── nestrt --systemd-cgroup run ── a guest of the guest

Only what starts units is there: the target is basic.target, and what a guest has no use for is masked.
A machine emulated in software starts it in a minute instead of several.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.need import SLOW
from support.rootfs import CHECKOUT, OPT, busybox_root
from support.runner import Nestrt, Result, wait_for

# NESTRT_CACHE is the directory itself: the virtual machine is handed variables of ours only.
CACHE = Path(
    os.environ.get("NESTRT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nestrt"),
    "systemd",
)
# Counted up when what is made below changes.
RECIPE = 3
POLICY = CHECKOUT / "examples" / "policies" / "systemd-guest.toml"
PACKAGES = ("systemd-sysv", "dbus", "python3", "busybox-static", "runc", "crun")
# Where a guest of the guest has its root filesystem, of busybox, and where its bundle may be made.
INNER_ROOT = "/srv/rootfs"
SHARED = "/mnt"
USER = 1000
# The document of one, in a scope of machine-x.slice.
BUNDLE: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "root": {"path": INNER_ROOT},
    "process": {
        "args": ["sleep", "600"],
        "cwd": "/",
        "env": ["PATH=/bin:/sbin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ],
    "linux": {
        "cgroupsPath": "machine-x.slice:nestrt:web",
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network", "cgroup")],
        "resources": {
            "memory": {"limit": 64 << 20},
            "cpu": {"shares": 512, "quota": 25_500, "period": 50_000, "cpus": "0"},
            "pids": {"limit": 33},
            "devices": [{"allow": False, "access": "rwm"}],
        },
    },
}
MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
    systemd-tmpfiles-clean.timer
    dev-hugepages.mount modprobe@.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    kmod-static-nodes.service systemd-binfmt.service systemd-firstboot.service systemd-hwdb-update.service
    systemd-journal-catalog-update.service systemd-journal-flush.service systemd-logind.service
    systemd-machine-id-commit.service systemd-modules-load.service systemd-random-seed.service
    systemd-remount-fs.service systemd-sysctl.service systemd-sysusers.service systemd-tmpfiles-setup.service
    systemd-tmpfiles-setup-dev.service systemd-update-done.service systemd-update-utmp.service
    systemd-ask-password-console.path systemd-ask-password-wall.path systemd-initctl.socket
    systemd-journald-audit.socket
""".split()
# Documentation and translations are most of what is installed.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


class Missing(Exception):
    """The root filesystem cannot be made here; the text says why."""


def _run(*argv: str, timeout: float = 600) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
    except FileNotFoundError:
        raise Missing(f"{argv[0]} is not there; install mmdebstrap") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{argv[0]}: {words[-1] if words else f'status {done.returncode}'}")
    return done.stdout


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise Missing("/etc/os-release names no release of Debian")


def _sources() -> list[str]:
    """The machine's own package sources that have Debian itself, as lines of sources.list(5)."""
    if not shutil.which("apt-get"):
        raise Missing("apt is not there to say where packages come from")
    rows = _run("apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)").splitlines()
    found = []
    for row in rows:
        origin, _, rest = row.partition("|")
        where, release, component = rest.split("|")
        line = f"deb {where} {release} {component}"
        if origin == "Debian" and component == "main" and line not in found:
            found.append(line)
    if not found:
        raise Missing("apt knows no package source of Debian (apt-get update)")
    return found


def _make(root: Path) -> None:
    """Install into *root*, and take out what only costs time."""
    excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    include = f"--include={','.join(PACKAGES)}"
    options = ["--quiet", "--variant=minbase", "--format=directory", include, *excluded]
    _run("mmdebstrap", *options, _codename(), str(root), *_sources())
    for name in ("etc/hostname", "etc/resolv.conf"):  # mmdebstrap's copies of the machine's own
        (root / name).unlink(missing_ok=True)
    for name in ("var/lib/apt", "var/cache", "var/lib/dpkg", "var/log/journal"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "var/cache").mkdir()
    units = root / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/basic.target")
    # With an id it is no first boot, in which systemd would enable what is to be enabled.
    (root / "etc/machine-id").write_text("6e65737472746e65737472746e657374\n")
    journal = root / "etc/systemd/journald.conf.d"
    journal.mkdir(exist_ok=True)
    (journal / "volatile.conf").write_text("[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\n")


def image() -> Path:
    """The cached root filesystem, made on the first call (a minute, and packages of about 60 MB).

    Raises Missing.
    """
    ready = CACHE / f"{_codename()}-{RECIPE}"
    if ready.exists():
        return ready
    if os.geteuid() != 0:
        raise Missing("making it needs root")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as made:
                root = Path(made) / "root"
                _make(root)
                root.chmod(0o755)
                root.rename(ready)
    return ready


def problem() -> str | None:
    """Why there can be no systemd to test with, or None: for ``require``."""
    try:
        image()
    except (Missing, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


@dataclass(frozen=True)
class SystemdGuest:
    """A running guest with systemd: *shared* is a directory of the host that is SHARED in it, for bundles and scripts.

    ``run`` and ``python`` work from inside, in a group that systemd made: a process brought in with nsenter(1)
    alone stays in the host's group, from which the guest has no right to move it.
    """

    name: str
    pid: int
    root: Path
    shared: Path

    def enter(self, *argv: str, timeout: float = 20.0) -> Result:
        """Run a program with the guest's namespaces, in the caller's group."""
        words = ("nsenter", "--target", str(self.pid), "--all", "--", *argv)
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=timeout * SLOW
        )
        return Result(words, done.returncode, done.stdout, done.stderr)

    def run(self, *argv: str, timeout: float = 20.0) -> Result:
        """Run a program as a service of the guest and wait for it."""
        service = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=Delegate=yes", "--")
        return self.enter(*service, *argv, timeout=timeout)

    def nestrt(self, *args: str, timeout: float = 20.0) -> Result:
        """Run the checkout's ``nestrt ARGS`` there."""
        return self.run(f"{OPT}/hooks/nestrt", *args, timeout=timeout)

    def python(self, code: str, timeout: float = 20.0) -> Result:
        """Run *code* with /usr/bin/python3 there, nestrt importable."""
        script = self.shared / "script.py"
        script.write_text(f"import sys\nsys.path.insert(0, {OPT!r})\n{code}\n")
        return self.run("/usr/bin/python3", "-IS", f"{SHARED}/script.py", timeout=timeout)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of *unit* as systemctl(1) tells them."""
        rows = self.enter("systemctl", "show", "--property", ",".join(names), unit).ok().out.splitlines()
        return dict(row.split("=", 1) for row in rows)


def _fill(root: Path) -> None:
    """Make *root* a guest's root: its own /etc and /var, and the places for what is mounted."""
    source = image()
    for name in ("dev", "mnt", "opt/nestrt", "proc", "root", "run", "srv", "sys", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    root.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    for name in ("etc", "var"):
        subprocess.run(["cp", "-a", str(source / name), str(root / name)], check=True, stdin=subprocess.DEVNULL)
    for entry in source.iterdir():
        if entry.is_symlink():  # bin, lib, sbin…
            (root / entry.name).symlink_to(entry.readlink())
    for name, line in (("passwd", f"user:x:{USER}:{USER}::/:/bin/sh\n"), ("group", f"user:x:{USER}:\n")):
        with (root / "etc" / name).open("a") as file:
            file.write(line)
    busybox_root(root / INNER_ROOT.strip("/"))


@contextmanager
def systemd_guest(nestrt: Nestrt, directory: Path, name: str, *options: str) -> Iterator[SystemdGuest]:
    """Start a guest with systemd in *directory*, wait until it is up, and delete it at the end.

    *options* are more words for launch. AssertionError, with systemd's own words, if it does not come up.
    """
    root, shared, log = directory / "root", directory / "shared", directory / "log"
    root.mkdir()
    shared.mkdir()
    shared.chmod(0o777)
    _fill(root)
    mounts = (
        f"type=bind,source={image() / 'usr'},target=/usr,ro",
        f"type=bind,source={CHECKOUT},target={OPT},ro",
        f"type=bind,source={shared},target={SHARED}",
        "type=tmpfs,target=/tmp",
    )
    words = [word for mount in mounts for word in ("--mount", mount)]
    where = ("--name", name, "--policy", str(POLICY), "--rootfs", str(root), "--log", str(log))
    try:
        nestrt.launch(*where, *words, *options, "-d", "--", "/sbin/init").ok()
        yield wait_until_up(nestrt, name, root, shared, log)
    finally:
        nestrt.run("delete", "--force", name).ok()


def wait_until_up(nestrt: Nestrt, name: str, root: Path, shared: Path, log: Path) -> SystemdGuest:
    """The guest, once systemd has reached its target; "degraded" (a unit failed) is an AssertionError that names it."""
    guest = SystemdGuest(name, first_process(nestrt, name), root, shared)
    state = ""

    def up() -> bool:
        nonlocal state
        state = guest.enter("systemctl", "is-system-running").out.strip()
        return state in ("running", "degraded")

    try:
        wait_for(up, "systemd", timeout=15.0)
    except AssertionError as error:
        raise AssertionError(f"{error}: {state}\n{log.read_text(errors='replace')[-2000:]}") from None
    assert state == "running", guest.enter("systemctl", "--failed", "--no-legend", "--no-pager").out
    return guest


def first_process(nestrt: Nestrt, name: str) -> int:
    """The host's number of the guest's first process."""
    for guest in json.loads(nestrt.run("ls", "--format", "json").ok().out):
        if guest["name"] == name:
            return int(guest["pid"])
    raise AssertionError(f"nestrt ls does not know {name}")


if __name__ == "__main__":  # python -m support.systemd_root: make the image ahead, where there is time for it
    why = problem()
    if why:
        print(f"systemd_root: {why}", file=sys.stderr)
        sys.exit(1)
