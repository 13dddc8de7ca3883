"""A guest of LXC changed from the host: update, exec, freeze, thaw, kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.hostside import group_file, mark, processes, read
from support.lxc import Lxc, limit_group

MIB = 1 << 20
MEMORY = group_file("memory", "/", "memory.limit_in_bytes", "memory.max")
LIMIT = f"lxc.cgroup{'2' if MEMORY.name == 'memory.max' else ''}.{MEMORY.name} = 64M"


@pytest.mark.parametrize("private", [True, False], ids=["private", "shared"])
def test_a_guest_of_lxc(lxc: Lxc, private: bool) -> None:
    name = lxc.make(LIMIT, private=private)
    lxc.start(name).ok()
    group, first = limit_group(name), lxc.pid(name)
    lxc.nestrt("update", name, "-m", "96M", "--pids", "70", "--device", "c 10:229 rwm").ok()
    for end in ("", "/guest"):
        assert read("memory", group + end, "memory.limit_in_bytes", "memory.max") == str(96 * MIB)
        assert read("pids", group + end, "pids.max", "pids.max") == "70"
    assert mark(group)["limits"]["memory"] == 96 * MIB
    shown = lxc.nestrt("exec", name, "sh", "-c", "grep -E 'Seccomp:|CapBnd|NoNew' /proc/self/status; exit 5")
    assert shown.rc == 5, shown
    rows = Path(f"/proc/{first}/status").read_text().splitlines()
    assert shown.out.splitlines() == [row for row in rows if row.startswith(("Seccomp:", "CapBnd", "NoNew"))]
    lxc.nestrt("freeze", name).ok()
    assert lxc.nestrt("exec", name, "true").rc == 125
    lxc.nestrt("thaw", name).ok()
    assert lxc.nestrt("exec", name, "true").rc == 0
    lxc.nestrt("kill", name).ok()
    assert not processes(group)
