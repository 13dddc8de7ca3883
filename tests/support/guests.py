"""Questions put to a guest's own shell: many in one launch, each with its own answer.

A launch costs more than a question does, on an emulated host above all. So a test
writes down what it wants to know, ``ask`` has busybox's shell in one guest answer it
all, in order, and the test looks at each answer by its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.hostside import V1_NAMES, hierarchies, hierarchy_of
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, Result

MARK = "@@"
# Without a user namespace a guest has the few capabilities of docker's default, unless more are asked for.
MODES: dict[str, tuple[str, ...]] = {
    "userns": (),
    "nouserns": ("--userns", "none"),
    "root": ("--userns", "none", "--capabilities", "all"),
}


@dataclass(frozen=True)
class Answer:
    """What one command came back with: its status, and standard output and error together, stripped."""

    rc: int
    text: str

    def __str__(self) -> str:
        return self.text


class Answers(dict[str, Answer]):
    """Answers by name; *result* is the launch itself."""

    result: Result

    def text(self, name: str) -> str:
        """The text of an answer whose command succeeded; AssertionError with it if not."""
        assert self[name].rc == 0, (name, self[name])
        return self[name].text

    def refused(self, name: str) -> str:
        """The text of an answer whose command failed; AssertionError if it did not."""
        assert self[name].rc != 0, (name, self[name])
        return self[name].text


def script(questions: Mapping[str, str]) -> str:
    """A shell script that answers *questions*, each a command in a subshell: ``cd`` and variables end with it."""
    parts = []
    for name, command in questions.items():
        parts.append(f"echo; echo '{MARK}{name}'\n( {command}\n) 2>&1 </dev/null\n")
        parts.append(f"status=$?; echo; echo '{MARK}' $status\n")
    return "".join(parts)


def parse(text: str) -> Answers:
    """The answers in what a script() wrote; those never reached are left out."""
    found = Answers()
    name, lines = "", []
    for line in text.splitlines():
        if not line.startswith(MARK):
            lines.append(line)
        elif line.startswith(MARK + " "):
            found[name] = Answer(int(line[len(MARK) + 1 :]), "\n".join(lines).strip())
        else:
            name, lines = line[len(MARK) :], []
    return found


def ask(nestrt: Nestrt, questions: Mapping[str, str], *options: str | os.PathLike[str], **named: Any) -> Answers:
    """Launch a guest with *options*, in the foreground, and put *questions* to its ``sh``.

    AssertionError if the guest does not start or its shell does not come to the end.
    """
    result = nestrt.launch(*options, "--", "sh", "-c", script(questions), **named)
    answers = parse(result.out)
    answers.result = result
    assert list(answers) == list(questions), f"{result.rc}\n{result.out}\n{result.err}"
    return answers


def inside(controller: str, group: str, v1: str, v2: str) -> str:
    """The path, in a guest's view, of a file of its group *group*: the guest's layout is the host's."""
    hierarchy = hierarchy_of(controller)
    assert hierarchy is not None, f"no hierarchy has {controller}"
    return str(hierarchy.group(group) / (v1 if hierarchy.version == 1 else v2))


def directory(controller: str, group: str) -> str:
    """The path, in a guest's view, of its group *group* in the hierarchy of *controller*."""
    return str(Path(inside(controller, group, "x", "x")).parent)


def kernel_name(controller: str) -> str:
    """*controller* (its v2 name) as its hierarchy here spells it: ``blkio`` for ``io`` on v1."""
    hierarchy = hierarchy_of(controller)
    assert hierarchy is not None, f"no hierarchy has {controller}"
    return V1_NAMES.get(controller, controller) if hierarchy.version == 1 else controller


def controllers() -> list[str]:
    """The controllers of all hierarchies here, by their v2 names."""
    back = {v1: v2 for v2, v1 in V1_NAMES.items()}
    return sorted({back.get(name, name) for hierarchy in hierarchies() for name in hierarchy.controllers})


def nested(python: PythonRoot, options: str, command: str, root: str = "/tmp/next") -> str:
    """A shell command for a Python guest: make a root filesystem and launch a guest with it.

    *options* and *command* are shell text. The root is on the guest's own /tmp: mount a tmpfs there for
    one whose ids can be shifted.
    """
    mounts = " ".join(f"'{word}'" for word in python.inner_options(root))
    return f"[ -d {root} ] || /mkroot {root}; {COMMAND} launch {mounts} {options} -- {command}"
