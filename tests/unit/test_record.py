"""``record`` behaves as a frozen-in-spirit dataclass would, without importing one."""

from __future__ import annotations

import pytest

from nestrt.record import record, replace


@record
class Point:
    x: int
    y: int
    label: str = ""


@record
class Point3(Point):
    z: int = 0


def test_fields_by_position_and_by_name() -> None:
    point = Point(1, y=2)
    assert (point.x, point.y, point.label) == (1, 2, "")


def test_fields_are_listed_in_the_order_of_their_annotations() -> None:
    assert Point.FIELDS == ("x", "y", "label")


def test_a_subclass_has_the_fields_of_its_base_first() -> None:
    point = Point3(1, 2, "a", 3)
    assert Point3.FIELDS == ("x", "y", "label", "z")
    assert (point.x, point.label, point.z) == (1, "a", 3)


def test_equality_is_by_type_and_value() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Point3(1, 2) != Point(1, 2)
    assert Point(1, 2) != (1, 2, "")


def test_equal_records_are_one_member_of_a_set() -> None:
    assert len({Point(1, 2), Point(1, y=2), Point(2, 1)}) == 2


def test_repr_shows_what_would_make_it_again() -> None:
    point = Point3(1, 2, "it's", z=-1)
    assert eval(repr(point)) == point


@pytest.mark.parametrize(
    ("args", "named"),
    [
        pytest.param((1,), {}, id="missing"),
        pytest.param((), {"x": 1}, id="missing with names"),
        pytest.param((1, 2, "a", 4), {}, id="too many"),
        pytest.param((1, 2), {"colour": "red"}, id="unknown"),
    ],
)
def test_wrong_fields_are_a_type_error_that_names_the_class(args: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*args, **named)


def test_a_default_is_not_shared_state() -> None:
    first, second = Point(1, 2), Point(1, 2)
    first.label = "changed"
    assert (second.label, Point.label) == ("", "")


def test_replace_changes_a_copy() -> None:
    point = Point3(1, 2, "a", 3)
    assert replace(point, y=5) == Point3(1, 5, "a", 3)
    assert point.y == 2


def test_replace_refuses_an_unknown_field() -> None:
    with pytest.raises(TypeError, match="colour"):
        replace(Point(1, 2), colour="red")
