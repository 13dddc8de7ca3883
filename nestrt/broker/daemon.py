"""The broker as a process: its lock, its own socket, signals, and what the service manager wants to know."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys

import trio

from nestrt.broker import sockets
from nestrt.broker.host_methods import HostConnection
from nestrt.broker.quota import Options
from nestrt.broker.server import Broker, say
from nestrt.plan.broker import HOST_SOCKET, SOCKETS, socket_directory

HOST_NAME = "host"  # FileDescriptorName= of the level's own socket
SWITCH = 0.0005  # seconds that a thread with one guest's long lists may keep the interpreter from all others


def run(options: Options, name: str = "", limit: str = "") -> int:
    """Serve all guests of this level, or with *name* and *limit* that one. Returns the exit status.

    Raises StateError where another broker serves them, KernelError.
    """
    directory = socket_directory(name, limit) if name else SOCKETS
    if name:
        os.makedirs(SOCKETS, 0o700, exist_ok=True)
    lock = sockets.hold(directory, f"guest {name}" if name else "this level's guests")
    _room_for_descriptors()
    sys.setswitchinterval(SWITCH)
    try:
        trio.run(_main, options, name, limit, strict_exception_groups=True)
    except KeyboardInterrupt:
        return 130
    finally:
        os.close(lock)
    return 0


def _room_for_descriptors() -> None:
    """Each guest takes some: as many as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _main(options: Options, name: str, limit: str) -> None:
    kept = sockets.inherited()
    own = kept.pop(HOST_NAME, [])
    broker = Broker(options, limit)
    broker.kept = kept
    listener = None if name else own[0] if own else sockets.host_socket()
    try:
        async with trio.open_nursery() as nursery:
            broker.stop = nursery.cancel_scope
            nursery.start_soon(_signals, broker)
            await nursery.start(broker.run)
            if name:
                broker.announce(name, limit)
                nursery.start_soon(_until_end_of_file, broker)
                os.write(1, b"ready\n")
            if listener is not None:
                nursery.start_soon(_host, broker, listener)
                sockets.notify(f"READY=1\nSTATUS=serving {len(broker.guests)} guests")
                say(f"ready: {HOST_SOCKET}, {len(broker.guests)} guests")
    finally:
        sockets.notify("STOPPING=1")
        if listener is not None:
            listener.close()
            if not own:
                try:
                    os.unlink(HOST_SOCKET)
                except FileNotFoundError:
                    pass
        broker.close()


async def _host(broker: Broker, listener: socket.socket) -> None:
    """Accept on the level's own socket."""
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                one, _ = listener.accept()
            except OSError:
                await trio.sleep(0.01)
                continue
            one.setblocking(False)
            nursery.start_soon(HostConnection(broker, None, one).run)


async def _signals(broker: Broker) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        async for number in received:
            if number != signal.SIGHUP:
                broker.drain()


async def _until_end_of_file(broker: Broker) -> None:
    """An embedded broker lives as long as whoever holds the other end of its standard input."""
    os.set_blocking(0, False)
    while True:
        await trio.lowlevel.wait_readable(0)
        try:
            if not os.read(0, 4096):
                break
        except BlockingIOError:
            continue
        except OSError:
            break
    sys.stdout.flush()
    broker.drain()
