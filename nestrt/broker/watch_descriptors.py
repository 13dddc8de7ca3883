"""Descriptors that the kernel makes ready when something is the matter with a group: eventfds of v1, triggers of PSI.

Eventfds are in one epoll(7), which can be read when one of them is ready. A trigger says so by POLLPRI, which trio does
not wait for, and says it once: to whoever asks first (kernel/sched/psi.c, psi_trigger_poll()). In an epoll(7) that
somebody waits for by another one, that is the kernel itself, which looks whether there is anything to wake up for;
so each has an epoll(7) of its own, and that this one was ready is all there is to know.

Documentation/accounting/psi.rst ("Cgroup2 interface"), cgroup-v1/memory.rst, sections 9 to 11.
"""

from __future__ import annotations

import os
import select
from typing import Callable

import trio

from nestrt.broker.refusal import Refusal

BATCH = 64


class Descriptors:
    """Descriptors, and what to call when each is ready. They are closed here. *start* runs a task."""

    def __init__(self, start: Callable[..., None]) -> None:
        self._start = start
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._alone: dict[int, trio.CancelScope] = {}

    def add(self, descriptor: int, events: int, call: Callable[[], None]) -> None:
        """*call*, which must not wait, when one of the epoll(7) *events* has come. OSError: EMFILE, ENOSPC."""
        if events & select.EPOLLPRI:
            epoll = select.epoll()
            try:
                epoll.register(descriptor, events)
            except OSError:
                epoll.close()
                raise
            self._alone[descriptor] = trio.CancelScope()
            self._start(self._follow, descriptor, epoll, self._alone[descriptor])
        else:
            self._epoll.register(descriptor, events)
        self._calls[descriptor] = call

    def close(self, descriptor: int) -> None:
        """Forget and close one; it is no error where it was."""
        if self._calls.pop(descriptor, None) is None:
            return
        if scope := self._alone.pop(descriptor, None):
            scope.cancel()
        else:
            self._epoll.unregister(descriptor)
        os.close(descriptor)

    def close_all(self) -> None:
        """Close all of them, and the epoll(7) itself."""
        for descriptor in list(self._calls):
            self.close(descriptor)
        self._epoll.close()

    async def run(self) -> None:
        """Call for what is ready, as long as it is not cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0, BATCH):
                self._call(descriptor)
            await trio.lowlevel.checkpoint()

    async def _follow(self, descriptor: int, epoll: select.epoll, scope: trio.CancelScope) -> None:
        with epoll, scope:
            while True:
                await trio.lowlevel.wait_readable(epoll.fileno())
                self._call(descriptor)

    def _call(self, descriptor: int) -> None:
        # One that was called before in the same round may have closed this one.
        if call := self._calls.get(descriptor):
            try:
                call()
            except (Refusal, OSError):  # the guest has ended
                self.close(descriptor)
