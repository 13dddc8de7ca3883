"""The broker's socket for a container: asked for before the container is made, bound into it by its document."""

from __future__ import annotations

import sys

from nestrt.act import broker
from nestrt.errors import one_line
from nestrt.kernel import pidfd
from nestrt.oci.model import Mount
from nestrt.plan.broker import GUEST_SOCKET
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Spec
    from nestrt.plan.request import Request

OPTIONS = ("bind", "nosuid", "noexec", "rprivate")


def socket_for(request: Request) -> str:
    """The socket on which the broker listens for the guest of *request*; "" where it is to have none, or only wanted
    one and there is no broker. Raises NestrtError where one is required."""
    if not request.served:
        return ""
    # A container's id may have a "+", a guest's name not.
    name = request.name.replace("+", ".").lstrip("_.-")[:64] or "container"
    found = broker.serve(name, request.limit_group, request.policy.broker == "required")
    if not found:
        sys.stderr.write(one_line(f"nestrt: {broker.missing(name)}") + "\n")
    return found


def with_socket(spec: Spec, request: Request) -> Spec:
    """*spec* with the broker's socket bound where a guest looks for it. Raises as socket_for()."""
    found = socket_for(request)
    if not found:
        return spec
    others = tuple(mount for mount in spec.mounts if mount.destination != GUEST_SOCKET)
    return replace(spec, mounts=(*others, Mount(GUEST_SOCKET, "bind", found, OPTIONS)))


def put_socket(request: Request, pid: int) -> None:
    """For a container that is there already: mount the socket in it. *pid* is its first process. As socket_for()."""
    found = socket_for(request)
    if found:
        from nestrt.act import inject

        inject.put_socket(pid, pidfd.start_time(pid) or 0, found, GUEST_SOCKET)
