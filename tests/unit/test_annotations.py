"""Annotations of a bundle: what each says, every mistake by its name, and nothing that a terminal obeys."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.errors import InputError
from nestrt.level import toml
from nestrt.level.annotations import (
    FIELDS,
    INTEGERS,
    KNOWN,
    PROFILES,
    from_annotations,
    own,
    policy_name,
    profile,
    read_annotations,
)
from nestrt.level.policy import Policy
from nestrt.level.toml import load_policy
from nestrt.record import replace

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "policies"


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("nestrt.level.max_level", "5", "max_level", 5),
        ("nestrt.level.override", "true", "override", True),
        ("nestrt.level.strict", "true", "strict", True),
        ("nestrt.view.mount", "ro", "mount", "ro"),
        ("nestrt.view.controllers", "all", "controllers", None),
        ("nestrt.view.controllers", "cpu, blkio,io", "controllers", ("cpu", "io")),
        ("nestrt.view.start_in", ".", "start_in", "."),
        ("nestrt.view.cpus", "host", "cpus", "host"),
        ("nestrt.partition.cpu", "false", "divide_cpu", False),
        ("nestrt.partition.memory", "false", "divide_memory", False),
        ("nestrt.partition.pids", "false", "divide_pids", False),
        ("nestrt.partition.io", "false", "divide_io", False),
        ("nestrt.partition.devices", "false", "divide_devices", False),
        ("nestrt.partition.max_groups", "20", "max_groups", 20),
        ("nestrt.partition.max_depth", "3", "max_depth", 3),
    ],
)
def test_each_annotation_sets_its_field_and_makes_a_guest(key: str, text: str, field: str, value: object) -> None:
    policy = from_annotations([("other", "x"), (key, text)])
    assert policy == replace(Policy(), **{field: value}, source="default with annotations")


def test_what_makes_a_guest_and_what_does_not() -> None:
    assert from_annotations([]) is None
    assert from_annotations([("io.nestrt.policy", "x"), ("Nestrt.policy", "x"), ("nestrt", "x")]) is None
    assert from_annotations([("nestrt.level.virtualize", "true")]) == Policy(source="default with annotations")
    assert from_annotations([("nestrt.policy", "default")]) == Policy()
    off = [("nestrt.level.virtualize", "false"), ("nestrt.view.mount", "ro")]
    assert from_annotations(off) is None
    host = Policy(max_level=2, source="host")
    assert from_annotations([], host) == host
    assert from_annotations(off, host) is None
    assert from_annotations([], replace(host, virtualize=False)) is None
    asked = from_annotations([("nestrt.view.mount", "ro")], host)
    assert asked == replace(host, mount="ro", source="host with annotations")


def test_a_named_policy_takes_the_place_of_the_hosts() -> None:
    assert from_annotations([("nestrt.policy", "strict")], Policy(max_level=9)) == profile("strict")
    with pytest.raises(InputError, match="did you mean strict"):
        from_annotations([("nestrt.policy", "strickt")])


@pytest.mark.parametrize("name", PROFILES)
def test_built_in_policies_are_those_of_the_examples(name: str) -> None:
    written = load_policy((EXAMPLES / f"{name}.toml").read_text(), name)
    assert profile(name) == written


def test_bounds_are_those_of_the_policy_file() -> None:
    assert INTEGERS["max_groups"][1] == toml.GROUPS_LIMIT
    assert INTEGERS["max_depth"][1] == toml.DEPTH_LIMIT


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("nestrt.level.max_levl", "3", "did you mean nestrt.level.max_level"),
        ("nestrt.levels", "3", "unknown annotation"),
        ("nestrt.", "3", "unknown annotation"),
        ("nestrt.level.max_level", "0", "out of range"),
        ("nestrt.level.max_level", "33", "out of range"),
        ("nestrt.level.max_level", "three", "not a number"),
        ("nestrt.level.max_level", "", "not a number"),
        ("nestrt.level.max_level", "٣", "not a number"),
        ("nestrt.level.max_level", "9" * 5000, "characters are too many"),
        ("nestrt.level.override", "True", "neither true nor false"),
        ("nestrt.level.virtualize", "1", "neither true nor false"),
        ("nestrt.view.mount", "rww", "did you mean"),
        ("nestrt.view.controllers", "", "no controller"),
        ("nestrt.view.controllers", "cpu,,io", "no controller"),
        ("nestrt.view.controllers", "../x", "no controller"),
        ("nestrt.view.controllers", "a," * 100, "too many"),
        ("nestrt.view.start_in", "../..", "unknown"),
        ("nestrt.partition.max_groups", "1", "out of range"),
        ("nestrt.policy", "", "cannot be one"),
        ("nestrt.policy", "../../root/x", "cannot be one"),
        ("nestrt.policy", "/etc/passwd", "cannot be one"),
        ("nestrt.policy", ".hidden", "cannot be one"),
        ("nestrt.policy", "x" * 65, "cannot be one"),
        ("nestrt.policy", "none-such", "none of that name"),
    ],
)
def test_mistakes_name_the_annotation(key: str, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        from_annotations([(key, text)])
    assert key in str(caught.value) or key == "nestrt.policy"
    assert len(str(caught.value)) < 700


def test_all_mistakes_can_be_had_at_once() -> None:
    errors: list[InputError] = []
    read_annotations({"nestrt.view.mount": "x", "nestrt.level.override": "y", "nestrt.zzz": "z"}, errors)
    assert len(errors) == 3


@pytest.mark.parametrize("key", KNOWN)
def test_hundred_megabytes_are_refused_at_once(key: str) -> None:
    value = "9" * 100_000_000
    begin = time.process_time()
    with pytest.raises(InputError) as caught:
        from_annotations([(key, value)])
    assert time.process_time() - begin < 0.5
    assert len(str(caught.value)) < 300


def test_hundred_megabytes_of_a_name_are_refused_at_once() -> None:
    begin = time.process_time()
    with pytest.raises(InputError) as caught:
        from_annotations([("nestrt." + "x" * 100_000_000, "1")])
    assert time.process_time() - begin < 0.5  # one copy, to find out what it begins with
    assert len(str(caught.value)) < 700


@given(st.lists(st.tuples(st.sampled_from([*KNOWN, "nestrt.x"]) | st.text().map("nestrt.{}".format), st.text())))
def test_garbage_is_a_policy_none_or_one_line(annotations: list[tuple[str, str]]) -> None:
    try:
        policy = from_annotations(annotations)
    except InputError as error:
        line = str(error)
        assert line.isprintable()
        assert len(line) < 1500
    else:
        assert policy is None or isinstance(policy, Policy)
        assert policy is not None or not own(annotations) or dict(annotations)["nestrt.level.virtualize"] == "false"


@given(st.text())
def test_a_policys_name_is_never_a_path(text: str) -> None:
    try:
        assert policy_name(text) == text
    except InputError:
        return
    assert "/" not in text
    assert not text.startswith(".")
    assert "\0" not in text
    assert text.isprintable()


def test_every_field_of_the_first_three_tables_has_an_annotation() -> None:
    """And nothing of [user] or [limits], which are the document's own."""
    user = {"user_namespace", "uid_map", "gid_map", "capabilities", "no_new_privs", "masked"}
    assert set(FIELDS.values()) == set(Policy().__dict__) - user - {"limits", "source", "broker_most"}
