"""One runtime in containerd's config.toml, and podman's list of directories of hooks in containers.conf.

Python reads TOML and does not write it. So what is ours is a block of text between two marked lines, everything
else stays byte for byte, and what has come of it is read again and compared.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from typing import Any

from nestrt.cli._hooks_json import NAME
from nestrt.errors import InputError, StateError

BEGIN = "# BEGIN nestrt: what is up to END is removed by nestrt hooks uninstall"
BEGIN_JOINED = f"{BEGIN}; the line before had no end"
END = "# END nestrt"
SHIM = "io.containerd.runc.v2"
# Of the annotations of a pod and of its containers, those that the runtime is told.
ANNOTATIONS = ["nestrt.*"]
PLUGIN_V2 = "io.containerd.grpc.v1.cri"
PLUGIN_V3 = "io.containerd.cri.v1.runtime"


class ByHand(StateError):
    """A file to which nothing can be added safely; *block* is what somebody who reads it can add."""

    block = ""


def parse(text: str, where: str) -> dict[str, Any]:
    """The document that *text* is. Raises InputError."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "tables are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError("edit", where, f"it is not TOML: {reason}", "correct the file") from None


def version_of(document: dict[str, Any]) -> int:
    """The version of a config.toml; one that does not say it has the first."""
    version = document.get("version", 1)
    return version if type(version) is int else 1


def plugin(version: int) -> str:
    """The name of the plugin whose table has the runtimes (containerd, docs/cri/config.md)."""
    return "cri" if version < 2 else PLUGIN_V2 if version == 2 else PLUGIN_V3


def _table(document: Any, *names: str) -> dict[str, Any]:
    """The table at *names*, {} where there is none."""
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def runtimes_of(document: dict[str, Any]) -> dict[str, Any]:
    """The runtimes that a config.toml has."""
    return _table(document, "plugins", plugin(version_of(document)), "containerd", "runtimes")


def _wanted(document: dict[str, Any], program: str) -> dict[str, Any]:
    """{name: table} of what is added to the runtimes of *document*."""
    runtimes = runtimes_of(document)
    # The kubelet's cgroup driver is one for all the runtimes of a node.
    systemd = _table(runtimes, "runc", "options").get("SystemdCgroup") is True
    ours = {
        "runtime_type": SHIM,
        "pod_annotations": list(ANNOTATIONS),
        "container_annotations": list(ANNOTATIONS),
        "options": {"BinaryName": program, "SystemdCgroup": systemd},
    }
    # In containerd 1 the runtimes of a file take the place of the built-in ones, and without its default runtime,
    # runc, the plugin does not start.
    return {NAME: ours} if runtimes else {"runc": {"runtime_type": SHIM}, NAME: ours}


def _written(path: tuple[str, ...], table: dict[str, Any]) -> list[str]:
    lines = [f"[{'.'.join(name if _is_bare(name) else json.dumps(name) for name in path)}]"]
    lines += [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", *_written((*path, key), value)]
    return lines


def _is_bare(name: str) -> bool:
    return all(c.isascii() and (c.isalnum() or c in "_-") for c in name)


def _block(document: dict[str, Any], program: str) -> list[str]:
    top = ("plugins", plugin(version_of(document)), "containerd", "runtimes")
    lines: list[str] = []
    for name, table in _wanted(document, program).items():
        lines += [*_written((*top, name), table), ""]
    return lines[:-1]


def split(text: str) -> tuple[str, str, bool] | None:
    """What is before our block, what is after it, and whether the block gave the line before it its end; None: none."""
    lines = text.splitlines(keepends=True)
    marks = [line.rstrip("\r\n") for line in lines]
    first = next((n for n, line in enumerate(marks) if line in (BEGIN, BEGIN_JOINED)), None)
    if first is None or END not in marks[first:]:
        return None
    last = marks.index(END, first)
    return "".join(lines[:first]), "".join(lines[last + 1 :]), marks[first] == BEGIN_JOINED


def _newline(text: str) -> str:
    return "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"


def add(text: str | None, program: str, where: str, fresh: int) -> str:
    """*text* with the runtime, whose program is *program*; None is a file that is not there, to be of version *fresh*.

    An older block of ours is made anew in its place. Raises InputError (not TOML) and StateError: somebody else's
    runtime of that name, or a file to which nothing can be added.
    """
    if text is None:
        text = f"version = {fresh}\n\n"
    parts = split(text)
    before, after, joined = parts if parts is not None else (text, "", bool(text) and not text.endswith("\n"))
    newline = _newline(text)
    if parts is not None and joined:
        before = before.removesuffix("\n").removesuffix("\r")
    base = parse(before + after, where)
    if NAME in runtimes_of(base):
        raise StateError("edit", where, f"it has another runtime {NAME}", "rename or remove that one")
    block = [BEGIN_JOINED if joined else BEGIN, *_block(base, program), END]
    new = before + (newline if joined else "") + "".join(line + newline for line in block) + after
    if _parse_or_none(new) != _merged(base, program):
        raise by_hand(base, program, where, "no table can be added at its end")
    return new


def by_hand(document: dict[str, Any], program: str, where: str, reason: str) -> ByHand:
    """The error that a runtime cannot be added to *document* because of *reason*."""
    error = ByHand("edit", where, reason, "add what is printed here by hand")
    error.block = "\n".join(_block(document, program)) + "\n"
    return error


def _parse_or_none(text: str) -> dict[str, Any] | None:
    try:
        return parse(text, "")
    except InputError:
        return None


def _merged(base: dict[str, Any], program: str) -> dict[str, Any]:
    """*base* with the runtime, all else as it is."""
    found = dict(base)
    table = found
    for name in ("plugins", plugin(version_of(base)), "containerd", "runtimes"):
        inner = table.get(name, {})
        table[name] = dict(inner) if isinstance(inner, dict) else {}
        table = table[name]
    table.update(_wanted(base, program))
    return found


def remove(text: str | None, where: str) -> str | None:
    """*text* without our block; None where add() made the file and nothing else has come to it. Raises InputError."""
    parts = split(text) if text is not None else None
    if text is None or parts is None or NAME not in runtimes_of(parse(text, where)):
        return text  # the marks alone may stand in a text of many lines
    before, after, joined = parts
    if joined:
        before = before.removesuffix("\n").removesuffix("\r")
    if not after and any(before == f"version = {version}\n\n" for version in (2, 3)):
        return None
    return before + after


def is_there(text: str | None) -> bool:
    """Whether *text* has a block of ours."""
    return text is not None and split(text) is not None and NAME in runtimes_of(_parse_or_none(text) or {})


# --- containers.conf ----------------------------------------------------------------------------

DEFAULT_HOOKS_DIR = "/usr/share/containers/oci/hooks.d"


def hooks_dirs(documents: Iterable[dict[str, Any]]) -> list[str]:
    """The directories of hooks after all of *documents*, in the order in which podman reads them.

    A list takes the place of the one before; since podman 5 ``{append = true}`` in one adds it and all that follow
    (containers.conf(5), ``engine.hooks_dir``).
    """
    found, append = [DEFAULT_HOOKS_DIR], False
    for document in documents:
        value = _table(document, "engine").get("hooks_dir")
        if not isinstance(value, list):
            continue
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("append"), bool):
                append = item["append"]
        names = [item for item in value if isinstance(item, str)]
        found = [*found, *(name for name in names if name not in found)] if append else names
    return found


def has_hooks_dir(document: dict[str, Any]) -> bool:
    """Whether a containers.conf says which directories of hooks there are."""
    return "hooks_dir" in _table(document, "engine")


def last(documents: Iterable[tuple[str, dict[str, Any]]], *names: str) -> Any:
    """The value at *names* in the last of the (path, document) that has it, None where none has."""
    found = None
    for _, document in documents:
        table = _table(document, *names[:-1])
        found = table.get(names[-1], found)
    return found
