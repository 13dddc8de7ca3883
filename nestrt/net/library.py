"""pyroute2: finding it where the interpreter was started without site-packages, and saying what it refused.

The commands start as ``python3 -IS`` (fast, and nothing of the user's
environment reaches them), which hides every installed package; this room is
the only one that needs one.
"""

from __future__ import annotations

import errno
import glob
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nestrt.errors import HostError, KernelError

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


def find_pyroute2() -> None:
    """Make ``import pyroute2`` work, looking where Debian, pip and the checkout's .venv put it.

    Directories are added at the end of ``sys.path``: none can shadow the
    standard library or nestrt. Raises HostError if it is nowhere.
    """
    for directory in ("", *_package_directories()):
        if directory and not os.path.isdir(os.path.join(directory, "pyroute2")):
            continue
        if directory and directory not in sys.path:
            sys.path.append(directory)
            importlib.invalidate_caches()
        try:
            importlib.import_module("pyroute2")
        except ImportError:
            continue
        return
    raise HostError(
        "load",
        "pyroute2",
        f"it is not installed for {sys.executable or 'this Python'}",
        f"install it (apt install python3-pyroute2, or pip install pyroute2), or {OTHER_MODES}",
    )


def _package_directories() -> Iterator[str]:
    """Where pyroute2 may be, best first. It is pure Python: another minor version's directory serves."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    minor = f"python3.{sys.version_info.minor}"
    libraries = os.path.join(checkout, ".venv", "lib")
    yield os.path.join(libraries, minor, "site-packages")
    yield from sorted(glob.glob(os.path.join(glob.escape(libraries), "python3.*", "site-packages")))
    for prefix in (sys.prefix, "/usr/local", "/usr"):
        yield os.path.join(prefix, "lib", minor, "site-packages")
        yield os.path.join(prefix, "lib", minor, "dist-packages")
    yield "/usr/lib/python3/dist-packages"


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
