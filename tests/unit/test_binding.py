"""Bindings: which rule is for whom, and that no annotation gets a bundle more than its bound.

document's annotations ──┐
rule: policy ────────────┼──> policy  <=  bound         or InputError: annotation, asked, allowed
rule: bound ─────────────┘
"""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli.policy import main
from nestrt.errors import HostError, InputError
from nestrt.level.annotations import FIELDS, KNOWN, PROFILES, profile
from nestrt.level.binding import (
    Bindings,
    Bundle,
    Match,
    Rule,
    cgroup_path,
    decide,
    engine_of,
    glob,
    matches,
    resolve,
)
from nestrt.level.bound import BOUNDED, DEFAULT_BOUND, clamp, excesses, least, smaller
from nestrt.level.devices import DEFAULT_RULES, EVERYTHING, DeviceRule, subset
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.policy import CPU_NUMBERS, MOUNTS, STARTS, Policy
from nestrt.level.rules import origins, parse_bindings, problems
from nestrt.level.units import MAX
from nestrt.record import replace

TASK = "/run/containerd/io.containerd.runtime.v2.task"


def numbers(high: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.just(MAX) | st.integers(1, high)


cpu_sets = st.none() | st.frozensets(st.integers(0, 3), min_size=1)
device_rules = st.builds(
    DeviceRule,
    st.sampled_from("abc"),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(0, 2),
    st.sampled_from(["r", "w", "m", "rw", "rwm"]),
)
limits = st.builds(
    Limits,
    memory=numbers(1 << 40),
    swap=numbers(1 << 40),
    cpus=cpu_sets,
    mems=cpu_sets,
    cpu_quota=numbers(800_000),
    cpu_weight=st.none() | st.integers(1, 10_000),
    pids=numbers(10_000),
    io=st.sampled_from([(), (IoLimit("8:0", 5, None, MAX, 9),), (IoLimit("8:0", MAX, 7, 3), IoLimit("8:16", 1))]),
    devices=st.none() | st.lists(device_rules, max_size=4).map(tuple),
    hugetlb=st.sampled_from([(), (("2MB", 4),), (("1GB", 1), ("2MB", 9))]),
    rdma=st.sampled_from([(), (("m0", "hca_handle=2"),), (("m0", "hca_handle=max hca_object=3"),)]),
    misc=st.sampled_from([(), (("sev", "2"),), (("sev", "max"), ("es", "1"))]),
)
policies = st.builds(
    Policy,
    virtualize=st.booleans(),
    max_level=st.integers(1, 32),
    override=st.booleans(),
    strict=st.booleans(),
    mount=st.sampled_from(MOUNTS),
    controllers=st.none() | st.lists(st.sampled_from(["cpu", "memory", "io", "pids"]), unique=True).map(tuple),
    start_in=st.sampled_from(STARTS),
    cpus=st.sampled_from(CPU_NUMBERS),
    divide_cpu=st.booleans(),
    divide_memory=st.booleans(),
    divide_pids=st.booleans(),
    divide_io=st.booleans(),
    divide_devices=st.booleans(),
    max_groups=st.integers(2, 5000),
    max_depth=st.integers(2, 30),
    limits=limits,
)
values = st.sampled_from(
    [
        "true",
        "false",
        "all",
        "cpu",
        "cpu,memory",
        "rw",
        "ro",
        "none",
        ".",
        "init",
        "host",
        "2",
        "3",
        "9",
        "4000",
        "a",
        "b",
    ]
)
asked = st.dictionaries(st.sampled_from(KNOWN), values | st.text(max_size=8), max_size=6).map(
    lambda d: tuple(d.items())
)


def amount(value: int | None) -> float:
    return float("inf") if value in (None, MAX) else float(value or 0)


def is_within(one: Limits, other: Limits) -> bool:
    """Whether *one* asks for no more than *other*: said once more, and in another way than bound.py does."""
    plain = all(
        amount(getattr(one, name)) <= amount(getattr(other, name))
        for name in ("memory", "swap", "cpu_quota", "cpu_weight", "pids")
    )
    sets = all(getattr(other, name) is None or getattr(one, name) <= getattr(other, name) for name in ("cpus", "mems"))
    devices = other.devices is None or (one.devices is not None and subset(one.devices, other.devices) is None)
    mine = {limit.device: limit for limit in one.io}
    io = all(
        amount(getattr(mine[limit.device], key)) <= amount(getattr(limit, key))
        for limit in other.io
        for key in ("rbps", "wbps", "riops", "wiops")
    )
    huge = all(dict(one.hugetlb)[page] <= size for page, size in other.hugetlb)
    misc = all(text == "max" or int(dict(one.misc)[name]) <= int(text) for name, text in other.misc)
    return plain and sets and devices and io and huge and misc


def is_above(policy: Policy, bound: Policy) -> bool:
    """Whether *policy* is more than *bound* in any field, spelled out."""
    order = {"none": 0, "ro": 1, "rw": 2}
    return (
        policy.max_level > bound.max_level
        or policy.max_groups > bound.max_groups
        or policy.max_depth > bound.max_depth
        or (policy.override and not bound.override)
        or (bound.strict and not policy.strict)
        or order[policy.mount] > order[bound.mount]
        or (bound.controllers is not None and not set(policy.controllers or ("every", "one")) <= set(bound.controllers)
            and policy.controllers != ())
        or any(
            getattr(policy, f"divide_{part}") and not getattr(bound, f"divide_{part}")
            for part in ("cpu", "memory", "pids", "io", "devices")
        )
    )  # fmt: skip


@given(asked, st.none() | policies, st.none() | policies, st.booleans())
def test_no_annotation_gets_more_than_the_bound(
    annotations: tuple[tuple[str, str], ...], base: Policy | None, bound: Policy | None, honoured: bool
) -> None:
    known = {name: policy for name, policy in (("a", base), ("b", bound)) if policy is not None}
    rule = Rule(policy="a" if base else "", bound="b" if bound else "", annotations=honoured)
    bindings = Bindings((rule,), known)
    if problems(bindings):
        with pytest.raises(HostError):
            resolve((), bindings, Bundle())
        return
    try:
        decision = decide(annotations, bindings, Bundle())
    except InputError as error:
        refused = str(error)
        decision = None
    if decision is None:
        assert refused.isprintable()
        return
    policy = decision.policy
    most = bound or base or DEFAULT_BOUND
    assert honoured or not annotations
    if policy is None:
        # Only whoever is not bound to be a guest can be none.
        assert base is None or not base.virtualize or not most.virtualize
        return
    assert policy.virtualize
    assert not is_above(policy, most)
    assert is_within(policy.limits, most.limits)
    if base is not None and base.virtualize:
        assert is_within(policy.limits, base.limits)
    assert (policy.user_namespace, policy.capabilities, policy.masked) == ("auto", None, False)
    assert set(origins(annotations, decision)) >= set(FIELDS)


@given(policies, policies)
def test_clamp_and_excesses_are_two_words_for_one_thing(policy: Policy, bound: Policy) -> None:
    least_ = clamp(policy, bound)
    assert not is_above(least_, bound)
    assert clamp(least_, bound) == least_
    assert bool(excesses(policy, bound)) == is_above(policy, bound)
    assert not excesses(policy, policy)


@given(limits, limits)
def test_the_smaller_of_limits(one: Limits, other: Limits) -> None:
    sets = ((one.cpus, other.cpus), (one.mems, other.mems))
    if any(mine is not None and yours is not None and not mine & yours for mine, yours in sets):
        with pytest.raises(InputError, match=r"CPUs|memory nodes"):
            smaller(one, other)
        return
    found = smaller(one, other)
    assert is_within(found, one)
    assert is_within(found, other)
    assert is_within(smaller(one, one), one)
    assert is_within(one, smaller(one, one))
    assert smaller(one, Limits()) == replace(one, devices=one.devices)


def test_smaller_by_hand() -> None:
    one = Limits(memory=10, swap=MAX, cpus=frozenset({0, 1}), devices=EVERYTHING, rdma=(("m", "hca_handle=2"),))
    other = Limits(memory=MAX, swap=5, cpus=frozenset({1, 2}), devices=DEFAULT_RULES, net_cls=7,
                   rdma=(("m", "hca_handle=max hca_object=3"),), misc=(("sev", "max"),))  # fmt: skip
    assert smaller(one, other) == Limits(
        memory=10,
        swap=5,
        cpus=frozenset({1}),
        devices=DEFAULT_RULES,
        net_cls=7,
        rdma=(("m", "hca_handle=2 hca_object=3"),),
        misc=(("sev", "max"),),
    )
    assert (least(None, 3), least(MAX, 3), least(2, 3), least(MAX, MAX), least(None, None)) == (3, 3, 2, MAX, None)
    with pytest.raises(InputError, match=r"allows 2, which are others; choose from 2"):
        smaller(Limits(cpus=frozenset({0})), Limits(cpus=frozenset({2})))


@pytest.mark.parametrize("name", PROFILES)
def test_where_the_host_says_nothing_each_built_in_policy_can_be_asked_for(name: str) -> None:
    built_in = profile(name)
    assert built_in is not None
    policy = resolve([("nestrt.policy", name)], Bindings(), Bundle())
    assert policy is not None
    assert all(getattr(policy, field) == getattr(built_in, field) for field in BOUNDED)
    assert policy.limits == built_in.limits


def test_where_the_host_says_nothing_there_is_no_policy_unless_asked() -> None:
    assert resolve([], Bindings(), Bundle()) is None
    assert resolve([("io.podman.annotations.x", "y")], Bindings(), Bundle()) is None
    assert resolve([("nestrt.level.virtualize", "false")], Bindings(), Bundle()) is None
    for key, value, words in (
        ("nestrt.level.max_level", "4", "it asks for 4, and the host allows 3"),
        ("nestrt.level.override", "true", "it asks for true, and the host allows false"),
        ("nestrt.partition.max_groups", "4001", "allows 4000"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            resolve([(key, value)], Bindings(), Bundle())
        assert key in str(caught.value)


def test_what_no_annotation_says_is_brought_down_to_the_bound_in_silence() -> None:
    bindings = Bindings((Rule(bound="strict"),))
    policy = resolve([("nestrt.view.cpus", "host")], bindings, Bundle())
    assert policy is not None
    assert (policy.mount, policy.max_level, policy.divide_cpu, policy.cpus) == ("ro", 1, False, "host")
    assert policy.limits.pids == 256
    with pytest.raises(InputError, match=r"nestrt.view.mount: it asks for rw, and rule 1 .* allows ro"):
        resolve([("nestrt.view.mount", "rw")], bindings, Bundle())
    with pytest.raises(InputError, match=r"nestrt.policy: it asks for max_level = 3"):
        resolve([("nestrt.policy", "nested")], bindings, Bundle())


def test_leaving_a_policy_takes_a_bound_that_lets_go() -> None:
    off = [("nestrt.level.virtualize", "false")]
    free = replace(Policy(), virtualize=False)
    with pytest.raises(InputError, match="asks for no policy, and rule 1"):
        resolve(off, Bindings((Rule(policy="default"),)), Bundle())
    assert resolve(off, Bindings((Rule(policy="default", bound="free"),), {"free": free}), Bundle()) is None
    assert resolve([], Bindings((Rule(policy="free"),), {"free": free}), Bundle()) is None
    asked = resolve([("nestrt.level.virtualize", "true")], Bindings((Rule(policy="free"),), {"free": free}), Bundle())
    assert asked is not None
    named = [("nestrt.policy", "free")]
    with pytest.raises(InputError, match=r"nestrt.policy: it asks for no policy"):
        resolve(named, Bindings((Rule(policy="default"),), {"free": free}), Bundle())


def test_rules_that_cannot_hold_are_the_hosts_mistake() -> None:
    lost = Policy(virtualize=False, limits=Limits(pids=5))
    for rule, words in (
        (Rule(policy="nosuch"), "nosuch"),
        (Rule(bound="nosuch"), "nosuch"),
        (Rule(policy="nested", bound="strict"), "max_level = 3"),
        (Rule(policy="lost"), "virtualize = false"),
        (Rule(policy="broken"), "line 7"),
    ):
        bindings = Bindings((Rule(Match(engine=("docker",))), rule), {"lost": lost}, {"broken": "line 7"})
        assert [words in str(problem) for problem in problems(bindings)] == [True]
        with pytest.raises(HostError, match=words):
            resolve([], bindings, Bundle())
        # A rule that is not asked breaks nothing.
        assert resolve([], bindings, Bundle(bundle=f"{TASK}/moby/x")) is None


def test_another_policy_does_not_shake_off_the_hosts_limits() -> None:
    web, bound = Policy(limits=Limits(memory=64, pids=9)), Policy(limits=Limits(cpu_quota=5000))
    own = Policy(limits=Limits(memory=128, pids=5, swap=1))
    bindings = Bindings((Rule(policy="web", bound="bound"),), {"web": web, "bound": bound, "own": own})
    policy = resolve([("nestrt.policy", "own")], bindings, Bundle())
    assert policy is not None
    assert policy.limits == Limits(memory=64, pids=5, swap=1, cpu_quota=5000)


def test_refused_annotations() -> None:
    bindings = Bindings((Rule(policy="default", annotations=False),))
    assert resolve([("other", "x")], bindings, Bundle()) == Policy()
    with pytest.raises(InputError, match=r"annotation nestrt.policy: rule 1 .* takes no annotations"):
        resolve([("nestrt.policy", "default")], bindings, Bundle())


@pytest.mark.parametrize(
    ("annotations", "bundle", "engine"),
    [
        ({}, f"{TASK}/moby/0123", "docker"),
        ({}, "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/0123", "docker"),
        ({}, f"{TASK}/k8s.io/0123", "containerd"),
        ({"io.container.manager": "libpod"}, f"{TASK}/default/moby", "containerd"),
        ({"io.container.manager": "libpod", "io.kubernetes.cri-o.TTY": "false"}, "/x", "podman"),
        ({"io.container.manager": "cri-o"}, "/x", "cri-o"),
        ({"io.podman.annotations.init": "TRUE"}, "/x", "podman"),
        ({"io.kubernetes.cri-o.Name": "x"}, "/x", "cri-o"),
        ({"io.kubernetes.cri.container-type": "sandbox"}, "/x", "containerd"),
        ({}, "/var/tmp/buildah1234", "buildah"),
        ({}, "/var/tmp/buildahs", ""),
        ({}, "", ""),
    ],
)
def test_engines_are_known_by_what_they_leave(annotations: dict[str, str], bundle: str, engine: str) -> None:
    assert engine_of(annotations, bundle) == engine


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/machine/x", "/machine/x"),
        ("machine//./x/", "/machine/x"),
        ("/machine/../ci/x", "/ci/x"),
        ("../../x", "/x"),
        ("machine.slice:libpod:abc", "/machine.slice/libpod-abc.scope"),
        ("system-a-b.slice:docker:abc", "/system.slice/system-a.slice/system-a-b.slice/docker-abc.scope"),
        ("-.slice:docker:abc", "/docker-abc.scope"),
        ("user.slice:x:own.slice", "/user.slice/own.slice"),
        ("", "/"),
    ],
)
def test_a_cgroup_path_is_matched_by_where_it_leads(text: str, path: str) -> None:
    assert cgroup_path(text) == path


def test_a_match_needs_all_its_keys() -> None:
    match = Match(engine=("podman", "docker"), cgroup=("/ci.slice/*",), user=((1000, 1999),))
    podman = {"io.container.manager": "libpod"}
    assert matches(match, podman, Bundle("/ci.slice/x", "/b", (0, 1500)))
    assert not matches(match, {}, Bundle("/ci.slice/x", "/b", (0, 1500)))
    assert not matches(match, podman, Bundle("/ci.slice/../x", "/b", (0, 1500)))
    assert not matches(match, podman, Bundle("/ci.slice/x", "/b", (0, 2000)))
    assert not matches(match, podman, Bundle("/ci.slice/x", "/b", ()))
    assert matches(Match(), {}, Bundle())
    key = Match(annotation=("a=x*", "b"))
    assert [matches(key, found, Bundle()) for found in ({"a": "xy"}, {"a": "y"}, {"b": ""}, {})] == [
        True,
        False,
        True,
        False,
    ]
    assert matches(Match(bundle=("*/userdata",)), {}, Bundle(bundle="/var//lib/x/userdata/"))


@given(st.text(alphabet="ab*?/", max_size=8), st.text(alphabet="ab/", max_size=12))
def test_globs_are_those_of_the_shell_without_brackets(pattern: str, text: str) -> None:
    assert glob(pattern, text) == fnmatchcase(text, pattern)


def test_a_glob_costs_no_more_than_its_square() -> None:
    assert not glob("*a" * 30 + "b", "a" * 4096)
    assert not glob("*", "a" * 4097)


def test_the_first_rule_that_matches_decides() -> None:
    one, two = Policy(max_level=1), Policy(max_level=2)
    rules = (Rule(Match(user=((5, 5),)), "one"), Rule(Match(user=((5, 9),)), "two"))
    bindings = Bindings(rules, {"one": one, "two": two})
    found = [decide([], bindings, Bundle(users=(user,))) for user in (5, 6, 10)]
    assert [decision.rule for decision in found] == [1, 2, 0]
    assert [decision.policy and decision.policy.max_level for decision in found] == [1, 2, None]


def parsed(text: str) -> tuple[tuple[Rule, ...], list[InputError]]:
    errors: list[InputError] = []
    return parse_bindings(tomllib.loads(text), "b.toml", errors), errors


def test_a_whole_file() -> None:
    user, annotation = '[0, "100-200"]', '"io.x=*"'
    rules, errors = parsed(
        f"""
        [[rule]]
        match = {{ engine = ["podman", "docker"], cgroup = "/ci/*", user = {user}, annotation = {annotation} }}
        policy = "nested"
        bound = "big"
        annotations = false
        [[rule]]
        match.bundle = "/run/*"
        """
    )
    assert not errors
    match = Match(("podman", "docker"), ("/ci/*",), (), ("io.x=*",), ((0, 0), (100, 200)))
    assert rules == (Rule(match, "nested", "big", False), Rule(Match(bundle=("/run/*",))))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules = 1", "did you mean rule"),
        ("rule = 1", "not tables"),
        ("rule = [1]", "not tables"),
        ("[[rule]]\npolicy = 1", r"\[rule 1\] policy"),
        ("[[rule]]\n[[rule]]\npolice = 'x'", r"\[rule 2\] police: unknown key; did you mean policy"),
        ("[[rule]]\npolicy = '../x'", "cannot be one"),
        ("[[rule]]\nannotations = 'no'", "true or false"),
        ("[[rule]]\nmatch = 1", "a table"),
        ("[[rule]]\nmatch = {engin = 'podman'}", r"\[rule 1.match\] engin: unknown key; did you mean engine"),
        ("[[rule]]\nmatch = {engine = 'podmann'}", "did you mean podman"),
        ("[[rule]]\nmatch = {cgroup = 'ci/*'}", "no path from /"),
        ("[[rule]]\nmatch = {cgroup = []}", "match nothing"),
        ("[[rule]]\nmatch = {bundle = ''}", "match nothing"),
        ("[[rule]]\nmatch = {user = 'root'}", "no uid"),
        ("[[rule]]\nmatch = {user = -1}", "out of range"),
        ("[[rule]]\nmatch = {user = '9-1'}", "no uid"),
        ("[[rule]]\nmatch = {user = []}", "too few"),
        ("[[rule]]\n" * 257, "too many"),
    ],
)
def test_mistakes_in_a_file_name_rule_and_key(text: str, words: str) -> None:
    _, errors = parsed(text)
    assert len(errors) == 1
    with pytest.raises(InputError, match=words):
        raise errors[0]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["rule", "match", "user", "engine", "cgroup", "policy"]) | st.text(), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_table_is_rules_or_mistakes(value: object) -> None:
    errors: list[InputError] = []
    rules = parse_bindings({"rule": value}, "b", errors)
    assert errors or isinstance(rules, tuple)
    assert all(str(error).isprintable() for error in errors)


def test_explain_says_where_each_part_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "--directory", "/nonexistent", "-a", "nestrt.policy=strict", "-a", "nestrt.view.cpus=host"]
    assert main(words) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["nestrt.view.mount"].split(maxsplit=2)[1:] == ["ro", "annotation nestrt.policy = strict"]
    assert rows["nestrt.view.cpus"].split(maxsplit=2)[1:] == ["host", "annotation nestrt.view.cpus"]
    assert "256" in rows["limits.pids"]
    assert main(["explain", "--directory", "/nonexistent", "-a", "other=x", "--cgroup", "/x", "--user", "5"]) == 0
    assert "exactly as under runc" in capsys.readouterr().out
    for wrong in ("nestrt.view.mount=\x1b[31m", "=x", "x", "nestrt.policy=\n\x07"):
        with pytest.raises(InputError) as caught:
            main(["explain", "--directory", "/nonexistent", "-a", wrong])
        assert str(caught.value).isprintable()
