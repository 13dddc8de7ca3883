"""Names of control files with a part that varies: "hugetlb.*.max"."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def expand(names: Iterable[str], listing: Iterable[str]) -> tuple[str, ...]:
    """Those of the directory *listing* that one of *names* means, in the listing's order.

    A ``*`` stands for one part between dots: "hugetlb.*.max" is hugetlb.2MB.max, not hugetlb.2MB.rsvd.max.
    """
    plain: set[str] = set()
    patterns: list[list[str]] = []
    for name in names:
        if "*" in name:
            patterns.append(name.split("."))
        else:
            plain.add(name)
    return tuple(name for name in listing if name in plain or any(_means(parts, name) for parts in patterns))


def _means(pattern: list[str], name: str) -> bool:
    parts = name.split(".")
    return len(parts) == len(pattern) and all(
        mine in ("*", theirs) for mine, theirs in zip(pattern, parts, strict=True)
    )


def variable_part(pattern: str, name: str) -> str:
    """What stands for the ``*`` of *pattern* in *name*: "2MB" for "hugetlb.*.max" and "hugetlb.2MB.max"; "" if none."""
    wanted = pattern.split(".")
    if "*" not in wanted or not _means(wanted, name):
        return ""
    return name.split(".")[wanted.index("*")]
