"""What each key of a CONTAINER_LEVEL policy does to a guest, and the shipped profiles, each launched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.guests import MODES, ask, controllers, directory, inside, kernel_name
from support.hostside import (
    groups,
    guest_root,
    has_v1,
    hierarchies,
    hierarchy_of,
    is_v2_only,
    limit_group,
    mark,
    read,
    v2_hierarchy,
)
from support.rootfs import CHECKOUT
from support.runner import Nestrt

PROFILES = sorted(
    path for path in (CHECKOUT / "examples/policies").glob("*.toml") if path.name != "bindings.toml"
)
PIDS = "pids.max", "pids.max"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a policy file."""

    def write_policy(text: str) -> Path:
        file = tmp_path / "policy.toml"
        file.write_text(text)
        return file

    return write_policy


both_modes = pytest.mark.parametrize("mode", ["userns", "nouserns"])


# [view] mount = "ro": the guest sees its groups and limits and makes none, anywhere.
@both_modes
def test_view_read_only(
    nestrt: Nestrt, guest_name: str, busybox: Path, write: Callable[[str], Path], mode: str
) -> None:
    answers = ask(
        nestrt,
        {
            "shown": f"cat {inside('pids', '/', *PIDS)}",
            "mkdir": " ".join(f"mkdir {h.mountpoint}/web ||" for h in hierarchies()) + " false",
            "move": f"echo 0 > {inside('pids', '/', 'cgroup.procs', 'cgroup.procs')}",
            "own": f"echo 5 > {inside('pids', '/init', *PIDS)}",
            "remount": f"mount -o remount,rw {hierarchies()[0].mountpoint} && mkdir {hierarchies()[0].mountpoint}/web",
        },
        *("--rootfs", busybox, "--name", guest_name, "--pids", "33"),
        *("--policy", write('[view]\nmount = "ro"\n'), *MODES[mode]),
    )
    assert answers.text("shown") == "33"
    for name in ("mkdir", "move", "own", "remount"):
        answers.refused(name)
    assert groups(f"{guest_root(guest_name)}/web") == []


# [view] mount = "none": no hierarchy at all, and limits as ever.
@both_modes
def test_no_view(nestrt: Nestrt, guest_name: str, busybox: Path, write: Callable[[str], Path], mode: str) -> None:
    answers = ask(
        nestrt,
        {
            "view": "ls -A /sys/fs/cgroup; grep -c ' - cgroup' /proc/self/mountinfo",
            "mkdir": "mkdir /sys/fs/cgroup/web",
            "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
            "many": "for n in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; true",
        },
        *("--rootfs", busybox, "--name", guest_name, "--pids", "8"),
        *("--policy", write('[view]\nmount = "none"\n'), *MODES[mode]),
    )
    assert answers["view"].text == "0"
    answers.refused("mkdir")
    assert answers.text("cgroup") == "/init"
    assert "can't fork" in answers["many"].text


# [view] controllers: the guest sees and divides these alone; those left out limit it all the same.
@both_modes
def test_some_controllers(
    nestrt: Nestrt, guest_name: str, busybox: Path, write: Callable[[str], Path], mode: str
) -> None:
    v2 = v2_hierarchy()
    questions = {
        "mounts": "grep ' - cgroup' /proc/self/mountinfo",
        "pids": f"cd {directory('pids', '/')}; mkdir -p web && echo 5 > web/pids.max && cat web/pids.max",
        "memory": f"mkdir -p {directory('memory', '/other')}; cat {inside('memory', '/other', 'tasks', 'memory.max')}",
        "too much": "dd if=/dev/zero of=/dev/null bs=96M count=1",
        "v2": f"cat {v2.mountpoint if v2 else '/'}/cgroup.controllers; true",
    }
    answers = ask(
        nestrt,
        questions,
        *("--rootfs", busybox, "--name", guest_name, "-m", "64M", "--swap", "0"),
        *("--policy", write('[view]\ncontrollers = ["pids", "cpu"]\n'), *MODES[mode]),
    )
    shown = {line.split()[4] for line in answers.text("mounts").splitlines() if line.split()[3] == "/"}
    wanted = {"pids", "cpu"}
    visible = [h for h in hierarchies() if h.version == 2 or not h.controllers or h.controllers & wanted]
    assert shown == {str(h.mountpoint) for h in visible}
    assert answers.text("pids") == "5"
    answers.refused("memory")
    assert answers["too much"].rc in (9, 137), answers["too much"]
    if v2:
        assert set(answers.text("v2").split()) == v2.controllers & wanted


# [view] start_in = ".": the first process is in the guest root itself, and takes it as its own, as systemd does.
@both_modes
def test_start_in_the_root(
    nestrt: Nestrt, guest_name: str, busybox: Path, write: Callable[[str], Path], mode: str
) -> None:
    questions = {
        "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
        "groups": f"cd {hierarchies()[0].mountpoint}; ls -d */",
    }
    if is_v2_only():
        place = hierarchies()[0].mountpoint
        each = "for pid in $(cat cgroup.procs); do echo $pid > init.scope/cgroup.procs 2>/dev/null; done"
        questions["move"] = f"cd {place}; mkdir init.scope; {each}; cat cgroup.procs"
        questions["enable"] = f"cd {place}; echo '+pids +memory' > cgroup.subtree_control && cat cgroup.subtree_control"
        questions["init"] = "cat /proc/1/cgroup"
    answers = ask(
        nestrt,
        questions,
        *("--rootfs", busybox, "--name", guest_name),
        *("--policy", write('[view]\nstart_in = "."\n'), *MODES[mode]),
    )
    assert answers.text("cgroup") == "/"
    answers.refused("groups")
    if is_v2_only():
        assert answers.text("move") == ""
        assert set(answers.text("enable").split()) == {"pids", "memory"}
        assert answers.text("init") == "0::/init.scope"


# [partition]: what is false stays whole; max_groups and max_depth have a test in test_levels.
@pytest.mark.parametrize("key", ["cpu", "memory", "pids", "io", "devices"])
def test_partition(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, write: Callable[[str], Path], key: str
) -> None:
    kept = {"cpu": {"cpu", "cpuset"}}.get(key, {key}) & set(controllers())
    policy = write(f"[partition]\n{key} = false\n")
    for mode in ("userns", "nouserns"):
        questions = {name: f"mkdir {directory(name, '/web')}; ls {directory(name, '/web')}" for name in controllers()}
        answers = ask(nestrt, questions, "--rootfs", busybox, "--name", new_guest(), "--policy", policy, *MODES[mode])
        for name in questions:
            files = [file for file in answers[name].text.split() if file.startswith(f"{kernel_name(name)}.")]
            # Pressure is the kernel's own account of any v2 group.
            files = [file for file in files if not file.endswith((".pressure", "cpu.stat", "cpu.stat.local"))]
            hierarchy = hierarchy_of(name)
            assert hierarchy is not None
            alone = hierarchy.version == 2 or hierarchy.controllers <= {kernel_name(item) for item in kept}
            if name in kept and alone:
                assert files == [], (mode, name, answers[name])
            elif name != "hugetlb" or files:
                assert files, (mode, name, answers[name])


# [user] capabilities, no_new_privs, masked; and the same of the command line, which is stronger.
@both_modes
def test_rights(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, write: Callable[[str], Path], mode: str
) -> None:
    questions = {
        "caps": "grep '^Cap[PEBA]' /proc/self/status | cut -f2",
        "privs": "grep NoNewPrivs /proc/self/status | cut -f2",
        "sysctl": "echo 1 > /proc/sys/vm/drop_caches",
        "masked": "cat /proc/timer_list /proc/keys 2>/dev/null | wc -c; ls -A /sys/firmware",
    }
    text = '[user]\ncapabilities = ["CAP_KILL", "CAP_SETUID"]\nno_new_privs = false\nmasked = true\n'
    own = ("--rootfs", busybox, "--policy", write(text), *MODES[mode])
    answers = ask(nestrt, questions, *own, "--name", new_guest())
    few = f"{1 << 5 | 1 << 7:016x}"
    assert answers.text("caps").split() == [few, few, few, "0" * 16]
    assert answers.text("privs") == "0"
    answers.refused("sysctl")
    assert answers.text("masked") == "0"

    answers = ask(nestrt, questions, *own, "--name", new_guest(), "--capabilities", "CAP_CHOWN")
    assert answers.text("caps").split() == ["0" * 15 + "1"] * 3 + ["0" * 16]

    answers = ask(nestrt, questions, "--rootfs", busybox, *MODES[mode], "--name", new_guest())
    # Docker's default without a user namespace, everything with one.
    expected = "00000000a80425fb" if mode == "nouserns" else answers.text("caps").split()[0]
    assert answers.text("caps").split() == [expected] * 3 + ["0" * 16]
    if mode == "userns":
        assert int(expected, 16) & (1 << 21), "CAP_SYS_ADMIN"
    assert answers.text("privs") == "1"
    answers.refused("sysctl")


# [user] namespace = "map": the ids are those of the policy, and a root filesystem that has them is not shifted.
def test_mapped_ids(nestrt: Nestrt, guest_name: str, busybox: Path, write: Callable[[str], Path]) -> None:
    ranges = '["0:700000:1000", "5000:800000:10"]'
    answers = ask(
        nestrt,
        {
            "ids": "cat /proc/self/uid_map /proc/self/gid_map",
            "owner": "stat -c %u:%g /bin/busybox",
            "lock": f"echo 5 > {inside('pids', '/', *PIDS)}",
        },
        *("--rootfs", busybox, "--name", guest_name, "--pids", "30"),
        *("--policy", write(f'[user]\nnamespace = "map"\nuid_map = {ranges}\ngid_map = {ranges}\n')),
    )
    rows = [line.split() for line in answers.text("ids").splitlines()]
    assert rows == [["0", "700000", "1000"], ["5000", "800000", "10"]] * 2
    assert answers.text("owner") == "0:0"
    assert "Permission denied" in answers.refused("lock")
    owner = hierarchies()[0].group(guest_root(guest_name)).stat()
    assert (owner.st_uid, owner.st_gid) == (700000, 700000)


# [limits], under the command line's: what a flag says is taken, the rest stays.
def test_limits_of_a_policy(nestrt: Nestrt, guest_name: str, busybox: Path, write: Callable[[str], Path]) -> None:
    policy = write('[limits]\nmemory = "48M"\npids = 77\ncpu_quota = 1.5\ndevices = ["c 1:3 rw"]\n')
    options = ("--rootfs", busybox, "--name", guest_name, "--policy", policy, "--pids", "55", *MODES["root"])
    answers = ask(nestrt, {"null": "echo > /dev/null", "zero": "head -c 1 /dev/zero"}, *options)
    answers.text("null")
    answers.refused("zero")
    group = limit_group(guest_name)
    assert read("memory", group, "memory.limit_in_bytes", "memory.max") == str(48 << 20)
    assert read("pids", group, *PIDS) == "55"
    assert read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "150000"
    assert mark(group)["limits"]["devices"] == ["c 1:3 rw"]
    assert mark(group)["policy"] == str(policy)
    if has_v1("devices"):
        assert read("devices", group, "devices.list", "") == "c 1:3 rw"


# The shipped profiles: each is good, and a guest starts under it and is what the profile says.
@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, profile: Path) -> None:
    assert nestrt.run("policy", "check", profile).ok().err == ""
    name = new_guest()
    place = hierarchies()[0].mountpoint
    answers = ask(
        nestrt,
        {
            "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
            "mkdir": f"mkdir {place}/web",
            "privs": "grep NoNewPrivs /proc/self/status | cut -f2",
        },
        *("--rootfs", busybox, "--name", name, "--policy", profile),
    )
    assert answers.text("cgroup") == ("/" if profile.stem == "systemd-guest" else "/init")
    assert (answers["mkdir"].rc == 0) is (profile.stem != "strict")
    assert answers.text("privs") == ("0" if profile.stem == "systemd-guest" else "1")
    levels = {"strict": 1, "default": 3, "nested": 3, "systemd-guest": 2}
    assert mark(limit_group(name))["max_level"] == levels[profile.stem]


def test_every_profile_is_known() -> None:
    assert {path.stem for path in PROFILES} == {"strict", "default", "nested", "systemd-guest"}
