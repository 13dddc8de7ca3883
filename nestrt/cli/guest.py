"""``nestrt guest …``: the guest's own commands; with ``--of NAME`` from the host, over that guest's groups.

From the host nothing of the guest is entered and none of its programs is run: the guest root is found in the host's
own mounts, below /nestrt/NAME, or where an engine has put the container. What the guest is called and how its CPUs are
numbered comes from the mark, which the host wrote, and not from the stamp, which some guests can change.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from nestrt.errors import InputError, NestrtError
from nestrt.guest import client, remote


def main(argv: list[str]) -> int:
    """``[--of NAME] COMMAND …`` → exit status, as in nestrt.errors."""
    first = argv[0] if argv else ""
    if first == "--of" and len(argv) > 1:
        name, rest = argv[1], argv[2:]
    elif first.startswith("--of="):
        name, rest = first[len("--of=") :], argv[1:]
    else:
        return remote.main(argv)
    return remote.main(rest, lambda: host_view(name), name if "/" not in name else "")


def host_view(name: str) -> client.View:
    """The view of guest *name* ("web", or "web/inner" for a guest that web started), from the launching level.

    Raises GuestError: 2 no such name possible, 3 no such guest.
    """
    operation = f"find guest {name[:80]!r}"
    parts = name.split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", part) for part in parts):
        raise client.GuestError(2, operation, "no guest is called so", "name it like web, or web/inner for its guest")
    hierarchies = client.read_hierarchies()
    limit = f"/nestrt/{parts[0]}"
    if not any(os.path.isdir(hierarchy.root + limit) for hierarchy in hierarchies):
        limit, parts[0] = engine_group(parts[0], operation) or (limit, parts[0])
        name = "/".join(parts)
    limit += "".join(f"/guest/nestrt/{part}" for part in parts[1:])
    found, marks = [], []
    for hierarchy in hierarchies:
        if os.path.isdir(f"{hierarchy.root}{limit}/guest"):
            base = (hierarchy.base + limit).replace("//", "/")
            marks.append(read_mark(hierarchy.root + limit))
            root = f"{hierarchy.root}{limit}/guest"
            found.append(hierarchy.at(root, f"{base}/guest", ""))
    if not found:
        raise client.GuestError(3, operation, f"there is no group {limit}", "nestrt ls shows the guests")
    mark = max(marks, key=len)  # it is whole in the primary hierarchy only
    owner = os.stat(found[0].root)
    view = mark.get("view")
    stamp: dict[str, Any] = {
        **{k: mark[k] for k in ("level", "max_level", "max_groups", "max_depth") if k in mark},
        "name": name,
        "set_by": "host" if len(parts) == 1 else f"level {len(parts) - 1} ({parts[-2]})",
        "cpus": view.get("cpus") if isinstance(view, dict) else None,
    }
    return client.View(tuple(found), stamp, (owner.st_uid, owner.st_gid), f"nestrt guest --of {name}")


def engine_group(name: str, operation: str) -> tuple[str, str] | None:
    """The limit group and whole name of an engine's container that is a guest of this level, None if none is called so.

    A claim is none: whoever wrote it could choose what the host's root is led to. Raises GuestError where *name*
    is the beginning of several ids.
    """
    from nestrt.host.short import is_short
    from nestrt.host.sight import find
    from nestrt.host.walk import walk_to
    from nestrt.probe.facts import read_hierarchies

    try:
        guest = find(walk_to(read_hierarchies(), [name]), name)
    except NestrtError as error:
        if isinstance(error, InputError) and is_short(name):
            raise client.GuestError(2, operation, error.reason, error.remedy) from None
        return None
    return None if guest.claim else (guest.path, guest.name)


def read_mark(directory: str) -> dict[str, Any]:
    """The mark of a limit group, the host's word before a claim; {} where there is none or it is no object."""
    for attribute in ("trusted.nestrt", "user.nestrt"):
        try:
            mark = json.loads(os.getxattr(directory, attribute))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(mark, dict):
            return mark
    return {}
