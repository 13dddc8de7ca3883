"""The broker as a service of a real systemd (examples/broker), in a guest whose first process systemd is.

    the systemd guest
    ├ nestrt-broker.socket      /run/nestrt/host.sock, open before the broker runs
    ├ nestrt-broker.service     started by the first who asks; its guests' sockets are in systemd's keeping
    └ inner                     a guest of the guest
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.need import SLOW, require
from support.rootfs import CHECKOUT, OPT
from support.runner import Nestrt, wait_for
from support.systemd_root import INNER_ROOT, SystemdGuest, problem, systemd_guest

UNIT = "nestrt-broker.service"
CLIENT = """
import json, socket
def ask(path, method, **parameters):
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(60)
        one.connect(path)
        one.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\\0")
        found = b""
        while not found.endswith(b"\\0"):
            found += one.recv(65536)
    return json.loads(found[:-1])
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[SystemdGuest]:
    require("systemd", problem())
    directory = Path(tempfile.mkdtemp(prefix="nestrt-systemd-", dir="/tmp"))
    try:
        with systemd_guest(Nestrt(), directory, "nestrt-broker-systemd") as one:
            for name in ("service", "socket"):
                text = (CHECKOUT / f"examples/broker/nestrt-broker.{name}").read_text()
                text = text.replace("/usr/local/bin/nestrt", f"{OPT}/hooks/nestrt")
                (one.root / f"etc/systemd/system/nestrt-broker.{name}").write_text(text)
            one.enter("systemctl", "daemon-reload").ok()
            yield one
    finally:
        shutil.rmtree(directory)


def asked(guest: SystemdGuest, path: str, method: str, **parameters: object) -> dict[str, object]:
    """The reply to a call from the systemd guest."""
    code = f"{CLIENT}\nprint(json.dumps(ask({path!r}, {method!r}, **{parameters!r})))"
    found: dict[str, object] = json.loads(guest.python(code, timeout=60).ok().out)
    return found


def main_pid(guest: SystemdGuest) -> int:
    return int(guest.show(UNIT, "MainPID")["MainPID"])


def test_started_by_its_socket_and_restarted_with_its_guests_sockets(guest: SystemdGuest) -> None:
    """The first call starts it; killed, it comes back with the listeners that systemd has kept: the socket in the guest
    is the same, and nothing had to be put there."""
    guest.enter("systemctl", "start", "nestrt-broker.socket").ok()
    assert main_pid(guest) == 0
    reply = asked(guest, "/run/nestrt/host.sock", "io.nestrt.Host.Guests")
    assert reply == {"parameters": {"guests": []}}
    state = guest.show(UNIT, "ActiveState", "Type", "NotifyAccess")
    assert state["ActiveState"] == "active"
    launch = ("launch", "--name", "inner", "-d", "--broker", "required", "--rootfs", INNER_ROOT)
    guest.nestrt(*launch, "--", "sleep", "1000", timeout=60).ok()
    assert int(guest.show(UNIT, "NFileDescriptorStore")["NFileDescriptorStore"]) == 1
    before, inode = main_pid(guest), socket_inode(guest)
    guest.enter("systemctl", "kill", "-s", "KILL", "--kill-who=main", UNIT).ok()
    wait_for(lambda: main_pid(guest) not in (0, before), "the new broker", 30)
    wait_for(lambda: served(guest) == ["inner"], "the guest to be served", 30)
    assert socket_inode(guest) == inode
    guest.nestrt("delete", "--force", "inner").ok()
    wait_for(lambda: served(guest) == [], "the guest's end", 30)
    fds = "NFileDescriptorStore"
    wait_for(lambda: guest.show(UNIT, fds)[fds] == "0", "systemd to let go of its socket", 30)
    guest.enter("systemctl", "stop", UNIT, "nestrt-broker.socket").ok()
    assert guest.show(UNIT, "Result")["Result"] == "success"


def served(guest: SystemdGuest) -> list[str]:
    reply = asked(guest, "/run/nestrt/host.sock", "io.nestrt.Host.Guests")
    return [one["name"] for one in reply["parameters"]["guests"]]  # type: ignore[index]


def socket_inode(guest: SystemdGuest) -> str:
    found = guest.run("stat", "-c", "%i", "/run/nestrt/broker/inner/guest.sock", timeout=20 * SLOW).ok().out
    return found.strip()
