"""The device nodes and links of a bundle's /dev, as steps. Pure.

Source: runtime-spec, config-linux.md, "Devices", "Default Devices", and
runtime-linux.md, "Dev symbolic links".
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.level.units import clean
from nestrt.plan import mount_steps as do

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Device
    from nestrt.plan.steps import Step

# path, major, minor
STANDARD = (
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
)
LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)


def _node(name: str, device: Device, bound: bool) -> tuple[list[Step], do.MakeNode]:
    path = clean(device.path)
    if device.type not in ("c", "u", "b", "p"):
        raise InputError("make", name, f"{device.type!r} is no type of device", "use c, b, u or p")
    opened: list[Step] = []
    key: do.Key | None = None
    if bound and device.type != "p":
        key = (name, path)
        opened.append(do.OpenNode(name, key, path, device.type, device.major, device.minor))
    mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
    made = do.MakeNode(
        name, path, device.type, device.major, device.minor, mode, device.uid or 0, device.gid or 0, key=key
    )
    return opened, made


def device_steps(devices: tuple[Device, ...], bound: bool) -> tuple[list[Step], list[Step]]:
    """The launcher's steps and the first process's for *devices* and those that every container has.

    *bound*: no node can be made, so the launching level's are bound. Of two at one path the document's is meant.
    """
    opened: list[Step] = []
    made: list[Step] = []
    said = {clean(device.path) for device in devices}
    for path, major, minor in STANDARD:
        if path in said:
            continue
        if bound:
            opened.append(do.OpenNode(path, (path, path), path, "c", major, minor, optional=True))
        key = (path, path) if bound else None
        made.append(do.MakeNode(path, path, "c", major, minor, 0o666, 0, 0, standard=True, key=key))
    for index, device in enumerate(devices):
        # /dev/ptmx is always the link to the container's own devpts; what has no path is for the device rules.
        if clean(device.path) not in ("/", "/dev/ptmx"):
            nodes, node = _node(f"linux.devices[{index}]", device, bound)
            opened += nodes
            made.append(node)
    made.append(do.MakeLink("/dev/ptmx", "pts/ptmx", replace=True))
    made += [do.MakeLink(path, content) for path, content in LINKS]
    made.append(do.MakeLink("/dev/core", "/proc/kcore", only_if="/proc/kcore"))
    return opened, made
