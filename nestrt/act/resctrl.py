"""resctrl groups: which share of cache and memory bandwidth a container's processes have.

Sources: Documentation/filesystems/resctrl.rst of the kernel; runtime-spec, config-linux.md, IntelRdt.
"""

from __future__ import annotations

import os

from nestrt.errors import HostError, InputError, NestrtError, StateError
from nestrt.kernel.mountinfo import read_mounts
from nestrt.plan.process_steps import JoinResctrl


def mountpoint() -> str:
    """Where resctrl is mounted. Raises HostError if it is not."""
    for mount in read_mounts():
        if mount.fstype == "resctrl":
            return mount.target
    raise HostError(
        "use",
        "linux.intelRdt",
        "no resctrl filesystem is mounted here",
        "on a machine that has it: mount -t resctrl resctrl /sys/fs/resctrl; else leave linux.intelRdt out",
    )


def to_remove(root: str, step: JoinResctrl) -> str:
    """The directory that join() will make, and that is to be removed with the container; "" for none."""
    group = root if step.group == "/" else os.path.join(root, step.group)
    if step.own and not os.path.isdir(group):
        return group
    return f"{group}/mon_groups/{step.monitor}" if step.monitor else ""


def join(root: str, step: JoinResctrl, pid: int) -> None:
    """Move *pid* into the group, which is made where it is missing and *step* allows it.

    Raises InputError (a group that should be there is not), StateError (one that is
    there has other schemata), NestrtError with the kernel's own explanation.
    """
    group = root if step.group == "/" else os.path.join(root, step.group)
    there = os.path.isdir(group)
    if not there and not step.own and not step.schemata:
        raise InputError(
            "use",
            f"linux.intelRdt.closID {step.group}",
            "there is no such group, and without a schema none is made",
            f"make {group}, or say l3CacheSchema or memBwSchema",
        )
    try:
        if not there:
            os.mkdir(group, 0o755)
        if step.schemata and not there:
            _write(f"{group}/schemata", "".join(f"{line}\n" for line in step.schemata))
        elif step.schemata:
            with open(f"{group}/schemata", encoding="ascii") as file:
                _compare(step, file.read())
        _write(f"{group}/tasks", str(pid))
        if step.monitor:
            watched = f"{group}/mon_groups/{step.monitor}"
            os.makedirs(watched, 0o755, exist_ok=True)
            _write(f"{watched}/tasks", str(pid))
    except OSError as error:
        if not there and os.path.isdir(group):
            os.rmdir(group)
        raise NestrtError(
            "use", f"resctrl group {step.group}", _explained(root, error), "look at linux.intelRdt and at info/"
        ) from error


def values(schemata: str) -> dict[tuple[str, str], str]:
    """Lines like ``L3:0=7f0;1=1f`` as {(resource, cache id): value}, leading zeros and spaces left out."""
    found = {}
    for line in schemata.splitlines():
        resource, _, domains = line.partition(":")
        for domain in domains.split(";"):
            number, equals, value = domain.partition("=")
            if equals:
                found[resource.strip(), number.strip().lstrip("0") or "0"] = value.strip().lower().lstrip("0") or "0"
    return found


def _compare(step: JoinResctrl, now: str) -> None:
    """The spec: the schemata of a group that is there already must be those asked for."""
    have = values(now)
    for (resource, cache), value in values("\n".join(step.schemata)).items():
        if have.get((resource, cache)) != value:
            raise StateError(
                "use",
                f"resctrl group {step.group}",
                f"it is there with {resource}:{cache}={have.get((resource, cache), 'nothing')}, not {value}",
                "name another linux.intelRdt.closID, or ask for what it has",
            )


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _explained(root: str, error: OSError) -> str:
    """The errno's text, and what the kernel says of the last command (info/last_cmd_status)."""
    try:
        with open(f"{root}/info/last_cmd_status", encoding="utf-8", errors="replace") as file:
            return f"{error.strerror} ({file.read(200).strip()})"
    except OSError:
        return error.strerror or ""
