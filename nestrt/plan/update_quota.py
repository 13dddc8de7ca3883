"""The writes that give a tree of v1 groups another CPU quota, in order. Values in, writes out: pure.

A group's quota and period are two files, so that between two writes it has a pair that nobody
asked for; whoever is killed there leaves it so. That pair must be no more of a CPU than the old
or the new one, and v1 refuses a child more than its parent at every moment (sched-bwc.rst,
"Hierarchical considerations"). So the pair between has the smaller share, and
whatever is below and has more than that steps down before and comes back afterwards.
"""

from __future__ import annotations

from nestrt.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Pair = tuple[int, int]  # quota (-1: none) and period in µs
    Pairs = dict[str, Pair]  # by the group's path, a parent before its children

QUOTA, CFS_PERIOD, BURST = "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us"
# µs: min_cfs_quota_period, max_cfs_quota_period and MAX_BW, kernel/sched/core.c and sched.h.
LEAST, LONGEST, MOST = 1000, 1_000_000, (1 << 44) - 1
INFINITE = 1 << 62
_SHIFT = 20  # BW_SHIFT, kernel/sched/sched.h


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def ratio(quota: int, period: int) -> int:
    """The share of a CPU as the kernel compares it: to_ratio(), kernel/sched/core.c. No limit is the largest."""
    return INFINITE if quota < 0 else (quota << _SHIFT) // period


def check(quota: int, period: int) -> Pair:
    """The pair, if the kernel knows such ones: before anything below steps down for it. Raises InputError."""
    if not LEAST <= period <= LONGEST:
        raise InputError(
            "use", f"linux.resources.cpu.period {period}", "invalid argument", f"write {LEAST} to {LONGEST} µs"
        )
    if quota >= 0 and not LEAST <= quota <= MOST:
        raise InputError(
            "use", f"linux.resources.cpu.quota {quota}", "invalid argument", f"write µs from {LEAST} on, or -1 for none"
        )
    return max(quota, -1), period


def final_pairs(groups: Pairs, wanted: Pairs) -> Pairs:
    """What *groups* have in the end: what is *wanted*, or what they have, cut down to what there is above."""
    found: Pairs = {}
    bound: Pairs = {}  # what holds a group's children: its own, or what holds itself
    for path, (has, per) in groups.items():
        most, span = bound.get(_parent(path), (-1, 1))
        if path in wanted:
            found[path] = wanted[path]
        elif has < 0 or ratio(has, per) <= ratio(most, span):
            found[path] = (has, per)
        else:
            less = most * per // span
            found[path] = (less, per) if less >= LEAST else (most, span)
        bound[path] = found[path] if found[path][0] >= 0 else (most, span)
    return found


def _steps(old: Pair, new: Pair) -> list[tuple[str, int, Pair]]:
    """(file, value, the pair then) from *old* to *new*: at no time more of a CPU than the larger of both."""
    (has, per), (quota, period) = old, new
    # The longer period with the smaller quota. Where one of both is no quota, nothing is between.
    period_first = has < 0 or (quota >= 0 and period > per)
    if period_first:
        steps = [(CFS_PERIOD, period, (has, period)), (QUOTA, quota, new)]
    else:
        steps = [(QUOTA, quota, (quota, per)), (CFS_PERIOD, period, new)]
    same = {QUOTA: has, CFS_PERIOD: per}
    return [step for step in steps if step[1] != same[step[0]]]


def _least(pairs: Iterable[Pair]) -> int:
    return min(ratio(*pair) for pair in pairs)


def _lowered(pair: Pair, goal: Pair, cap: int) -> Pair:
    """A pair of at most *cap* with no more quota and no shorter period than *pair*; one on the way to *goal* first."""
    quota, period = pair
    if quota < 0 or ratio(quota, period) <= cap:
        return pair
    for less, longer in (
        (goal[0], period),
        (quota, goal[1]),
        # A longer period before a smaller quota, which the burst would have to fit.
        (quota, (quota << _SHIFT) // (cap + 1) + 1),
        (((cap + 1) * period - 1) >> _SHIFT, period),
    ):
        if LEAST <= less <= quota and period <= longer <= LONGEST and ratio(less, longer) <= cap:
            return less, longer
    return LEAST, min(LONGEST, (LEAST << _SHIFT) // (cap + 1) + 1)


def quota_writes(groups: Pairs, final: Pairs) -> list[tuple[str, str, int]]:
    """(group, file, value) in order, that take *groups* to *final*, each of which fits what is above it there.

    After each write every child is within its parent, and no group has more than before and in the end.
    """
    low: Pairs = {}
    room: dict[str, int] = {}  # the least that a group has on the whole way
    for path, pair in groups.items():
        cap, goal = room.get(_parent(path), INFINITE), final[path]
        if goal[0] >= 0 and ratio(*goal) <= min(cap, ratio(*pair)):
            low[path] = goal
        elif pair[0] < 0 <= goal[0]:
            low[path] = _lowered(goal, goal, cap)
        else:
            low[path] = _lowered(pair, goal, cap)
        down, up = _steps(pair, low[path]), _steps(low[path], goal)
        room[path] = min(cap, _least([pair, low[path], goal, *(step[2] for step in (*down, *up))]))
    return [
        *((path, *step[:2]) for path in reversed(groups) for step in _steps(groups[path], low[path])),
        *((path, *step[:2]) for path in groups for step in _steps(low[path], final[path])),
    ]
