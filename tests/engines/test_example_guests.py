"""examples/nested-podman, ci-runner, systemd-guest and broker, run as a user runs them: every check holds here.

::

    host                                nestrt-NAME-PID/libpod-ID            ci-runner-PID
      └ limit group of podman's container, by nestrt's plugin                 └ limit group, by nestrt launch
          └ guest                       inner containers, services               └ guest       jobs
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.engines import PATH
from support.hostside import hierarchies
from support.need import SLOW, require
from support.rootfs import CHECKOUT

EXAMPLES = CHECKOUT / "examples"
PODMAN = ("podman", "runc", "/usr/lib/podman/netavark")


def left(name: str) -> list[str]:
    """What there may be of the example *name*: files, groups, mounts, processes."""
    found = [str(path) for path in Path("/tmp").glob(f"nestrt-{name}-*")]
    for hierarchy in hierarchies():
        for pattern in (f"nestrt-{name}-*", f"nestrt/{name}-*"):
            found += [str(path) for path in hierarchy.mountpoint.glob(pattern)]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"nestrt-{name}" in line]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_text()
            except OSError:  # it has ended
                continue
            found += [words.replace("\0", " ")] if f"nestrt-{name}-" in words else []
    return found


@pytest.mark.parametrize(
    ("name", "checks", "programs"),
    [
        ("nested-podman", 12, PODMAN),
        ("systemd-guest", 9, (*PODMAN, "/lib/systemd/systemd")),
        ("ci-runner", 11, ()),
        ("broker", 10, ()),
    ],
)
def test_run(name: str, checks: int, programs: tuple[str, ...]) -> None:
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    require("engines", f"not installed: {' '.join(missing)}" if missing else None)
    before = left(name)
    done = subprocess.run(
        [EXAMPLES / name / "run"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50 * SLOW
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines()[-1] == f"{checks} passed, 0 failed"
    assert done.stdout.count("  PASS  ") == checks
    assert done.stderr == ""
    assert [line for line in left(name) if line not in before] == []
