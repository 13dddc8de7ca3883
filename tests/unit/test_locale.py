"""What people are shown where the locale's characters are few."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nestrt.cli._view import glyphs
from nestrt.host.render import ASCII, GLYPHS
from support.rootfs import CHECKOUT


def said(*words: str, **environment: str) -> str:
    """What a command says, without a locale but that of *environment*."""
    unset = ("LANG", "LC_", "PYTHONI", "PYTHONUTF8")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
    argv, env = [sys.executable, *words], {**plain, **environment}
    done = subprocess.run(argv, capture_output=True, env=env, cwd=CHECKOUT, timeout=60, check=True)
    assert done.stderr == b""
    return done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))


@pytest.mark.parametrize("words", ["--help", "exec --help", "launch --help", "tree --help", "--root /x --help"])
@pytest.mark.parametrize("encoding", ["iso-8859-1", "ascii"])
def test_help_without_utf8(words: str, encoding: str) -> None:
    text = said("-m", "nestrt", *words.split(), PYTHONIOENCODING=encoding)
    whole = said("-m", "nestrt", *words.split()).replace("…", "...")
    assert text == (whole.replace("µ", "u") if encoding == "ascii" else whole)
    assert "..." in text or words == "tree --help"


DRAW = "from nestrt.cli._view import glyphs; print(glyphs()[0])"


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({}, ASCII),
        ({"LANG": "C"}, ASCII),
        ({"LC_ALL": "POSIX", "LANG": "C.UTF-8"}, ASCII),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, GLYPHS),
        ({"LC_CTYPE": "C.UTF-8"}, GLYPHS),
        ({"LANG": "C.UTF-8"}, GLYPHS),
        ({"LANG": "nn_XX.UTF-8"}, GLYPHS),  # not on this machine
        ({"LANG": "C.UTF-8", "PYTHONIOENCODING": "iso-8859-1"}, ASCII),
    ],
)
def test_lines_of_a_tree(environment: dict[str, str], lines: tuple[str, str, str, str]) -> None:
    assert said("-c", DRAW, **environment).rstrip("\n") == lines[0]


def test_an_empty_locale_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LC_ALL", ""), ("LC_CTYPE", ""), ("LANG", "C")):
        monkeypatch.setenv(name, value)
    assert glyphs() is ASCII
