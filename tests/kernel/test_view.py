"""Law 1, view: in the guest, its own group is the root of every hierarchy, however it looks and mounts.

    host                    guest
    /sys/fs/cgroup/…        /sys/fs/cgroup/…          the same layout
      nestrt/NAME/            (nowhere)
        guest/                  /                     every mount and /proc/self/cgroup begin here
          init/                   init/
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.guests import MODES, Answers, ask
from support.hostside import Hierarchy, guest_root, hierarchies, is_v2_only, limit_group, v2_hierarchy
from support.need import require
from support.runner import Nestrt

CGROUP = "/sys/fs/cgroup"


def options_of(hierarchy: Hierarchy) -> str:
    """How mount(8) is told which hierarchy is meant."""
    if hierarchy.version == 2:
        return "-t cgroup2"
    words = sorted(hierarchy.controllers) or ["none", f"name={hierarchy.name}"]
    return f"-t cgroup -o {','.join(words)}"


def memberships(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as {controllers or name: path} (cgroups(7))."""
    rows = [line.split(":", 2) for line in text.splitlines()]
    return {row[1]: row[2] for row in rows}


def cgroup_mounts(text: str) -> list[tuple[str, str]]:
    """(root, mount point) of the cgroup mounts in mountinfo (proc_pid_mountinfo(5))."""
    rows = [line.split(" - ") for line in text.splitlines()]
    return [(row[0].split()[3], row[0].split()[4]) for row in rows if row[1].split()[0] in ("cgroup", "cgroup2")]


# The guest looks; nothing tells it of the two groups above it, and the layout is the host's.
@pytest.mark.parametrize("mode", MODES)
def test_guest_root_is_the_root_of_all_it_sees(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    answers = ask(
        nestrt,
        {
            "cgroup": "cat /proc/self/cgroup",
            "of init": "cat /proc/1/cgroup",
            "mountinfo": "cat /proc/self/mountinfo",
            "groups": "; ".join(f"cd {h.mountpoint} && echo {h.mountpoint} */" for h in hierarchies()),
            "level": f"ls -d {CGROUP}/*",
            "inner": f"cd {hierarchies()[0].mountpoint}; mkdir web; echo 0 > web/cgroup.procs; cat /proc/self/cgroup",
        },
        *("--rootfs", busybox, "--name", guest_name, *MODES[mode]),
    )
    host = memberships(Path("/proc/self/cgroup").read_text())
    assert memberships(answers.text("cgroup")) == dict.fromkeys(host, "/init")
    assert memberships(answers.text("of init")) == dict.fromkeys(host, "/init")
    mounts = cgroup_mounts(answers.text("mountinfo"))
    # A cover over a limit file of the root is a mount of "/FILE".
    assert {place: root for root, place in mounts if root == "/"} == {str(h.mountpoint): "/" for h in hierarchies()}
    assert all(root.count("/") == 1 and root != "/init" for root, _ in mounts), mounts
    assert answers.text("groups").splitlines() == [f"{h.mountpoint} init/" for h in hierarchies()]
    if not is_v2_only():
        names = {str(h.mountpoint) for h in hierarchies()}
        assert names <= set(answers.text("level").splitlines())
    assert guest_name not in answers.text("mountinfo") + answers.text("cgroup")
    moved = memberships(answers.text("inner"))
    assert sorted(moved.values()) == sorted(["/web", *["/init"] * (len(host) - 1)])
    # And the host sees where that is.
    assert (hierarchies()[0].group(guest_root(guest_name)) / "web").is_dir()


# The guest mounts each hierarchy itself, twice, elsewhere, and once more after it took the given one away.
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_fresh_mounts_begin_at_the_same_root(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    questions = {}
    for number, hierarchy in enumerate(hierarchies()):
        place, how = f"/mnt/{number}", options_of(hierarchy)
        questions[f"mount {number}"] = (
            f"cd /mnt; for n in {number} {number}b; do mkdir $n && mount {how} none $n && (cd $n; echo */); done"
        )
        questions[f"same {number}"] = f"stat -c %i {hierarchy.mountpoint} {place} {place}b"
        questions[f"made {number}"] = f"mkdir {place}/web{number} && ls -d {hierarchy.mountpoint}/web{number}"
        point = hierarchy.mountpoint
        questions[f"again {number}"] = f"umount -l {point}; mount {how} none {point} && cd {point} && echo */"
    questions["mountinfo"] = "cat /proc/self/mountinfo"
    options = ("--rootfs", busybox, "--name", guest_name, "--mount", "type=tmpfs,target=/mnt", *MODES[mode])
    answers = ask(nestrt, questions, *options)
    for number, hierarchy in enumerate(hierarchies()):
        assert answers.text(f"mount {number}") == "init/\ninit/", hierarchy
        inodes = answers.text(f"same {number}").split()
        assert inodes == [inodes[0]] * 3
        # The kernel's own number of the group: the mount's root is that of the host's directory.
        assert int(inodes[0]) == hierarchy.group(guest_root(guest_name)).stat().st_ino
        assert answers.text(f"made {number}") == f"{hierarchy.mountpoint}/web{number}"
        assert answers.text(f"again {number}") == f"init/ web{number}/", hierarchy
    assert {root for root, _ in cgroup_mounts(answers.text("mountinfo")) if root.count("/") > 1} == set()


# A hierarchy that no level above made cannot be made inside: only "/" of one that is there.
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_no_hierarchy_can_be_made_inside(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    questions = {
        "named": "mount -t cgroup -o none,name=nestrt-of-guest none /mnt",
        **{f"absent {name}": f"mount -t cgroup -o {name} none /mnt" for name in ("net_cls", "perf_event", "debug")},
        "debris": "grep nestrt-of-guest /proc/self/cgroup",
    }
    options = ("--rootfs", busybox, "--name", guest_name, "--mount", "type=tmpfs,target=/mnt", *MODES[mode])
    answers = ask(nestrt, questions, *options)
    there = {name for hierarchy in hierarchies() for name in hierarchy.controllers}
    for name in questions:
        if name.removeprefix("absent ") not in there:
            answers.refused(name)
    assert not Path(CGROUP, "nestrt-of-guest").exists()
    assert "nestrt-of-guest" not in Path("/proc/self/cgroup").read_text()


# The v2 tree: what the host has is what the guest root has, enabled for its children at once.
@pytest.mark.parametrize("mode", MODES)
def test_every_controller_of_the_host_is_in_the_view(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    v2 = v2_hierarchy()
    if v2 is None:
        require("cgroup-v2", "no v2 tree is mounted")
        return
    place = v2.mountpoint
    answers: Answers = ask(
        nestrt,
        {
            "has": f"cat {place}/cgroup.controllers",
            "enabled": f"cat {place}/cgroup.subtree_control",
            "first": f"cat {place}/init/cgroup.controllers",
            "first enables": f"cat {place}/init/cgroup.subtree_control",
        },
        *("--rootfs", busybox, "--name", guest_name, *MODES[mode]),
    )
    for name in ("has", "enabled", "first"):
        assert set(answers.text(name).split()) == v2.controllers, name
    assert answers.text("first enables") == ""
    limit = v2.group(limit_group(guest_name))
    assert set((limit / "cgroup.subtree_control").read_text().split()) == v2.controllers
