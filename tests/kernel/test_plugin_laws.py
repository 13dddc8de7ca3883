"""The laws for guests that another runtime starts: what the plugin makes of runc's and crun's containers.

::

    host                          the container (nestrt.policy = nested, by nestrt wrap --runtime runc)
    /…/ID      512M, 90 pids      nowhere: the engine's path is the limit group
       guest/                     "/" of every hierarchy; runc's own group
         init/                    first process
         web/                     what it makes

The same for nestrt's own containers: test_oci_laws.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bundles import bound, python_bundle
from support.container_laws import (
    INSIDE,
    KMSG,
    LIMITS,
    MEMORY,
    MIB,
    RULES,
    SMALL,
    bundle_inside,
    expected,
    is_seen,
    keeps_devices,
    keeps_freedom,
    keeps_limits,
    keeps_subset,
    keeps_view,
    quoted,
    seen,
    standing,
    within,
)
from support.guests import directory, inside
from support.hostside import groups, has_v1, hierarchies, hierarchy_of, mark, read
from support.plugin import RUNC, RUNTIMES, Wrapped, memberships, wrapped_bundles
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, wait_for

NewWrapped = Callable[..., Wrapped]
slow = pytest.mark.slow_on_vm
# Root of a private range of ids; of one with the host's root in it; root with an engine's few capabilities; with all.
MODES = ["userns", pytest.param("hostroot", marks=slow), pytest.param("nouserns", marks=slow), "root"]
all_modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(params=RUNTIMES, ids=os.path.basename)
def each(nestrt: Nestrt, busybox: Path, request: pytest.FixtureRequest) -> Iterator[Wrapped]:
    """A bundle for each runtime of this host, with a policy."""
    for new in wrapped_bundles(nestrt, busybox, str(request.param)):
        yield new().guest()


@pytest.fixture
def new_wrapped(nestrt: Nestrt, busybox: Path) -> Iterator[NewWrapped]:
    yield from wrapped_bundles(nestrt, busybox)


@pytest.fixture
def wrapped(new_wrapped: NewWrapped) -> Wrapped:
    return new_wrapped().guest()


def prepared(bundle: Wrapped, mode: str, limits: dict[str, Any] | None = None) -> Wrapped:
    """*bundle* with limits, in one of MODES."""
    bundle.resources(**(LIMITS if limits is None else limits))
    if mode == "userns":
        bundle.user_namespace().capabilities("all")
    elif mode == "hostroot":
        bundle.user_namespace(0).capabilities("all")
    elif mode == "root":
        bundle.capabilities("all")
    return bundle


# Law 1, view: every mount and /proc/self/cgroup begin at the guest root, and what the guest mounts itself does, too.
@all_modes
def test_view(each: Wrapped, mode: str) -> None:
    keeps_view(prepared(each, mode), may_mount=mode != "nouserns")
    each.gone()


# Laws 2 and 3, clamp and lock: the engine's limits stand above the view; the files in it show them and stay.
@all_modes
def test_clamp_and_lock(each: Wrapped, mode: str) -> None:
    # "hostroot" and "root" may unmount what their runtime has mounted: clamp holds.
    holds_locks = mode in ("userns", "nouserns")
    keeps_limits(prepared(each, mode).up(), may_mount=mode != "nouserns", holds_locks=holds_locks)


# Law 3: each file of the guest root that bounds something is locked, whatever controllers there are. busybox's test -w
# asks the mode alone.
@slow
def test_no_limit_file_is_left_open(wrapped: Wrapped) -> None:
    prepared(wrapped, "root")
    own = "cgroup.procs tasks cgroup.threads cgroup.subtree_control cgroup.freeze cgroup.kill cgroup.type"
    each_file = "for f in *; do [ -f $f ] && ( : >> $f ) 2>/dev/null && echo $f; done; true"
    questions = {str(h.mountpoint): f"cd {h.mountpoint}; {each_file}" for h in hierarchies()}
    answers = wrapped.ask(questions)
    for place in questions:
        names = [name for name in answers.text(place).split() if "effective" not in name]
        opened = [name for name in names if name not in own.split()]
        ends = ("max", "high", "limit_in_bytes", "_device", "_us", "weight", "shares", "cpus", "mems", "depth", "allow")
        assert not [name for name in opened if name.endswith((*ends, "descendants", "deny"))], place


OTHERS = [pytest.param(name, marks=slow) for name in ("userns", "hostroot", "nouserns")]


# Law 4, freedom: mkdir and echo below the root, at once.
@pytest.mark.parametrize("mode", [*OTHERS, "root"])
def test_freedom(each: Wrapped, mode: str) -> None:
    keeps_freedom(prepared(each, mode))
    each.gone()


# Law 5, subset: a child group asks for more than there is and gets what there is.
@slow
@all_modes
def test_subset(each: Wrapped, mode: str) -> None:
    keeps_subset(prepared(each, mode, SMALL))


# Devices: the document's rules are the limit group's, what the runtime has by itself is not more; below is no more.
@pytest.mark.parametrize("mode", ["userns", pytest.param("root", marks=slow)])
def test_devices(each: Wrapped, mode: str) -> None:
    each.config["linux"]["devices"] = [KMSG]
    keeps_devices(prepared(each, mode, {"devices": RULES})).refused("make")
    each.gone()


# Law 6, sight: the container is a guest, by its id, with its limits and its processes.
@slow
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_sight(each: Wrapped, mode: str) -> None:
    prepared(each, mode).up("sleep 600 & exec sleep 600")
    is_seen(each)
    # The engine's tools look at the engine's path: it counts all.
    assert int(read("pids", each.cgroup, "pids.current", "pids.current")) == 2
    each.delete("--force").ok()
    assert each.id not in each.nestrt.run("ls").ok().out


# A policy with other views: each as it says, the first process where it says; the same limits.
VIEWS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    # annotations, questions and the words that their answers have, where the first process is
    "ro": ({"view__mount": "ro"}, {"make": "Read-only file system"}, "/init"),
    "none": ({"view__mount": "none"}, {"make": "", "see": ""}, "/init"),
    "root": ({"view__start_in": "."}, {"made": "web"}, "/"),
    "few": ({"view__controllers": "pids,cpu"}, {"made": "web", "memory": ""}, "/init"),
    "undivided": ({"partition__memory": "false"}, {"made": "web", "memory": ""}, "/init"),
    "strict": ({"policy": "strict"}, {"make": "Read-only file system"}, "/init"),
}


@slow
@pytest.mark.parametrize("mode", ["userns", "root"])
@pytest.mark.parametrize("name", VIEWS)
def test_views(wrapped: Wrapped, name: str, mode: str) -> None:
    values, wanted, first = VIEWS[name]
    prepared(wrapped, mode).annotate(**values)
    pids, memory = directory("pids", "/"), directory("memory", "/web")
    known = {
        "make": f"mkdir {pids}/web",
        "made": f"mkdir {pids}/web && cd {pids} && ls -d web",
        "see": f"ls {pids}/pids.max",
        "memory": f"mkdir -p {memory} && echo 4M > {inside('memory', '/web', *MEMORY)}",
    }
    answers = wrapped.ask({"where": "cut -d: -f3 /proc/self/cgroup | sort -u", **{key: known[key] for key in wanted}})
    assert answers.text("where") == first
    for key, text in wanted.items():
        if key == "made":
            assert answers.text(key) == text
        else:
            assert text in answers.refused(key)
    wrapped.gone()


# What a document binds of the host's own groups is not there, by whatever path they are reached.
BOUND = {
    "cgroup": ("/sys/fs/cgroup", "/mnt", ""),
    "one hierarchy": (str(hierarchies()[0].mountpoint), "/mnt", ""),
    "in its place": ("/sys/fs/cgroup", "/sys/fs/cgroup", ""),
    "sys": ("/sys", "/mnt", "/fs/cgroup"),
    "sys in its place": ("/sys", "/sys", "/fs/cgroup"),
    "everything": ("/", "/mnt", "/sys/fs/cgroup"),
}


@slow
@pytest.mark.parametrize("mode", ["userns", "root"])
@pytest.mark.parametrize("name", BOUND)
def test_binds_of_the_hosts_groups(wrapped: Wrapped, name: str, mode: str) -> None:
    source, target, below = BOUND[name]
    prepared(wrapped, mode)
    mounts = [m for m in wrapped.config["mounts"] if m["destination"] != target]
    wrapped.config["mounts"] = [*mounts, bound(source, target, "rslave")]
    memory = group_file_below(target + below)
    questions = {
        "find": f"find {target}{below} -maxdepth 4 -name {wrapped.id}",
        "raise": f"echo {8 << 30} > {memory}{wrapped.cgroup}/{MEMORY[0] if has_v1('memory') else MEMORY[1]}",
        "own": "cut -d: -f3 /proc/self/cgroup | sort -u",
    }
    wrapped.up()
    answers = wrapped.ask_running(questions)
    assert standing(wrapped) == expected()
    assert not answers["find"].text or "No such file" in answers["find"].text, answers["find"]
    answers.refused("raise")
    wrapped.gone_by_force()


def group_file_below(place: str) -> str:
    """Where *place*, a bind of what is at /sys/fs/cgroup or of a hierarchy, has that of memory."""
    memory = hierarchy_of("memory")
    assert memory is not None
    return place + str(memory.mountpoint).removeprefix("/sys/fs/cgroup")


# A strict policy: the laws are read back, and a container that keeps them runs.
@slow
@pytest.mark.parametrize("mode", ["userns", "nouserns", "root"])
def test_a_strict_policy(wrapped: Wrapped, mode: str) -> None:
    prepared(wrapped, mode).annotate(level__strict="true")
    assert wrapped.shell("cut -d: -f3 /proc/self/cgroup | sort -u").run().ok().out == "/init\n"
    assert "poststart" in wrapped.document["hooks"]
    wrapped.gone()


# --- levels -------------------------------------------------------------------------------------------


def by(runtime: str) -> list[str]:
    """What a guest calls instead of *runtime*."""
    return [COMMAND, "wrap", "--runtime", shlex.quote(runtime)]


def top(bundle: Wrapped, python: PythonRoot, mode: str) -> Wrapped:
    prepared(python_bundle(bundle, python), mode, {"memory": {"limit": 512 * MIB}})
    options = ["nosuid", "nodev", "mode=755"]
    bundle.config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    return bundle


# Root of level 1 calls nestrt wrap, and root of level 2 does: the laws hold at each, limits are met at each.
@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("userns", "same"),
        pytest.param("userns", "userns", marks=slow),
        pytest.param("root", "same", marks=slow),
        pytest.param("root", "userns", marks=slow),
    ],
)
def test_levels(each: Wrapped, python: PythonRoot, one: str, two: str) -> None:
    top(each, python, one)
    runtime = each.runtime
    three = bundle_inside(python, "three", 128 * MIB, False, INSIDE, by(runtime))
    inner = bundle_inside(python, "two", 256 * MIB, two == "userns", {**INSIDE, "three": quoted(three)}, by(runtime))
    at_one = each.ask({**INSIDE, "two": quoted(inner)}, timeout=60)
    seen(at_one, 512 * MIB)
    at_two = within(at_one, "two")
    seen(at_two, 256 * MIB, kept=one == two == "userns")
    seen(within(at_two, "three"), 128 * MIB)
    each.gone()


# While they run the host sees them all: the groups lie in each other, whoever made them.
@slow
def test_the_host_sees_guests_of_guests(wrapped: Wrapped, python: PythonRoot) -> None:
    top(wrapped, python, "userns").up(
        bundle_inside(python, "two", 256 * MIB, False, {"stay": "exec sleep 600"}, by(RUNC))
    )
    place = f"{wrapped.cgroup}/guest/inner/two"
    wait_for(lambda: any((d / "guest/init").is_dir() for d in groups(place)), "the inner container", 20)

    def names() -> set[str]:
        return {row["name"] for row in json.loads(wrapped.nestrt.run("ls", "--format", "json").ok().out)}

    wait_for(lambda: {wrapped.id, f"{wrapped.id}/two"} <= names(), "both to be seen")
    assert read("memory", place, *MEMORY) == str(256 * MIB)
    found = mark(place)
    assert (found["name"], found["level"]) == ("two", 2)
    rows = json.loads(wrapped.nestrt.run("ls", "--format", "json").out)
    pid = next(row["pid"] for row in rows if row["name"] == f"{wrapped.id}/two")
    assert set(memberships(pid).values()) == {f"{place}/guest/init"}
    wrapped.delete("--force", timeout=30).ok()
    wrapped.gone()


# No source exceeds what the level has: a guest's guest asks for more than the guest has.
@slow
def test_a_level_gives_no_more_than_it_has(wrapped: Wrapped, python: PythonRoot) -> None:
    top(wrapped, python, "userns").resources(memory={"limit": 256 * MIB})
    answers = wrapped.ask(
        {"two": bundle_inside(python, "two", 512 * MIB, False, {"x": "echo ran"}, by(RUNC))}, timeout=40
    )
    text = answers.refused("two")
    assert "ran" not in text.splitlines()
    assert f"memory 512M: level 1 ({wrapped.id}) has 256M" in text, text
