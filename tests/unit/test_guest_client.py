"""nestrt/guest/client.py without a kernel: values, names, mountinfo, bounds, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli import guest as cli
from nestrt.controllers import cpu
from nestrt.guest import client
from nestrt.guest.client import MAX, GuestError, Hierarchy, Key, View
from support.rootfs import CHECKOUT


def view(cpus: list[int] | None = None, stamp: dict[str, Any] | None = None, tree: str = "/nonexistent") -> View:
    """A view of groups that do not exist, or of plain directories below *tree*."""
    made = View((Hierarchy(2, ("cpu", "io", "memory"), tree, "/", "/init", "", ""),), stamp or {}, None)
    made.cpus = cpus or []
    made.divided = made.hierarchies
    return made


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("512M", 512 << 20), ("2g", 2 << 30), ("1K", 1024), ("3T", 3 << 40), ("max", MAX), ("-1", MAX),
     ("9223372036854771712", MAX), (" 17 ", 17)],
)  # fmt: skip
def test_sizes(text: str, value: float) -> None:
    assert client.parse_size(text) == value


@given(st.integers(0, 1 << 61))
def test_a_size_reads_back_as_it_was(size: int) -> None:
    assert client.parse_size(client.show_size(size)) == size


@given(st.frozensets(st.integers(0, 8191), max_size=60))
def test_a_list_reads_back_as_it_was(numbers: frozenset[int]) -> None:
    assert client.parse_list(client.show_list(numbers)) == numbers


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [("1.5", (150_000, 100_000), "1.5"), ("2", (200_000, 100_000), "2"), ("50000 200000", (50_000, 200_000), "0.25"),
     ("max", (MAX, 100_000), "max"), ("max 50000", (MAX, 50_000), "max")],
)  # fmt: skip
def test_quotas(text: str, value: tuple[float, int], shown: str) -> None:
    assert client.parse_quota(text) == value
    assert client.show_quota(value) == shown


def test_numbers_have_no_units() -> None:
    assert [client.KEYS["pids.max"].show(n) for n in (0, 1024, MAX)] == ["0", "1024", "max"]
    settings = [client.parse_setting(view(), "/web", "io=8:0 rbps=1M,wiops=max")]
    assert [text for _, _, text in client.writes(view(), "/web", settings)] == ["8:0 rbps=1048576 wiops=max"]


def test_io_limits() -> None:
    limits = client.parse_io("8:0 rbps=1M wiops=max\n8:16,rbps=5")
    assert limits == {"8:0": {"rbps": 1 << 20, "wiops": MAX}, "8:16": {"rbps": 5}}
    assert client.show_io(limits) == "8:0 rbps=1M wiops=max; 8:16 rbps=5"


@pytest.mark.parametrize(
    ("key", "text"),
    [("memory.max", t) for t in ("", "12Q", "1.5G", "-2", "٣", "1" * 30, "0x10", "512 M")]
    + [("pids.max", t) for t in ("many", "1e3", "-5", "9" * 12)]
    + [("cpu.weight", t) for t in ("0", "10001", "max", "")]
    + [("cpu.max", t) for t in ("0.001", "x", "1.5 100000", "1 2 3", "50000 1", "-1", "1" * 20)]
    + [("cpuset.cpus", t) for t in ("a", "1-", "3-1", "0,,1", "0-99999999", "-1")]
    + [("io.max", t) for t in ("8:0", "x rbps=1", "8:0 speed=1", "8:0 rbps=fast")],
)
def test_bad_values_say_what_to_write(key: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is outside") as error:
        client.KEYS[key].parse(text)
    _, remedy = error.value.args
    assert remedy.startswith(("write", "give"))


@pytest.mark.parametrize("weight", [1, 2, 50, 99, 100, 101, 1000, 9999, 10000])
def test_weights_are_the_same_shares_as_the_hosts(weight: int) -> None:
    assert client.shares_of(weight) == cpu.shares_of(weight)
    assert client.weight_of(client.shares_of(weight)) == cpu.weight_of(cpu.shares_of(weight))


def test_default_weight_is_the_default_number_of_shares() -> None:
    assert (client.shares_of(100), client.weight_of(1024)) == (1024, 100)


@pytest.mark.parametrize(
    ("text", "group"),
    [("web", "/web"), ("/web/", "/web"), ("web/worker", "/web/worker"), ("/", "/"), ("a.b/..c", "/a.b/..c"),
     ("x" * 255, "/" + "x" * 255)],
)  # fmt: skip
def test_group_names(text: str, group: str) -> None:
    assert client.parse_group(text, "make") == group


@pytest.mark.parametrize(
    "text",
    ["", "..", "a/../b", ".", "a/./b", "a//b", "a\nb", "a\0b", "x" * 256, "é" * 128, "cgroup.procs", "a/cgroup.x",
     "memory.max", "blkio.weight", "//"],
)  # fmt: skip
def test_names_that_are_no_groups(text: str) -> None:
    with pytest.raises(GuestError) as error:
        client.parse_group(text, "make", ("memory", "io"))
    assert error.value.status == 2
    assert error.value.text.count("\n") == 0


def test_groups_are_compared_by_components() -> None:
    assert client.below("/a/b", "/a") == "/b"
    assert client.below("/a", "/a") == "/"
    assert client.below("/ab", "/a") is None
    assert client.below("/../x", "/") is None
    assert client.below("/..x", "/") == "/..x"
    assert client.ancestors("/a/b/c") == ["/a/b", "/a", "/"]


def test_mountinfo() -> None:
    text = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "31 23 0:28 /../.. /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n"
        "32 23 0:29 / /my\\040view/memory ro,nosuid - cgroup cgroup rw,memory\n"
        "33 23 0:30 /memory.max /sys/fs/cgroup/memory.max ro - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    first, second, third = client.parse_mountinfo(text)
    assert (first.root, first.options, first.read_only) == ("/../..", ("rw", "cpu"), False)
    assert (second.point, second.device, second.read_only) == ("/my view/memory", "0:29", True)
    assert (third.fstype, third.root) == ("cgroup2", "/memory.max")


def test_cpu_numbers_are_the_guests_both_ways() -> None:
    guest = view([4, 5, 9])
    assert guest.to_host(frozenset({0, 2}), "set") == {4, 9}
    assert guest.show("cpuset.cpus", frozenset({4, 5, 9})) == "0-2"
    assert guest.show("cpuset.cpus", frozenset({5, 7})) == "1"
    with pytest.raises(GuestError, match="no CPU 3: this guest has 0-2") as error:
        guest.to_host(frozenset({1, 3}), "set cpuset.cpus of group /web")
    assert error.value.status == 2


def test_cpu_numbers_are_the_hosts_without_a_stamp() -> None:
    assert view().to_host(frozenset({4, 9}), "set") == {4, 9}
    assert view().show("cpuset.cpus", frozenset({4, 9})) == "4,9"


@pytest.mark.parametrize(
    ("value", "have", "more"),
    [
        (5, 4, True), (4, 4, False), (MAX, 4, False), (4, MAX, False),
        ((150_000, 100_000), (100_000, 100_000), True), ((50_000, 50_000), (100_000, 100_000), False),
        ((MAX, 100_000), (1000, 100_000), False), (frozenset({1}), frozenset({0, 1}), False),
        (frozenset({2}), frozenset({0, 1}), True), ({"8:0": {"rbps": 2}}, {"8:0": {"rbps": 1}}, True),
        ({"8:0": {"rbps": 2}}, {"8:16": {"rbps": 1}}, False),
    ],
)  # fmt: skip
def test_what_is_more_than_the_parent_has(value: Any, have: Any, more: bool) -> None:
    assert client.exceeds(value, have) is more


def test_max_is_more_than_any_limit_where_those_above_do_not_count() -> None:
    value, have = {"8:0": {"rbps": MAX}}, {"8:0": {"rbps": 1}}
    assert (client.exceeds(value, have), client.exceeds(value, have, flat=True)) == (False, True)


def test_settings_take_short_and_long_keys() -> None:
    for name in ("memory", "memory.max", "memory.limit_in_bytes"):
        assert client.parse_setting(view(), "/web", f"{name}=1M")[:2] == ("memory.max", 1 << 20)
    assert len(client.SHORT) == sum(len(key.short) for key in client.KEYS.values())
    assert all(isinstance(key, Key) for key in client.KEYS.values())


@pytest.mark.parametrize(
    ("pair", "status", "says"),
    [
        ("memory", 2, "it is not KEY=VALUE"), ("memory=", 2, "it is not KEY=VALUE"), ("=1", 2, "no such key"),
        ("memory=1\n2", 2, "it is not KEY=VALUE"), ("../x=1", 2, "no such key"), ("cgroup.procs=1", 2, "move GROUP"),
        ("cpuset.cpus=0", 5, "no cpuset controller; it has: cpu, io, memory"), ("memory=x", 2, "'x' is not a size"),
        ("pids.max=\x1b[2J", 2, "\\x1b"),
    ],
)  # fmt: skip
def test_bad_settings(pair: str, status: int, says: str) -> None:
    with pytest.raises(GuestError) as error:
        client.parse_setting(view(), "/web", pair)
    assert error.value.status == status
    assert says in error.value.text
    assert error.value.text.isprintable()


@pytest.mark.parametrize(
    "stamp", [{}, {"name": 1, "set_by": [], "cpus": 3}, {"name": "x" * 100_000}, {"cpus": "renumbered"}]
)
def test_any_stamp_is_borne(stamp: dict[str, Any]) -> None:
    guest = view(stamp=stamp)
    assert (guest.name, guest.set_by, guest.cpus) == ("", "the level above", [])


def test_the_tree_is_in_order_and_deep_ones_are_no_trouble(tmp_path: Path) -> None:
    for name in ("b/x", "a/y/z", "a/c"):
        (tmp_path / name).mkdir(parents=True)
    assert view(tree=str(tmp_path)).tree("/") == ["/", "/a", "/a/c", "/a/y", "/a/y/z", "/b", "/b/x"]
    deep = [tmp_path / "/".join("d" * length) for length in range(1, 1501)]  # deeper than Python's stack
    for directory in deep:
        directory.mkdir()
    assert len(view(tree=str(tmp_path)).tree("/d")) == 1500
    for directory in reversed(deep):
        directory.rmdir()


@pytest.mark.parametrize(
    ("argv", "status"),
    [([], 2), (["nonsense"], 2), (["get"], 2), (["move", "x", "y"], 2), (["set", "x"], 2), (["--help"], 0),
     (["status", "--format", "xml"], 2), (["mount"], 2)],
)  # fmt: skip
def test_the_command_line(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(argv) == status
    err = capsys.readouterr().err
    assert err.count("\n") == (status != 0)
    assert not err or err.startswith("nestrt: cannot read the command line: ")


@pytest.mark.parametrize("name", ["", "..", "a/..", "a//b", "a/", "-x", "a\nb", "x" * 65, "/etc"])
def test_no_guest_has_such_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--of", name, "status"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_guest_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--of=nestrt-no-such/inner", "status"]) == 3
    assert "no group /nestrt/nestrt-no-such/guest/nestrt/inner" in capsys.readouterr().err


def test_it_runs_as_a_file_of_its_own_and_never_shows_a_traceback(tmp_path: Path) -> None:
    copy = tmp_path / "client.py"
    copy.write_bytes((CHECKOUT / "nestrt/guest/client.py").read_bytes())
    for argv in (["--help"], ["status"], ["ls", "-r"], ["create", "../x"]):
        command = [sys.executable, "-I", "-S", str(copy), *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", env=dict(os.environ))
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == (done.returncode != 0)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, str(copy), "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert b"Traceback" not in done.stderr
