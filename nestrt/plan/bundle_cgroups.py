"""A bundle's cgroup mounts without a policy, as runc makes them: what the container's own groups are. Pure.

::

    type cgroup, v1 or hybrid   a tmpfs; each v1 hierarchy, mounted in the cgroup namespace or else bound
                                from the container's own group; symlinks to the merged ones
    type cgroup on v2, cgroup2  the v2 tree from the cgroup namespace's root; without one, a bind of all of it

From the initial cgroup namespace a mount of cgroup2 sets the options of the one superblock: without
nsdelegate it would strip the whole host of it (cgroups(7)). Hence the bind.
"""

from __future__ import annotations

from nestrt.errors import HostError
from nestrt.plan import mount_steps as do
from nestrt.plan.mount_options import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Mount
    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.mount_options import Options
    from nestrt.plan.steps import Step

NO_ALL = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC


def _v1(name: str, options: Options, target: str, groups: dict[Hierarchy, str], own: bool) -> list[Step]:
    steps: list[Step] = [do.MountType(name, "tmpfs", "tmpfs", target, NO_ALL, ("mode=755",), options.propagation)]
    fixed = ATTR_RDONLY if options.read_only else 0
    for h, group in groups.items():
        # One that is alive and mounted nowhere has no name.
        if h.version != 1 or not h.name:
            continue
        base = h.name.rpartition("/")[2]
        place = f"{target}/{base}"
        if own:
            words = tuple(h.options.split(","))
            steps.append(do.MountType(name, "cgroup", "cgroup", place, NO_ALL | fixed, words))
        else:
            steps.append(do.AttachOld(name, h.path(group), place, options.attributes, options.propagation))
        names = base.split(",") if "," in base else []
        names += [link for link in h.links if link not in names]
        steps += [do.MakeLink(f"{target}/{link}", base) for link in names]
    return steps


def cgroup_steps(
    name: str, mount: Mount, options: Options, target: str, groups: dict[Hierarchy, str], own: bool
) -> list[Step]:
    """The steps for the entry *mount* (type cgroup or cgroup2) of a container whose processes stand in *groups*;
    *own*: it has a cgroup namespace. Raises HostError where there is no such hierarchy."""
    if mount.type == "cgroup" and any(h.version == 1 for h in groups):
        return _v1(name, options, target, groups, own)
    unified = [h for h in groups if h.version == 2]
    if not unified:
        raise HostError("mount", name, "no cgroup v2 hierarchy is mounted at this level", "mount -t cgroup2 none DIR")
    flags = options.attributes
    if not own:
        return [do.AttachOld(name, unified[0].mountpoint, target, flags, options.propagation)]
    # A user namespace whose cgroup namespace is not its own may not mount it.
    fallback = unified[0].path(groups[unified[0]])
    source = mount.source or "cgroup2"
    words = options.data
    return [do.MountType(name, "cgroup2", source, target, flags, words, options.propagation, fallback=fallback)]
