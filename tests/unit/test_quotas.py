"""Quotas of one guest at its broker: from policy file, annotation and bound, by the mark, to what the broker does.

    [broker] requests ─┐                                        --requests of the broker ─┐
    annotation ────────┼─> decide() ─> quota() ─> mark ─> marks.parse() ─> of_guest() ────┴─> Options
    bound ─────────────┘
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.broker.quota import Options, Quota, of_guest
from nestrt.cli import _broker_host
from nestrt.cli.policy import main
from nestrt.errors import HostError, InputError
from nestrt.host.marks import TRUSTED, Mark, parse
from nestrt.level.annotations import from_annotations
from nestrt.level.binding import Bindings, Bundle, Rule, decide, resolve
from nestrt.level.policy import QUOTAS, Policy
from nestrt.level.rules import origins, problems
from nestrt.level.toml import find_mistakes, load_policy
from nestrt.plan.groups import quota
from nestrt.probe.policies import from_fields, to_fields
from nestrt.record import replace

FLAGS = Options(requests=1000, connections=64, message_bytes=65536)
KEYS = ("nestrt.broker.requests", "nestrt.broker.connections", "nestrt.broker.message")


def marked(**values: Any) -> Mark:
    """A mark with these beside what every mark has, as it comes out of an attribute."""
    return parse(json.dumps({"v": 1, "name": "web", "state": "running", **values}).encode(), TRUSTED)


def effective(policy: Policy | None, flags: Options = FLAGS) -> Options:
    assert policy is not None
    return of_guest(flags, marked(**quota(policy)))


def test_a_policy_file_says_each() -> None:
    policy = load_policy('[broker]\nrequests = 5\nconnections = 3\nmessage = "4K"\n', "x")
    assert policy == Policy(broker_requests=5, broker_connections=3, broker_message=4096, source="x")
    assert load_policy("[broker]\nmessage = 1024\n", "x").broker_message == 1024
    assert load_policy("[broker]\n", "x") == Policy(source="x")


@pytest.mark.parametrize(
    ("line", "place", "hint"),
    [
        ("requests = 0", "requests", "1 to 1000000"),
        ("requests = -5", "requests", "1 to 1000000"),
        ("requests = 1000001", "requests", "1 to 1000000"),
        ("requests = true", "requests", "not a number"),
        ("requests = 1.5", "requests", "not a number"),
        ('requests = "10"', "requests", "not a number"),
        ("connections = 0", "connections", "1 to 10000"),
        ("connections = 10001", "connections", "1 to 10000"),
        ("message = 1023", "message", "1024 to 4194304"),
        ('message = "5M"', "message", "1024 to 4194304"),
        ('message = "max"', "message", "1024 to 4194304"),
        ("message = -1", "message", "64K"),
        (f"message = {1 << 70}", "message", "quotes"),
        ("message = false", "message", "quotes"),
        ('message = "lots"', "message", "64K"),
        ("request = 5", "request", "did you mean requests?"),
    ],
)
def test_mistakes_in_a_file(line: str, place: str, hint: str) -> None:
    (error,) = find_mistakes(f"[broker]\n{line}\n", "x.toml")
    assert error.obj == f"policy x.toml, [broker] {place}"
    assert hint in str(error)
    assert error.remedy


def test_annotations_say_each() -> None:
    policy = from_annotations([(KEYS[0], "5"), (KEYS[1], "3"), (KEYS[2], "4K")])
    assert policy is not None
    assert (policy.broker_requests, policy.broker_connections, policy.broker_message) == (5, 3, 4096)
    for key, text in (
        (KEYS[0], "0"), (KEYS[0], "9" * 30), (KEYS[0], "x"), (KEYS[0], "5K"), (KEYS[0], ""), (KEYS[1], "10001"),
        (KEYS[2], "512"), (KEYS[2], "1G"), (KEYS[2], "max"), (KEYS[2], ""), (KEYS[2], "-1"), (KEYS[2], "9" * 5000),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            from_annotations([(key, text)])
        assert key in caught.value.obj
        assert caught.value.remedy


# What is asked, what the host's policy has, what its bound has, None: nothing. What the policy then has, "no": refused;
# and whether that holds only where the broker's own is not less.
@pytest.mark.parametrize(
    ("asked", "base", "bound", "has", "most"),
    [
        (None, "none", "none", None, False),
        (500, "none", "none", 500, True),
        (5000, "none", "none", 5000, True),
        (None, None, "none", None, False),
        (5000, None, "none", 5000, True),
        (None, 5000, "none", 5000, False),  # with no bound named the policy is its own
        (4000, 5000, "none", 4000, False),
        (5001, 5000, "none", "no", False),
        (None, "none", 300, 300, True),  # nobody asked: no more than the bound, and no more than the broker's
        (200, "none", 300, 200, False),
        (300, "none", 300, 300, False),
        (301, "none", 300, "no", False),
        (5000, "none", 9000, 5000, False),
        (None, 100, 300, 100, False),
        (250, 100, 300, 250, False),
        (301, 100, 300, "no", False),
        (None, 5000, None, 5000, False),  # the host's own word
        (4000, 5000, None, 4000, False),
        (5001, 5000, None, 5001, True),
        (500, None, None, 500, True),
    ],
)
def test_what_a_bundle_gets(asked: int | None, base: Any, bound: Any, has: Any, most: bool) -> None:
    known = {name: Policy(broker_requests=value) for name, value in (("a", base), ("b", bound)) if value != "none"}
    rule = Rule(policy="a" if "a" in known else "", bound="b" if "b" in known else "")
    annotations = [("nestrt.level.broker", "none"), *([] if asked is None else [(KEYS[0], str(asked))])]
    bindings = Bindings((rule,), known)
    if has == "no":
        with pytest.raises(InputError, match=rf"{KEYS[0]}: it asks for {asked}, and .* allows \d+ .* or less"):
            decide(annotations, bindings, Bundle())
        return
    decision = decide(annotations, bindings, Bundle())
    assert decision.policy is not None
    assert (decision.policy.broker_requests, decision.policy.broker_most) == (has, ("broker_requests",) if most else ())
    came = origins(annotations, decision)[KEYS[0]]
    assert ("annotation" in came) == (asked is not None)
    if asked is None and most:
        assert came.startswith("bound")
    expected = FLAGS.requests if has is None else min(has, FLAGS.requests) if most else has
    assert effective(decision.policy).requests == expected


def test_a_named_policy_is_bounded_as_annotations_are() -> None:
    big = Policy(broker_requests=5000, broker_message=1 << 20)
    named = [("nestrt.policy", "big")]
    policy = resolve(named, Bindings((), {"big": big}), Bundle())
    assert effective(policy) == FLAGS
    assert effective(policy, replace(FLAGS, requests=9000)).requests == 5000
    small = Policy(broker_requests=300, broker_message=2048)
    words = r"nestrt.policy: it asks for broker_requests = 5000, and rule 1 .* allows 300"
    with pytest.raises(InputError, match=words):
        resolve(named, Bindings((Rule(bound="small"),), {"big": big, "small": small}), Bundle())
    with pytest.raises(InputError, match=r"it asks for 64K, and rule 1 .* allows 2K"):
        resolve([(KEYS[2], "65536")], Bindings((Rule(bound="small"),), {"small": small}), Bundle())


def test_a_rule_whose_policy_is_more_than_its_bound() -> None:
    known = {"a": Policy(broker_message=8192), "b": Policy(broker_message=4096)}
    (problem,) = problems(Bindings((Rule(policy="a", bound="b"),), known))
    assert "policy a has broker_message = 8K, its bound b 4K" in str(problem)
    assert isinstance(problem, HostError)


numbers = st.none() | st.integers(*QUOTAS["broker_connections"])
three = st.builds(Policy, broker_requests=numbers, broker_connections=numbers)


@given(numbers, st.none() | three, st.none() | three, st.integers(1, 10_000))
def test_nobody_but_the_host_gives_more_than_the_broker_does(
    asked: int | None, base: Policy | None, bound: Policy | None, flag: int
) -> None:
    known = {name: policy for name, policy in (("a", base), ("b", bound)) if policy is not None}
    rule = Rule(policy="a" if base else "", bound="b" if bound else "")
    annotations = [("nestrt.level.broker", "none"), *([] if asked is None else [(KEYS[1], str(asked))])]
    try:
        decision = decide(annotations, Bindings((rule,), known), Bundle())
    except (InputError, HostError):
        return
    found = effective(decision.policy, replace(FLAGS, connections=flag)).connections
    most = bound or base or Policy()
    given_ = [one.broker_connections for one in (base, bound) if one is not None and one.broker_connections is not None]
    assert found <= max(flag, *given_, 0)
    assert most.broker_connections is None or found <= most.broker_connections
    assert asked is None or found <= asked
    if asked is None and base is not None and base.broker_connections is not None:
        assert found == base.broker_connections
    if asked is None and not given_:
        assert found == flag


def test_a_mark_has_what_was_said_and_nothing_else() -> None:
    assert quota(Policy()) == {}
    policy = Policy(broker_requests=5, broker_message=2048, broker_most=("broker_message",))
    assert quota(policy) == {"quota": {"requests": 5}, "quota_most": {"message": 2048}}
    assert effective(policy) == replace(FLAGS, requests=5, message_bytes=2048)
    assert effective(policy, replace(FLAGS, requests=1, message_bytes=1024)).message_bytes == 1024
    whole = Policy(broker_requests=10**6, broker_connections=10_000, broker_message=1 << 22)
    assert effective(whole) == replace(FLAGS, requests=10**6, connections=10_000, message_bytes=1 << 22)


@pytest.mark.parametrize("wrong", [
    0, -1, -(1 << 62), 1 << 62, 1 << 70, True, False, 1.5, "5", None, [5], {"most": 5}, [], {},
])  # fmt: skip
def test_what_no_policy_can_say_counts_as_not_there(wrong: Any) -> None:
    for name in ("quota", "quota_most"):
        for key in ("requests", "connections", "message"):
            assert of_guest(FLAGS, marked(**{name: {key: wrong}})) == FLAGS
        assert of_guest(FLAGS, marked(**{name: wrong})) == FLAGS
    good = {"requests": wrong, "connections": 3, "other": 5}
    assert of_guest(FLAGS, marked(quota=good)) == replace(FLAGS, connections=3)
    assert of_guest(FLAGS, Mark(TRUSTED)) == FLAGS


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["requests", "connections", "message"]) | st.text(max_size=5), inner, max_size=4), max_leaves=8,
)  # fmt: skip


@given(trees, trees)
def test_any_mark_gives_quotas_that_a_broker_can_work_with(instead: Any, most: Any) -> None:
    found = of_guest(FLAGS, marked(quota=instead, quota_most=most))
    values = (found.requests, found.connections, found.message_bytes)
    for value, (low, high) in zip(values, QUOTAS.values(), strict=True):
        assert type(value) is int
        assert low <= value <= high
    assert found.audit == FLAGS.audit


def test_the_bucket_follows() -> None:
    one = Quota(FLAGS)
    assert (one.bucket.rate, one.bucket.burst, one.told["requests_per_second"]) == (1000, 250.0, 1000)
    one.learn(marked(quota={"requests": 8}))
    assert one.told == {"requests_per_second": 8, "connections": 64, "message_bytes": 65536}
    waits = [one.bucket.take() for _ in range(12)]
    assert waits[:10] == [0.0] * 10  # what it began with was the usual burst, and does not stay
    assert 0.1 < waits[11] <= 0.25


def test_policies_are_kept_with_them() -> None:
    """In /run/nestrt/policies.json and in the hooks' records; a record of before has none."""
    policy = Policy(broker_requests=5, broker_message=2048, broker_most=("broker_message",))
    written = json.loads(json.dumps(to_fields(policy)))
    assert from_fields(written) == policy
    before = {key: value for key, value in written.items() if not key.startswith("broker_")}
    assert from_fields(before) == Policy()


def test_explain_shows_them(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    words = ["explain", "--directory", str(tmp_path), "-a", f"{KEYS[0]}=500", "-a", f"{KEYS[2]}=128K"]
    assert main(words) == 0
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert rows[KEYS[0]] == f"at most 500 annotation {KEYS[0]}"
    assert rows[KEYS[1]] == "the broker's default"
    assert rows[KEYS[2]] == f"at most 128K annotation {KEYS[2]}"


def test_status_of_brokers_old_and_new() -> None:
    guest = {"name": "web", "cgroup": "/nestrt/web", "quota": {**Quota(FLAGS).told, "connections": "many"}}
    assert _broker_host._row(guest)["quota"] == {
        "requests_per_second": 1000, "connections": None, "message_bytes": 65536,
    }  # fmt: skip
    assert _broker_host._row({"name": "web"})["quota"] is None
    assert _broker_host._row({"name": "web", "quota": [1]})["quota"] is None
