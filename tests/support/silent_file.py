"""A file that never answers: FUSE, which says everything but the end of a read, or of a write; or a directory that
never says what is in it.

Run as ``python silent_file.py PID PATH read``: mounts it over the file PATH in the mount namespace of PID, and serves
it until its standard input ends. With "lookup" it is a directory. Sources: fuse(4), include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOKUP, GETATTR, SETATTR, OPEN, READ, WRITE, INIT = 1, 3, 4, 14, 15, 16, 26
SILENT = {"lookup": LOOKUP, "read": READ, "write": WRITE}
OPTIONS = "fd={},rootmode={:o},user_id=0,group_id=0,allow_other"


def attributes(mode: int) -> bytes:
    """struct fuse_attr_out: one page."""
    times = (0, 0, 0, 0, 0, 0)
    return struct.pack("=QII6Q10I", 3600, 0, 0, 1, 4096, 8, *times[:3], *times[3:], mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode: int, silent: int, mode: int) -> bytes | None:
    """What to say to a request; None: nothing, ever."""
    if opcode == silent:
        return None
    if opcode == INIT:
        return struct.pack("=IIIIHHIIHHI7I", 7, 31, 65536, 0, 12, 9, 4096, 1, 1, 0, 0, *(0,) * 7)
    if opcode in (GETATTR, SETATTR):
        return attributes(mode)
    return {OPEN: bytes(16), READ: bytes(4096)}.get(opcode, b"")


def serve(pid: str, path: str, silent: str) -> None:
    """Until the end of standard input."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    mode = 0o40755 if silent == "lookup" else 0o100666
    options = OPTIONS.format(fuse, mode).encode()
    if libc.setns(namespace, 0) or libc.mount(b"silent", path.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    print("mounted", flush=True)
    while True:
        ready, _, _ = select.select([0, fuse], [], [])
        if 0 in ready:
            libc.umount2(path.encode(), 2)
            return
        request = os.read(fuse, 1 << 17)
        _, opcode, unique = struct.unpack_from("=IIQ", request)
        body = answer(opcode, SILENT[silent], mode)
        if body is not None:
            os.write(fuse, struct.pack("=IiQ", 16 + len(body), 0 if body else -38, unique) + body)


@contextmanager
def silent(pid: int, path: str, what: str = "read") -> Iterator[None]:
    """A "read" of *path*, a file in the mount namespace of *pid*, or a "write", or a "lookup" in the directory *path*,
    does not end. At the end of this, whoever waits for one gets an error."""
    command = [sys.executable, __file__, str(pid), path, what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "mounted\n"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
