"""What the guest's first process holds while it sets itself up."""

from __future__ import annotations

from nestrt.act.protocol import Channel


class Guest:
    """What the first process holds while it sets itself up."""

    def __init__(self, channel: Channel, tree: int, log: int, signals: set[int]) -> None:
        self.channel = channel
        self.tree = tree
        self.log = log
        self.signals = signals
        self.old_root = -1
        self.base = -1
        self.pty = ""
