"""What ``features`` prints: what nestrt understands, whether or not this host has it.

Source: runtime-spec, features.md and features-linux.md, version 1.2.
"""

from __future__ import annotations

from nestrt.oci.document import VERSION_MAX, VERSION_MIN
from nestrt.oci.parse_linux import HOOKS, NAMESPACES
from nestrt.oci.parse_process import CAPABILITIES
from nestrt.oci.parse_seccomp import ACTIONS, FLAGS, OPERATORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# A name that ends with a dot is a prefix.
UNSAFE_ANNOTATIONS = ("nestrt.", "org.systemd.property.")


def features(
    *,
    mount_options: Iterable[str],
    seccomp_archs: Iterable[str] = (),
    seccomp_flags: Iterable[str] = FLAGS,
    libseccomp: str = "",
    rdma: bool = True,
    systemd: bool = True,
    systemd_user: bool = False,
    apparmor: bool = True,
    selinux: bool = True,
    intel_rdt: bool = False,
    idmap: bool = True,
    unsafe_annotations: Iterable[str] = UNSAFE_ANNOTATIONS,
) -> dict[str, Any]:
    """The features structure.

    *mount_options* are the words that are no data for the filesystem.
    *seccomp_archs* ``SCMP_ARCH_…`` that filters can be made for, () where nestrt
    can make none; *seccomp_flags* those that this kernel takes; *libseccomp*
    its version, "" where it is not used. The switches say what nestrt can do.
    """
    archs = sorted(seccomp_archs)
    seccomp: dict[str, Any] = {"enabled": bool(archs)}
    if archs:
        seccomp["actions"] = list(ACTIONS)
        seccomp["operators"] = list(OPERATORS)
        seccomp["archs"] = archs
        seccomp["knownFlags"] = list(FLAGS)
        seccomp["supportedFlags"] = sorted(seccomp_flags)
    linux = {
        "namespaces": list(NAMESPACES),
        "capabilities": list(CAPABILITIES),
        "cgroup": {"v1": True, "v2": True, "systemd": systemd, "systemdUser": systemd_user, "rdma": rdma},
        "seccomp": seccomp,
        "apparmor": {"enabled": apparmor},
        "selinux": {"enabled": selinux},
        "intelRdt": {"enabled": intel_rdt},
        "mountExtensions": {"idmap": {"enabled": idmap}},
    }
    document: dict[str, Any] = {
        "ociVersionMin": VERSION_MIN,
        "ociVersionMax": VERSION_MAX,
        "hooks": list(HOOKS),
        "mountOptions": sorted(set(mount_options)),
        "linux": linux,
    }
    if libseccomp:
        document["annotations"] = {"io.github.seccomp.libseccomp.version": libseccomp}
    document["potentiallyUnsafeConfigAnnotations"] = sorted(unsafe_annotations)
    return document
