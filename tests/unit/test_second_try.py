"""support/second_try.py: what passes the second time is told of, what does not fails, attacks get one try."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# One that passes, one that fails the first time, one that fails always.
GOOD = "def test_good():\n    pass\n"
FLAKY = """
from pathlib import Path
def test_flaky():
    seen = Path(__file__ + ".seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""
BAD = "def test_bad():\n    raise RuntimeError\n"
# Fails in its clean-up too: two failures of one test.
BAD_TWICE = """
import pytest
@pytest.fixture
def broken():
    yield
    raise RuntimeError
def test_bad_twice(broken):
    raise RuntimeError
"""


def run(directory: Path, **files: str) -> tuple[int, int, int, list[str]]:
    """The exit status for *files*, the sums of the tally (passed, failed) and the tests told of as flaky."""
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"test_{path.name}.py").write_text(text)
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    tally = directory / "tally"
    env = os.environ | {"NESTRT_TALLY": str(tally), "PYTHONPATH": str(TESTS)}
    words = [sys.executable, str(TESTS / "support/second_try.py"), "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    done = subprocess.run([*words, "--", "."], cwd=directory, env=env, capture_output=True, text=True, check=False)
    rows = [[int(word) for word in row.split()] for row in tally.read_text().splitlines()]
    flaky = directory / "tally.flaky"
    told = flaky.read_text().splitlines() if flaky.exists() else []
    return done.returncode, sum(row[0] for row in rows), sum(row[1] for row in rows), told


def test_all_good(tmp_path: Path) -> None:
    assert run(tmp_path, one=GOOD) == (0, 1, 0, [])


def test_what_passes_the_second_time_is_told_of(tmp_path: Path) -> None:
    assert run(tmp_path, one=GOOD, two=FLAKY) == (0, 2, 0, ["test_two.py::test_flaky"])


@pytest.mark.parametrize("bad", [BAD, BAD_TWICE])
def test_what_fails_twice_fails(tmp_path: Path, bad: str) -> None:
    status, passed, failed, told = run(tmp_path, one=GOOD, two=FLAKY, three=bad)
    assert (status, passed, told) == (1, 2, [])
    assert failed == bad.count("raise RuntimeError")


def test_an_attack_gets_one_try(tmp_path: Path) -> None:
    assert run(tmp_path, tests__security__one=FLAKY) == (1, 0, 1, [])


def test_more_files_than_three_get_one_try(tmp_path: Path) -> None:
    assert run(tmp_path, a=FLAKY, b=FLAKY, c=FLAKY, d=FLAKY) == (1, 0, 4, [])
    for path in tmp_path.glob("*.seen"):
        path.unlink()
    (tmp_path / "tally").unlink()
    (tmp_path / "test_d.py").unlink()
    assert run(tmp_path, a=FLAKY)[:3] == (0, 3, 0)
