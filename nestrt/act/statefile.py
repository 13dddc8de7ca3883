"""A container's state file, as far as it can be believed: by it processes are killed, and groups removed."""

from __future__ import annotations

import errno
import os
import stat

from nestrt.errors import NO_CONTAINER, NestrtError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE_LIMIT = 16 << 20
STATE = "state.json"


def damaged(root: str, id: str, reason: str) -> NestrtError:
    """What stands in a container's directory cannot be what create has written there."""
    return NestrtError(
        "read", f"the state of container {id} ({root}/{id})", f"it is damaged: {reason}", f"nestrt delete --force {id}"
    )


class Foreign(NestrtError):
    """What stands under a container's name is not ours: nothing in it is to be believed, and nothing to be removed."""


def _foreign(path: str, reason: str) -> Foreign:
    return Foreign("use", path, reason, "name a --root of your own, or be that user")


# What a state file says, by type; a number is a pid, a descriptor or ticks.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("pid", "start", "board", "owner", "v"), int),
    **dict.fromkeys(("cgroup", "driver", "unit", "boot", "bundle", "rootfs", "id", "ociVersion", "created"), str),
    **dict.fromkeys(("annotations", "bound", "resources"), dict),
    **dict.fromkeys(("virtualized", "pivot", "own_pids"), bool),
    **dict.fromkeys(("parents", "entry"), list),
}


def _whole_path(path: object) -> bool:
    """Whether *path* can be a group that create has written down: absolute, not the root, no ``..``."""
    return isinstance(path, str) and path[:1] == "/" and not {"", ".", ".."}.intersection(path[1:].split("/"))


def mistake(document: dict[str, Any], id: str) -> str:
    """What cannot be true in a state file, "" if it all can: by it processes are killed, and groups removed."""
    for key, value in document.items():
        if type(value) is not _TYPES.get(key, type(value)):
            return f"{key[:40]} has the wrong type"
        bits = 63 if key == "start" else 32 if key == "owner" else 31
        if key in _TYPES and isinstance(value, int) and not -1 <= value < 2**bits:
            return f"{key} is out of range"
    if document.get("id", id) != id:
        return "it is that of another container"
    if any(type(value) is not str for value in document.get("annotations", {}).values()):
        return "annotations has the wrong type"
    if (cgroup := document.get("cgroup")) and not _whole_path(cgroup):
        return "cgroup is no group's path"
    if not all(isinstance(file, str) and file.endswith("/cgroup.procs") for file in document.get("entry", ())):
        return "entry is no list of cgroup.procs"
    if not all(map(_whole_path, document.get("parents", ()))):
        return "parents are no groups' paths"
    return "unit is no unit's name" if "/" in document.get("unit", "") else ""


def read_state(root: str, id: str) -> str | None:
    """The text of the state file, None where there is none yet. Raises NotFound, Foreign, OSError, ValueError."""
    place = f"{root}/{id}"
    ours = (0, os.geteuid())
    try:
        top = os.stat(root)
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(place):
            raise _foreign(place, "it is a symbolic link") from error
        raise NotFound("find", f"container {id}", NO_CONTAINER, "nestrt list shows all") from error
    try:
        if top.st_uid not in ours or top.st_mode & 0o1002 == 0o002:
            raise _foreign(root, f"user {top.st_uid}, or anybody, can change what is in it")
        if (owner := os.fstat(directory).st_uid) not in ours:
            raise _foreign(place, f"it belongs to user {owner}")
        # Neither a link nor a named pipe, which could keep us waiting, is what we have written.
        mode = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(STATE, mode, dir_fd=directory)
    except FileNotFoundError:
        return None  # ended between its directory and its first state
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ValueError("no regular file") from error
        raise
    finally:
        os.close(directory)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("no regular file")
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise ValueError(f"longer than {FILE_LIMIT >> 20} MiB")
    return data.decode()
