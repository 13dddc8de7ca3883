"""examples/oci-quickstart and examples/bundles/make, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.bundles import Bundle
from support.need import SLOW
from support.rootfs import CHECKOUT

EXAMPLES = CHECKOUT / "examples"


def test_oci_quickstart() -> None:
    """Every check of it holds here, and nothing of it stays."""
    before = set(Path("/tmp").glob("nestrt-quickstart-*"))
    done = subprocess.run(
        [EXAMPLES / "oci-quickstart"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=25 * SLOW
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines()[-1] == "8 passed, 0 failed"
    assert done.stdout.count("  PASS  ") == 8
    assert done.stderr == ""
    assert set(Path("/tmp").glob("nestrt-quickstart-*")) <= before


@pytest.mark.slow_on_vm
def test_make_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    """What it makes is a bundle with the annotations and limits that were asked for, and runs."""
    made = tmp_path / "made"
    words = ("--annotation", "nestrt.policy=strict", "--annotation", "a=b=c", "--pids", "9", "--memory", "67108864")
    subprocess.run([EXAMPLES / "bundles/make", *words, made, "echo", "it", "runs"], check=True)
    config = json.loads((made / "config.json").read_text())
    assert config["annotations"] == {"nestrt.policy": "strict", "a": "b=c"}
    assert config["linux"]["resources"]["pids"] == {"limit": 9}
    assert config["linux"]["resources"]["memory"] == {"limit": 67108864}
    assert config["process"]["args"] == ["echo", "it", "runs"]
    config["linux"]["cgroupsPath"] = bundle.cgroup
    (made / "config.json").write_text(json.dumps(config))
    assert bundle.verb("run", "--bundle", str(made), bundle.id).ok().out == "it runs\n"
