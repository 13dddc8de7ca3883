"""podman container checkpoint and restore, by nestrt and CRIU (NESTRT_CRIU, else the one on PATH)."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from support.engines import PATH
from support.need import require
from support.podman import Podman
from support.runner import wait_for

COUNT = "exec </dev/null >/dev/null 2>&1; i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n; sleep 0.1; done"


def count(podman: Podman, name: str) -> int:
    # The shell empties the file before it writes.
    return int(wait_for(lambda: podman("exec", name, "cat", "/dev/shm/n").ok().out, "its number"))


@pytest.fixture
def criu() -> str:
    """The CRIU to use; tests/conftest.py leaves the test out where it cannot know the kernel."""
    return os.environ.get("NESTRT_CRIU") or shutil.which("criu", path=PATH) or "criu"


def test_checkpoint_and_restore(podman: Podman, criu: str) -> None:
    program = criu
    done = subprocess.run([program, "check"], capture_output=True, text=True)
    require("criu", done.stderr.strip().splitlines()[-1] if done.returncode else "")
    # podman asks it for its version, and nestrt takes what is on PATH.
    directory = podman.nest.inside(f"{podman.nest.store}/criu")
    directory.mkdir(exist_ok=True)
    shutil.copy(program, directory / "criu")
    podman.env["PATH"] = f"{podman.nest.store}/criu:{PATH}"
    name = podman.start("--network", "none", "--", "sh", "-c", COUNT)
    wait_for(lambda: count(podman, name) > 2, "it to count")
    podman("container", "checkpoint", name).ok()
    assert podman("ps", "-q").ok().out == ""
    podman("container", "restore", name).ok()
    before = count(podman, name)
    assert before > 2
    wait_for(lambda: count(podman, name) > before, "it to count on")
    del podman.env["PATH"]
