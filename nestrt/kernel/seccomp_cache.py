"""Filters that libseccomp made, kept in a directory: it takes 10 to 30 ms for an engine's default profile.

A file's name is a hash of the section, of the libseccomp and of the kernel, so it is never out of date; it
holds "nestrt1\\n", three 32-bit numbers (size of the code, flags, whether it notifies) and the code.
"""

from __future__ import annotations

import os
from struct import pack, unpack

from nestrt.kernel.libseccomp import MAX_CODE, Filter, build, version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Seccomp

_KEPT = 64  # more than hosts have profiles
_HEADER = "=8sIII"
_MAGIC = b"nestrt1\n"


def cached(seccomp: Seccomp, directory: str) -> Filter | None:
    """``build``, but what was built before is taken from *directory*, and kept there.

    The directory is made if need be, for the caller alone. One that others could
    write in is not used, nor a file that does not hold what it should: then the
    filter is built anew. Nothing there outlives the kernel or the libseccomp it was made for.
    """
    from _blake2 import blake2b

    system = os.uname()
    said = repr((seccomp, version(), system.release, system.version, system.machine))
    name = blake2b(said.encode("utf-8", "surrogateescape"), digest_size=24).hexdigest()
    try:
        os.mkdir(directory, 0o700)
    except OSError:
        pass
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return build(seccomp)
    try:
        status = os.fstat(place)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return build(seccomp)
        kept = _read(place, name)
        if kept is None:
            kept = build(seccomp)
            if kept is not None:
                _keep(place, name, kept)
        return kept
    finally:
        os.close(place)


def _read(place: int, name: str) -> Filter | None:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=place)
    except OSError:
        return None
    content = os.read(file, MAX_CODE + 64)
    os.close(file)
    if len(content) < 20:
        return None
    magic, size, flags, notify = unpack(_HEADER, content[:20])
    code = content[20:]
    return Filter(code, flags, bool(notify)) if (magic, size) == (_MAGIC, len(code)) else None


def _keep(place: int, name: str, made: Filter) -> None:
    """Put it into the cache, whole or not at all; a full disk costs only the time of the next build."""
    unfinished = f".{os.getpid()}"
    try:
        old = os.listdir(place)
        if len(old) >= _KEPT:
            for each in old:
                os.unlink(each, dir_fd=place)
        file = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place
        )
        content = pack(_HEADER, _MAGIC, len(made.code), made.flags, made.notify) + made.code
        written = os.write(file, content)
        os.close(file)
        if written == len(content):
            os.rename(unfinished, name, src_dir_fd=place, dst_dir_fd=place)
    except OSError:
        pass
