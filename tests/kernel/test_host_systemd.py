"""The split as a service of a real systemd (examples/host), in a guest whose first process systemd is.

    the systemd guest
    ├ nestrt-host.service       started at boot, before what starts guests: here a docker.service that looks
    ├ system.slice, init.scope  the system
    └ nestrt                    what guests are to be in: nine times as heavy
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hostside import has_v1, hierarchy_of
from support.need import require
from support.rootfs import CHECKOUT, OPT
from support.runner import Nestrt
from support.systemd_root import SHARED, SystemdGuest, problem, systemd_guest

UNIT = "nestrt-host.service"
BOOT = "boot.target"
PLACE = "etc/systemd/system"
ENGINE = f"""
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cd {SHARED} && {OPT}/hooks/nestrt host status --format json > seen'
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[SystemdGuest]:
    require("systemd", problem())
    directory = Path(tempfile.mkdtemp(prefix="nestrt-systemd-", dir="/tmp"))
    try:
        with systemd_guest(Nestrt(), directory, "nestrt-host-systemd") as one:
            text = (CHECKOUT / f"examples/host/{UNIT}").read_text()
            (one.root / PLACE / UNIT).write_text(text.replace("/usr/local/bin/nestrt", f"{OPT}/hooks/nestrt"))
            (one.root / PLACE / "docker.service").write_text(ENGINE)
            (one.root / PLACE / BOOT).write_text(f"[Unit]\nWants=docker.service {UNIT}\n")
            one.enter("systemctl", "daemon-reload").ok()
            yield one
    finally:
        shutil.rmtree(directory)


def guests_group(guest: SystemdGuest) -> Path:
    hierarchy = hierarchy_of("cpu")
    assert hierarchy is not None
    return hierarchy.group(f"/nestrt/{guest.name}/guest/nestrt")


def weights(guest: SystemdGuest) -> dict[str, int]:
    """The weight of each group of guests, by ``nestrt host status`` there."""
    found = json.loads(guest.nestrt("host", "status", "--format", "json", timeout=40).ok().out)
    return of_guests(found)


def of_guests(status: Any) -> dict[str, int]:
    return {row["path"]: row["cpu_weight"] for row in status["groups"] if row["role"] == "guests"}


def test_it_is_right_and_meant_for_boot(guest: SystemdGuest) -> None:
    """systemd-analyze(1) verify; systemctl enable has it started by multi-user.target."""
    said = guest.enter("systemd-analyze", "verify", "--man=no", f"/{PLACE}/{UNIT}")
    assert (said.rc, UNIT in said.out + said.err) == (0, False), said
    guest.enter("systemctl", "enable", UNIT).ok()
    assert (guest.root / PLACE / "multi-user.target.wants" / UNIT).is_symlink()
    guest.enter("systemctl", "disable", UNIT).ok()


def test_made_before_engines_and_taken_back(guest: SystemdGuest) -> None:
    """Started in one transaction with an engine, it is first; it stays until it is stopped, and leaves nothing."""
    file, value = ("cpu.shares", 9216) if has_v1("cpu") else ("cpu.weight", 900)
    group = guests_group(guest)
    assert not group.exists()
    guest.enter("systemctl", "start", BOOT, timeout=40).ok()
    assert of_guests(json.loads((guest.shared / "seen").read_text())) == {"/nestrt": value}
    state = guest.show(UNIT, "ActiveState", "SubState", "Result")
    assert state == {"ActiveState": "active", "SubState": "exited", "Result": "success"}
    # Units with weights come and go, all are read again: on v2 systemd looks then which controllers it still needs.
    for _ in range(2):
        guest.enter("systemd-run", "--quiet", "--wait", "--property=CPUWeight=50", "/bin/true").ok()
        guest.enter("systemctl", "daemon-reload").ok()
    assert (group / file).read_text().strip() == str(value)
    assert weights(guest) == {"/nestrt": value}
    guest.enter("systemctl", "stop", UNIT, timeout=40).ok()
    assert guest.show(UNIT, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert not group.exists()
    assert weights(guest) == {}
