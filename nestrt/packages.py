"""Finding an installed package where the interpreter was started without site-packages.

The commands start as ``python3 -IS`` (fast, and nothing of the user's environment reaches them), which hides
every installed package; net/ needs pyroute2, and broker/ trio.
"""

from __future__ import annotations

import glob
import importlib
import os
import sys

from nestrt.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def find_package(name: str, debian: str, otherwise: str = "") -> None:
    """Make ``import NAME`` work, looking where Debian, pip and the checkout's .venv put it.

    Directories are added at the end of ``sys.path``: none can shadow the standard library or nestrt. *debian* is
    Debian's package, *otherwise* what else to do. Raises HostError if it is nowhere.
    """
    for directory in ("", *_directories()):
        if directory and not os.path.isdir(os.path.join(directory, name)):
            continue
        if directory and directory not in sys.path:
            sys.path.append(directory)
            importlib.invalidate_caches()
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return
    remedy = f"install it (apt install {debian}, or pip install {name})"
    raise HostError(
        "load",
        name,
        f"it is not installed for {sys.executable or 'this Python'}",
        f"{remedy}, or {otherwise}" if otherwise else remedy,
    )


def _directories() -> Iterator[str]:
    """Where packages may be, best first. Those looked for are pure Python: another minor version's serves."""
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    minor = f"python3.{sys.version_info.minor}"
    libraries = os.path.join(checkout, ".venv", "lib")
    yield os.path.join(libraries, minor, "site-packages")
    yield from sorted(glob.glob(os.path.join(glob.escape(libraries), "python3.*", "site-packages")))
    for prefix in (sys.prefix, "/usr/local", "/usr"):
        yield os.path.join(prefix, "lib", minor, "site-packages")
        yield os.path.join(prefix, "lib", minor, "dist-packages")
    yield "/usr/lib/python3/dist-packages"
