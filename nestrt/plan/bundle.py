"""A bundle's container to be made, and whose ids it has. Pure."""

from __future__ import annotations

from nestrt.oci.model import Process, Spec
from nestrt.plan.facts import Hierarchy
from nestrt.plan.ids import Identity, Ranges
from nestrt.plan.request import Request
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.resources import DeviceRule
    from nestrt.plan.systemd_text import Property


@record
class Bundle:
    """A container to be made. *rootfs* is absolute; *cgroup* the limit group, "" for none at all; *driver*
    cgroupfs, systemd or disabled; *rules* all device rules in their order; *request* stands for a policy's
    part, None without one.

    *socket* is where the first process waits for ``start``, "" for ``run``. *console* is the path of
    ``--console-socket``. *joined* are the id maps of a user namespace that is joined, not made;
    *host_network*: the network namespace that is joined is the runtime's own. *elsewhere* are the hierarchies
    in which the container has no group, as it may have none there.
    """

    id: str
    path: str
    rootfs: str
    spec: Spec
    cgroup: str = ""
    driver: str = "cgroupfs"
    unit: str = ""
    properties: tuple[Property, ...] = ()
    rules: tuple[DeviceRule, ...] = ()
    request: Request | None = None
    socket: str = ""
    console: str = ""
    pivot: bool = True
    keyring: bool = True
    preserve_fds: int = 0
    joined: tuple[Ranges, Ranges] = ((), ())
    host_network: bool = False
    elsewhere: tuple[Hierarchy, ...] = ()

    @property
    def process(self) -> Process:
        """The document's, which document.require_process has asked for."""
        assert self.spec.process is not None
        return self.spec.process


def identity(bundle: Bundle) -> Identity:
    """The ids of the container's user namespace; engines have shifted the root filesystem themselves."""
    uids, gids = bundle.spec.uid_mappings, bundle.spec.gid_mappings
    entry = bundle.spec.namespace("user")
    if entry is None:
        return Identity()
    if entry.path:
        uids, gids = bundle.joined
    root_uid, root_gid = (next((o for i, o, _ in ranges if i == 0), None) for ranges in (uids, gids))
    private = bool(uids) and all(outside != 0 for ranges in (uids, gids) for _, outside, _ in ranges)
    return Identity(uids, gids, root_uid, root_gid, private=private)
