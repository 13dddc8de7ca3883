"""The words of a mount's ``options``: what each means to the kernel. Pure.

A word is a flag of mount(2), set or cleared; a propagation type; a flag that holds
for all mounts below as well (``rro``, mount_setattr(2)); one of the runtime's own
(``tmpcopyup``, ``idmap``); and any other is the filesystem's.

Source: runtime-spec, config.md, "Linux mount options"; runc has ``lazytime``,
``nostrictatime`` and ``rnorelatime`` besides.
"""

from __future__ import annotations

from nestrt.record import record

# MS_* of mount(2), include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_I_VERSION = 0x800000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

# MOUNT_ATTR_* of mount_setattr(2)
ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8
ATTR_NOATIME = 0x10
ATTR_STRICTATIME = 0x20
ATTR_ATIME = 0x70  # MOUNT_ATTR__ATIME: the three are one value, relatime is 0
ATTR_NODIRATIME = 0x80
ATTR_NOSYMFOLLOW = 0x200000
ATTR_RELATIME = 0

SETS = {
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "defaults": 0,
    "dirsync": MS_DIRSYNC,
    "iversion": MS_I_VERSION,
    "lazytime": MS_LAZYTIME,
    "mand": MS_MANDLOCK,
    "noatime": MS_NOATIME,
    "nodev": MS_NODEV,
    "nodiratime": MS_NODIRATIME,
    "noexec": MS_NOEXEC,
    "nosuid": MS_NOSUID,
    "nosymfollow": MS_NOSYMFOLLOW,
    "relatime": MS_RELATIME,
    "remount": MS_REMOUNT,
    "ro": MS_RDONLY,
    "silent": MS_SILENT,
    "strictatime": MS_STRICTATIME,
    "sync": MS_SYNCHRONOUS,
}
CLEARS = {
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "dev": MS_NODEV,
    "diratime": MS_NODIRATIME,
    "exec": MS_NOEXEC,
    "loud": MS_SILENT,
    "noiversion": MS_I_VERSION,
    "nolazytime": MS_LAZYTIME,
    "nomand": MS_MANDLOCK,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "symfollow": MS_NOSYMFOLLOW,
}
PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
RECURSIVE_SETS = {
    "rro": ATTR_RDONLY,
    "rnosuid": ATTR_NOSUID,
    "rnodev": ATTR_NODEV,
    "rnoexec": ATTR_NOEXEC,
    "rnodiratime": ATTR_NODIRATIME,
    "rnosymfollow": ATTR_NOSYMFOLLOW,
}
RECURSIVE_CLEARS = {
    "rrw": ATTR_RDONLY,
    "rsuid": ATTR_NOSUID,
    "rdev": ATTR_NODEV,
    "rexec": ATTR_NOEXEC,
    "rdiratime": ATTR_NODIRATIME,
    "rsymfollow": ATTR_NOSYMFOLLOW,
}
# The value that takes the place of the old one. What a word takes away ("ratime") leaves the kernel's default.
RECURSIVE_ATIME = {
    "rrelatime": ATTR_RELATIME,
    "rnoatime": ATTR_NOATIME,
    "rstrictatime": ATTR_STRICTATIME,
    "ratime": ATTR_RELATIME,
    "rnorelatime": ATTR_RELATIME,
    "rnostrictatime": ATTR_RELATIME,
}
OWN = ("tmpcopyup", "idmap", "ridmap")
# "mountOptions" of ``features``, in no order.
KNOWN = (*SETS, *CLEARS, *PROPAGATION, *RECURSIVE_SETS, *RECURSIVE_CLEARS, *RECURSIVE_ATIME, *OWN)

# Flags of one mount, each with its MOUNT_ATTR_*; access times are another matter.
_PLAIN = (
    (MS_RDONLY, ATTR_RDONLY),
    (MS_NOSUID, ATTR_NOSUID),
    (MS_NODEV, ATTR_NODEV),
    (MS_NOEXEC, ATTR_NOEXEC),
    (MS_NOSYMFOLLOW, ATTR_NOSYMFOLLOW),
    (MS_NODIRATIME, ATTR_NODIRATIME),
)
# What a bind without the word is without: mount(8) on --bind -o, runc's bind and remount.
BIND_RESETS = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | ATTR_NOSYMFOLLOW
_ATIME = MS_NOATIME | MS_RELATIME | MS_STRICTATIME
# Flags of the whole filesystem, each with the word that fsconfig(2) takes.
_SUPERBLOCK = (
    (MS_SYNCHRONOUS, "sync"),
    (MS_DIRSYNC, "dirsync"),
    (MS_MANDLOCK, "mand"),
    (MS_LAZYTIME, "lazytime"),
)


@record
class Options:
    """*flags* and *cleared* are MS_*; *rec_set* and *rec_clear* MOUNT_ATTR_* for a whole tree; *propagation*
    holds MS_* in order, each perhaps with MS_REC; *data* is the filesystem's own words.

    *idmap* is "", "idmap" or "ridmap".
    """

    flags: int = 0
    cleared: int = 0
    rec_set: int = 0
    rec_clear: int = 0
    propagation: tuple[int, ...] = ()
    copy_up: bool = False
    idmap: str = ""
    data: tuple[str, ...] = ()

    @property
    def bind(self) -> bool:
        return bool(self.flags & MS_BIND)

    @property
    def recursive(self) -> bool:
        return bool(self.flags & MS_REC)

    @property
    def read_only(self) -> bool:
        return bool(self.flags & MS_RDONLY)

    @property
    def remount(self) -> bool:
        return bool(self.flags & MS_REMOUNT)

    @property
    def changes(self) -> bool:
        """Whether any flag is said, set or cleared: a bind without one has its source's."""
        return bool(self.flags & ~(MS_BIND | MS_REC | MS_REMOUNT) or self.cleared)

    @property
    def attributes(self) -> int:
        """*flags* as MOUNT_ATTR_*."""
        return attributes(self.flags)

    @property
    def clears(self) -> int:
        """What mount_setattr(2) is to clear: what is said to be, and access times where they are said at all."""
        clear = attributes(self.cleared) & ~ATTR_ATIME
        return clear | (ATTR_ATIME if (self.flags | self.cleared) & _ATIME else 0)

    @property
    def superblock(self) -> tuple[str, ...]:
        """The flags of the whole filesystem, as words of fsconfig(2)."""
        return tuple(word for flag, word in _SUPERBLOCK if self.flags & flag)


def attributes(flags: int) -> int:
    """MS_* of one mount as MOUNT_ATTR_*; strictatime goes before noatime, as in mount(2)."""
    value = sum(attribute for flag, attribute in _PLAIN if flags & flag)
    if flags & MS_STRICTATIME:
        return value | ATTR_STRICTATIME
    return value | (ATTR_NOATIME if flags & MS_NOATIME else 0)


def parse_options(words: tuple[str, ...]) -> Options:
    """*words* in order: of two that contradict each other the later holds."""
    flags = cleared = rec_set = rec_clear = 0
    propagation: list[int] = []
    data: list[str] = []
    copy_up, idmap = False, ""
    for word in words:
        if word in SETS:
            flags |= SETS[word]
            cleared &= ~SETS[word]
        elif word in CLEARS:
            flags &= ~CLEARS[word]
            cleared |= CLEARS[word]
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word in RECURSIVE_SETS:
            rec_set |= RECURSIVE_SETS[word]
            rec_clear &= ~RECURSIVE_SETS[word]
        elif word in RECURSIVE_CLEARS:
            rec_set &= ~RECURSIVE_CLEARS[word]
            rec_clear |= RECURSIVE_CLEARS[word]
        elif word in RECURSIVE_ATIME:
            rec_set = rec_set & ~ATTR_ATIME | RECURSIVE_ATIME[word]
            rec_clear |= ATTR_ATIME
        elif word == "tmpcopyup":
            copy_up = True
        elif word in ("idmap", "ridmap"):
            idmap = word
        elif word:
            data.append(word)
    return Options(flags, cleared, rec_set, rec_clear, tuple(propagation), copy_up, idmap, tuple(data))
