"""The state of a container as JSON: what hooks read from standard input, and what ``state`` and ``list`` print.

Source: runtime-spec, runtime.md, "State".
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def state(
    id: str, status: str, pid: int, bundle: str, version: str, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a hook reads: *status* is creating, created, running, paused or stopped.

    *pid* is the first process's as the runtime sees it; a stopped container has
    0 there, as under runc. *version* is the specification's.
    """
    return {
        "ociVersion": version,
        "id": id,
        "pid": 0 if status == "stopped" else pid,
        "status": status,
        "bundle": bundle,
        **({"annotations": dict(annotations)} if annotations else {}),
    }


def shown(state: Mapping[str, Any], rootfs: str, created: str, owner: str = "") -> dict[str, Any]:
    """*state* as ``state`` and ``list --format json`` print it: with three more fields of runc's, in its order.

    *rootfs* is the absolute path, *created* RFC 3339 with nanoseconds, *owner* the
    name of the state directory's owner, which only ``list`` fills in.
    """
    found = {**state, "rootfs": rootfs, "created": created}
    if "annotations" in found:
        found["annotations"] = found.pop("annotations")
    found["owner"] = owner
    return found
