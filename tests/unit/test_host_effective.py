"""Which ancestor binds, on values alone; and the kernel's texts as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli.why import _by
from nestrt.host.counters import CounterReader
from nestrt.host.effective import ancestors, cpu_time, tighten
from nestrt.host.keys import keyed, keys_of, number, numbers, quota
from nestrt.host.marks import Mark
from nestrt.host.walk import Guest, View
from nestrt.host.why import Subject
from nestrt.level.units import MAX
from nestrt.plan.facts import Hierarchy


@pytest.mark.parametrize("order", [1, -1])
def test_cpu_time_is_that_of_the_counters(tmp_path: Path, order: int) -> None:
    """A hybrid host counts it twice, and not to the same microsecond."""
    for place, text in (("v1/web/cpuacct.usage", "7000\n"), ("v2/web/cpu.stat", "usage_usec 9\nuser_usec 9\n")):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(text)
    old = Hierarchy("cpu,cpuacct", 1, ("cpu", "cpuacct"), "cpu,cpuacct", str(tmp_path / "v1"))
    new = Hierarchy("unified", 2, (), "", str(tmp_path / "v2"))
    both = (old, new)[::order]
    assert cpu_time(both, "/web") == CounterReader(both).read("/web", ("cpu,cpuacct", "unified")).cpu_usec == 7
    assert cpu_time((new,), "/web") == 9


def works(*values: Any) -> tuple[Any, Any]:
    """What works in the last group, and which binds, of groups with these values: /, /1, /1/2 and so on."""
    found = None
    for depth, value in enumerate(values):
        found = tighten(found, "/" + "/".join(str(n) for n in range(1, depth + 1)), value)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("values", "effective", "binds"),
    [
        ((MAX, MAX, MAX), MAX, ""),
        ((MAX, 512, 512, 2048), 512, "/1"),  # equal: the outer one; larger below: no matter
        ((MAX, 512, 256, MAX), 256, "/1/2"),
        ((100, MAX), 100, "/"),
        ((MAX, 0, 5), 0, "/1"),
    ],
)
def test_smallest(values: tuple[int, ...], effective: int, binds: str) -> None:
    assert works(*values) == (effective, binds)


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=6))
def test_smallest_is_the_smallest_limit(values: list[int]) -> None:
    effective, binds = works(*values)
    limits = [value for value in values if value != MAX]
    assert effective == (min(limits) if limits else MAX)
    assert bool(binds) == bool(limits)


def s(*items: int) -> frozenset[int]:
    return frozenset(items)


@pytest.mark.parametrize(
    ("values", "effective", "binds"),
    [
        ((s(0, 1), s(0, 1), s(0, 1)), s(0, 1), ""),  # v1: filled, not limited
        ((s(0, 1), s(0, 1), s(1), s(1)), s(1), "/1/2"),
        ((s(0, 1, 2), s(0, 1), s(1, 2)), s(1), "/1/2"),
        ((s(0, 1), s(0), s(1)), s(0), "/1"),  # v2: nothing in common with the parent's: the parent's
        ((s(), s(), s(1), s()), s(1), "/1/2"),  # v2: empty is the parent's
        ((s(), s()), s(), ""),
    ],
)
def test_intersection(values: tuple[frozenset[int], ...], effective: frozenset[int], binds: str) -> None:
    assert works(*values) == (effective, binds)


@given(st.lists(st.frozensets(st.integers(0, 3)), min_size=1, max_size=5))
def test_intersection_is_within_every_set_that_counts(values: list[frozenset[int]]) -> None:
    effective, _ = works(*values)
    assert effective <= next((value for value in values if value), frozenset())
    assert bool(effective) == any(values)


def test_smallest_by_key() -> None:
    effective, binds = works({}, {"8:0 rbps": 100, "8:0 wbps": 9}, {"8:0 rbps": 50, "8:16 riops": 5})
    assert effective == {"8:0 rbps": 50, "8:0 wbps": 9, "8:16 riops": 5}
    assert binds == {"8:0 rbps": "/1/2", "8:0 wbps": "/1", "8:16 riops": "/1/2"}


def test_kernel_texts() -> None:
    assert number("max") == MAX
    assert number("-1") == MAX
    assert number("9223372036854771712") == MAX  # memory.limit_in_bytes without a limit, pages of 4 KiB
    assert number("9223372036854710272") == MAX  # … of 64 KiB
    assert number("536870912") == 536870912
    assert quota("max 100000") == MAX
    assert quota("50000 200000") == 25000
    assert numbers("0-1,3\n".strip()) == {0, 1, 3}
    assert numbers("") == frozenset()
    assert keyed("8:0 rbps=1048576 wbps=max riops=max wiops=5\n8:16 rbps=max") == {"8:0 rbps": 1048576, "8:0 wiops": 5}
    assert keyed("sev 10\nsev_es max") == {"sev": 10}
    for text in ("", "1 2 3", "x"):
        with pytest.raises(ValueError):  # noqa: PT011
            number(text)


def test_ancestors() -> None:
    assert ancestors("/") == ["/"]
    assert ancestors("/a/b") == ["/", "/a", "/a/b"]


def test_keys_have_one_name_on_v1_and_v2() -> None:
    v1 = {
        "memory": ["memory.limit_in_bytes", "memory.usage_in_bytes"],
        "cpu": ["cpu.cfs_quota_us", "cpu.cfs_period_us"],
        "pids": ["pids.max", "pids.current"],
        "cpuset": ["cpuset.cpus", "cpuset.mems"],
        "blkio": [f"blkio.throttle.{kind}_device" for kind in ("read_bps", "write_bps", "read_iops", "write_iops")],
        "hugetlb": ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.usage_in_bytes", "hugetlb.2MB.max_usage_in_bytes"],
    }
    names = {key.name for controller, files in v1.items() for key in keys_of((controller,), 1, files)}
    listing = ["memory.max", "memory.current", "memory.low", "cpu.max", "pids.max", "cpuset.cpus", "cpuset.mems"]
    v2 = keys_of(("memory", "cpu", "pids", "cpuset", "io", "hugetlb"), 2, [*listing, "io.max", "hugetlb.2MB.max"])
    assert names == {key.name for key in v2}
    assert "memory.low" not in names  # a promise, not a limit
    usages = {key.name: key.usage for key in v2}
    assert usages["memory.max"] == "memory.current"
    assert usages["hugetlb.2MB.max"] == "hugetlb.2MB.current"
    assert usages["cpu.max"] == ""


def test_who_set_it_names_a_policy_that_can_limit() -> None:
    def said(policy: str, claim: bool = False) -> str:
        mark = Mark("trusted.nestrt", policy=policy)
        web = Guest("web", "/nestrt/web", 1, mark, claim, 0, ("",), [], [], [])
        return _by(Subject({}, View(0, "host", (), [web])), "/nestrt/web", "host")

    assert said("default") == "host"  # as without a file: options alone
    assert said("/etc/nestrt/policies/ci.toml") == "host (policy ci.toml)"
    assert said("nested") == "host (policy nested)"
    assert said("nested", claim=True) == "host"
