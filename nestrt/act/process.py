"""What the guest's first process holds while it sets itself up."""

from __future__ import annotations

from nestrt.act.protocol import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.kernel.libseccomp import Filter


class Guest:
    """What the first process holds while it sets itself up."""

    def __init__(
        self, channel: Channel, tree: int, binds: dict[tuple[str, str], int], log: int, signals: set[int]
    ) -> None:
        """*tree* is the root filesystem, *binds* are the sources of bind mounts (by source and
        target): detached mounts, as descriptors. *log* is -1 in the foreground."""
        self.channel = channel
        self.tree = tree
        self.binds = binds
        self.log = log
        self.signals = signals
        self.old_root = -1
        self.base = -1
        self.pty = ""
        # Of a bundle's container only (act/container.py): namespaces to join by type, the socket to be
        # started by, and who creates it.
        self.joined: dict[str, int] = {}
        self.listener = -1
        self.filter: Filter | None = None
        self.board = -1
        self.creator: object = None
