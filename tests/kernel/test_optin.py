"""Law 7, opt-in: a mount namespace alone never gets a view of its own; only a CONTAINER_LEVEL policy makes one.

    virtualize = true                       virtualize = false
    /nestrt/NAME         limits             /nestrt/NAME     limits
      guest              "/" of the guest     guest          first process
        init             first process      no cgroup namespace, no view, no stamp: a plain container
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.guests import MODES, ask
from support.hostside import groups, guest_root, hierarchies, hierarchy_of, limit_group, mark, read
from support.rootfs import PythonRoot
from support.runner import Nestrt

OFF = "[level]\nvirtualize = false\n"


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout


# On the host: a new mount namespace sees the host's groups, and none is made for it.
def test_a_mount_namespace_alone_changes_nothing() -> None:
    shell = f"cat /proc/self/cgroup; readlink /proc/self/ns/cgroup; ls {hierarchies()[0].mountpoint}/nestrt; true"
    before = [sorted(os.listdir(path)) for path in groups("/nestrt")]
    assert run("unshare", "--mount", "sh", "-c", shell) == run("sh", "-c", shell)
    assert [sorted(os.listdir(path)) for path in groups("/nestrt")] == before


# In a guest: a new mount namespace is still the guest's, with the same root.
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_a_mount_namespace_in_a_guest_keeps_its_view(
    nestrt: Nestrt, guest_name: str, busybox: Path, mode: str
) -> None:
    look = f"cat /proc/self/cgroup; readlink /proc/self/ns/cgroup; cd {hierarchies()[0].mountpoint}; echo */"
    answers = ask(
        nestrt,
        {"plain": look, "unshared": f"unshare -m sh -c '{look}'"},
        *("--rootfs", busybox, "--name", guest_name, *MODES[mode]),
    )
    assert answers.text("unshared") == answers.text("plain")
    assert answers.text("plain").endswith("init/")


# Root of a guest without a view makes namespaces of its own: their cgroup root is where it stands, below the limits.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_limits_hold_without_a_view(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, tmp_path: Path, mode: str
) -> None:
    policy = tmp_path / "plain.toml"
    policy.write_text(OFF)
    tree = hierarchy_of("pids")
    assert tree is not None
    kind = "-t cgroup2" if tree.version == 2 else "-t cgroup -o pids"
    attack = f"mount {kind} none /mnt && echo 1000 > /mnt/pids.max; cat /mnt/pids.max"
    nestrt.run(
        *("launch", *python.options, "--name", guest_name, "--policy", policy, "--pids", "50", *MODES[mode]),
        *("--mount", "type=tmpfs,target=/mnt", "--", "/bin/sh", "-c", f"unshare -U -r -C -m /bin/sh -c '{attack}'"),
    )
    assert read("pids", limit_group(guest_name), "pids.max", "pids.max") == "50"


# virtualize = false: limits hold as ever, and there is nothing to see or to divide.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_a_policy_that_does_not_virtualize(
    nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path, mode: str
) -> None:
    policy = tmp_path / "plain.toml"
    policy.write_text(OFF)
    answers = ask(
        nestrt,
        {
            "namespace": "readlink /proc/self/ns/cgroup",
            "cgroup": "cat /proc/self/cgroup",
            "view": "ls -A /sys/fs/cgroup; grep -c ' - cgroup' /proc/self/mountinfo",
            "write": "mkdir /sys/fs/cgroup/web",
            "mount": "mount -t cgroup2 none /mnt",
            "too much": "dd if=/dev/zero of=/dev/null bs=96M count=1",
        },
        *("--rootfs", busybox, "--name", guest_name, "--policy", policy, "-m", "64M", "--swap", "0"),
        *("--mount", "type=tmpfs,target=/mnt", *MODES[mode]),
    )
    assert answers.text("namespace") == os.readlink("/proc/self/ns/cgroup")
    paths = {line.split(":", 2)[2] for line in answers.text("cgroup").splitlines()}
    assert paths == {guest_root(guest_name)}
    assert answers["view"].text == "0"
    answers.refused("write")
    answers.refused("mount")
    assert answers["too much"].rc in (9, 137), answers["too much"]
    assert groups(f"{guest_root(guest_name)}/init") == []
    assert read("memory", limit_group(guest_name), "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert mark(limit_group(guest_name))["virtualize"] is False
