"""``tmpcopyup``: a directory's content into the tmpfs that is to be mounted over it.

All is done by descriptors of directories, name by name, and no symlink is followed.
Owners, modes, times, extended attributes, symlinks, fifos and device nodes are kept;
hard links become files of their own.
"""

from __future__ import annotations

import errno
import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _attributes(source: int, copy: int) -> None:
    """Extended attributes; what tmpfs does not have (user.* before Linux 6.6) or may not be set is left out."""
    for name in os.listxattr(source):
        try:
            os.setxattr(copy, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):
                raise


def _own(source: int, copy: int, found: os.stat_result) -> None:
    os.fchown(copy, found.st_uid, found.st_gid)
    os.fchmod(copy, stat.S_IMODE(found.st_mode))  # after the owner, whose change clears set-user-ID
    _attributes(source, copy)
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))


def _copy(name: str, source: int, copy: int) -> None:
    """Copy *name* of the directory *source* into the directory *copy*."""
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        os.mkdir(name, 0o700, dir_fd=copy)
        below, made = os.open(name, _DIRECTORY, dir_fd=source), os.open(name, _DIRECTORY, dir_fd=copy)
        copy_content(below, made)
        _own(below, made, found)
    elif stat.S_ISREG(found.st_mode):
        below = os.open(name, os.O_RDONLY | _FILE, dir_fd=source)
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=copy)
        while os.sendfile(made, below, None, 1 << 24):
            pass
        _own(below, made, found)
    else:
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=copy)
        elif stat.S_ISSOCK(found.st_mode):
            return  # nobody listens behind a copy
        else:
            before = os.umask(0)
            try:
                os.mknod(name, found.st_mode, found.st_rdev, dir_fd=copy)
            finally:
                os.umask(before)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=copy, follow_symlinks=False)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=copy, follow_symlinks=False)
        return
    os.close(below)
    os.close(made)


def copy_content(source: int, copy: int) -> None:
    """Copy what the directory *source* has into the directory *copy*. Raises OSError (ENOSPC: it is too small)."""
    for name in os.listdir(source):
        _copy(name, source, copy)


def copy_up(target: int, tree: int, owner: bool) -> None:
    """Fill the detached tmpfs *tree* with the content of the directory *target* (O_PATH both); with *owner*
    its root gets that directory's owner and mode too."""
    source = os.open(".", _DIRECTORY, dir_fd=target)
    copy = os.open(".", _DIRECTORY, dir_fd=tree)
    try:
        copy_content(source, copy)
        if owner:
            _own(source, copy, os.fstat(source))
    finally:
        os.close(source)
        os.close(copy)
