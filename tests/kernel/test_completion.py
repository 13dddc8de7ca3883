"""Completion in real shells, and names that guests have chosen to harm them.

/nestrt-completion-PID        in the hierarchy that is read first
  n0-web … nN-$(touch X)      groups with a mark that has no name: each is a guest called as its group is
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestrt.cli.completion import SHELLS
from nestrt.host.marks import escape
from nestrt.probe.facts import primary, read_hierarchies
from support.need import SLOW, require
from support.rootfs import CHECKOUT
from support.runner import Nestrt
from support.shells import START, Terminal

# What shells do with an answer does not depend on the host's kind.
pytestmark = pytest.mark.slow_on_vm

# Each would leave a file behind, were any shell to evaluate it.
NAMES = (
    "web", "$(touch pwned)", "`touch pwned`", "';touch pwned;'", '";touch pwned;"', "a b", "a;touch pwned",
    "&touch pwned", "|touch pwned", "*", "~root", "$HOME", "${x:=$(touch pwned)}", "a\\ b", "a:b=c", "#x", "!x",
    "{a,b}", "[x]", "é日本", "<x>y", "\x1b[2J$(touch pwned)", "a\tb", "(e:touch pwned:)", "=(touch pwned)", "%x",
)  # fmt: skip


@pytest.fixture(scope="module")
def names() -> Iterator[list[str]]:
    """What the guests are called: a number, which makes the beginning of each name its own, and what they chose."""
    top = Path(primary(read_hierarchies()).mountpoint) / f"nestrt-completion-{os.getpid()}"
    made = [top]
    try:
        top.mkdir()
        for number, name in enumerate(NAMES):
            made.append(top / f"n{number}-{name}")
            made[-1].mkdir()
            os.setxattr(made[-1], "trusted.nestrt", b"{}")
    except OSError as error:
        require("trusted-marks", str(error))
    yield [escape(path.name) for path in made[1:]]
    for path in reversed(made):
        path.rmdir()


def environment() -> dict[str, str]:
    path = f"{CHECKOUT}/hooks:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def shell(words: list[str], directory: Path, script: str) -> list[str]:
    """What *script* prints, NUL between; it may print nothing else."""
    done = subprocess.run(
        [*words, script], cwd=directory, env=environment(), capture_output=True, timeout=60 * SLOW, check=False
    )
    assert done.returncode == 0, done
    assert not done.stderr, done
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def bash(directory: Path, *lines: list[str]) -> list[list[str]]:
    """For each of *lines*, its words as readline cuts them, what bash would put in the place of the last."""
    calls = []
    for words in lines:
        line = "".join(word if word in ("=", ":") else f" {word}" for word in words)[1:].replace("= ", "=")
        calls.append(
            f"COMP_WORDS=({shlex.join(words)}); COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}};"
            f" COMP_CWORD={len(words) - 1}; _nestrt 2>/dev/null; printf '%s\\0' \"${{COMPREPLY[@]}}\" ';;'"
        )
    text = shell(["bash", "-c"], directory, "set -f; source <(nestrt completion bash); set +f; " + "\n".join(calls))
    found: list[list[str]] = [[]]
    for word in text:
        if word == ";;":
            found.append([])
        elif word:
            found[-1].append(word)
    return found[:-1]


def test_bash(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "file one").touch()
    (tmp_path / "directory").mkdir()
    found = bash(
        tmp_path,
        ["nestrt", "tr"],
        ["nestrt", "ls", "--format", ""],
        ["nestrt", "ls", "--format", "=", "js"],
        ["nestrt", "tree", "--de"],
        ["nestrt", "launch", "--rootfs", ""],
        ["nestrt", "policy", "check", "f"],
        ["nestrt", "audit", "--directory", "=", "d"],
        ["nestrt", "show", "n0"],
        ["nestrt", "show", "web", "n"],
        ["nestrt", "nothing", ""],
        ["nestrt", "--cgroup-manager", "s"],
        ["nestrt", "--root", "/tmp", "sta"],
        ["nestrt", "show", "n"],
    )
    assert found[:-1] == [
        ["tree"], ["table", "json", "yaml", "csv", "openmetrics"], ["json"], ["--depth"], ["directory"], ["file one"],
        ["directory"], ["n0-web"], [], [], ["systemd"], ["start", "state"],
    ]  # fmt: skip
    # What is put on the line is the name again when the line is carried out, and nothing else happens.
    ours = [word for word in found[-1] if word.startswith("n") and "-" in word]
    line = "printf '%s\\0' " + " ".join(ours)
    assert set(names) <= set(shell(["bash", "-c"], tmp_path, line))
    assert sorted(os.listdir(tmp_path)) == ["directory", "file one"]


@pytest.mark.parametrize("kind", ["bash", "zsh"])
def test_a_line_that_was_completed_does_what_it_says(tmp_path: Path, names: list[str], kind: str) -> None:
    """A number and a tab: the shell itself puts the name on the line, quoted as it likes."""
    require(kind, "" if os.path.exists(f"/usr/bin/{START[kind][0][0]}") else "it is not installed")
    terminal = Terminal(kind, tmp_path)
    try:
        assert terminal.complete("nestrt tre") == ["tree"]
        assert terminal.complete("nestrt ls --format=js") == ["ls", "--format=json"]
        assert terminal.complete("nestrt ls --format js") == ["ls", "--format", "json"]
        assert terminal.complete("nestrt tree --dep") == ["tree", "--depth"]
        # A space behind "=" would cut the value off.
        assert terminal.complete("nestrt ls --filter eng\tpod") == ["ls", "--filter", "engine=pod"]
        assert terminal.complete("nestrt ls --filter state=ru") == ["ls", "--filter", "state=running"]
        (tmp_path / "some where").mkdir()
        assert [word.rstrip("/") for word in terminal.complete("nestrt launch --rootfs some")] == [
            "launch", "--rootfs", "some where",
        ]  # fmt: skip
        for number, name in enumerate(names):
            assert terminal.complete(f"nestrt show n{number}-") == ["show", name], name
    finally:
        terminal.close()
    assert "pwned" not in os.listdir(tmp_path)


def fish(directory: Path, script: str) -> str:
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"nestrt completion fish | source; {script}"],
        cwd=directory,
        env={**environment(), "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        check=True,
    )
    assert not done.stderr, done
    return done.stdout


def test_fish(tmp_path: Path, names: list[str]) -> None:
    require("fish", "" if os.path.exists("/usr/bin/fish") else "it is not installed")
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    lines = (
        "nestrt tre", "nestrt ls --format=js", "nestrt show n", "nestrt launch --rootfs d", "nestrt policy check f",
        "nestrt audit --directory=d", "nestrt nothing ",
    )  # fmt: skip
    out = fish(tmp_path, "; ".join(f"complete -C {shlex.quote(line)}; echo ';;'" for line in lines))
    found = [[line.split("\t")[0] for line in part.splitlines() if line] for part in out.split(";;\n")]
    assert [*found[:2], *found[3:7]] == [
        ["tree"], ["--format=json"], ["directory/"], ["file"], ["--directory=directory/"], [],
    ]  # fmt: skip
    assert set(names) <= set(found[2])
    # What fish puts on the line for each.
    out = fish(tmp_path, "for one in (complete --escape -C 'nestrt show n'); eval printf '%s\\\\n' $one; end")
    assert set(names) <= set(out.splitlines())
    assert "pwned" not in os.listdir(tmp_path)


def test_scripts_are_accepted_by_their_shells(nestrt: Nestrt) -> None:
    for kind in SHELLS:
        script = nestrt.run("completion", kind).ok().out
        if os.path.exists(f"/usr/bin/{kind}"):
            checked = subprocess.run(
                [kind, "-n", "/dev/stdin"], input=script, capture_output=True, text=True, check=False
            )
            assert (checked.returncode, checked.stderr) == (0, ""), kind
    assert nestrt.run("completion", "tcsh").rc == 2
    assert nestrt.run("completion").rc == 2
