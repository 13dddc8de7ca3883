"""``nestrt check``: every law of a running guest, looked at and tried; a broken guest is told from a good one.

    /nestrt/NAME        limit group: 64M, 40 processes, half a CPU, one CPU
      guest/            guest root: shows them, locked
        init/           the first process
        nestrt-check-…  made by the check, and removed

A broken guest is a good one in which the host has undone one thing, by hand.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.attack import limits_of, policy_file
from support.bundles import Bundle
from support.byhand import enter, remove_groups
from support.guests import MODES, nested
from support.hostside import (
    guest_root,
    has_v1,
    hierarchies,
    hierarchy_of,
    is_v2_only,
    limit_group,
    mark,
    v2_hierarchy,
)
from support.need import SLOW, require
from support.plugin import RUNTIMES, Wrapped, wrapped_bundles
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, Result, wait_for

NewGuest = Callable[[], str]
NewBundle = Callable[..., Bundle]
LAWS = ("view", "clamp", "lock", "freedom", "subset", "sight", "opt-in", "nothing lost")
ALL_DEVICES: list[dict[str, Any]] = [{"allow": True, "access": "rwm"}]
NO_DEVICES: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
LIMITS = ("-m", "64M", "--pids", "40", "--cpu-quota", "0.5", "--cpus", "0")
# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm
on_each_host = pytest.mark.slow_on_vm(False)
NSENTER = shutil.which("nsenter", path="/usr/bin:/bin") or "nsenter"


@dataclass(frozen=True)
class Checked:
    """What one check came back with: the status, and of each law whether it holds, and why."""

    result: Result
    laws: dict[str, bool | None]
    what: dict[str, str]

    def broken(self) -> dict[str, bool | None]:
        """The laws that are not shown to hold."""
        return {law: holds for law, holds in self.laws.items() if not holds}


def check(nestrt: Nestrt, *words: str) -> Checked:
    """``nestrt check WORDS`` of one guest."""
    return read(nestrt.run("check", "--format", "json", *words, timeout=60))


def read(result: Result) -> Checked:
    found = json.loads(result.out)
    assert len(found) == 1, result
    assert found[0]["left"] == [], result
    laws = {entry["law"]: entry["holds"] for entry in found[0]["laws"]}
    assert tuple(laws) == LAWS, result
    assert found[0]["holds"] == (result.rc == 0) == all(laws.values()), result
    return Checked(result, laws, {entry["law"]: entry["what"] for entry in found[0]["laws"]})


def launch(nestrt: Nestrt, name: str, rootfs: Path, *options: str | Path, limits: tuple[str, ...] = LIMITS) -> int:
    """Launch a guest that sleeps; returns its first process."""
    nestrt.launch("-d", "--name", name, "--rootfs", rootfs, *limits, *options, "--", "sleep", "1000").ok()
    return int(mark(limit_group(name))["pid"])


def mounts(pid: int) -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text()


def children(group: str) -> set[str]:
    """The child groups of *group*, in all hierarchies."""
    return {path.name for h in hierarchies() for path in h.group(group).iterdir() if path.is_dir()}


def nsdelegate() -> bool:
    """Whether the kernel refuses writes to the limit files of a cgroup namespace's root: cgroups(7)."""
    rows = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(" - cgroup2 " in row and "nsdelegate" in row.rpartition(" - ")[2] for row in rows)


def edit_mark(path: Path, **changes: object) -> None:
    found = json.loads(os.getxattr(path, "trusted.nestrt"))
    os.setxattr(path, "trusted.nestrt", json.dumps({**found, **changes}).encode())


# A good guest: all is tried, all holds, and afterwards nothing of the check is there and nothing is changed.
@on_each_host
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_every_law_holds_for_a_guest_of_launch(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    pid = launch(nestrt, guest_name, busybox, *MODES[mode])
    group, root = limit_group(guest_name), guest_root(guest_name)
    before = limits_of(group), limits_of(root), mounts(pid), children(root), mark(group)
    found = check(nestrt, guest_name)
    assert found.broken() == {}, found.result
    assert "writes refused" in found.what["lock"]
    assert f"{len(hierarchies())} groups made and removed" in found.what["freedom"]
    assert ("nested cgroup namespace" in found.what["lock"]) == (mode == "userns")
    assert (limits_of(group), limits_of(root), mounts(pid), children(root), mark(group)) == before
    assert children(root) == {"init"}
    passive = check(nestrt, "--passive", guest_name)
    assert passive.broken() == {}, passive.result
    assert "writes" not in passive.what["lock"]


# For people: a line for each law, in the order of the README.
def test_the_table_has_one_line_for_each_law(nestrt: Nestrt, new_guest: NewGuest, busybox: Path) -> None:
    one, two = new_guest(), new_guest()
    pid = launch(nestrt, one, busybox)
    launch(nestrt, two, busybox)
    lines = nestrt.run("check", one).ok().out.splitlines()
    assert [line[:14].strip() for line in lines] == list(LAWS)
    assert {line[14:22].strip() for line in lines} == {"ok"}
    # By the process's number, and by the group's path, too.
    assert nestrt.run("check", str(pid)).ok().out.count(" ok ") == 8
    assert nestrt.run("check", "--passive", limit_group(one)).ok().out.count(" ok ") == 8
    both = nestrt.run("check", "--passive", one, two).ok().out.splitlines()
    assert [line for line in both if not line.startswith(" ")] == [one, two]
    rows = list(csv.DictReader(nestrt.run("check", "--passive", "--format", "csv", one, two).ok().out.splitlines()))
    assert [(row["name"], row["law"]) for row in rows] == [(name, law) for name in (one, two) for law in LAWS]
    assert {row["holds"] for row in rows} == {"true"}


def test_all_are_those_that_run(nestrt: Nestrt, new_guest: NewGuest, busybox: Path) -> None:
    running, ended = new_guest(), new_guest()
    launch(nestrt, running, busybox)
    pid = launch(nestrt, ended, busybox)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    result = nestrt.run("check", "--all", "--passive", "--format", "json", timeout=60)
    names = {entry["name"] for entry in json.loads(result.out)}
    assert running in names
    assert ended not in names
    assert ended not in result.err
    # One that is named and has ended is an error of its own.
    gone = nestrt.run("check", ended)
    assert gone.rc == 4
    assert "it has ended" in gone.err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["nestrt-no-such-guest"], 3, "there is no such guest"),
        (["999999999"], 3, "there is none of that number"),
        ([str(os.getpid())], 3, "it is in no guest's groups"),
        ([], 2, "none is named"),
        (["--all", "x"], 2, "both names and --all are given"),
        (["--format", "xml", "x"], 2, "there is no such format"),
    ],
)
def test_errors_are_one_line_with_a_status(nestrt: Nestrt, words: list[str], status: int, text: str) -> None:
    result = nestrt.run("check", *words)
    assert result.rc == status, result
    assert text in result.err
    assert "Traceback" not in result.err


def test_help_says_what_the_statuses_mean(nestrt: Nestrt) -> None:
    text = nestrt.run("check", "--help").ok().out
    for word in ("NAME", "--all", "--passive", "--format", "Exit status", "unknown"):
        assert word in text


# Who may not look knows nothing, and that is no "yes".
def test_without_rights_nothing_is_known(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    launch(nestrt, guest_name, busybox)
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", nestrt.command, "check", "--format", "json"]
    done = subprocess.run([*words, guest_name], capture_output=True, text=True, timeout=60 * SLOW)
    found = read(Result(tuple(words), done.returncode, done.stdout, done.stderr))
    assert set(found.laws.values()) == {None}, found.result
    assert found.result.rc == 1
    assert "Traceback" not in found.result.err


# The beginning of an engine's long id is enough, where it is the only one; of a plain name it is not.
def test_a_long_id_may_be_cut_short(nestrt: Nestrt, new_bundle: NewBundle) -> None:
    first, second = "5eed" + "0" * 60, "5eedf" + "0" * 59
    new_bundle(first).virtual().up()
    assert nestrt.run("check", "--passive", first[:12]).ok()
    new_bundle(second).virtual().up()
    both = nestrt.run("check", "--passive", "5eed")
    assert both.rc == 2
    assert first in both.err
    assert second in both.err
    assert nestrt.run("check", "--passive", "5eedf").ok()
    assert nestrt.run("check", "--passive", "5e").rc == 3


# Guests of nestrt as an engine's runtime, created first: on v1 they then wait in their limit group.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_every_law_holds_for_a_container(nestrt: Nestrt, bundle: Bundle, mode: str) -> None:
    bundle.virtual().resources(memory={"limit": 512 << 20}, pids={"limit": 90}).args("sleep", "1000")
    if mode == "userns":
        bundle.user_namespace().capabilities("all")
    bundle.create().ok()
    for _ in range(2):
        found = check(nestrt, bundle.id)
        assert found.broken() == {}, found.result
        if bundle.status == "created":
            bundle.start().ok()
    assert bundle.status == "running"


@pytest.fixture(params=RUNTIMES, ids=os.path.basename)
def wrapped(request: pytest.FixtureRequest, nestrt: Nestrt, busybox: Path) -> Iterator[Wrapped]:
    """A bundle for each other runtime that works on this kind of host, by ``nestrt wrap``."""
    bundles = wrapped_bundles(nestrt, busybox, request.param)
    yield next(bundles)()
    for _ in bundles:
        pass


# Guests that runc and crun start, with the plugin: created, and started. Privileged, covers are all that locks.
@pytest.mark.parametrize("mode", ["userns", "nouserns", "root"])
def test_every_law_holds_for_a_guest_of_another_runtime(nestrt: Nestrt, wrapped: Wrapped, mode: str) -> None:
    wrapped.guest().resources(memory={"limit": 512 << 20}, pids={"limit": 90}).args("sleep", "1000")
    if mode == "userns":
        wrapped.user_namespace().capabilities("all")
    elif mode == "root":
        wrapped.capabilities("all").resources(devices=ALL_DEVICES)
    wrapped.create().ok()
    found = check(nestrt, wrapped.id)
    # What it is not to do by its system call filter, it may do until that is loaded.
    loaded = "Seccomp:\t0" not in Path(f"/proc/{wrapped.pid}/status").read_text()
    broken: dict[str, bool | None] = {"lock": False} if loaded else {"lock": False, "clamp": None}
    assert found.broken() == (broken if mode == "root" else {}), found.result
    wrapped.start().ok()
    found = check(nestrt, wrapped.id)
    assert found.broken() == ({"lock": False} if mode == "root" else {}), found.result
    assert ("filter forbids" in found.what["clamp"]) == (mode == "root")


# What an engine's update allows, guest root and limit group show alike: no law is broken by it.
def test_updated_limits_still_clamp(nestrt: Nestrt, bundle: Bundle) -> None:
    bundle.virtual().resources(pids={"limit": 90}).up()
    bundle.verb("update", "--pids-limit", "200", bundle.id).ok()
    assert check(nestrt, bundle.id).broken() == {}


# Root of the host, with all capabilities: it can change what it is shown. What it gets stands, after the check too.
@on_each_host
def test_lock_is_not_said_to_hold_where_covers_can_be_taken_off(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    launch(nestrt, guest_name, busybox, *MODES["root"])
    before = limits_of(limit_group(guest_name)), limits_of(guest_root(guest_name))
    found = check(nestrt, guest_name)
    assert found.broken() == {"lock": False}, found.result
    assert found.result.rc == 1
    assert "not what it gets" in found.what["lock"]
    assert ("cgroup namespace nested" in found.what["lock"]) == (is_v2_only() and nsdelegate()), found.result
    assert "filter forbids file handles" in found.what["clamp"]
    assert (limits_of(limit_group(guest_name)), limits_of(guest_root(guest_name))) == before
    passive = check(nestrt, "--passive", guest_name)
    assert passive.broken() == {"lock": None}


def inner(nestrt: Nestrt, name: str, python: PythonRoot, options: str, *outer: str) -> str:
    """A guest *name* with a guest "inner" in it, launched with *options*; returns that one's name."""
    command = nested(python, f"{options} -d --name inner", "sleep 1000") + "; exec sleep 1000"
    words = ("-d", "--name", name, *python.options, *LIMITS, *outer)
    nestrt.launch(*words, "--", "sh", "-c", command).ok()
    wanted = f"{name}/inner"
    rows = wait_for(
        lambda: [
            row
            for row in json.loads(nestrt.run("ls", "--format", "json").ok().out)
            if row["name"] == wanted and row["state"] == "running"
        ],
        "the inner guest",
        30,
    )
    assert rows[0]["claim"]
    return wanted


# Level 2, with ids of its own: from the host, and from level 1, which launched it.
#
#     /nestrt/NAME/guest/nestrt/inner        limit group, of NAME's root
#                               └ guest      guest root
def test_a_guests_guest_is_checked_from_both_levels(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    wanted = inner(nestrt, guest_name, python, "-m 32M --pids 10", "--mount", "type=tmpfs,target=/tmp")
    found = check(nestrt, wanted)
    assert found.broken() == {}, found.result
    assert "user.nestrt" in found.what["sight"]
    assert check(nestrt, guest_name).broken() == {}
    pid = str(mark(limit_group(guest_name))["pid"])
    words = [NSENTER, "-t", pid, "-a", COMMAND, "check", "--format", "json", "inner"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120 * SLOW, stdin=subprocess.DEVNULL)
    inside = read(Result(tuple(words), done.returncode, done.stdout, done.stderr))
    assert inside.broken() == {}, inside.result


# The inner guest shares its launcher's ids: covers lock it, and root of any user namespace takes them off.
def test_a_guests_guest_with_shared_ids_has_only_covers(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    wanted = inner(nestrt, guest_name, python, "-m 32M --pids 10")
    found = check(nestrt, wanted)
    assert found.broken() == {"lock": False}, found.result


# No policy, no view: only what still has to hold is asked for.
def test_a_guest_without_a_view_is_checked_for_having_none(
    nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path
) -> None:
    launch(nestrt, guest_name, busybox, "--policy", policy_file(tmp_path, "[level]\nvirtualize = false\n"))
    found = check(nestrt, guest_name)
    assert found.broken() == {}, found.result
    assert "no policy virtualizes it" in found.what["opt-in"]


@pytest.mark.parametrize("text", ["mount = 'ro'", "mount = 'none'", "controllers = ['pids', 'memory']"])
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_every_law_holds_with_less_of_a_view(
    nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path, text: str, mode: str
) -> None:
    launch(nestrt, guest_name, busybox, *MODES[mode], "--policy", policy_file(tmp_path, f"[view]\n{text}\n"))
    found = check(nestrt, guest_name)
    assert found.broken() == {}, found.result


# A guest that starts in its root, as systemd does, enables v2's controllers by itself.
@on_each_host
def test_a_guest_that_starts_in_its_root(nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path) -> None:
    launch(nestrt, guest_name, busybox, "--policy", policy_file(tmp_path, "[view]\nstart_in = '.'\n"))
    found = check(nestrt, guest_name)
    assert found.broken() == {}, found.result


# --- broken guests: one thing undone by hand, and the one law that no longer holds ---


def file_of(controller: str, group: str, v1: str, v2: str) -> Path:
    hierarchy = hierarchy_of(controller)
    assert hierarchy is not None
    return hierarchy.group(group) / (v1 if hierarchy.version == 1 else v2)


def raise_memory(name: str) -> str:
    memory = file_of("memory", limit_group(name), "memory.limit_in_bytes", "memory.max")
    memory.write_text(str(128 << 20))
    return "memory.max 128M, and it is shown 64M"


def raise_cpus(name: str) -> str:
    file_of("cpu", limit_group(name), "cpu.cfs_quota_us", "cpu.max").write_text("-1" if has_v1("cpu") else "max")
    return "cpu.max"


def raise_both(name: str) -> str:
    for group in (limit_group(name), guest_root(name)):
        file_of("pids", group, "pids.max", "pids.max").write_text("50")
    return "pids.max 50, and its policy says 40"


def raise_cap(name: str) -> str:
    tree = v2_hierarchy()
    assert tree is not None
    (tree.group(limit_group(name)) / "cgroup.max.descendants").write_text("max")
    return "cgroup.max.descendants"


def give_away_the_limit_group(name: str) -> str:
    pid = int(mark(limit_group(name))["pid"])
    owner = int(Path(f"/proc/{pid}/uid_map").read_text().split()[1])
    os.chown(file_of("pids", limit_group(name), "pids.max", "pids.max"), owner, owner)
    return "belongs to an id that it has"


def give_away_the_shown_limit(name: str) -> str:
    pid = int(mark(limit_group(name))["pid"])
    owner = int(Path(f"/proc/{pid}/uid_map").read_text().split()[1])
    os.chown(file_of("pids", guest_root(name), "pids.max", "pids.max"), owner, owner)
    return "pids.max"


def open_to_all(name: str) -> str:
    file_of("pids", guest_root(name), "pids.max", "pids.max").chmod(0o666)
    return "pids.max"


def take_the_root_back(name: str) -> str:
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    os.chown(hierarchy.group(guest_root(name)), 0, 0)
    return "is not its root's"


def move_out(name: str) -> str:
    pid = int(mark(limit_group(name))["pid"])
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    if hierarchy.version == 2:
        other = hierarchy.mountpoint / f"nestrt-out-{os.getpid()}"
        other.mkdir()
        (other / "cgroup.procs").write_text(str(pid))
        return f"stands in /{other.name}"
    (hierarchy.mountpoint / "cgroup.procs").write_text(str(pid))
    return "stands in / of pids"


def forget(name: str) -> str:
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    os.removexattr(hierarchy.group(limit_group(name)), "trusted.nestrt")
    return "has no mark"


def forge(name: str) -> str:
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    edit_mark(hierarchy.group(limit_group(name)), id="another")
    return "another guest's"


def misname(name: str) -> str:
    # The word of the level that looks says another process than it says the guest has.
    for hierarchy in hierarchies():
        path = hierarchy.group(limit_group(name))
        if "pid" in json.loads(os.getxattr(path, "trusted.nestrt")):
            edit_mark(path, v=7)
    return "v is not 1"


BREAKS: Mapping[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "the limit group's memory is raised": (raise_memory, ("clamp",)),
    "the limit group's quota is taken away": (raise_cpus, ("clamp",)),
    "limit and shown limit are raised": (raise_both, ("clamp",)),
    "the cap on groups is taken away": (raise_cap, ("clamp",)),
    "the limit group is given away": (give_away_the_limit_group, ("clamp",)),
    "the shown limit is given away": (give_away_the_shown_limit, ("lock",)),
    "the shown limit is open to all": (open_to_all, ("lock",)),
    "the guest root is taken back": (take_the_root_back, ("freedom",)),
    "its first process is moved out": (move_out, ("view",)),
    "one mark is lost": (forget, ("nothing lost",)),
    "one mark is another's": (forge, ("nothing lost",)),
    "the mark is damaged": (misname, ("sight",)),
}


# A guest of one hierarchy has one mark: without it there is no guest.
ONLY_V1 = ("one mark is lost", "one mark is another's")
each_break = [pytest.param(name, marks=[pytest.mark.v1] if name in ONLY_V1 else []) for name in BREAKS]


@pytest.mark.parametrize("name", each_break)
def test_what_is_broken_is_found(nestrt: Nestrt, guest_name: str, busybox: Path, name: str) -> None:
    pid = launch(nestrt, guest_name, busybox)
    act, laws = BREAKS[name]
    text = act(guest_name)
    try:
        for words in ((), ("--passive",)):
            found = check(nestrt, *words, guest_name)
            assert found.broken() == dict.fromkeys(laws, False), found.result
            assert text in found.what[laws[0]], found.result
            assert found.result.rc == 1
        assert "remedy: " in nestrt.run("check", "--passive", guest_name).out
    finally:
        enter(f"{guest_root(guest_name)}/init", pid)
        for path in hierarchies()[0].mountpoint.glob(f"nestrt-out-{os.getpid()}"):
            path.rmdir()


# The lock is taken off from outside, in the guest's own mount namespace: its limit file is there to be written.
#
#     /sys/fs/cgroup/pids            rw
#     /sys/fs/cgroup/pids/pids.max   ro, a cover     ← umount
@pytest.mark.parametrize("how", ["taken off", "made writable"])
def test_a_lost_cover_is_found(nestrt: Nestrt, guest_name: str, busybox: Path, how: str) -> None:
    pid = launch(nestrt, guest_name, busybox, *MODES["nouserns"])
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    file = f"{hierarchy.mountpoint}/pids.max"
    words = ["umount", file] if how == "taken off" else ["mount", "-o", "remount,bind,rw", file]
    subprocess.run([NSENTER, "-t", str(pid), "-m", "-p", *words], check=True, timeout=60 * SLOW)
    for options in ((), ("--passive",)):
        found = check(nestrt, *options, guest_name)
        assert found.broken() == {"lock": False}, found.result
        assert "pids.max" in found.what["lock"]
    assert limits_of(guest_root(guest_name))["pids"] == "40"


# A view of the host's own tree, wherever it is mounted, shows what is above; it holds the limit group too.
def test_a_mount_of_the_hosts_groups_is_found(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    hierarchy = hierarchy_of("pids")
    assert hierarchy is not None
    launch(nestrt, guest_name, busybox, "--mount", f"type=bind,source={hierarchy.mountpoint},target=/mnt,ro")
    found = check(nestrt, guest_name)
    assert found.broken() == {"view": False, "clamp": False}, found.result
    assert "/mnt shows /" in found.what["view"]
    assert "/mnt reaches" in found.what["clamp"]


# Without max_groups to spare nothing can be made to try freedom with: that is not known, and so not said to hold.
def test_a_guest_that_is_full_of_groups_is_not_said_to_be_free(
    nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path
) -> None:
    if not is_v2_only():
        # v1 has no cap: the v2 tree of a hybrid host alone is full.
        assert v2_hierarchy() is not None
    launch(nestrt, guest_name, busybox, "--policy", policy_file(tmp_path, "[partition]\nmax_groups = 2\n"))
    found = check(nestrt, guest_name)
    assert found.broken() == {"freedom": None}, found.result
    assert "it has as many" in found.what["freedom"]
    assert found.result.rc == 1


# Paused: nothing of the guest is asked for anything, so that the check ends, and the guest stays as it is.
def test_a_paused_guest_is_checked_and_stays_paused(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    launch(nestrt, guest_name, busybox)
    freezer, frozen = (hierarchy_of("freezer"), "FROZEN") if has_v1("freezer") else (v2_hierarchy(), "1")
    assert freezer is not None
    file = freezer.group(limit_group(guest_name)) / ("freezer.state" if frozen == "FROZEN" else "cgroup.freeze")
    file.write_text(frozen)
    try:
        found = check(nestrt, guest_name)
        assert found.broken() == {}, found.result
        assert file.read_text().strip() == frozen
    finally:
        file.write_text("THAWED" if frozen == "FROZEN" else "0")


# --- containers of another runtime, without any of nestrt's doing but a mark ---


@contextmanager
def container_of_runc(tmp_path: Path, rootfs: Path, devices: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """A container of runc on a bundle as engines write it, and a mark set by hand: (limit group, first process)."""
    id = f"nestrt-runc-{os.getpid():x}"
    group, state = f"/{id}", tmp_path / "state"
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True, timeout=60 * SLOW)
    config = json.loads((tmp_path / "config.json").read_text())
    config["root"] = {"path": str(rootfs)}
    config["process"].update(args=["sleep", "1000"], terminal=False)
    config["process"]["rlimits"] = []
    config["linux"]["cgroupsPath"] = group
    config["linux"]["resources"] = {"pids": {"limit": 40}, "devices": devices}
    if not any(entry["type"] == "cgroup" for entry in config["linux"]["namespaces"]):
        config["linux"]["namespaces"].append({"type": "cgroup"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    runc = ["runc", "--root", str(state)]
    # It inherits no pipe that somebody would wait for.
    with open(tmp_path / "log", "wb") as log:
        command = [*runc, "run", "--detach", "--bundle", str(tmp_path), id]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120 * SLOW)
    try:
        assert done.returncode == 0, (tmp_path / "log").read_text()
        listed = subprocess.run([*runc, "state", id], capture_output=True, check=True, timeout=60 * SLOW)
        pid = int(json.loads(listed.stdout)["pid"])
        text = json.dumps({"v": 1, "name": id, "id": "by hand", "state": "running", "view": {"mount": "rw"}}).encode()
        for hierarchy in hierarchies():
            if hierarchy.group(group).is_dir():
                os.setxattr(hierarchy.group(group), "trusted.nestrt", text)
        yield group, pid
    finally:
        subprocess.run([*runc, "delete", "--force", id], timeout=120 * SLOW, capture_output=True)
        remove_groups(group)


# As runc makes it: the first process stands in the limit group, whose limits the guest's own mounts show.
@pytest.mark.parametrize("devices", [ALL_DEVICES, NO_DEVICES], ids=["all devices", "no devices"])
def test_a_container_with_no_more_than_a_mark_keeps_few_laws(
    nestrt: Nestrt, busybox: Path, tmp_path: Path, devices: list[dict[str, Any]]
) -> None:
    require("runc", None if shutil.which("runc") else "no such program")
    with container_of_runc(tmp_path, busybox, devices) as (group, pid):
        for words in ([group], [group.strip("/")], [str(pid)], ["--passive", group]):
            found = check(nestrt, *words)
            broken = found.broken()
            assert broken["view"] is False
            assert broken["clamp"] is False
            assert ("subset" in broken) == (devices == ALL_DEVICES), found.result
            assert f"stands in {group}" in found.what["view"]
            assert f"reaches {group}" in found.what["clamp"]


# What the hooks of every start pay for.
def test_looking_loads_no_ctypes(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    pid = launch(nestrt, guest_name, busybox, *MODES["nouserns"])
    code = f"""
import sys
from nestrt.host.laws import read_back
from nestrt.level.policy import Policy
from nestrt.probe.facts import read_hierarchies
found = read_back({pid}, {limit_group(guest_name)!r}, read_hierarchies(), Policy())
assert all(finding.holds for finding in found), found
assert "ctypes" not in sys.modules, "a hook that loads no ctypes is to stay without"
"""
    root = Path(__file__).resolve().parents[2]
    words = ["/usr/bin/python3", "-ISc", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120 * SLOW)
    assert done.returncode == 0, done.stderr
