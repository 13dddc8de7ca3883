"""Be told when a group runs out of memory: eventfds on v1, memory.events on v2.

v1 (cgroup-v1/memory.rst, section 9 and 10): an eventfd and the number of an open
memory.oom_control, written to cgroup.event_control, make the kernel count each time
when no memory can be had. It tells the group that is at its limit and all those
below it, never those above (mm/memcontrol-v1.c, mem_cgroup_oom_notify). So a guest's
child group with a limit of its own has to be listened to by itself, and new groups
have to be noticed: inotify(7) on the directories.
v2 (cgroup-v2.rst): memory.events counts ``oom_kill`` for the group and all below, and poll(2) reports its changes.
"""

from __future__ import annotations

import os
import select

from nestrt.kernel import cgroup, inotify

# Every group that is listened to costs two descriptors, and the guest may make as many as it likes.
MOST_GROUPS = 400


def listen(directory: str, file: str = "memory.oom_control", argument: str = "") -> int:
    """An eventfd, non-blocking, that counts what v1 tells of *file* in the group *directory*: of memory.oom_control,
    the times when there was none left.

    OSError: ENOENT, EACCES, EINVAL (an *argument* that the file does not take), EMFILE.
    """
    control = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            cgroup.write(f"{directory}/cgroup.event_control", f"{event} {control} {argument}".rstrip())
        except OSError:
            os.close(event)
            raise
    finally:
        os.close(control)  # the kernel needs it only for as long as the write takes
    return event


class V1Watch:
    """Listens to the v1 memory group *top* and to those below it. OSError: ENOENT if it is gone, EACCES."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.events: dict[str, int] = {}
        self.inotify = inotify.open()
        try:
            self._add(top)
        except OSError:
            self.close()
            raise
        self._look()

    def descriptors(self) -> dict[int, int]:
        """What to poll(2): descriptor to event mask. It may be another after take()."""
        return dict.fromkeys((self.inotify, *self.events.values()), select.POLLIN)

    def take(self) -> bool:
        """Whether there was an OOM since the last call; never blocks, and notices new groups."""
        happened = False
        for directory, event in list(self.events.items()):
            try:
                count = os.eventfd_read(event)
            except BlockingIOError:
                count = 0
            gone = not os.path.isdir(directory)
            # The removal of a group counts as one (mm/memcontrol-v1.c, memcg_event_remove).
            happened = happened or count > gone
            if gone:
                os.close(self.events.pop(directory))
        self._look()
        return happened

    def close(self) -> None:
        """Stop listening."""
        for descriptor in (self.inotify, *self.events.values()):
            os.close(descriptor)
        self.events = {}

    def _add(self, directory: str) -> None:
        self.events[directory] = listen(directory)
        inotify.add(self.inotify, directory, inotify.IN_CREATE | inotify.IN_ONLYDIR)

    def _look(self) -> None:
        """Listen to the groups that are new, an outer one before those in it."""
        try:
            while os.read(self.inotify, 65536):
                pass
        except BlockingIOError:
            pass
        found = True
        while found:  # what was made in a new group before that was watched
            found = False
            for directory in reversed(cgroup.below(self.top)):
                if directory not in self.events and len(self.events) < MOST_GROUPS:
                    try:
                        self._add(directory)
                        found = True
                    except OSError:  # it went away
                        continue


class V2Watch:
    """Follows ``oom_kill`` of the v2 group *top*. OSError: ENOENT where it has no memory controller."""

    def __init__(self, top: str) -> None:
        self.file = os.open(f"{top}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self.kills = 0
        self.kills = self._read()

    def descriptors(self) -> dict[int, int]:
        """What to poll(2): descriptor to event mask."""
        return {self.file: select.POLLPRI}

    def take(self) -> bool:
        """Whether there was an OOM since the last call; never blocks."""
        before, self.kills = self.kills, self._read()
        return self.kills > before

    def close(self) -> None:
        """Stop following."""
        os.close(self.file)

    def _read(self) -> int:
        try:
            rows = [line.split() for line in os.pread(self.file, 4096, 0).splitlines()]
        except OSError:  # ENODEV: the group is gone
            return self.kills
        return next((int(row[1]) for row in rows if row[0] == b"oom_kill"), self.kills)


Watch = V1Watch | V2Watch


def watch(directory: str, version: int) -> Watch:
    """Listen to the memory group *directory* of a hierarchy of *version*. OSError."""
    return V1Watch(directory) if version == 1 else V2Watch(directory)
