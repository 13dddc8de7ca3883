"""Levels 2 and 3: a guest that has nestrt starts its own guest, which starts its own.

    /nestrt/one        512M, 90 processes
      guest            "/" of level 1
        nestrt/two     256M
          guest          "/" of level 2
            nestrt/three   128M
              guest          "/" of level 3: may start none
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guests import MODES, Answers, ask, inside, nested, parse, script
from support.hostside import groups, guest_root, hierarchies, limit_group, mark, read, v2_hierarchy
from support.need import require
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt

POLICY = "[level]\nmax_level = 3\n[user]\ncapabilities = \"all\"\n[partition]\nmax_groups = 400\nmax_depth = 30\n"
# A guest on a tmpfs of its own can shift the ids of its guests; on an overlay it shares its own with them.
TMPFS = ("--mount", "type=tmpfs,target=/tmp")
MEMORY = "memory.limit_in_bytes", "memory.max"
MIB = 1 << 20


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "levels.toml"
    file.write_text(POLICY)
    return file


def launch(python: PythonRoot, name: str, options: str, questions: dict[str, str], root: str = "/tmp/next") -> str:
    """A shell command that launches the guest *name* of a guest, and has it answer *questions*."""
    command = f"sh -c {shlex.quote(script(questions))}"
    return nested(python, f"--name {name} {options}", command, root)


def within(answers: Answers, name: str) -> Answers:
    """What a guest of the guest answered: the answers in an answer."""
    inner = parse(answers.text(name).replace("\n>", "\n").removeprefix(">"))
    assert inner, answers[name]
    return inner


def quoted(command: str) -> str:
    """*command* with each line of its output behind a ">", so that answers can hold answers; its status stays."""
    return f"{{ {command}; }} >/tmp/told 2>&1; status=$?; sed 's/^/>/' /tmp/told; exit $status"


LOOK = {
    "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
    "memory": f"cat {inside('memory', '/', *MEMORY)}",
    "write": f"echo 600000000 > {inside('memory', '/', *MEMORY)}",
    "child": f"cd {hierarchies()[0].mountpoint} && mkdir web && echo 0 > web/cgroup.procs ; ls -d web",
    "first": "cat /proc/1/comm; readlink /proc/self >/dev/null && ls /sys/class/net",
    "ids": "cat /proc/self/uid_map",
}


def seen(answers: Answers, memory: int) -> None:
    """What a guest of any level sees of itself."""
    assert answers.text("cgroup") == "/init"
    assert answers.text("memory") == str(memory)
    assert "Permission denied" in answers["write"].text or "Read-only file system" in answers["write"].text
    assert answers.text("child") == "web"
    assert answers.text("first").split() == ["sh", "lo"]


U, N = "auto", "none"
CHAINS = [
    pytest.param((U, U, U), True, id="userns-userns-userns"),
    pytest.param((U, U, U), False, id="userns-userns-userns-shared"),
    pytest.param((U, N, N), True, id="userns-none-none"),
    pytest.param((N, N, N), True, id="none-none-none"),
    pytest.param((N, U, U), True, id="none-userns-userns", marks=pytest.mark.slow_on_vm),
    pytest.param((N, N, U), True, id="none-none-userns", marks=pytest.mark.slow_on_vm),
    pytest.param((U, U, N), True, id="userns-userns-none", marks=pytest.mark.slow_on_vm),
    pytest.param((U, N, U), True, id="userns-none-userns", marks=pytest.mark.slow_on_vm),
]


# Three levels, each with and without a user namespace: the laws hold at each, and the host sees all.
@pytest.mark.parametrize(("chain", "own_tmp"), CHAINS)
def test_three_levels(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, policy: Path, chain: tuple[str, str, str], own_tmp: bool
) -> None:
    tmp = " ".join(TMPFS) if own_tmp else "--mount type=tmpfs,target=/run/tmp"
    given = f"{COMMAND} guest status >/dev/null && echo fine"
    three = launch(
        python,
        "three",
        f"--userns {chain[2]} -m 128M {tmp}",
        {**LOOK, "status": given, "more": nested(python, "--userns none --name four", "true", "/run/four")},
    )
    two = launch(
        python, "two", f"--userns {chain[1]} --capabilities all -m 256M {tmp}", {**LOOK, "three": quoted(three)}
    )
    one = {**LOOK, "two": quoted(two)}
    space = TMPFS if own_tmp else ("--overlay",)
    options = (*python.options, *space, "--policy", policy, "--userns", chain[0], "-m", "512M", "--pids", "90")
    at_one = ask(nestrt, one, *options, "--name", guest_name, timeout=60)
    at_two = within(at_one, "two")
    at_three = within(at_two, "three")

    seen(at_one, 512 * MIB)
    seen(at_two, 256 * MIB)
    seen(at_three, 128 * MIB)
    assert at_three.text("status") == "fine"
    # max_level is 3, absolute.
    told = at_three.refused("more")
    assert told.splitlines()[-1].startswith("nestrt: cannot launch a guest at level 4: level 3 (three)"), told
    places = (guest_name, f"{guest_name}/guest/nestrt/two", f"{guest_name}/guest/nestrt/two/guest/nestrt/three")
    for place, size, level in zip(places, (512, 256, 128), (1, 2, 3), strict=True):
        assert read("memory", limit_group(place), *MEMORY) == str(size * MIB)
        assert read("memory", guest_root(place), *MEMORY) == str(size * MIB)
        assert mark(limit_group(place))["level"] == level
        assert len(groups(guest_root(place))) == len(hierarchies())


# A level gives no more than it has, and says so; an option of the level above is not repeated to the level below.
def test_a_level_gives_no_more_than_it_has(
    nestrt: Nestrt, guest_name: str, python: PythonRoot, policy: Path
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    asked = {
        "memory": ("-m 512M", 'memory 512M: level 1 (NAME) has 256M'),
        "pids": ("--pids 91", "pids 91: level 1 (NAME) has 90"),
        "quota": ("--cpu-quota 0.7", "cpu_quota 0.7: level 1 (NAME) has 0.6"),
        "cpus": ("--cpus 1", "CPUs 1: level 1 (NAME) counts its 1 CPUs from 0"),
        "device": ("--device 'b 7:0 rwm'", "device 'b 7:0 rwm': level 1 (NAME) is not allowed it"),
    }
    root = "/tmp/next"
    questions = {"root": f"/mkroot {root}"}
    for name, (option, _) in asked.items():
        words = " ".join(f"'{word}'" for word in python.inner_options(root))
        questions[name] = f"{COMMAND} launch {words} --name two {option} -- true"
        questions[f"left {name}"] = "find /sys/fs/cgroup /run/nestrt -name two 2>/dev/null; true"
    options = (*python.options, *TMPFS, "--policy", policy, "-m", "256M", "--pids", "90", "--cpu-quota", "0.6")
    limits = ("--cpus", str(cpus[-1]), "--device", "c 10:229 rwm")
    answers = ask(nestrt, questions, *options, *limits, "--name", guest_name, timeout=60)
    answers.text("root")
    for name, (_, message) in asked.items():
        told = answers[name]
        assert told.rc == 125, (name, told)
        expected = "nestrt: cannot give the guest " + message.replace("NAME", guest_name)
        assert told.text.startswith(expected), (name, told)
        assert len(told.text.splitlines()) == 1, told
        assert answers.text(f"left {name}") == "", name


# max_groups and max_depth count from the limit group, in the v2 tree (v1 has no such caps): guest root and first
# group are two of each. What a guest makes below counts for all of its levels.
@pytest.mark.parametrize("mode", MODES)
def test_number_and_depth_of_groups(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, tmp_path: Path, mode: str
) -> None:
    v2 = v2_hierarchy()
    require("cgroup-v2", "" if v2 else "no v2 tree is mounted")
    assert v2 is not None
    place, name = v2.mountpoint, new_guest()
    file = tmp_path / "few.toml"
    file.write_text("[partition]\nmax_groups = 7\nmax_depth = 4\n")
    answers = ask(
        nestrt,
        {
            "shown": f"cat {place}/cgroup.max.descendants {place}/cgroup.max.depth; true",
            "deep": f"cd {place}; mkdir a a/b a/b/c",
            "deeper": f"mkdir {place}/a/b/c/d",
            "wide": f"cd {place}; mkdir e f",
            "wider": f"mkdir {place}/g",
            "inner": f"mkdir {place}/init/g",
            "raise": f"echo max > {place}/cgroup.max.descendants",
            "free": f"rmdir {place}/f && mkdir {place}/g",
            "own": f"cd {place}; rmdir g; echo 0 > e/cgroup.max.descendants; mkdir e/x",
        },
        *("--rootfs", busybox, "--name", name, "--policy", file, *MODES[mode]),
    )
    limit = v2.group(limit_group(name))
    assert (limit / "cgroup.max.descendants").read_text() == "7\n"
    assert (limit / "cgroup.max.depth").read_text() == "4\n"
    for allowed in ("deep", "wide", "free"):
        answers.text(allowed)
    for refused in ("deeper", "wider", "inner", "own"):
        assert "Resource temporarily unavailable" in answers.refused(refused), refused
    answers.refused("raise")
    assert dict(line.split() for line in (limit / "cgroup.stat").read_text().splitlines())["nr_descendants"] == "6"


# Two guests at once: their ids do not overlap, nor do those of the guests that they start, which lie within theirs.
def test_ids_of_guests_do_not_overlap(
    nestrt: Nestrt, new_guest: Callable[[], str], python: PythonRoot, policy: Path
) -> None:
    outer, inner = [], []
    for _ in range(2):
        name = new_guest()
        two = nested(python, "--name two", "cat /proc/self/uid_map /proc/self/gid_map")
        options = (*python.options, *TMPFS, "--policy", policy, "--name", name)
        answers = ask(nestrt, {"ids": "cat /proc/self/uid_map", "two": two}, *options)
        uids, gids = ([int(word) for word in line.split()] for line in answers.text("two").splitlines())
        inside_, outside, count = (int(word) for word in answers.text("ids").split())
        assert mark(limit_group(name))["ids"] == [[inside_, outside, count]]
        assert inside_ == uids[0] == 0
        assert uids == gids
        # Private to the guest: beyond the ids that level 1 itself uses, within those that it has.
        assert uids[1] >= 65536
        assert uids[1] + uids[2] <= count
        outer.append((outside, outside + count))
        inner.append(uids[1])
    (start, end), (other, other_end) = outer
    assert end <= other or other_end <= start
    assert min(start, other) >= 65536
