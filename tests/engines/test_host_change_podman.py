"""podman's guests, under Debian's runc with the plugin, changed from the host, and podman goes on with them.

::

    libpod-ID       limit group: what nestrt update writes
     └ guest        runc's group, the guest root
        └ init      the first process; where nestrt exec puts another
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.hostside import mark, processes, read
from support.plugin import COMMAND, memberships
from support.plugin_engines import MEMORY, POLICY, HookedPodman, pid
from support.runner import Result, wait_for

MIB = 1 << 20
PIDS = "pids", "pids.max", "pids.max"
FUSE = "c 10:229 rwm"


@pytest.fixture
def podman(hooked_podman: HookedPodman) -> HookedPodman:
    return hooked_podman


def status(of: int) -> dict[str, str]:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{of}/status").read_text().splitlines())
    kept = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    return {key: rows[key].strip() for key in (*kept, "Seccomp", "Seccomp_filters")}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id=""),
        pytest.param(("--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000"), id="userns"),
        pytest.param(("--privileged",), id="privileged", marks=pytest.mark.slow_on_vm),
        pytest.param(("--user", "1000:1000"), id="user", marks=pytest.mark.slow_on_vm),
    ],
)
def test_a_guest_of_runc(podman: HookedPodman, options: tuple[str, ...]) -> None:
    name = podman.start(*POLICY, *options, "--memory", "64m", "-e", "TOLD=podman", "--", "sleep", "1000")
    group, first = podman.group(name), pid(podman, name)

    def nestrt(*words: str) -> Result:
        return podman.nest.run(COMMAND, *words)

    # update: the kernel's files; podman's own figures of limits are what it has asked for itself
    nestrt("update", group, "-m", "96M", "--pids", "40", "--device", FUSE).ok()
    for end in ("", "/guest"):
        assert read("memory", group + end, *MEMORY[1:]) == str(96 * MIB)
        assert read("pids", group + end, *PIDS[1:]) == "40"
    assert mark(group)["limits"]["memory"] == 96 * MIB
    assert FUSE in mark(group)["limits"]["devices"]
    assert nestrt("update", group, "-m", "900T").rc == 2

    # exec: what the first process is, its system call filter too
    nestrt("exec", "-d", group, "sleep", "4321").ok()
    other = wait_for(lambda: [p for p in processes(group) if b"4321" in _command(p)], "it")[0]
    assert status(other) == status(first)
    assert memberships(other) == memberships(first)
    assert set(memberships(first).values()) == {f"{group}/guest/init"}
    shown = nestrt("exec", group, "sh", "-c", "echo $TOLD; id -u; exit 9")
    assert (shown.rc, shown.out.split()[0]) == (9, "podman")

    # freeze and thaw
    nestrt("freeze", group).ok()
    assert nestrt("exec", group, "true").rc == 125
    nestrt("thaw", group).ok()
    assert podman("exec", name, "true").rc == 0

    # kill: podman learns how it ended
    nestrt("kill", group).ok()
    wait_for(lambda: podman.inspect(name)["State"]["Status"] == "exited", "its end")
    assert podman.inspect(name)["State"]["ExitCode"] == 137


def _command(of: int) -> bytes:
    try:
        return Path(f"/proc/{of}/cmdline").read_bytes()
    except OSError:
        return b""


def test_podmans_next_update_begins_there(podman: HookedPodman) -> None:
    """The record of the guest has what nestrt update gave."""
    name = podman.start(*POLICY, "--memory", "64m", "--", "sleep", "1000")
    podman.nest.run(COMMAND, "update", podman.group(name), "-m", "96M").ok()
    (record,) = podman.records().values()
    assert record["resources"]["memory"]["limit"] == 96 * MIB
