"""The order of an update's writes, against a kernel's rules in a few lines: v1 refuses a child more than its parent.

::

    /L             limit group
     └ guest       guest root
        ├ init
        └ web
           └ deep
"""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nestrt import jsontext
from nestrt.act.update import former
from nestrt.cli.update import from_flags, size
from nestrt.controllers import oci_devices
from nestrt.errors import InputError
from nestrt.level.limits import from_mark
from nestrt.oci.document import load_resources
from nestrt.oci.resources import Cpu, DeviceRule, Memory, Resources
from nestrt.plan.facts import Hierarchy
from nestrt.plan.update import as_json, cpuset_moves, marked, taken_back, writes
from nestrt.plan.update_devices import ALL, v1_begins_anew, v1_changes, v1_former, v1_more
from nestrt.plan.update_quota import BURST, LEAST, LONGEST, QUOTA, check, final_pairs, quota_writes, ratio

Pairs = dict[str, tuple[int, int]]
PATHS = ("/L", "/L/guest", "/L/guest/init", "/L/guest/web", "/L/guest/web/deep")
CPUS = st.frozensets(st.integers(0, 5), min_size=1)
NONE: frozenset[int] = frozenset()


def parent(path: str) -> str:
    return path.rpartition("/")[0]


@st.composite
def cpusets(draw: st.DrawFn) -> dict[str, frozenset[int]]:
    """A tree as v1 lets it be: each a part of its parent's, or empty, and below an empty one all are."""
    found: dict[str, frozenset[int]] = {}
    for path in PATHS:
        above = found.get(parent(path))
        if path in PATHS[:2] or above is None:
            found[path] = draw(CPUS) if above is None else above
        else:
            found[path] = frozenset(draw(st.sets(st.sampled_from(sorted(above))))) if above else above
    return found


@given(cpusets(), CPUS)
def test_cpusets_stay_within_their_parents_at_every_write(
    tree: dict[str, frozenset[int]], target: frozenset[int]
) -> None:
    before = dict(tree)
    for path, wanted in cpuset_moves(list(tree.items()), target, "/L/guest"):
        assert wanted or not before[path], "a group with processes takes no empty set"
        tree[path] = wanted
        for child in PATHS[1:]:
            assert tree[child] <= tree[parent(child)], (path, child, tree)
        assert wanted <= before[path] | target
    assert tree["/L"] == tree["/L/guest"] == target
    for path in PATHS[2:]:
        assert bool(tree[path]) == bool(before[path])
        if before[path] and before[path] == before[parent(path)]:
            assert tree[path] == tree[parent(path)], "all of its parent's before, and after"
        elif before[path] & tree[parent(path)]:
            assert tree[path] == before[path] & tree[parent(path)], "what is left of its own"


def test_cpusets_are_never_wider_than_old_and_new_where_they_meet() -> None:
    tree = {"/L": frozenset({0, 1}), "/L/guest": frozenset({0, 1})}
    assert cpuset_moves(list(tree.items()), frozenset({1, 2})) == [
        ("/L/guest", frozenset({1})),
        ("/L", frozenset({1})),
        ("/L", frozenset({1, 2})),
        ("/L/guest", frozenset({1, 2})),
    ]
    assert cpuset_moves([("/L", frozenset({0}))], frozenset({0})) == []


QUOTAS = st.tuples(
    st.one_of(
        st.sampled_from([-1, LEAST, 5000, 10_000, 20_000, 50_000, 100_000, 400_000]), st.integers(LEAST, 2_000_000)
    ),
    st.one_of(st.sampled_from([LEAST, 20_000, 100_000, LONGEST]), st.integers(LEAST, LONGEST)),
)
TREE = ("/L", "/L/guest", "/L/guest/web", "/L/guest/web/deep", "/L/guest/db")


def shares(tree: Pairs) -> dict[str, int] | None:
    """What every group has of a CPU, None where the kernel would not have it so: tg_cfs_schedulable_down(),
    kernel/sched/core.c, wants a quota within that of the nearest group above that has one."""
    found = {"": ratio(-1, 1)}
    for path, pair in tree.items():
        share, most = ratio(*pair), found[parent(path)]
        if pair[0] >= 0 and share > most:
            return None
        found[path] = min(share, most)
    return found


def replayed(before: Pairs, final: Pairs) -> int:
    """How many writes it takes from *before* to *final*; after each of them, whoever is killed there leaves
    a tree that the kernel takes, and in which no group has more than before or in the end."""
    tree, had, gets = dict(before), shares(before), shares(final)
    assert had is not None
    assert gets is not None
    order = quota_writes(before, final)
    for path, file, value in order:
        tree[path] = (value, tree[path][1]) if file == QUOTA else (tree[path][0], value)
        assert check(*tree[path]) == tree[path]
        has = shares(tree)
        assert has is not None, (path, file, value, tree)
        for group, pair in tree.items():
            assert has[group] <= max(had[group], gets[group]), (path, file, value, tree)
            assert ratio(*pair) <= max(ratio(*before[group]), ratio(*final[group])), (path, file, value, tree)
    assert tree == final
    return len(order)


HALF = (50_000, 100_000)


@given(st.tuples(QUOTAS, QUOTAS, QUOTAS, QUOTAS, QUOTAS), QUOTAS)
@example((HALF, HALF, HALF, HALF, (-1, 100_000)), (10_000, 20_000))
@example(((10_000, 20_000), (10_000, 20_000), (10_000, 20_000), (1000, 2000), (-1, 100_000)), HALF)
@example((HALF, HALF, (-1, 100_000), (1000, LONGEST), (500_000, LONGEST)), (-1, 20_000))
def test_no_group_has_more_than_old_and_new_at_any_write(
    drawn: tuple[tuple[int, int], ...], target: tuple[int, int]
) -> None:
    # What does not fit is no tree: each has at most what is above it.
    tree = final_pairs(dict(zip(TREE, drawn, strict=True)), {})
    assume(all(quota >= LEAST or quota == -1 for quota, _ in tree.values()))
    final = final_pairs(tree, {"/L": target, "/L/guest": target})
    assert final["/L"] == final["/L/guest"] == target
    replayed(tree, final)
    # Nothing remains of the steps in between: the way back is as good.
    replayed(final, tree)


def test_a_half_of_a_cpu_with_a_child_that_has_all_of_it() -> None:
    """50 % to 50 %: a fifth of the period alone would be 250 %, and a fifth of the quota less than the child has."""
    tree = {"/L": HALF, "/L/web": HALF}
    final = final_pairs(tree, {"/L": (10_000, 20_000)})
    assert final == {"/L": (10_000, 20_000), "/L/web": HALF}
    assert replayed(tree, final) == 4, "the child down, quota, period, the child up"
    assert quota_writes(tree, final)[1:3] == [("/L", QUOTA, 10_000), ("/L", "cpu.cfs_period_us", 20_000)]
    assert quota_writes(tree, tree) == []


@pytest.mark.parametrize("pair", [(1, 50_000), (50_000, 999), (50_000, 1_000_001), (0, 100_000), (1 << 44, 100_000)])
def test_pairs_that_no_kernel_takes(pair: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"linux\.resources\.cpu\."):
        check(*pair)
    assert check(-5, LONGEST) == (-1, LONGEST)


def test_a_burst_is_written_after_the_quota_that_it_needs() -> None:
    files = {QUOTA: "20000", "cpu.cfs_period_us": "100000", BURST: "0", "cpu.rt_period_us": ""}
    new = Resources(cpu=Cpu(quota=50_000, burst=40_000, shares=5))
    found = writes(Hierarchy("cpu", 1, ("cpu",), "cpu", "/c"), Resources(), new, files.__getitem__, None)
    assert [s.file for s in found.plain] == ["cpu.shares"]
    assert found.quota == (50_000, None)
    assert [(s.file, s.value) for s in found.late] == [(BURST, "40000")]


def test_what_is_kept_reads_back() -> None:
    text = """{"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "access": "r"}],
        "memory": {"limit": 5, "swap": -1, "swappiness": 0, "disableOOMKiller": true, "checkBeforeUpdate": false},
        "cpu": {"shares": 7, "quota": -1, "period": 100000, "burst": 0, "cpus": "0-1", "idle": 0},
        "pids": {"limit": -1}, "blockIO": {"weight": 100, "weightDevice": [{"major": 8, "minor": 0, "weight": 20}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 9}], "unified": {"memory.high": "max"},
        "rdma": {"mlx5_1": {"hcaHandles": 3}},
        "network": {"classID": 9, "priorities": [{"name": "lo", "priority": 1}]}}"""
    resources = load_resources(text, "test")
    assert load_resources(jsontext.dumps(as_json(resources)), "test") == resources
    assert as_json(Resources()) == {}


def test_marks_have_what_marks_take() -> None:
    resources = Resources(
        memory=Memory(limit=64 << 20, swap=96 << 20),
        cpu=Cpu(quota=50_000, period=200_000, cpus="1,0", shares=1024),
        pids=9,
    )
    found = marked(resources)
    assert found == {
        "memory": 64 << 20, "swap": 32 << 20, "cpu_quota": 25_000, "cpu_weight": 100, "pids": 9, "cpus": "0-1",
    }  # fmt: skip
    assert from_mark(found).cpu_quota == 25_000


def test_what_undoes_an_update_lifts_what_was_no_limit_before() -> None:
    old = Resources(memory=Memory(limit=5), cpu=Cpu(shares=7))
    new = Resources(memory=Memory(limit=6, swap=9), cpu=Cpu(quota=1000), pids=3)
    assert taken_back(old, new) == Resources(memory=Memory(limit=5, swap=-1), cpu=Cpu(shares=7, quota=-1), pids=-1)
    assert taken_back(old, Resources()) == old


def test_the_way_back() -> None:
    assert former("100", "200") == "100"
    assert former("max 100000", "5000 100000") == "max 100000"
    assert former("8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=9", "8:16 rbps=1") == "8:16 rbps=9"
    assert former("", "8:0 rbps=5 wiops=6") == "8:0 rbps=max wiops=max"
    assert former("", "8:0 4096") == "8:0 0"
    assert former("oom_kill_disable 0\nunder_oom 0\noom_kill 3", "1") == "0"
    assert former("default 100\n8:0 200", "50") == "100"
    assert former("lo 0\neth0 5", "eth0 7") == "eth0 5"
    assert former("", "0-1") == "\n", "a v2 cpuset that said nothing"


def test_sizes_as_runc_takes_them() -> None:
    texts = ("512M", "512m", "512MB", "512MiB", "1.5g", "4096", "64 kb", "-1", "1b")
    assert [size("memory", text) for text in texts] == [
        512 << 20, 512 << 20, 512 << 20, 512 << 20, 3 << 29, 4096, 65536, -1, 1,
    ]  # fmt: skip
    assert from_flags({"memory": ""}) == Resources()


ALLOW, DENY = True, False


def test_v1_device_lines() -> None:
    rules = oci_devices.with_defaults((DeviceRule(DENY), DeviceRule(ALLOW, "c", 1, 11, "r")))
    usual = oci_devices.with_defaults((DeviceRule(DENY),))
    text = "\n".join(v1_changes("", usual)[0])  # what a group with just these has
    assert "c 1:3 rwm" in text
    # Everyone may make nodes ("c *:* m"): what else is allowed of one comes with that right, as at create.
    assert v1_changes(text, rules) == (["c 1:11 rm"], [])
    assert v1_changes(text + "\nc 1:11 rwm", rules) == ([], ["c 1:11 w"])
    assert v1_changes(text + "\nb 8:0 rwm", usual) == ([], ["b 8:0 rwm"])
    assert v1_changes("a *:* rwm", (DeviceRule(ALLOW),)) == ([], [])


def test_v1_device_lines_the_way_back() -> None:
    listed = oci_devices.with_defaults((DeviceRule(DENY),))
    but_one = (DeviceRule(ALLOW), DeviceRule(DENY, "c", 10, 100, "rwm"))
    assert v1_more("c 10:100 rwm\nc 1:3 rw", "c 10:100 r") == ["c 10:100 wm", "c 1:3 rw"]
    # Line by line wherever lines can say it: at no moment is there less than in the end.
    assert not v1_begins_anew("c 10:100 rwm", listed)
    assert v1_begins_anew(ALL, listed)
    assert v1_begins_anew("c 10:100 rwm", but_one)
    assert v1_begins_anew("c 10:100 rwm", (DeviceRule(ALLOW),))
    assert v1_former("c 10:100 rwm\nc 1:3 rw", but_one) == [
        ("devices.deny", "a"), ("devices.allow", "c 10:100 rwm"), ("devices.allow", "c 1:3 rw"),
    ]  # fmt: skip
    # All but one looks like all, and is not to become all.
    assert v1_former(ALL, but_one) == [("devices.allow", "a"), ("devices.deny", "c 10:100 rwm")]
    assert v1_former(ALL, listed) == [("devices.allow", "a")]
