"""What a guest can change about its groups, found out by trying, and what the host sees of its groups.

TRY runs in the guest, as its first process, and gives every way with what came of it: "done" or the error's name.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from support.broker import BrokerGuest
from support.guests import nested
from support.hostside import groups, limit_group
from support.rootfs import PythonRoot
from support.runner import wait_for

# Each hierarchy's directory in the guest has the group "web" and in it "in", made before the lock.
PREPARE = """
import contextlib
import os
found = sorted({line.split()[4] for line in open("/proc/self/mountinfo")
                if line.split(" - ")[1].split()[0] in ("cgroup", "cgroup2") and os.path.isdir(line.split()[4])})
result = []
for place in found:
    try:
        os.makedirs(place + "/web/in")
        result.append(place)
    except OSError:
        pass  # its policy gives it none there
"""
TRY = r"""
import ctypes, errno, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
found = {}
NEWNS, NEWCGROUP, NEWUSER = 0x20000, 0x2000000, 0x10000000

def said(error):
    return errno.errorcode.get(error.errno, str(error))

def attempt(way, action, *args):
    try:
        action(*args)
        found[way] = "done"
    except OSError as error:
        found[way] = said(error)

def write(path, text, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)

def check(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), "")
    return value

def in_child(action):
    # What a child gets, as an OSError of ours.
    read, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            action()
        except OSError as error:
            code = error.errno
        os.write(out, struct.pack("i", code))
        os._exit(0)
    os.close(out)
    code = struct.unpack("i", os.read(read, 4).ljust(4, b"\xff"))[0]
    os.close(read)
    os.waitpid(pid, 0)
    if code:
        raise OSError(code, "")

def afresh(fstype, options, user):
    # A mount of one's own, from new namespaces, and a group made in it.
    def act():
        uid, gid = os.getuid(), os.getgid()
        check(libc.unshare(NEWNS | NEWCGROUP | (NEWUSER if user else 0)))
        if user:
            write("/proc/self/setgroups", "deny")
            write("/proc/self/uid_map", f"0 {uid} 1")
            write("/proc/self/gid_map", f"0 {gid} 1")
        check(libc.mount(None, b"/", None, 0x44000, None))
        check(libc.mount(b"none", b"/mnt", fstype, 0, options))
        os.mkdir("/mnt/fresh")
        os.rmdir("/mnt/fresh")
    in_child(act)

def remount(place):
    def act():
        check(libc.unshare(NEWNS))
        check(libc.mount(None, place.encode(), None, 0x1020, None))
        os.mkdir(place + "/fresh")
        os.rmdir(place + "/fresh")
    in_child(act)

def by_handle(place):
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
    check(libc.name_to_handle_at(-100, (place + "/web/cgroup.procs").encode(), handle, ctypes.byref(ctypes.c_int()), 0))
    mount = os.open(place, os.O_RDONLY)
    fd = check(libc.open_by_handle_at(mount, handle, os.O_WRONLY))
    os.write(fd, b"0")

def into_group(place):
    # clone3(2) with CLONE_INTO_CGROUP
    fd = os.open(place + "/web/in", os.O_RDONLY | os.O_DIRECTORY)
    args = struct.pack("11Q", 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, fd)
    pid = libc.syscall(435, args, len(args))
    if pid == 0:
        os._exit(0)
    check(pid)
    os.waitpid(pid, 0)

def limit_file(place):
    for name in ("memory.limit_in_bytes", "cpu.shares", "pids.max", "memory.max", "cgroup.max.depth",
                 "notify_on_release"):
        if os.path.exists(f"{place}/web/{name}"):
            return f"{place}/web/{name}"

for place in PLACES:
    name = os.path.basename(place)
    attempt(f"{name}: mkdir", os.mkdir, place + "/new")
    attempt(f"{name}: mkdir below", os.mkdir, place + "/web/in/new")
    attempt(f"{name}: through /proc", os.mkdir, f"/proc/self/root{place}/new2")
    attempt(f"{name}: rmdir", os.rmdir, place + "/web/in")
    limit = limit_file(place)
    attempt(f"{name}: limit", write, limit, open(limit).read())
    attempt(f"{name}: truncate", os.truncate, limit, 0)
    attempt(f"{name}: move", write, place + "/web/in/cgroup.procs", str(os.getpid()))
    attempt(f"{name}: chmod", os.chmod, place + "/web", 0o777)
    attempt(f"{name}: chown", os.chown, place + "/web", 0, 0)
    attempt(f"{name}: mark", os.setxattr, place + "/web", "user.nestrt", b"{}")
    attempt(f"{name}: handle", by_handle, place)
    fstype, options = None, None
    for line in open("/proc/self/mountinfo"):
        if line.split()[4] == place:
            fstype, _, options = line.split(" - ")[1].split()
    v2 = fstype == "cgroup2"
    words = [w for w in options.split(",") if w not in ("rw", "ro") and not w.startswith("release_agent")]
    options = None if v2 else ",".join((["none"] if "name=" in options else []) + words)
    for user in (False, True):
        way = f"{name}: mount{' as its own user namespace' if user else ''}"
        attempt(way, afresh, fstype.encode(), options and options.encode(), user)
    attempt(f"{name}: remount", remount, place)
    if v2:
        attempt(f"{name}: fork into", into_group, place)
result = found
"""


def prepare(guest: BrokerGuest) -> list[str]:
    """Make the groups "web" and "web/in"; the directories of the hierarchies that have them."""
    found: list[str] = guest.python(PREPARE)
    assert found
    return found


def start_inner(guest: BrokerGuest, python: PythonRoot) -> tuple[str, str]:
    """A guest "inner" of the *guest*, asleep: the first hierarchy's mountpoint there, and its first process's pid."""
    guest.spawn(nested(python, "--name inner", "/bin/sh -c 'exec sleep 1000'"))
    tree = guest.shell("ls -d /sys/fs/cgroup/unified /sys/fs/cgroup 2>/dev/null | tail -1")

    def first() -> str:
        # Its program runs by then, so that nothing of its start is to come.
        procs = f"{tree}/nestrt/inner/guest/init/cgroup.procs"
        look = f"for p in $(cat {procs}); do grep -q ^sleep /proc/$p/cmdline && echo $p; done"
        return str(guest.order("shell", command=look)["out"]).strip()

    return tree, wait_for(first, "the inner guest", 30).split()[0]


def tries(guest: BrokerGuest, places: list[str]) -> dict[str, str]:
    """Every way to change something, and what came of it."""
    found: dict[str, str] = guest.python(f"PLACES = {places!r}\n" + TRY)
    return found


def listing(name: str) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mode bits of every directory and file of the guest's groups, in all hierarchies.

    What a guest removes meanwhile is passed over, as os.walk does.
    """
    found = {}
    for top in groups(limit_group(name)):
        for directory, _, files in os.walk(top):
            for path in (directory, *(os.path.join(directory, file) for file in files)):
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    found[path] = (status.st_uid, status.st_gid, status.st_mode)
    return found


def attributes(name: str) -> dict[str, dict[str, bytes]]:
    """The extended attributes of all groups of the guest."""
    found: dict[str, dict[str, Any]] = {}
    for top in groups(limit_group(name)):
        for directory, _, _ in os.walk(top):
            with contextlib.suppress(FileNotFoundError):
                found[directory] = {key: os.getxattr(directory, key) for key in os.listxattr(directory)}
    return found
