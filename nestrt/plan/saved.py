"""What is saved beside an image of CRIU: the groups that a guest made, and what the runtime must know again. Pure.

::

    IMAGE/nestrt-groups.json      the tree below the guest root, hierarchy by hierarchy
    IMAGE/nestrt-checkpoint.json  descriptors, mounts from outside, how CRIU was run

An image may come from anywhere: what it says is checked name by name, and can reach
nothing but groups below the new guest root, whose limits are the new bundle's.
"""

from __future__ import annotations

from nestrt.controllers.names import expand
from nestrt.controllers.table import CORE_V1, CORE_V2, for_hierarchy
from nestrt.oci.getter import (
    ID,
    Wrong,
    absolute,
    boolean,
    integer,
    list_of,
    record_of,
    required_text,
    short,
    text,
)
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nestrt.controllers.base import File

VERSION = 1
GROUPS, CHECKPOINT = "nestrt-groups.json", "nestrt-checkpoint.json"
MAX_GROUPS = 100_000
NAME_LIMIT = 255

# No limits and no settings, but orders and counters: never written back.
NEVER = frozenset(
    (
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.kill",
        "cgroup.freeze",
        "cgroup.type",
        "cgroup.subtree_control",
        "tasks",
        "cpuacct.usage",
        "memory.reclaim",
        "memory.peak",
        "memory.swap.peak",
        "memory.failcnt",
        "memory.force_empty",
        "memory.pressure_level",
        "memory.kmem.limit_in_bytes",
        "memory.use_hierarchy",
        "memory.move_charge_at_immigrate",
        "memory.oom_control",
        "blkio.reset_stats",
        "freezer.state",
        "cpu.weight.nice",
        "cpu.pressure",
        "io.pressure",
        "memory.pressure",
        "devices.allow",
        "devices.deny",
        "cpuset.sched_relax_domain_level",
        "notify_on_release",
    )
)


def setting_files(controllers: Iterable[str], version: int, listing: Iterable[str]) -> tuple[File, ...]:
    """The files of a group's directory *listing* that say what was set there, in the order to write them."""
    core = CORE_V2 if version == 2 else CORE_V1
    names = tuple(listing)
    found = []
    for file in (*core, *(f for item in for_hierarchy(controllers, version) for f in item.files(version))):
        if not file.writable or file.name in NEVER or "failcnt" in file.name or "max_usage" in file.name:
            continue
        found += [_named(file, name) for name in expand((file.name,), names)]
    return tuple(found)


def _named(file: File, name: str) -> File:
    from nestrt.record import replace

    return replace(file, name=name)


@record
class Group:
    """One group. *path* is below the guest root, "" that itself, of which only *enabled* counts. *files* are
    (name, text); *owners* (name, uid, gid) with "" for the directory; *rules* v1 device rules; *threaded* as in
    cgroup.type. Owners are ids of the level that saved them."""

    path: str
    files: tuple[tuple[str, str], ...] = ()
    owners: tuple[tuple[str, int, int], ...] = ()
    enabled: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    threaded: bool = False


@record
class Tree:
    """The groups of one hierarchy, parents first. *key* are its controllers on v1 (or its name), () for v2; *first*
    is the group of the first process."""

    key: tuple[str, ...]
    first: str
    groups: tuple[Group, ...]


@record
class Checkpoint:
    """*descriptors* 0, 1, 2 as CRIU calls them; *external* the targets of mounts from outside; *inside*: CRIU ran in
    the container's own cgroup namespace. *uids*, *gids* map the ids of its user namespace, () without one."""

    descriptors: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    inside: bool = False
    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()


def group_path(value: Any) -> str:
    """A group's path below another: relative, no component empty, ``.`` or ``..``."""
    found = text(value)
    parts = found.split("/")
    if found and any(part in ("", ".", "..") or len(part) > NAME_LIMIT or "\n" in part for part in parts):
        raise Wrong(f"{short(found)} is not a path below a group", "restore from an image that nestrt wrote")
    return found


def file_name(value: Any) -> str:
    """A control file's name: no path."""
    found = required_text(value)
    if "/" in found or found.startswith("."):
        raise Wrong(f"{short(found)} is not a control file", "restore from an image that nestrt wrote")
    return found


def _file(value: Any) -> tuple[str, str]:
    if type(value) is not list or len(value) != 2:
        raise Wrong("it is not a name and a text", "restore from an image that nestrt wrote")
    return file_name(value[0]), text(value[1])


def _owner(value: Any) -> tuple[str, int, int]:
    if type(value) is not list or len(value) != 3:
        raise Wrong("it is not a name and two ids", "restore from an image that nestrt wrote")
    number = integer(0, ID)
    return (file_name(value[0]) if value[0] != "" else ""), number(value[1]), number(value[2])


def _range(value: Any) -> tuple[int, int, int]:
    if type(value) is not list or len(value) != 3:
        raise Wrong("it is not three numbers", "restore from an image that nestrt wrote")
    number = integer(0, ID + 1)
    return number(value[0]), number(value[1]), number(value[2])


def _word(value: Any) -> str:
    found = required_text(value)
    if not all(c.isalnum() or c in "_=.-" for c in found):
        raise Wrong(f"{short(found)} is not a controller", "restore from an image that nestrt wrote")
    return found


_group = record_of(
    Group,
    {
        "path": ("path", group_path),
        "files": ("files", list_of(_file)),
        "owners": ("owners", list_of(_owner)),
        "enabled": ("enabled", list_of(_word)),
        "rules": ("rules", list_of(required_text)),
        "threaded": ("threaded", boolean),
    },
    ("path",),
)
_tree = record_of(
    Tree,
    {
        "key": ("key", list_of(_word)),
        "first": ("first", group_path),
        "groups": ("groups", list_of(_group)),
    },
    ("key", "first", "groups"),
)


@record
class _Trees:
    v: int
    hierarchies: tuple[Tree, ...]


def parse_trees(value: Any) -> tuple[Tree, ...]:
    """The trees of nestrt-groups.json. Raises Wrong; to be called by getter.load_text()."""
    table = {"v": ("v", integer(VERSION, VERSION)), "hierarchies": ("hierarchies", list_of(_tree))}
    found: tuple[Tree, ...] = record_of(_Trees, table, ("v", "hierarchies"))(value).hierarchies
    for tree in found:
        seen: set[str] = set()
        for group in tree.groups[: MAX_GROUPS + 1]:
            above = group.path.rpartition("/")[0]
            if group.path in seen or (above and above not in seen):
                raise Wrong(f"group {short(group.path)} is there twice or before its parent", "save it again")
            seen.add(group.path)
        if len(tree.groups) > MAX_GROUPS or (tree.first and tree.first not in seen):
            raise Wrong("it has too many groups, or not that of the first process", "save it again", "hierarchies")
    return found


def parse_checkpoint(value: Any) -> Checkpoint:
    """nestrt-checkpoint.json. Raises Wrong; to be called by getter.load_text()."""
    table = {
        "descriptors": ("descriptors", list_of(text)),
        "external": ("external", list_of(absolute)),
        "inside": ("inside", boolean),
        "uids": ("uids", list_of(_range)),
        "gids": ("gids", list_of(_range)),
    }
    return record_of(Checkpoint, table, ("descriptors", "external", "inside"))(value)


def trees_document(trees: Iterable[Tree]) -> dict[str, Any]:
    """What parse_trees() reads."""
    return {
        "v": VERSION,
        "hierarchies": [
            {
                "key": list(tree.key),
                "first": tree.first,
                "groups": [
                    {
                        "path": group.path,
                        "files": [list(pair) for pair in group.files],
                        "owners": [list(owner) for owner in group.owners],
                        "enabled": list(group.enabled),
                        "rules": list(group.rules),
                        "threaded": group.threaded,
                    }
                    for group in tree.groups
                ],
            }
            for tree in trees
        ],
    }


def checkpoint_document(saved: Checkpoint) -> dict[str, Any]:
    """What parse_checkpoint() reads."""
    return {
        "v": VERSION,
        "descriptors": list(saved.descriptors),
        "external": list(saved.external),
        "inside": saved.inside,
        "uids": [list(one) for one in saved.uids],
        "gids": [list(one) for one in saved.gids],
    }


def shifted(id: int, old: tuple[tuple[int, int, int], ...], new: tuple[tuple[int, int, int], ...]) -> int | None:
    """The outside id of the new map for what *id* was by the old one, both (inside, outside, count); None if it has
    none there."""
    for inside, outside, count in old:
        if outside <= id < outside + count:
            wanted = inside + id - outside
            return next((o + wanted - i for i, o, c in new if i <= wanted < i + c), None)
    return id if not old else None
