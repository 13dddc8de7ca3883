"""The file of all compiled modules: made where it can be written, and then only when something has changed.

    copy/nestrt/__pycache__/pack.*      beside a copy of the sources, for each test anew
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.rootfs import CHECKOUT

PACK = f"nestrt/__pycache__/pack.{sys.implementation.cache_tag}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """hooks/nestrt and the sources, never started."""
    shutil.copytree(CHECKOUT / "nestrt", tmp_path / "nestrt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "hooks", tmp_path / "hooks")
    return tmp_path


def start(copy: Path, *words: str) -> str:
    done = subprocess.run([copy / "hooks/nestrt", *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def written(copy: Path) -> tuple[int, int]:
    found = os.stat(copy / PACK)
    return found.st_ino, found.st_mtime_ns


@pytest.mark.parametrize("words", [("version",), ("guest", "--help"), ("guest", "devices", "--help"), ("ls", "--help")])
def test_it_is_written_once(copy: Path, words: tuple[str, ...]) -> None:
    """Modules that are not in it, those of guest/, are no reason to write it again: that took two seconds a start."""
    start(copy, "version")
    first = written(copy)
    assert "usage" in start(copy, *words) or words == ("version",)
    assert written(copy) == first


def test_what_has_changed_is_packed_again(copy: Path) -> None:
    start(copy, "version")
    first = written(copy)
    source = copy / "nestrt/cli/version.py"
    source.write_text(source.read_text().replace('SPEC = "', 'SPEC = "9.'))
    assert "spec: 9." in start(copy, "version")
    assert written(copy) != first


def test_where_it_cannot_be_written_it_works_all_the_same(copy: Path) -> None:
    """A file is in the place of its directory: not even root can write it, and no start compiles all for nothing."""
    (copy / "nestrt/__pycache__").write_text("")
    assert "spec:" in start(copy, "version")
    assert "usage" in start(copy, "guest", "--help")
    assert [path.name for path in (copy / "nestrt").iterdir() if path.name.startswith("pack.")] == []
