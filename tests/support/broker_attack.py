"""What attacks on the broker are made of: tools in the guest, and what the host sees of the broker meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.broker import Broker, BrokerGuest, start_guest
from support.hostside import directories, limit_group
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

SOCKET = "/run/nestrt/guest.sock"
SOCKETS = "/run/nestrt/broker"

# In the guest: what comes back for bytes, until the broker closes or is silent for a while; and many processes at once.
TOOLS = """
import array, json, os, select, signal, socket, sys, time

def open_one(path="/run/nestrt/guest.sock", patience=10):
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    one.settimeout(patience)
    return one

def all_of(one):
    found = b""
    try:
        while chunk := one.recv(65536):
            found += chunk
    except OSError as error:
        return found, type(error).__name__
    return found, "closed"

def exchange(data, shut=True, patience=10):
    one = open_one(patience=patience)
    try:
        one.sendall(data)
        if shut:
            one.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        pass
    found, how = all_of(one)
    one.close()
    return [json.loads(frame) for frame in found.split(b"\\0")[:-1]], how

def frame(method, parameters=None, **flags):
    method = method if "." in method else "io.nestrt.Guest." + method
    return json.dumps({"method": method, "parameters": parameters or {}, **flags}).encode() + b"\\0"

def children(number, body, user=0):
    found = []
    for _ in range(number):
        pid = os.fork()
        if pid:
            found.append(pid)
            continue
        try:
            if user:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            body()
        except BaseException:
            pass
        finally:
            os._exit(0)
    return found

def end(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
"""


@contextmanager
def starting(
    broker: Broker, nestrt: Nestrt, python: PythonRoot, new_guest: Callable[[], str], limits: tuple[str, ...]
) -> Iterator[Callable[..., BrokerGuest]]:
    """A function that starts a guest with *limits* and more options. At the end they are deleted, and the broker has
    taken note of that: it hears of it when the kernel tells, a moment after whoever deletes."""
    names: list[str] = []
    if not broker.runs:
        broker.start()

    def start(*options: str) -> BrokerGuest:
        names.append(new_guest())
        return start_guest(nestrt, python, names[-1], *limits, *options)

    yield start
    nestrt.stop()
    for name in names:
        nestrt.run("delete", "--force", name, timeout=50)
    if broker.process is not None:
        wait_for(lambda: not set(names) & set(os.listdir(SOCKETS)), "the broker to take note of their end")


def run(guest: BrokerGuest, code: str, user: int = 0) -> Any:
    """Run Python in the guest, with TOOLS."""
    return guest.python(TOOLS + code, user)


def descriptors(broker: Broker) -> int:
    assert broker.process is not None
    return len(os.listdir(f"/proc/{broker.process.pid}/fd"))


def resident(broker: Broker) -> int:
    """Its memory, in MiB."""
    assert broker.process is not None
    rows = Path(f"/proc/{broker.process.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) // 1024 for row in rows if row.startswith("VmRSS"))


def cpu_time(broker: Broker) -> float:
    """Seconds of CPU that it has used, all threads together."""
    assert broker.process is not None
    fields = Path(f"/proc/{broker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latency(guest: BrokerGuest, calls: int = 20) -> float:
    """Seconds that the slowest of some small calls takes."""
    found = run(guest, f"""
one = open_one(patience=60)
result = 0
for _ in range({calls}):
    began = time.monotonic()
    one.sendall(frame("Get", {{"group": "/", "keys": ["pids.max"]}}))
    assert b'"values"' in one.recv(65536)
    result = max(result, time.monotonic() - began)
one.close()
""")  # fmt: skip
    return float(found)


def group_dirs(name: str) -> list[str]:
    return sorted(map(str, directories(limit_group(name))))


# What a group's files say that changes by itself.
MOVING = (
    "stat", "usage", "current", "pressure", "failcnt", "events", "peak", "time", "procs", "tasks", "threads", "local",
    "service", "serviced", "merged", "queued", "recursive", "slabinfo", "idle", "freezing",
)  # fmt: skip


def everything(name: str) -> dict[str, str]:
    """All that the host can read of a guest's groups, but for use and counters: files, owners, modes, attributes."""
    found = {}
    for path in map(Path, group_dirs(name)):
        status = path.stat()
        found[str(path)] = f"{status.st_uid}:{status.st_gid} {status.st_mode:o} {status.st_ino}"
        for attribute in os.listxattr(path):
            found[f"{path} {attribute}"] = os.getxattr(path, attribute).decode(errors="replace")
        for file in path.iterdir():
            if file.is_dir() or any(word in file.name.replace("_", ".").split(".") for word in MOVING):
                continue
            try:
                found[str(file)] = f"{file.stat().st_uid} {file.read_text()}"
            except OSError:
                continue
    return found


def stopped(broker: Broker, action: Callable[[], Any]) -> Any:
    """*action* while the broker stands still."""
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    try:
        return action()
    finally:
        broker.process.send_signal(signal.SIGCONT)
