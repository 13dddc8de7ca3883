"""The drop-in for systemd-nspawn@.service. No systemd runs here: how a container fares under it was tried by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.need import require
from support.rootfs import CHECKOUT

DROP_IN = CHECKOUT / "hooks/nspawn/nestrt.conf"
# What the distribution's unit has that matters to the drop-in.
UNIT = """
[Service]
ExecStart=/bin/true --machine=%i
Type=notify
Slice=machine.slice
Delegate=yes
TasksMax=16384
"""


def test_systemd_knows_every_line_of_the_drop_in(tmp_path: Path) -> None:
    """systemd-analyze(1) verify."""
    require("engines", None if shutil.which("systemd-analyze") else "not installed: systemd-analyze")
    unit = tmp_path / "systemd-nspawn@web.service"
    unit.write_text(UNIT)
    directory = tmp_path / "systemd-nspawn@.service.d"
    directory.mkdir()
    text = DROP_IN.read_text().replace("/usr/local/bin/nestrt", os.fspath(CHECKOUT / "hooks/nestrt"))
    (directory / "nestrt.conf").write_text(text)

    def said() -> str:
        argv = ("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", os.fspath(unit))
        environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:/lib/systemd/system"}
        done = subprocess.run(
            argv, capture_output=True, text=True, env=environment, timeout=60, stdin=subprocess.DEVNULL
        )
        return "".join(line for line in (done.stdout + done.stderr).splitlines(True) if os.fspath(tmp_path) in line)

    assert said() == ""
    (directory / "nestrt.conf").write_text(text + "Nestrt=1\n")
    assert "Unknown key" in said()
