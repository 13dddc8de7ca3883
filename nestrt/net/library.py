"""pyroute2: where it is (packages.py), and saying what it refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from nestrt.errors import HostError, KernelError
from nestrt.packages import find_package

OTHER_MODES = "use --net none or --net host"

# What a kernel or a level lacks, as opposed to what went wrong this time.
_LACKING = {
    errno.EPERM: "not permitted here: this needs CAP_NET_ADMIN over the network namespace",
    errno.EACCES: "not permitted here: this needs CAP_NET_ADMIN over the network namespace",
    errno.EROFS: "read-only here",
    errno.ENOSYS: "this kernel cannot do it",
    errno.EOPNOTSUPP: "this kernel cannot do it",
    errno.EAFNOSUPPORT: "this kernel cannot do it",
    errno.EPROTONOSUPPORT: "this kernel cannot do it",
}


def find_pyroute2(remedy: str = OTHER_MODES) -> None:
    """Make ``import pyroute2`` work. Raises HostError if it is nowhere."""
    find_package("pyroute2", "python3-pyroute2", remedy)


@contextmanager
def doing(operation: str, obj: str) -> Iterator[None]:
    """Turn what the kernel refuses inside into an error that names *operation* and *obj*.

    HostError where this kernel or this level cannot do it at all, else KernelError.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except (NetlinkError, OSError) as error:
        code = error_number(error)
        if code in _LACKING:
            raise HostError(operation, obj, f"{os.strerror(code)}: {_LACKING[code]}", OTHER_MODES) from error
        raise KernelError(operation, obj, code, OTHER_MODES) from error


def error_number(error: Exception) -> int:
    """The errno of an OSError, or of pyroute2's NetlinkError, which calls it ``code``."""
    number = getattr(error, "code", None) or getattr(error, "errno", None)
    return number if isinstance(number, int) else errno.EIO
