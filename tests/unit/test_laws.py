"""What the laws' readers make of mountinfo, ids, numbers and outcomes, without a kernel.

The kernel's own answers: tests/kernel/test_check.py and tests/security/test_check_attacks.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nestrt.act.trials_inside import _leads_through
from nestrt.cli._check import allows_every_device
from nestrt.host import laws_mounts
from nestrt.host.laws import by_law
from nestrt.host.laws_clamp import is_looser
from nestrt.host.laws_lock import _uncovered
from nestrt.host.laws_mounts import CgroupMount, Hiding, below, lines, unescape
from nestrt.host.laws_subject import LAWS, Finding, Process, Subject, groups_of, key_of
from nestrt.host.laws_trials import judge
from nestrt.host.laws_view import view
from nestrt.level.policy import Policy
from nestrt.level.units import MAX
from nestrt.plan.facts import Hierarchy
from nestrt.plan.trials import FRESH, NESTED, NOT_THERE, UNCOVERED, VIEW, Outcome, Place, Trials, Tried

PIDS = Hierarchy("pids", 1, ("pids",), "pids", "/nowhere/pids")
TREE = Hierarchy("unified", 2, (), "", "/nowhere/unified")
GROUP, ROOT = "/nestrt/web", "/nestrt/web/guest"
IDENTITY = ((0, 0, 4294967295),)
PRIVATE = ((0, 524288, 65536),)
ALL = (1 << 41) - 1


def subject(**more: Any) -> Subject:
    return Subject(**{"pid": 7, "limit_group": GROUP, "hierarchies": (PIDS, TREE), "policy": Policy(), **more})


def process(**more: Any) -> Process:
    groups = {("pids",): f"{ROOT}/init", (): f"{ROOT}/init"}
    values = {"pid": 7, "groups": groups, "uids": PRIVATE, "gids": PRIVATE, "own_user": True, "own_cgroup": True}
    mounts = (mount(root=ROOT), mount(key=(), root=ROOT, target="/sys/fs/cgroup/unified"))
    return Process(**{**values, "initial": False, "bounding": 0, "seccomp": 0, "mounts": mounts, **more})


def mount(**more: Any) -> CgroupMount:
    values = {"key": ("pids",), "root": ROOT, "target": "/sys/fs/cgroup/pids", "read_only": False}
    return CgroupMount(**{**values, "copied": False, "hidden": False, **more})


# --- reading /proc ---


def test_only_a_newline_ends_a_line_of_proc_pid_cgroup() -> None:
    text = "2:pids:/nestrt/web/guest/a\r0::\x1c0::/x\n1:name=systemd:/nestrt/web/guest\n0::/nestrt/web/guest/b:c\n"
    assert groups_of(text) == {
        ("pids",): "/nestrt/web/guest/a\r0::\x1c0::/x",
        ("name=systemd",): "/nestrt/web/guest",
        (): "/nestrt/web/guest/b:c",
    }


def test_a_hierarchy_is_known_by_its_line() -> None:
    assert key_of(PIDS) == ("pids",)
    assert key_of(TREE) == ()
    assert key_of(Hierarchy("systemd", 1, (), "none,name=systemd", "/x")) == ("name=systemd",)
    assert key_of(Hierarchy("cpu,cpuacct", 1, ("cpu", "cpuacct"), "cpu,cpuacct", "/x")) == ("cpu", "cpuacct")


MOUNTINFO = r"""
20 1 8:1 / / rw - ext4 /dev/a rw
21 20 0:5 / /sys rw,nosuid shared:1 master:2 - sysfs sysfs rw
22 21 0:6 / /sys/fs/cgroup rw - tmpfs tmpfs rw
23 22 0:7 /nestrt/web/guest /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
24 23 0:7 /nestrt/web/guest/pids.max /sys/fs/cgroup/pids/pids.max ro - cgroup cgroup rw,pids
25 22 0:8 /nestrt/we\040b /sys/fs/cgroup/un\134ified rw - cgroup2 cgroup2 ro
broken line
26 22 0:9 / /x rw
""".strip()


def test_mountinfo_is_read_line_by_line() -> None:
    found = lines(MOUNTINFO)
    assert [(line.number, line.parent, line.target) for line in found][3:] == [
        (23, 22, "/sys/fs/cgroup/pids"),
        (24, 23, "/sys/fs/cgroup/pids/pids.max"),
        (25, 22, "/sys/fs/cgroup/un\\ified"),
    ]
    assert [line.read_only for line in found] == [False, False, False, False, True, True]
    assert found[5].root == "/nestrt/we b"
    assert unescape(r"\012\011\134") == "\n\t\\"
    assert unescape(r"a\9zz") == r"a\9zz"


def test_a_name_with_a_line_break_of_unicode_hides_no_mount() -> None:
    text = "23 22 0:7 / /tmp/a\x1cb\r\x85\u2028 rw - cgroup cgroup rw,pids\n"
    assert [line.target for line in lines(text)] == ["/tmp/a\x1cb\r\x85\u2028"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", set()),
        # on top of the view; on a directory above it; on the root of what it is mounted on
        ("30 23 0:9 / /sys/fs/cgroup/pids rw - tmpfs tmpfs rw", {23, 24}),
        ("30 21 0:9 / /sys/fs rw - tmpfs tmpfs rw", {22, 23, 24, 25}),
        ("30 22 0:9 / /sys/fs/cgroup rw - tmpfs tmpfs rw", {22, 23, 24, 25}),
        # beside it, with a name that begins alike
        ("30 22 0:9 / /sys/fs/cgroup/pid rw - tmpfs tmpfs rw", set()),
        # a line whose parent is itself, as the root of a namespace may have it
        ("30 30 0:9 / /sys/fs/cgroup rw - tmpfs tmpfs rw", set()),
    ],
)
def test_what_another_mount_hides(more: str, expected: set[int]) -> None:
    found = lines(f"{MOUNTINFO}\n{more}\n")
    hiding = Hiding(found)
    assert {line.number for line in found if hiding.hides(line)} == expected


def test_hiding_is_quick_for_mounts_stacked_without_end() -> None:
    rows = [f"{n + 1} {n} 0:9 / /a{'/b' * 40} rw - cgroup cgroup rw,pids" for n in range(1, 20000)]
    found = lines("\n".join(rows))
    hiding = Hiding(found)
    assert [line.number for line in found if not hiding.hides(line)] == [20000]


def test_paths_are_compared_by_components() -> None:
    assert below("/a/b", "/a")
    assert below("/a", "/a")
    assert below("/a", "/")
    assert not below("/ab", "/a")
    assert subject().inside(ROOT)
    assert not subject().inside(f"{ROOT}x")
    assert not subject().inside(GROUP)


def test_a_mount_belongs_to_the_hierarchy_whose_controllers_it_has() -> None:
    keys = (("cpu", "cpuacct"), ("name=systemd",), ())
    assert laws_mounts.key_of("cgroup", "rw,cpu,cpuacct", keys) == ("cpu", "cpuacct")
    assert laws_mounts.key_of("cgroup", "rw,xattr,name=systemd", keys) == ("name=systemd",)
    assert laws_mounts.key_of("cgroup2", "rw,nsdelegate", keys) == ()
    assert laws_mounts.key_of("cgroup", "rw,net_cls", keys) is None


# --- ids ---


def status(uid: int, gid: int, mode: int) -> os.stat_result:
    return os.stat_result((0o100000 | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "owns"),
    [
        (0, 0, 0o644, False),
        (524288, 0, 0o644, True),
        (524288 + 65535, 0, 0o644, True),
        (524288 + 65536, 0, 0o644, False),
        (0, 524288, 0o644, False),
        (0, 524288, 0o664, True),
        (0, 0, 0o666, True),
        (524288, 0, 0o444, True),  # its owner may change that
    ],
)
def test_a_file_is_the_guests_by_owner_group_or_mode(uid: int, gid: int, mode: int, owns: bool) -> None:
    assert process().owns(status(uid, gid, mode)) is owns


def test_ownership_locks_where_the_launching_level_is_nobody() -> None:
    assert process().private(0)
    assert not process().private(524288)
    assert not process(uids=((0, 0, 65536),), gids=((0, 0, 65536),)).private(0)
    assert not process(uids=IDENTITY, gids=IDENTITY, own_user=False).private(0)
    assert not process(gids=((0, 0, 1),)).private(0)
    assert process(uids=((5, 100, 1), (0, 200, 5))).root_uid == 200
    assert process(uids=((1, 100, 1),)).root_uid == -1


# --- numbers ---


@pytest.mark.parametrize(
    ("limit", "than", "looser"),
    [
        (5, 5, False),
        (6, 5, True),
        (MAX, 5, True),
        (None, 5, True),
        (5, MAX, False),
        (0, 5, False),
        (frozenset({0}), frozenset({0, 1}), False),
        (frozenset({0, 1}), frozenset({0}), True),
        (frozenset(), frozenset({0}), True),
        (frozenset({0}), frozenset(), False),
        ({"8:0 rbps": 5}, {"8:0 rbps": 5}, False),
        ({"8:0 rbps": 6}, {"8:0 rbps": 5}, True),
        ({}, {"8:0 rbps": 5}, True),
        ({"8:0 rbps": 5}, {}, False),
    ],
)
def test_what_is_looser_than_what(limit: Any, than: Any, looser: bool) -> None:
    assert is_looser(limit, than) is looser


# --- view and covers ---


def test_a_view_that_begins_at_the_guest_root() -> None:
    assert view(subject(), process(), {}).holds is True


@pytest.mark.parametrize(
    ("given", "changes", "text"),
    [
        ({}, {"groups": {("pids",): GROUP, (): ROOT}}, f"stands in {GROUP} of pids"),
        ({}, {"groups": {("pids",): f"{ROOT}x/init", (): ROOT}}, f"stands in {ROOT}x/init"),
        # An unmounted hierarchy: there the guest is where everybody is.
        ({}, {"groups": {("pids",): ROOT, (): ROOT, ("net_cls",): "/"}}, "stands in / of net_cls"),
        ({}, {"own_cgroup": False}, "no cgroup namespace of its own"),
        ({}, {"mounts": (mount(root=GROUP),)}, f"shows {GROUP} of pids"),
        ({}, {"mounts": (mount(root="/"), mount(root=ROOT))}, "shows / of pids"),
        ({}, {"mounts": ()}, "none of its hierarchies is mounted"),
        ({"policy": Policy(mount="none")}, {}, "gives it no view"),
        ({"policy": Policy(mount="ro")}, {}, "is writable"),
    ],
)
def test_a_view_that_shows_too_much_or_too_little(given: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    found = view(subject(**given), process(**changes), {})
    assert found.holds is False
    assert text in found.what


def test_a_namespace_with_another_root() -> None:
    assert view(subject(), process(), {("pids",): ROOT, (): ROOT}).holds is True
    found = view(subject(), process(), {("pids",): GROUP, (): ROOT})
    assert found.holds is False
    assert f"begins at {GROUP} of pids" in found.what


def test_the_hosts_own_mounts_are_beside_the_guests_before_it_pivots() -> None:
    both = (mount(root="/", copied=True), mount(), mount(key=(), target="/x"))
    assert view(subject(), process(mounts=both), {}).holds is False
    assert view(subject(started=False), process(mounts=both), {}).holds is True


def test_one_that_waits_may_stand_in_its_limit_group_on_v1_alone() -> None:
    waits = process(groups={("pids",): GROUP, (): f"{ROOT}/init"})
    assert view(subject(waiting=True), waits, {}).holds is True
    assert view(subject(waiting=True), process(groups={("pids",): ROOT, (): GROUP}), {}).holds is False


def test_what_cannot_be_told_does_not_hold() -> None:
    assert view(subject(), process(complete=False), {}).holds is None
    one = process(mounts=(mount(),))
    assert view(subject(), one, {}).holds is None
    assert view(subject(), one, {(): ROOT}).holds is True


COVER = {"root": f"{ROOT}/pids.max", "target": "/sys/fs/cgroup/pids/pids.max"}


@pytest.mark.parametrize(
    ("mounts", "wrong"),
    [
        ([mount(), mount(**COVER, read_only=True)], 0),
        ([mount()], 1),
        ([mount(), mount(**COVER)], 2),
        ([mount(read_only=True)], 0),
        ([mount(hidden=True)], 0),
        ([mount(), mount(**COVER, read_only=True, hidden=True)], 1),
        # a cover of another file, and one in another copy of the view
        ([mount(), mount(root=f"{ROOT}/pids.peak", target=COVER["target"], read_only=True)], 1),
        ([mount(), mount(**COVER, read_only=True), mount(target="/mnt")], 1),
        # a limit file by itself, somewhere else
        ([mount(root=f"{ROOT}/pids.max", target="/mnt/x")], 1),
        # what is below the root is the guest's own
        ([mount(root=f"{ROOT}/web", target="/mnt")], 0),
    ],
)
def test_covers_are_counted(mounts: list[CgroupMount], wrong: int) -> None:
    assert len(_uncovered(subject(), mounts, PIDS, ("pids.max",))) == wrong


# --- outcomes of trials ---

PLACE = Place("pids", 1, "cgroup", "pids", (1, 2), (1, 1), b"handle", (("pids.max", "40"),), make=True)
TRIALS = Trials((PLACE,), "nestrt-check-x", 0, True)
DONE = Outcome("done", -1, "", "", 0)


def judged(*outcomes: Outcome, problem: str = "", filtered: bool | None = False, **changes: Any) -> dict[str, Finding]:
    tried = Tried((*outcomes, DONE), problem, ())
    found = judge(subject(filtered=filtered), process(**changes), TRIALS, tried, {})
    return {finding.law: finding for finding in by_law(found)}


def wrote(how: str, error: int) -> Outcome:
    return Outcome("write", 0, how, "/sys/fs/cgroup/pids/pids.max", error)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_refused_writes_lock(error: int) -> None:
    assert judged(wrote(VIEW, error))["lock"].holds is True


# Whatever is no refusal has come as far as the limit.
@pytest.mark.parametrize("error", [0, errno.EINVAL, errno.EBUSY, errno.ERANGE])
@pytest.mark.parametrize("how", [VIEW, UNCOVERED, FRESH, NESTED])
def test_one_write_that_passes_breaks_the_lock(how: str, error: int) -> None:
    found = judged(wrote(VIEW, errno.EROFS), wrote(how, error))["lock"]
    assert found.holds is False
    assert "pids.max" in found.what
    assert ("covers are made" in found.remedy) == (how == VIEW)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENODEV, NOT_THERE])
def test_what_is_not_there_says_nothing(error: int) -> None:
    assert judged(wrote(VIEW, error))["lock"].holds is True


def test_a_view_that_is_not_walked_to_is_not_known() -> None:
    found = judged(Outcome("view", -1, "", "/sys/fs/cgroup/pids", errno.EXDEV))["lock"]
    assert found.holds is None
    assert "/sys/fs/cgroup/pids" in found.what


def test_what_was_not_done_is_not_known_and_what_is_broken_stays_broken() -> None:
    found = judged(wrote(VIEW, 0), problem="it was not done after 30 s")
    assert found["lock"].holds is False
    assert found["view"].holds is None
    assert "not done after 30 s" in found["view"].what
    entered = judged(Outcome("enter", -1, "", "", errno.EPERM))
    assert "cannot be entered" in entered["lock"].what


@pytest.mark.parametrize(
    ("filtered", "seccomp", "holds"),
    [(False, 0, False), (True, 2, True), (True, 0, None), (None, 2, None), (None, 0, False), (False, 2, False)],
)
@pytest.mark.parametrize("kind", ["handle", "initial"])
def test_a_handle_that_opens_the_limit_group(
    kind: str, filtered: bool | None, seccomp: int, holds: bool | None
) -> None:
    outcome = Outcome(kind, 0 if kind == "handle" else -1, "", "", 0)
    assert judged(outcome, filtered=filtered, seccomp=seccomp)["clamp"].holds is holds
    assert judged(Outcome(kind, 0, "", "", errno.EPERM))["clamp"].holds is True


def test_a_mount_of_the_guests_own_begins_at_its_root() -> None:
    assert judged(Outcome("mount", 0, "", "", 0), Outcome("root", 0, "", "", 0))["view"].holds is True
    assert judged(Outcome("root", 0, "", "limit", errno.EXDEV))["view"].holds is False
    assert judged(Outcome("above", 0, "", "", errno.EXDEV))["view"].holds is False
    # It may not mount: with CAP_SYS_ADMIN it should.
    refused = Outcome("mount", 0, "", "", errno.EPERM)
    assert judged(refused)["view"].holds is True
    assert judged(refused, bounding=ALL)["view"].holds is False


@pytest.mark.parametrize(
    ("outcomes", "holds"),
    [
        ([("make", "", 0), ("lower", "pids.max", 0), ("remove", "", 0)], True),
        ([("make", "", errno.EACCES)], False),
        ([("make", "", errno.EAGAIN)], None),
        ([("make", "", 0), ("lower", "pids.max", errno.EACCES)], False),
        ([("make", "", 0), ("lower", "pids.max", errno.ENOENT)], False),
        ([("make", "", 0), ("enable", "pids", errno.ENOENT)], False),
        ([("make", "", 0), ("remove", "", errno.EBUSY)], False),
        ([], None),
    ],
)
def test_freedom_is_to_make_a_group_and_to_give_it_less(
    outcomes: list[tuple[str, str, int]], holds: bool | None
) -> None:
    found = judged(*(Outcome(kind, 0, "", name, error) for kind, name, error in outcomes))
    assert found["freedom"].holds is holds


# --- what is said ---


def test_what_does_not_hold_is_said_before_what_does() -> None:
    found = by_law(
        (
            Finding("lock", True, "fine"),
            Finding("lock", False, "first", "mend it"),
            Finding("lock", False, "second"),
            Finding("lock", None, "not known"),
            Finding("view", None, "not known"),
            Finding("view", True, "fine"),
            Finding("clamp", True, "a"),
            Finding("clamp", True, "b"),
            Finding("clamp", True, "a"),
        )
    )
    assert [(f.law, f.holds, f.what, f.remedy) for f in found] == [
        ("view", None, "not known", ""),
        ("clamp", True, "a; b", ""),
        ("lock", False, "first; second", "mend it"),
    ]
    assert {finding.law for finding in found} <= set(LAWS)


@pytest.mark.parametrize(
    ("target", "foreign", "leads"),
    [
        ("/sys/fs/cgroup", set(), False),
        ("/sys/fs/cgroup", {"/sys"}, True),
        ("/sys/fs/cgroup", {""}, True),  # the root itself
        ("/sys/fs/cgroup", {"/sys/fs/cgroup"}, True),
        ("/sys/fs/cgroup", {"/sy", "/sys/fs/cgroup/pids", "/dev"}, False),
    ],
)
def test_a_walk_that_leads_through_a_foreign_filesystem(target: str, foreign: set[str], leads: bool) -> None:
    assert _leads_through(target, foreign) is leads


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        (None, False),
        ([], False),
        ([{"allow": True, "access": "rwm"}], True),
        ([{"allow": True, "type": "a", "access": "rwm"}, {"allow": False, "access": "rwm"}], False),
        ([{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "access": "rwm"}], False),
        ("x", False),
        ([1, None, {"allow": "yes", "access": "rwm"}], False),
    ],
)
def test_a_document_that_allows_every_device(rules: Any, allowed: bool) -> None:
    assert allows_every_device({"linux": {"resources": {"devices": rules}}}) is allowed
    assert allows_every_device({"linux": 1}) is False


# --- the start-up contract ---


def test_what_hooks_load_to_look_back_is_cheap() -> None:
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r})\nimport nestrt.host.laws\nprint('\\n'.join(sys.modules))"
    words = ["/usr/bin/python3", "-IS", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    slow = set(
        "trio pyroute2 rich argparse dataclasses logging subprocess pathlib asyncio typing json re enum contextlib"
        " collections functools inspect socket tempfile shutil ctypes".split()
    )
    assert not set(done.stdout.split()) & slow
