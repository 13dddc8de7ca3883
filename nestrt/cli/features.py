"""``nestrt features``: what this runtime, on this host, can do, as JSON (runtime-spec, features.md)."""

from __future__ import annotations

import os
import sys

from nestrt.cli.engine import Globals, words
from nestrt.jsontext import pretty
from nestrt.oci.features import features

TEXT = "usage: nestrt features\n\nPrint what this runtime can do on this host, as JSON."


def _enabled(path: str, wanted: str) -> bool:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64).startswith(wanted)
    except OSError:
        return False


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb."""
    if words("features", (), argv, TEXT) is None:
        return 0
    from nestrt.errors import HostError
    from nestrt.kernel import libseccomp
    from nestrt.plan import mount_options
    from nestrt.probe.facts import read_hierarchies

    try:
        version = ".".join(map(str, libseccomp.version()))
    except HostError:
        version = ""
    try:
        controllers = {name for hierarchy in read_hierarchies() for name in hierarchy.controllers}
    except HostError:
        controllers = set()
    document = features(
        mount_options=mount_options.KNOWN,
        seccomp_archs=tuple(libseccomp.ARCHITECTURES) if version else (),
        seccomp_flags=libseccomp.supported_flags() if version else (),
        libseccomp=version,
        rdma="rdma" in controllers,
        systemd=os.path.isdir("/run/systemd/system"),
        systemd_user=os.path.isdir("/run/systemd/system"),
        apparmor=_enabled("/sys/module/apparmor/parameters/enabled", "Y"),
        selinux=os.path.isdir("/sys/fs/selinux") and bool(os.listdir("/sys/fs/selinux")),
        intel_rdt=os.path.isdir("/sys/fs/resctrl/info"),
    )
    sys.stdout.write(pretty(document, "    ") + "\n")
    return 0
