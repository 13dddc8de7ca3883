"""A limit group that is a systemd scope: how it is named, what a bundle may not change of it, and crun's part. Pure.

::

    nestrt wrap --systemd-cgroup    nestrt makes the scope; the runtime gets cgroupsPath SCOPE/guest, and is told
                                    nothing of systemd: it makes a group below, as everywhere
    podman's hooks, crun on v2      crun makes the scope; the annotation run.oci.systemd.subgroup has it put the
                                    first process into SCOPE/guest, before it takes the cgroup namespace
    podman's hooks, runc            runc puts the first process into the scope itself, where nothing stands above it

Source: systemd.resource-control(5); crun(1), "run.oci.systemd.subgroup"; crun, src/libcrun/cgroup-systemd.c; runc,
libcontainer/cgroups/systemd.
"""

from __future__ import annotations

from nestrt.controllers.table import limit_files
from nestrt.errors import HostError, InputError
from nestrt.plan.request import GUEST_ROOT
from nestrt.plan.rewrite import NOTE, RECORD, Terms, rewrite
from nestrt.plan.rewrite_view import COVER
from nestrt.plan.systemd import SCOPE, SLICE
from nestrt.plan.systemd_text import PREFIX
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nestrt.oci.model import Spec
    from nestrt.plan.facts import Hierarchy

    Document = dict[str, Any]

SUBGROUP = "run.oci.systemd.subgroup"
REGISTER = "let nestrt wrap be the engine's runtime (nestrt hooks install; podman: [engine.runtimes])"
# What properties that limit a unit, or say where it is and whose, begin with: systemd.resource-control(5). On v1
# systemd prefers those of v2 (MemoryMax, CPUWeight) to v1's own, which limits are given as there.
BINDING = (
    "Allowed", "BlockIO", "CPU", "Delegate", "Device", "Disable", "IO", "ManagedOOM", "Memory", "Slice", "Startup",
    "Tasks",
)  # fmt: skip


def cgroups_path_of(group: str) -> str:
    """The "slice:prefix:name" of the scope whose group this is. Raises InputError where it is no scope's."""
    above, _, name = group.rpartition("/")
    slice_ = above.rpartition("/")[2] or f"-{SLICE}"
    prefix, dash, stem = name.removesuffix(SCOPE).partition("-")
    if not (name.endswith(SCOPE) and dash and slice_.endswith(SLICE)):
        raise InputError(
            "use",
            f"limit group {group}",
            "the systemd driver is asked for, and it is no scope's",
            "leave --systemd-cgroup out, or write the config.json anew",
        )
    return f"{slice_}:{prefix}:{stem}"


def require_plain(annotations: Iterable[tuple[str, str]]) -> None:
    """Raises InputError for an annotation by which the bundle's author would limit, move or take the scope."""
    for key, _ in annotations:
        if key.startswith(PREFIX) and key[len(PREFIX) :].startswith(BINDING):
            raise InputError(
                "honour",
                f"annotation {key}",
                "the container has a policy, and the limits of its scope are the host's",
                "leave it out, and say limits in linux.resources",
            )


def require_v2(hierarchies: tuple[Hierarchy, ...], name: str) -> None:
    """Raises HostError where a runtime that makes the scope itself makes no group below it."""
    if any(h.version == 1 for h in hierarchies):
        raise HostError(
            "give a policy to",
            f"container {name}",
            "its runtime is to make a systemd scope, and divides none on a host with cgroup v1",
            f'{REGISTER}, or its cgroup manager "cgroupfs"',
        )


def lockable(h: Hierarchy, page_sizes: tuple[str, ...]) -> tuple[str, ...]:
    """The limit files that a group of *h* can have, which is not there yet; *page_sizes* as in "hugetlb.2MB.max"."""
    found: list[str] = []
    for name in limit_files(h.version, h.controllers):
        found += [name.replace("*", size) for size in page_sizes] if "*" in name else [name]
    return tuple(found)


def below_scope(document: Document, spec: Spec, terms: Terms) -> Document:
    """*document* for a runtime that makes the scope itself and the guest root in it: rewrite(), by other means.

    ``cgroupsPath`` stays. Limit files are locked by readonlyPaths, for nobody knows yet which there will be:
    runtimes pass over those that are not there. Done twice it is the same as done once. Raises InputError.
    """
    plain = replace(spec, annotations=tuple(pair for pair in spec.annotations if pair[0] not in (NOTE, RECORD)))
    found = rewrite(document, plain, terms)
    linux, root = found["linux"], f"{terms.group}/{GUEST_ROOT}"
    places = [f"{h.path(root)}/" for h in terms.hierarchies]
    covers: list[Any] = []
    mounts: list[Any] = []
    for mount in found["mounts"]:
        ours = mount.get("options") == COVER and any(str(mount.get("source")).startswith(place) for place in places)
        (covers if ours else mounts).append(mount)
    locked = list(linux.get("readonlyPaths") or [])
    locked += [mount["destination"] for mount in covers if mount["destination"] not in locked]
    return {
        **found,
        "annotations": {**found["annotations"], SUBGROUP: GUEST_ROOT},
        "mounts": mounts,
        "linux": {**linux, "cgroupsPath": spec.cgroups_path, "readonlyPaths": locked},
    }
