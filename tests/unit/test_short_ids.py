"""The beginning of an engine's id in place of a guest's name; and that no guest can have another one meant.

    A, B    host's guests, called as engines call containers
    web     host's guest
    C …     claims: of another user, beside them, or inside
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt import __main__
from nestrt.broker.audit_read import Reader
from nestrt.broker.lines import COMMANDS, file_name
from nestrt.cli import _broker_host, _target, audit
from nestrt.cli import guest as command
from nestrt.errors import InputError, NotFound
from nestrt.guest.client import GuestError
from nestrt.host.marks import Mark
from nestrt.host.short import is_short, may_be_short, pick, split, whole_name
from nestrt.host.sight import find
from nestrt.host.walk import Group, Guest, View

A = "1a2b3c4d5e6f" + "0" * 52
B = "1a2bffffffff" + "1" * 52
LIKE_A = "1a2b3c4d5e6f" + "e" * 52
DECIMAL = "123456789012" + "a" * 52


def guest(name: str, *guests: Guest, claim: bool = False, path: str = "") -> Guest:
    path = path or f"/x/{name}"
    groups = [Group(path + "/guest", ("",)), Group(path + "/guest/job", ("",))]
    return Guest(name, path, 1, Mark("user.nestrt"), claim, 0, ("",), groups, list(guests), [])


def meant(name: str, *guests: Guest) -> str:
    return find(View(0, "host", (), list(guests)), name).path


@pytest.mark.parametrize(
    ("word", "short"),
    [
        ("1a2b", True), ("1a2", False), (A[:12], True), (A[:63], True), (A, False), ("1A2B", False), ("web", False),
        ("1234", False), ("4194304", False), ("12345678", True), (DECIMAL[:12], True), ("", False), ("١٢٣٤٥٦٧٨", False),
    ],
)  # fmt: skip
def test_what_may_be_a_beginning(word: str, short: bool) -> None:
    """No pid is: those have seven digits at the most."""
    assert is_short(word) == short


def test_names_in_parts() -> None:
    assert [split(name) for name in ("web", "web/db:/job", "web:/a/b", "", "/x")] == [
        ("web", ""), ("web", "/db:/job"), ("web", ":/a/b"), ("", ""), ("", "/x"),
    ]  # fmt: skip
    assert [may_be_short(name) for name in ("web", "web/1a2b", "1a2b:/x", "web:/1a2b", "/1a2b", "")] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


def test_a_beginning_that_one_has() -> None:
    everyone = (guest(A), guest(B), guest("web"))
    assert {meant(word, *everyone) for word in (A, A[:12], A[:5], "1a2b3")} == {f"/x/{A}"}
    assert meant("1a2bf", *everyone) == f"/x/{B}"
    with pytest.raises(NotFound, match="guest 1a2c3: there is no such guest"):
        meant("1a2c3", *everyone)
    with pytest.raises(NotFound):
        meant("1a2", guest(A))


def test_of_several_all_are_named() -> None:
    with pytest.raises(InputError) as caught:
        meant("1a2b", guest(A), guest(B))
    assert str(caught.value) == f"cannot tell which guest is meant by 1a2b: 2 ids begin so; say {A} or {B}"
    many = [guest(f"1a2b{number:x}".ljust(64, "0")) for number in range(16, 36)]
    with pytest.raises(InputError, match=r"20 ids begin so; say 1a2b10.* or 12 more$"):
        meant("1a2b", *many)


def test_a_whole_name_comes_first() -> None:
    assert meant("1a2b", guest(A), guest("1a2b"), guest(B)) == "/x/1a2b"
    # Only ids are known by their beginnings.
    for name in ("1a2b3c4d5e6f-shop", A[:63], A[:-1] + "z", A[:-1] + "A"):
        with pytest.raises(NotFound):
            meant("1a2b3", guest(name))


def test_on_the_way_to_a_group_or_a_guest() -> None:
    inner = guest(f"{A}/{B}", claim=True, path=f"/x/{A}/guest/nestrt/{B}")
    db = guest(f"{A}/db", claim=True, path=f"/x/{A}/guest/nestrt/db")
    guests = [guest(A, inner, db), guest("web")]
    for name, found in {
        "1a2b3:/job": f"{A}:/job", "1a2b3/db": f"{A}/db", "1a2b3/db:/1a2b": f"{A}/db:/1a2b", "1a2b/1a2b": f"{A}/{B}",
        f"{A}/1a2bff:/job": f"{A}/{B}:/job", "1a2b3/none": f"{A}/none", "web/1a2b": "web/1a2b",
        "none/1a2b": "none/1a2b", "/1a2b": "/1a2b", "1a2b3/": f"{A}/", "1a2b3//db": f"{A}//db",
    }.items():  # fmt: skip
        assert whole_name(name, guests) == found, name
    assert meant("1a2b3/1a2b", *guests) == inner.path
    with pytest.raises(NotFound, match=rf"guest 1a2b3/job: there is no such guest; did you mean {A}:/job\?"):
        meant("1a2b3/job", *guests)


def test_a_guests_guest_has_no_part_in_names_of_this_level() -> None:
    """It may be called as the host's guest is, or so that the beginning would be of two, or be all of the name."""
    for name in (A, LIKE_A, A[:12], "1a2b"):
        web = guest("web", guest(f"web/{name}", claim=True, path="/x/web/guest/nestrt/c"))
        for order in ((web, guest(A)), (guest(A), web)):
            assert meant(A[:12], *order) == meant("1a2b", *order) == f"/x/{A}"
        # Nor does it take the place of one that has gone.
        with pytest.raises(NotFound):
            meant(A[:12], web)


def test_a_claim_beside_the_hosts_guests_hides_none() -> None:
    """A user's mark says what that user likes: also just what root has typed."""
    for name in (A, LIKE_A, A[:12], "1a2b"):
        claim = guest(name, claim=True, path="/user.slice/c")
        for order in ((claim, guest(A)), (guest(A), claim)):
            assert meant(A[:12], *order) == meant("1a2b", *order) == f"/x/{A}"
            assert whole_name("1a2b/db", list(order)) == f"{A}/db"
    # Where nothing of this level is meant, claims are found as by their names.
    assert meant(A[:12], guest(LIKE_A, claim=True), guest("web")) == f"/x/{LIKE_A}"
    assert meant("1a2b", guest("1a2b", claim=True), guest(LIKE_A, claim=True)) == "/x/1a2b"
    with pytest.raises(InputError, match="2 groups claim this name; say /a or /b"):
        meant(A[:12], guest(A, claim=True, path="/a"), guest(A, claim=True, path="/b"))


def test_guests_in_a_guest_are_told_apart_among_themselves() -> None:
    inner = [guest(f"web/{name}", claim=True, path=f"/w/{name}") for name in (A, B, "1a2b:c")]
    guests = [guest("web", *inner), guest(LIKE_A)]
    assert whole_name("web/1a2b3", guests) == f"web/{A}"
    with pytest.raises(InputError, match=f"say {A} or {B}"):
        whole_name("web/1a2b", guests)
    assert meant("web/1a2b:c", *guests) == "/w/1a2b:c"  # the group's own name


NAMES = st.lists(st.sampled_from([A, B, LIKE_A, "1a2b", "web"]), max_size=4)


@given(st.text(alphabet="12ab/:.é\n", max_size=20), NAMES)
def test_any_name(name: str, names: list[str]) -> None:
    """What is found is one that is there, by its whole name or a beginning of it."""
    guests = [guest(each, path=f"/x/{number}") for number, each in enumerate(names)]
    try:
        found = whole_name(name, guests)
    except InputError:
        return
    assert found == name or (split(found)[0] in names and split(found)[0].startswith(split(name)[0]))


def test_ranks() -> None:
    assert pick("1a2b", [], [A], [B]) == A
    assert pick(B, [A], [B]) == B
    assert pick("1a2b", ["web"], []) is None


def test_the_audit_of_one_that_has_ended(tmp_path: Path) -> None:
    for name in (A, B, f"{A}/db", "web"):
        (tmp_path / file_name(name)).write_text("")
    os.rename(tmp_path / file_name(B), tmp_path / (file_name(B) + ".1"))
    (tmp_path / file_name(A, COMMANDS)).write_text("")
    reader = Reader(os.fspath(tmp_path))
    words = {A[:12]: A, "1a2bf": B, "1a2b3/db": f"{A}/db", "web": "web", "dead": "dead", "": ""}
    assert {word: audit._named(word, reader) for word in words} == words
    with pytest.raises(InputError, match="2 ids begin so"):
        audit._named("1a2b", reader)


def test_who_asks_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def served() -> list[dict[str, str]]:
        asked.append("")
        return [{"name": A}, {"name": "web"}]

    monkeypatch.setattr(_broker_host, "_served", served)
    assert [_broker_host._named(name) for name in ("web", "/x/web", A)] == ["web", "/x/web", A]
    assert not asked
    assert [_broker_host._named(name) for name in ("1a2b", "dead")] == [A, "dead"]


def test_the_word_that_names_a_container_becomes_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other: not what is an option's value, or a word for the program."""
    monkeypatch.setattr(_target, "whole_id", lambda root, word: A if word == "1a2b" else "")
    for verb, words, named in (
        ("exec", ["--cwd", "1a2b", "1a2b", "cat", "1a2b"], ["--cwd", "1a2b", A, "cat", "1a2b"]),
        ("exec", ["1a2b", "--", "1a2b"], [A, "--", "1a2b"]),
        ("kill", ["--", "1a2b", "TERM"], ["--", A, "TERM"]),
        ("update", ["-r", "1a2b", "1a2b"], ["-r", "1a2b", A]),
    ):
        assert __main__._form(verb, "/none", words) == "runtime", verb
        assert words == named
    words = ["2b3c"]
    assert (__main__._form("kill", "/none", words), words) == ("either", ["2b3c"])


def test_guest_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """``nestrt guest --of 1a2b`` says so as well."""
    guests = [guest(A), guest(B)]
    monkeypatch.setattr("nestrt.host.walk.walk_to", lambda hierarchies, names: View(0, "host", (), guests))
    with pytest.raises(GuestError, match="2 ids begin so") as caught:
        command.engine_group("1a2b", "find guest '1a2b'")
    assert caught.value.status == 2
    assert command.engine_group("1a2bf", "") == (f"/x/{B}", B)
    guests[1] = guest(B, claim=True)
    assert command.engine_group("1a2bf", "") is None
