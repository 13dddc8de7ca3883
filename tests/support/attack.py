"""Attacks written in Python, run inside a guest, and witnesses on the host.

A script is bound into a Python guest and prints one JSON value, which is the answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.hostside import hierarchies, limit_group, processes, read
from support.rootfs import PythonRoot
from support.runner import Nestrt, Result

# What every attack script begins with: system calls by number, errors by name.
PRELUDE = """
import ctypes, errno, fcntl, json, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *args):
    result = function(*args)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
def mounts():
    rows = [line.split(" - ") for line in open("/proc/self/mountinfo")]
    return [left.split()[4] for left, right in rows
            if right.split()[0] in ("cgroup", "cgroup2") and os.path.isdir(left.split()[4])]
def done(value):
    print("@@" + json.dumps(value))
"""

# Tries every group that a file handle could name, near the guest's own; answers with those that opened, by mount.
HANDLES = """
answers = {}
for place in mounts():
    mount = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
    call(libc.name_to_handle_at, mount, b"", handle, ctypes.byref(ctypes.c_int()), 0x1000)
    size, kind = struct.unpack_from("<Ii", handle.raw)
    own = int.from_bytes(handle.raw[8:8 + size], "little")
    # Group 1 is the true root; the limit group was made a moment before the guest root. 0xfe: FILEID_KERNFS
    found = []
    for number in (1, *range(max(1, own - 120), own)):
        wanted = ctypes.create_string_buffer(struct.pack("<IiQ", 8, 0xFE, number), 136)
        fd = libc.open_by_handle_at(mount, wanted, os.O_RDONLY)
        if fd >= 0 and "guest" in attempt(os.listdir, fd) or number == 1 and fd >= 0:
            found.append(number)
    answers[place] = found
done(answers)
"""


def run_script(nestrt: Nestrt, python: PythonRoot, script: str, *options: Any, **named: Any) -> tuple[Any, Result]:
    """Run PRELUDE and *script* in a guest with the root filesystem *python*: (what it gave done(), the launch)."""
    words = (*python.options, *options, "--", "/usr/bin/python3", "-ISc", PRELUDE + script)
    result = nestrt.launch(*words, **named)
    lines = [line for line in result.out.splitlines() if line.startswith("@@")]
    assert len(lines) == 1, result
    return json.loads(lines[0][2:]), result


def policy_file(directory: Path, text: str) -> Path:
    """A policy file with *text* in *directory*."""
    path = directory / f"policy-{os.getpid()}-{len(list(directory.iterdir()))}.toml"
    path.write_text(text)
    return path


def limits_of(group: str) -> dict[str, str]:
    """The limits that stand on *group*, as the host's kernel says; "" for what this host cannot limit."""
    files = {
        "memory": ("memory", "memory.limit_in_bytes", "memory.max"),
        "pids": ("pids", "pids.max", "pids.max"),
        "cpus": ("cpuset", "cpuset.cpus", "cpuset.cpus"),
        "quota": ("cpu", "cpu.cfs_quota_us", "cpu.max"),
    }
    found = {name: read(controller, group, v1, v2) for name, (controller, v1, v2) in files.items()}
    found["quota"] = found["quota"].split()[0]
    for hierarchy in hierarchies():
        if hierarchy.version == 2:
            for file in ("cgroup.max.descendants", "cgroup.max.depth"):
                found[file] = (hierarchy.group(group) / file).read_text().strip()
    return found


def guest_pids(name: str) -> set[int]:
    """The host's numbers of the processes of the guest *name*, from its limit groups."""
    return processes(limit_group(name))


@contextmanager
def open_directories(*paths: str) -> Iterator[tuple[int, ...]]:
    """Inheritable descriptors of *paths*, as a careless engine leaves them open."""
    descriptors = tuple(os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
