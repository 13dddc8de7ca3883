"""The steps that make a bundle's root filesystem: the launcher's, then those of the first process.

Attributes are MOUNT_ATTR_* of mount_setattr(2), propagation is MS_* of mount(2),
perhaps with MS_REC. *name* is the place in the document, for errors: ``mounts[3]``.
A *key* names a detached mount that the launcher opened: ``launcher.binds``, and
``guest.binds`` in the first process.
"""

from __future__ import annotations

from nestrt.plan.steps import Step
from nestrt.record import record

Key = tuple[str, str]
Ranges = tuple[tuple[int, int, int], ...]

# The launcher's real null device, for masks.
NULL: Key = ("null", "")


# --- the launcher's ---


@record
class OpenBundleRoot(Step):
    """Take a detached copy of the root filesystem at *path* with its mounts; nothing of it propagates to here."""

    path: str
    propagation: int

    def describe(self) -> str:
        return f"open the root filesystem {self.path}"


@record
class OpenSource(Step):
    """Take a detached copy of the mount at *path* for a bind, with its attributes.

    *resets* are the attributes that go unless they are in *attr_set*, where they can; *strict*: those in
    *attr_clear* are locked where the source has them, as for a user namespace that would mount by itself.
    *rec_set* and *rec_clear* are for the mounts below too.
    """

    name: str
    key: Key
    path: str
    recursive: bool = False
    attr_set: int = 0
    attr_clear: int = 0
    resets: int = 0
    strict: bool = False
    rec_set: int = 0
    rec_clear: int = 0
    propagation: tuple[int, ...] = ()
    optional: bool = False

    def describe(self) -> str:
        return f"open {self.path} to bind it at {self.key[1]}"


@record
class MapSource(Step):
    """Id-map a detached mount: by the ranges, or without any by the first process's user namespace."""

    name: str
    key: Key
    path: str
    recursive: bool
    uids: Ranges = ()
    gids: Ranges = ()

    def describe(self) -> str:
        return f"id-map the mount of {self.path}"


@record
class OpenNode(Step):
    """Take a detached mount of the device node at *path*, which must be the one said (*type* c, b or u)."""

    name: str
    key: Key
    path: str
    type: str
    major: int
    minor: int
    optional: bool = False

    def describe(self) -> str:
        return f"open the device {self.path}"


@record
class CheckLabel(Step):
    """A mount label needs SELinux."""

    label: str

    def describe(self) -> str:
        return f"check that SELinux is on, for the label {self.label}"


# --- the first process's ---


@record
class EnterBundle(Step):
    """Attach the root filesystem at *path* in a mount namespace of its own, and chroot to it.

    *propagation* is what the namespace's mounts become first. Without *own* the namespace is the runtime's,
    and nothing is mounted.
    """

    path: str
    own: bool
    propagation: int

    def describe(self) -> str:
        return f"attach the root filesystem at {self.path} and enter it" if self.own else f"chroot to {self.path}"


@record
class MountType(Step):
    """Mount a new filesystem at *target* (made if missing).

    *words* go to fsconfig(2); *late_read_only*: mounted writable, locked by LockMounts; *plain*: no symbolic
    link may lead to *target*; *keep_mode*: what is there lends its mode; *fallback*: what of the old root is
    bound instead, where the kernel refuses (EPERM, EBUSY). *legacy* are MS_* that only mount(2) takes.
    """

    name: str
    fstype: str
    source: str
    target: str
    attributes: int = 0
    words: tuple[str, ...] = ()
    propagation: tuple[int, ...] = ()
    copy_up: bool = False
    late_read_only: bool = False
    plain: bool = False
    keep_mode: bool = False
    fallback: str = ""
    legacy: int = 0

    def describe(self) -> str:
        return f"mount {self.fstype} at {self.target}" + (f" ({','.join(self.words)})" if self.words else "")


@record
class AttachSource(Step):
    """Attach the detached mount *key* at *target* (made if missing)."""

    name: str
    key: Key
    source: str
    target: str
    late_read_only: bool = False

    def describe(self) -> str:
        return f"bind {self.source} at {self.target}"


@record
class AttachOld(Step):
    """Bind *source* of the old root at *target*, after its attributes: what the launcher cannot open before the
    clone, for it comes to be later."""

    name: str
    source: str
    target: str
    attr_set: int = 0
    propagation: tuple[int, ...] = ()

    def describe(self) -> str:
        return f"bind {self.source} at {self.target}"


@record
class ChangeMount(Step):
    """Change what is mounted at *target* (``remount``); *words* and *flags* (MS_*) are for its filesystem."""

    name: str
    target: str
    attr_set: int
    attr_clear: int
    rec_set: int = 0
    rec_clear: int = 0
    propagation: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    flags: int = 0

    def describe(self) -> str:
        return f"change the mount at {self.target}"


@record
class MakeNode(Step):
    """Make a device node or fifo. What is there already stays; *standard*: it must then be the same device.

    With *key* the launcher's node is bound instead; where mknod(2) is not allowed, the old root's.
    """

    name: str
    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    standard: bool = False
    key: Key | None = None

    def describe(self) -> str:
        what = "fifo" if self.type == "p" else f"device {self.type} {self.major}:{self.minor}"
        return f"{'bind' if self.key else 'make'} {what} at {self.path}"


@record
class MakeLink(Step):
    """Make the symlink *path* → *content*; *replace* takes away what is there; *only_if* must exist."""

    path: str
    content: str
    replace: bool = False
    only_if: str = ""

    def describe(self) -> str:
        return f"link {self.path} to {self.content}"


@record
class LeaveBundle(Step):
    """Let the root filesystem be the root. *how* is pivot, move (--no-pivot), or chroot (nothing left to do)."""

    path: str
    how: str

    def describe(self) -> str:
        return {"pivot": "pivot to", "move": "move over the old root:", "chroot": "stay in"}[
            self.how
        ] + " the root filesystem"


@record
class SetRootPropagation(Step):
    """Make "/" shared or unbindable."""

    propagation: int

    def describe(self) -> str:
        return f"set the propagation of / ({self.propagation:#x})"


@record
class ReopenNull(Step):
    """Let descriptors 0 to 2 that are the null device be the guest's own."""

    def describe(self) -> str:
        return "reopen /dev/null"


@record
class LockMounts(Step):
    """Make read-only the mounts that were to be filled first, and "/" with *root*."""

    root: bool

    def describe(self) -> str:
        return "make read-only what is filled now" + (", and the root filesystem" if self.root else "")


@record
class HidePaths(Step):
    """Make *read_only* paths so, and cover *masked* ones; what is not there is passed over.

    *kernel*: the document has the filesystem ("/proc" → proc), so a path below must lie on it.
    """

    read_only: tuple[str, ...]
    masked: tuple[str, ...]
    kernel: tuple[str, ...]

    def describe(self) -> str:
        return f"make {len(self.read_only)} paths read-only, mask {len(self.masked)}"
