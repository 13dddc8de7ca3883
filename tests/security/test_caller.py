"""What the caller hands down, and what an image has ready, must not change a guest's limits, view or end.

caller:  umask, ignored SIGCHLD, an interpreter that imports module by module, ids of its own in the map
image:   a dangling /etc/resolv.conf, a file where nestrt's own modules lie on the host
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support.guests import ask
from support.hostside import hierarchies, hierarchy_of, limit_group, read
from support.need import SLOW
from support.rootfs import CHECKOUT
from support.runner import Nestrt, leftovers

TIMEOUT = 30 * SLOW


def test_no_module_comes_from_the_image(guest_name: str, make_busybox: Callable[[], Path]) -> None:
    """Without the packed code modules are imported by path, and in the guest that path is the image's."""
    root = make_busybox()
    planted = root / str(CHECKOUT).lstrip("/") / "nestrt" / "kernel"
    planted.mkdir(parents=True)
    for name in ("seccomp", "caps", "trampoline"):
        (planted / f"{name}.py").write_text("import os\nos.mkdir('/planted')\n")
    argv = [sys.executable, "-m", "nestrt", "launch", "--rootfs", str(root), "--name", guest_name, "--rm"]
    argv += ["--userns", "none", "--capabilities", "all", "--", "sh", "-c", "ls /"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "planted" not in done.stdout.split()


def test_a_map_with_the_levels_root_locks_by_covers(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    tree = hierarchy_of("pids")
    assert tree is not None
    answers = ask(
        nestrt,
        {"raise": f"echo 4000 > {tree.mountpoint}/pids.max"},
        *("--rootfs", busybox, "--name", guest_name, "--pids", "50", "--userns", "0:100000:65536,65536:0:1"),
    )
    answers.refused("raise")
    assert read("pids", limit_group(guest_name), "pids.max", "pids.max") == "50"


def test_umask_and_ignored_children(guest_name: str, busybox: Path, tmp_path: Path) -> None:
    policy = tmp_path / "ro.toml"
    policy.write_text('[view]\nmount = "ro"\n')
    tree = hierarchy_of("pids")
    assert tree is not None

    def caller() -> None:
        os.umask(0o077)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    argv = [Nestrt.command, "launch", "--rootfs", str(busybox), "--name", guest_name, "--rm", "--policy", str(policy)]
    argv += ["--pids", "50", "--", "sh", "-c", f"cat {tree.mountpoint}/pids.max; exit 3"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, preexec_fn=caller)
    assert (done.returncode, done.stdout, done.stderr) == (3, "50\n", "")
    assert leftovers(guest_name) == []


def test_a_launch_that_fails_early_leaves_not_even_the_shared_group(
    nestrt: Nestrt, guest_name: str, busybox: Path
) -> None:
    others = {h.group("/nestrt") for h in hierarchies() if h.group("/nestrt").is_dir()}
    failed = nestrt.run("launch", "--rootfs", busybox, "--name", guest_name, "--io", "8:9999 rbps=1M", "--", "true")
    assert failed.rc == 125, failed
    assert {h.group("/nestrt") for h in hierarchies() if h.group("/nestrt").is_dir()} == others


def test_a_dangling_resolv_conf(nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path]) -> None:
    root = make_busybox()
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    done = nestrt.run(
        *("launch", "--rootfs", root, "--name", guest_name, "--net", "host", "--", "cat", "/etc/resolv.conf")
    ).ok()
    assert done.out == Path("/etc/resolv.conf").read_text()
