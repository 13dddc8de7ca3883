"""The files that ``nestrt hooks install`` writes whole, and what can be read back from them.

hooks.d/nestrt-STAGE.json    podman: when to call which hook (oci-hooks(5), version 1.0.0)
nestrt-hooks.conf            podman: one more directory of such files (containers.conf(5))
nestrt-runc                  dockerd, containerd, CRI-O: a runtime, as one program without arguments
10-nestrt-runc.conf          CRI-O: that runtime's name (crio.conf(5))
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from nestrt.cli._hooks_json import NAME
from nestrt.errors import InputError
from nestrt.plan.rewrite import HOOK_ENV, HOOK_TIMEOUT
from nestrt.record import record

STAGES = ("precreate", "createRuntime", "poststart", "poststop")
WRITTEN = "# Written by nestrt hooks install, removed by nestrt hooks uninstall."
# The container has an annotation of ours.
DEFAULT_WHEN: dict[str, Any] = {"annotations": {r"^nestrt\.": ".*"}}
# Of regular expressions, what Go and Python have in common.
QUANTIFIER = r"(?:[*+?]|\{\d{1,4}(?:,\d{0,4})?\})\??"
SIGN = r"\\[!-/:-@\[-`{-~]"
CLASS = rf"\[\^?(?:{SIGN}|\\[dDsSwW]|[^\]\[\\])+\]"
TOKEN = rf"{QUANTIFIER}|{SIGN}|\\[dDsSwWbB]|{CLASS}|\((?:\?:)?|\)|[^\\\[\]()*+?{{}}]"
REPEAT_LIMIT = 1000  # Go, regexp/syntax


@record
class Settings:
    """What an engine calls: *command* is the program nestrt, *policy* that of containers that no rule matches, "" none.

    *when* is podman's condition; *runtime* the program that the wrapper calls in the end, "" where there is none.
    """

    command: str
    policy: str = ""
    runtime: str = ""
    when: dict[str, Any] = DEFAULT_WHEN


def hook_file(stage: str) -> str:
    return f"nestrt-{stage.lower()}.json"


def hook_text(settings: Settings, stage: str) -> str:
    """The file that binds a hook to containers of podman."""
    policy = ["--policy", settings.policy] if settings.policy else []
    value = {
        "version": "1.0.0",
        "hook": {
            "path": settings.command,
            # podman 4 keeps what a precreate hook says to itself.
            "args": ["nestrt", "hook", stage, *policy, *(["--tell"] if stage == "precreate" else [])],
            # Without it runc hands on its own environment, which may come from an image.
            "env": list(HOOK_ENV),
            "timeout": HOOK_TIMEOUT,
        },
        "when": settings.when,
        "stages": [stage],
    }
    return json.dumps(value, indent=2) + "\n"


def read_hook(text: str | None, stage: str) -> Settings | None:
    """The settings that hook_text() has written; None for a file of somebody else's."""
    try:
        value = json.loads(text or "")
        hook = value["hook"]
        path, args, when = hook["path"], hook["args"], value["when"]
        if args[:2] != ["nestrt", "hook"] or not isinstance(path, str) or not isinstance(when, dict):
            return None
        policy = args[4] if args[3:4] == ["--policy"] and len(args) > 4 else ""
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return Settings(path, policy if isinstance(policy, str) else "", when=when)


def directories_text(directories: Sequence[str]) -> str:
    """The drop-in for containers.conf, by which podman reads *directories*."""
    return f"""{WRITTEN}
# buildah, podman build and CRI-O read {directories[0]} too, and fail at the stage
# "precreate", so nestrt's files have a directory of their own. This list takes the place of earlier ones.
[engine]
hooks_dir = {json.dumps(list(directories), ensure_ascii=False)}
"""


def wrapper_text(settings: Settings) -> str:
    """The program that engines call as a runtime."""
    words = [settings.command, "wrap", "--runtime", settings.runtime]
    words += ["--policy", settings.policy] if settings.policy else []
    return f'#!/bin/sh\n{WRITTEN}\nexec {shlex.join(words)} -- "$@"\n'


def read_wrapper(text: str | None) -> Settings | None:
    """The settings that wrapper_text() has written; None for a file of somebody else's."""
    try:
        words = shlex.split((text or "").splitlines()[2])
    except (IndexError, ValueError):
        return None
    if words[0:1] != ["exec"] or words[2:4] != ["wrap", "--runtime"] or words[-2:] != ["--", "$@"]:
        return None
    policy = words[6] if words[5:6] == ["--policy"] and len(words) == 9 else ""
    return Settings(words[1], policy, words[4])


def crio_text(program: str) -> str:
    """The drop-in for CRI-O: pods of the runtime class "nestrt-runc". Their annotations reach it by themselves."""
    return f"""{WRITTEN}
[crio.runtime.runtimes.{NAME}]
runtime_path = {json.dumps(program, ensure_ascii=False)}
runtime_type = "oci"
runtime_root = "/run/{NAME}"
"""


def is_written(text: str | None) -> bool:
    """Whether *text* is a file of ours with the line that says so."""
    return text is not None and WRITTEN in text.splitlines()[:2]


def go_regex(text: str, what: str) -> str:
    """*text* if it is a regular expression that Go and Python read alike, and podman so takes the file.

    A file that podman does not take stops every container, so what is not known for sure is refused (re2, "Syntax").
    Raises InputError.
    """
    tokens = ["(", *re.findall(TOKEN, text)]
    repeats = [bool(re.fullmatch(QUANTIFIER, token)) for token in tokens]
    # "(?" is a group of another kind, "a++" never gives back what it took: not in Go, or something else.
    stray = any(repeats[n] and (repeats[n - 1] or tokens[n - 1] in ("(", "(?:", "|")) for n in range(1, len(tokens)))
    count = 1
    for token in tokens:
        count *= max([1, *map(int, re.findall(r"\d+", token))]) if token.startswith("{") else 1
    if "".join(tokens) != f"({text}" or stray or count > REPEAT_LIMIT:
        reason = f"{text[:60]!a} is more than a plain regular expression"
        raise InputError("read", what, reason, r"use . [a-z] \d \w \s ( | ) * + ? {2,3} ^ $, and \\ before other signs")
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError("read", what, f"{text[:60]!a} is no regular expression: {error}", "correct it") from None
    return text
