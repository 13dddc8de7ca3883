"""Policy files: what they say, every mistake by file and key, and the command that checks them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.broker.quota import Options
from nestrt.cli.policy import main
from nestrt.errors import InputError, NestrtError, NotFound
from nestrt.level.capabilities import ALL, DEFAULT, NAMES
from nestrt.level.devices import DEFAULT_RULES
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.policy import Policy
from nestrt.level.toml import find_mistakes, from_mapping, load_policy
from nestrt.level.units import MAX
from nestrt.level.values import Getter, closest
from nestrt.record import replace

PROFILES = Path(__file__).resolve().parents[2] / "examples" / "policies"
WHOLE = """
[level]
virtualize = false
max_level = 32
override = true
strict = true
[view]
mount = "ro"
controllers = ["cpu", "blkio", "io", "dmem"]
start_in = "."
cpus = "host"
[partition]
cpu = false
memory = false
pids = false
io = false
devices = false
max_groups = 2
max_depth = 2
[user]
namespace = "map"
uid_map = ["0:100000:1000", "1000:1000:1"]
gid_map = ["0:100000:65536"]
capabilities = ["CAP_KILL", "CAP_CHOWN"]
no_new_privs = false
masked = true
[limits]
memory = "512M"
swap = 1024
cpus = "0-1,3"
mems = 0
cpu_quota = 1.5
cpu_weight = 50
pids = "max"
io = ["8:0 rbps=1M"]
devices = ["default"]
hugetlb = { "2MB" = "64M" }
rdma = { mlx4_0 = "hca_handle=2" }
misc = { sev = 10 }
net_cls = 0x100001
net_prio = { eth0 = 5 }
"""


def test_every_key_is_read() -> None:
    assert load_policy(WHOLE, "whole.toml") == Policy(
        virtualize=False,
        max_level=32,
        override=True,
        strict=True,
        mount="ro",
        controllers=("cpu", "io", "dmem"),
        start_in=".",
        cpus="host",
        divide_cpu=False,
        divide_memory=False,
        divide_pids=False,
        divide_io=False,
        divide_devices=False,
        max_groups=2,
        max_depth=2,
        user_namespace="map",
        uid_map=((0, 100_000, 1000), (1000, 1000, 1)),
        gid_map=((0, 100_000, 65_536),),
        capabilities=("CAP_CHOWN", "CAP_KILL"),
        no_new_privs=False,
        masked=True,
        limits=Limits(
            memory=1 << 29,
            swap=1024,
            cpus=frozenset({0, 1, 3}),
            mems=frozenset({0}),
            cpu_quota=150_000,
            cpu_weight=50,
            pids=MAX,
            io=(IoLimit("8:0", rbps=1 << 20),),
            devices=DEFAULT_RULES,
            hugetlb=(("2MB", 1 << 26),),
            rdma=(("mlx4_0", "hca_handle=2"),),
            misc=(("sev", "10"),),
            net_cls=0x100001,
            net_prio=(("eth0", 5),),
        ),
        source="whole.toml",
    )


def test_an_empty_file_is_the_default() -> None:
    assert load_policy("", "x") == Policy(source="x")


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ('[view]\nmont = "rw"', "[view] mont", "did you mean mount?"),
        ("[veiw]", "veiw", "did you mean view?"),
        ("colour = 1", "colour", "level, view"),
        ("[level]\nzzz = 1", "[level] zzz", "known: virtualize"),
        ("level = 3", "level", "table"),
        ("[level]\nmax_level = 0", "[level] max_level", "1 to 32"),
        ("[level]\nmax_level = 33", "[level] max_level", "1 to 32"),
        ("[level]\nmax_level = true", "[level] max_level", "number"),
        ('[level]\nmax_level = "3"', "[level] max_level", "number"),
        ("[level]\noverride = 1", "[level] override", "true or false"),
        ('[view]\nmount = "rwx"', "[view] mount", "did you mean rw?"),
        ('[view]\nstart_in = "../x"', "[view] start_in", "init"),
        ('[view]\ncontrollers = "cpu"', "[view] controllers", "not a list"),
        ('[view]\ncontrollers = ["c/pu"]', "[view] controllers", "all"),
        ("[view]\ncontrollers = [1]", "[view] controllers", "quotes"),
        ("[partition]\nmax_groups = 1", "[partition] max_groups", "2 to"),
        ("[partition]\nmax_depth = 1", "[partition] max_depth", "2 to"),
        ('[user]\nnamespace = "map"', "[user] uid_map", "0:100000:65536"),
        ('[user]\nnamespace = "map"\nuid_map = ["0:1:1"]', "[user] gid_map", "0:100000:65536"),
        ('[user]\nuid_map = ["0:1:1"]', "[user] uid_map", 'namespace = "map"'),
        ('[user]\nnamespace = "map"\nuid_map = ["1:1:1"]\ngid_map = ["0:1:1"]', "[user] uid_map", "begin a range at 0"),
        ('[user]\nnamespace = "map"\nuid_map = ["0:1:9", "8:99:9"]\ngid_map = ["0:1:1"]', "[user] uid_map", "disjoint"),
        ('[user]\nnamespace = "map"\nuid_map = ["0:1:9", "9:9:9"]\ngid_map = ["0:1:1"]', "[user] uid_map", "disjoint"),
        ('[user]\ncapabilities = ["CAP_SYSADMIN"]', "[user] capabilities", "CAP_SYS_ADMIN"),
        ('[user]\ncapabilities = ["x"]', "[user] capabilities", "CAP_NET_ADMIN"),
        ('[user]\ncapabilities = "most"', "[user] capabilities", '"default"'),
        ('[limits]\nmemory = "12Q"', "[limits] memory", "512M"),
        ("[limits]\nmemory = -2", "[limits] memory", "write -1"),
        ("[limits]\nmemory = 1.5", "[limits] memory", "not a number"),
        ('[limits]\ncpus = "3-1"', "[limits] cpus", "1-3"),
        ("[limits]\ncpus = [0, 1]", "[limits] cpus", "quotes"),
        ("[limits]\ncpu_quota = nan", "[limits] cpu_quota", "1.5"),
        ("[limits]\ncpu_quota = true", "[limits] cpu_quota", "quotes"),
        ("[limits]\npids = 0", "[limits] pids", "1 to"),
        ('[limits]\nio = "8:0 rbps=1"', "[limits] io", "list"),
        ('[limits]\nio = ["8:0 rbps=1", "8:0 wbps=1"]', "[limits] io", "one line"),
        ('[limits]\ndevices = ["/dev/null"]', "[limits] devices", "c 1:3 rwm"),
        ('[limits]\nhugetlb = {"2M" = 1}', "[limits] hugetlb", "2MB"),
        ("[limits]\nhugetlb = 3", "[limits] hugetlb", "table"),
        ("[limits]\nnet_cls = 4294967296", "[limits] net_cls", "out of range"),
        ('[limits]\nmisc = {"sev x" = 1}', "[limits] misc", "blanks"),
        ("[level\n", "policy x.toml", "correct the line"),
        ("a = 1\na = 2", "policy x.toml", "correct the line"),
        ("a = " + "9" * 5000, "policy x.toml", "correct the line"),
        ("a = " + "[" * 5000, "policy x.toml", "too deeply"),
        ("#" * (1 << 20) + "#", "policy x.toml", "1 MiB"),
    ],
)
def test_a_mistake_names_file_key_reason_and_remedy(text: str, place: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        load_policy(text, "x.toml")
    message = str(caught.value)
    assert "policy x.toml" in message
    assert place in caught.value.obj
    assert hint in message
    assert caught.value.remedy
    assert message.isprintable()
    assert len(message) < 400


def test_all_mistakes_are_found() -> None:
    text = '[level]\nmax_level = 0\n[view]\nmont = 1\n[limits]\nmemory = "x"\npids = "y"\n[what]\n'
    places = [error.obj.removeprefix("policy x, ") for error in find_mistakes(text, "x")]
    assert sorted(places) == ["[level] max_level", "[limits] memory", "[limits] pids", "[view] mont", "what"]
    assert find_mistakes(WHOLE, "x") == ()


def test_one_mistake_is_told_once() -> None:
    assert len(find_mistakes('[user]\nnamespace = "mapp"\nuid_map = ["0:1:1"]', "x")) == 1
    assert len(find_mistakes('[user]\nnamespace = "map"\nuid_map = ["0"]\ngid_map = ["0:1:1"]', "x")) == 1


SECTIONS = {
    "level": ["virtualize", "max_level", "override", "strict"],
    "broker": ["requests", "connections", "message"],
    "view": ["mount", "controllers", "start_in", "cpus"],
    "partition": ["cpu", "memory", "pids", "io", "devices", "max_groups", "max_depth"],
    "user": ["namespace", "uid_map", "gid_map", "capabilities", "no_new_privs", "masked"],
    "limits": list(Limits.FIELDS),  # type: ignore[attr-defined]
}
scalar = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.sampled_from(["max", "all", "default", "map", "0:0:1", "c 1:3 r", "8:0 rbps=1", "0-1", "2MB", "CAP_KILL"])
)
value = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
section = st.sampled_from(sorted(SECTIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name), value | st.dictionaries(st.sampled_from(SECTIONS[name]) | st.text(max_size=6), value, max_size=4)
    )
)
document = st.lists(section | st.tuples(st.text(max_size=6), value), max_size=4).map(dict)


@settings(max_examples=300)
@given(document)
def test_any_document_gives_a_policy_or_input_errors(mapping: dict[str, object]) -> None:
    errors: list[InputError] = []
    policy = from_mapping(mapping, "x", errors)
    assert all(str(error).isprintable() and str(error).startswith("cannot read policy x") for error in errors)
    # Whatever was refused, what is left is within the bounds that the rest of nestrt counts on.
    assert 1 <= policy.max_level <= 32
    assert policy.mount in ("rw", "ro", "none")
    assert policy.start_in in ("init", ".")
    assert policy.max_groups >= 2
    assert set(policy.capabilities or ()) <= {*NAMES, "all"}
    if not errors:
        assert set(mapping) <= set(SECTIONS)


@given(st.text())
def test_any_text_gives_a_policy_or_input_errors(text: str) -> None:
    assert all(type(error) is InputError for error in find_mistakes(text, "x"))


@pytest.mark.parametrize("name", ["default", "strict", "nested", "systemd-guest"])
def test_shipped_profiles_are_right(name: str) -> None:
    policy = load_policy((PROFILES / f"{name}.toml").read_text(), name)
    if name == "default":
        assert policy == Policy()
    if name == "strict":
        assert (policy.max_level, policy.mount, policy.masked, policy.no_new_privs) == (1, "ro", True, True)
        assert not any(
            (policy.divide_cpu, policy.divide_memory, policy.divide_pids, policy.divide_io, policy.divide_devices)
        )
        assert set(policy.capabilities or ALL) < set(DEFAULT)
        assert policy.limits.devices == DEFAULT_RULES
    if name == "nested":
        assert policy.max_level == 3
        assert not policy.masked
        assert policy.max_depth >= 3 * 3
    if name == "systemd-guest":
        assert (policy.start_in, policy.no_new_privs, policy.mount) == (".", False, "rw")


def test_commented_keys_of_the_default_profile_are_right_too() -> None:
    text = (PROFILES / "default.toml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    policy = load_policy("\n".join(lines[lines.index(next(x for x in lines if x.startswith("[level]"))) :]), "default")
    assert policy.limits.memory == 512 << 20
    usual = Options()
    assert (policy.broker_requests, policy.broker_connections) == (usual.requests, usual.connections)
    assert policy.broker_message == usual.message_bytes
    left_out = {"broker_requests": None, "broker_connections": None, "broker_message": None}
    assert replace(policy, limits=Limits(), **left_out) == Policy()


@pytest.mark.parametrize(
    ("word", "known", "wanted"),
    [
        ("mont", ("mount", "cpus"), "mount"),
        ("MOUNT", ("mount",), "mount"),
        ("zzz", ("mount", "cpus"), ""),
        ("x" * 1000, ("x",), ""),
        ("cpu_quta", ("cpu_quota", "cpu_weight"), "cpu_quota"),
        ("a", (), ""),
    ],
)
def test_closest(word: str, known: tuple[str, ...], wanted: str) -> None:
    assert closest(word, known) == wanted


def test_getter_bounds() -> None:
    get = Getter({"n": 2**200, "t": "x" * 5000, "l": ["a"] * 2000, "b": 0}, "mark")
    for read in (
        lambda: get.integer("n", 0, 0, 9),
        lambda: get.text("t", ""),
        lambda: get.list("l"),
        lambda: get.boolean("b", True),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert len(str(caught.value)) < 300
    assert get.integer("none", 7, 0, 9) == 7
    assert get.text("none", "d") == "d"
    with pytest.raises(InputError, match="unknown"):
        Getter({"k": 1}, "mark").finish()


def test_check_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[level]\nmax_level = 2\n")
    bad.write_text('[view]\nmont = "rw"\n[limits]\nmemory = "12Q"\n')
    assert main(["check", str(good)]) == 0
    assert capsys.readouterr().out.startswith(f"{good}: ok")
    with pytest.raises(InputError, match="mont"):
        main(["check", str(bad)])
    assert "memory" in capsys.readouterr().err


def test_check_command_on_what_is_no_policy(tmp_path: Path) -> None:
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"\xff\xfe")
    large.write_bytes(b"#" * ((1 << 20) + 1))
    for path, kind, reason in (
        (tmp_path / "missing", NotFound, "no such file"),
        (binary / "below", NotFound, "no such file"),
        (tmp_path, InputError, "not a regular file"),
        (Path("/dev/zero"), InputError, "not a regular file"),
        (binary, InputError, "byte 0 is not UTF-8"),
        (large, InputError, "larger than 1 MiB"),
    ):
        with pytest.raises(NestrtError, match=reason) as caught:
            main(["check", str(path)])
        assert type(caught.value) is kind
        assert caught.value.status == (3 if kind is NotFound else 2)
        assert str(path) in str(caught.value)
