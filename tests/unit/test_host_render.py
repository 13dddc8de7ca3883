"""Pictures: trees, tables, sizes; and finding a guest by what a user types."""

from __future__ import annotations

import pytest

from nestrt.errors import InputError, NotFound
from nestrt.host.details import _asked
from nestrt.host.marks import Mark
from nestrt.host.render import ASCII, Node, ago, draw, human, moment, table
from nestrt.host.sight import count_groups, find
from nestrt.host.walk import MOST_LEVELS, Group, Guest, View, _Place, _sort_in


def guest(name: str, path: str, *guests: Guest, claim: bool = False) -> Guest:
    groups = [Group(path + "/guest", ("",)), Group(path + "/guest/init", ("",))]
    return Guest(name, path, 1, Mark("user.nestrt"), claim, 0, ("",), groups, list(guests), [])


def test_draw() -> None:
    web = Node("web", [Node("init", []), Node("jobs", [Node("1", [])])])
    tree = Node("host", [web, Node("db", [Node("init", [])])])
    assert draw(tree) == [
        "host",
        "├─ web",
        "│  ├─ init",
        "│  └─ jobs",
        "│     └─ 1",
        "└─ db",
        "   └─ init",
    ]
    assert draw(tree, ASCII)[1:4] == ["|- web", "|  |- init", "|  `- jobs"]


def test_draw_does_not_recurse() -> None:
    tree = Node("bottom", [])
    for _ in range(5000):
        tree = Node("group", [tree])
    assert len(draw(tree)) == 5001


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (-1, "max"),
        (0, "0"),
        (1023, "1023"),
        (1024, "1K"),
        (1536, "1.5K"),
        (536870912, "512M"),
        (1048575, "1M"),
        (1 << 30, "1G"),
        (1 << 61, "2048P"),
    ],
)
def test_human(size: int, text: str) -> None:
    assert human(size) == text


def test_limits_of_a_mark_have_units() -> None:
    marked = {"memory": 64 << 20, "swap": -1, "cpu_quota": 150000, "pids": -1, "cpu_weight": 100, "cpus": "0-1"}
    assert _asked({**marked, "hugetlb": {"2MB": 4 << 20}}, raw=False) == {
        "memory": "64M", "swap": "max", "cpu_quota": "1.5", "pids": "max", "cpu_weight": 100, "cpus": "0-1",
        "hugetlb": {"2MB": "4M"},
    }  # fmt: skip
    assert _asked(marked, raw=True) == marked
    # Of a claim nothing is certain.
    odd = {"memory": 10**400, "swap": True, "cpu_quota": "x", "pids": [1], "cpus": None, "io": {"a": {"b": 1}}}
    assert _asked(odd, raw=False) == odd
    assert _asked(None, raw=False) == {}


def test_times() -> None:
    assert [ago(seconds) for seconds in (-3, 5, 65, 7300, 90000)] == ["0s", "5s", "1m", "2h", "1d"]
    assert moment(1763770000) == "2025-11-22T00:06:40Z"
    assert moment(-1) == "-"
    assert moment((1 << 63) - 1) == "-"


def test_table_is_aligned_and_cut() -> None:
    rows = [("NAME", "X", "COMMAND"), ("a-long-name", "1", "sh -c true")]
    assert table(rows) == ["NAME         X  COMMAND", "a-long-name  1  sh -c true"]
    assert table(rows, 16) == ["NAME         X  ", "a-long-name  1  "]


def test_find() -> None:
    """
    web            /nestrt/web                     word of the host
    └ web/db       /nestrt/web/guest/nestrt/db
    web (claim)    /user/web                       somebody else calls his group "web"
    x, x (claims)  /user/1/x, /user/2/x
    """
    inner = guest("web/db", "/nestrt/web/guest/nestrt/db", claim=True)
    web = guest("web", "/nestrt/web", inner)
    other = guest("web", "/user/web", claim=True)
    view = View(0, "host", (), [other, web, guest("x", "/user/1/x", claim=True), guest("x", "/user/2/x", claim=True)])
    assert find(view, "web") is web
    assert find(view, "/user/web") is other
    assert find(view, "web/db") is inner
    with pytest.raises(InputError, match=r"2 groups claim.*/user/1/x or /user/2/x"):
        find(view, "x")
    with pytest.raises(NotFound, match="did you mean web/db") as caught:
        find(view, "web/dv")
    assert caught.value.status == 3
    with pytest.raises(NotFound, match="did you mean web/db:/init"):
        find(view, "web/db/init")  # a group, which tree and why take
    with pytest.raises(NotFound, match="no guest in sight"):
        find(View(0, "host", (), []), "web")
    assert count_groups(web) == 5


def test_no_more_guests_in_each_other_than_can_be_shown_in_time() -> None:
    """A guest marks every group of a deep tree: what is said of each costs what is around it and below."""
    places = {"/w" + "/n" * depth: _Place([""], Mark("user.nestrt", "n"), 0, True) for depth in range(250)}
    view = View(0, "host", (), [])
    _sort_in(view, places)
    guests = list(view.everyone())
    assert [found.level for found in guests] == list(range(1, MOST_LEVELS + 1))
    assert len(guests[-1].groups) == 250 - MOST_LEVELS
