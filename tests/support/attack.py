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

from support.hostside import groups, hierarchies, limit_group, read
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
    found: set[int] = set()
    for directory in groups(limit_group(name)):
        for file in directory.rglob("cgroup.procs"):
            try:
                found.update(int(word) for word in file.read_text().split())
            except OSError:  # a group of threads, or gone
                continue
    return found - {0}


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
