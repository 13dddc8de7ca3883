"""The laws for a bundle's container: what a policy by annotation makes of it, with an engine's own limits.

    host                          the container (nestrt.level.virtualize=true)
    /…/ID      512M, 90 pids      nowhere: the engine's path is the limit group
       guest/                     "/" of every hierarchy
         init/                    first process
         web/                     what it makes

The same for ``launch``: test_view, test_lock, test_freedom, test_subset, test_clamp, test_levels, test_optin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import PARENT, Bundle, python_bundle
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
    paths,
    quoted,
    seen,
    standing,
    within,
)
from support.guests import controllers, inside, parse, script
from support.hostside import below, groups, hierarchies, mark, read, v2_hierarchy
from support.rootfs import COMMAND, PythonRoot
from support.runner import wait_for

NewBundle = Callable[..., Bundle]
# Root of a user namespace; root with an engine's usual few capabilities; root with all of them (--privileged).
MODES = ["userns", "nouserns", "root"]
all_modes = pytest.mark.parametrize("mode", MODES)


def prepared(bundle: Bundle, mode: str, limits: dict[str, Any] | None = None) -> Bundle:
    """*bundle* with a policy, in one of MODES."""
    bundle.virtual().resources(**(LIMITS if limits is None else limits))
    if mode == "userns":
        bundle.user_namespace().capabilities("all")
    elif mode == "root":
        bundle.capabilities("all")
    return bundle


# Law 1, view: every mount and /proc/self/cgroup begin at the guest root, though the document has a plain cgroup mount.
@all_modes
def test_view(bundle: Bundle, mode: str) -> None:
    keeps_view(prepared(bundle, mode), may_mount=mode != "nouserns")


# Laws 2 and 3, clamp and lock: the engine's limits stand above the view; the files in it show them and stay.
@all_modes
def test_clamp_and_lock(bundle: Bundle, mode: str) -> None:
    may_mount = mode != "nouserns"
    keeps_limits(prepared(bundle, mode).up(), may_mount, holds_locks=not may_mount)


# Law 4, freedom: mkdir and echo below the root, at once, in every mode.
@all_modes
def test_freedom(bundle: Bundle, mode: str) -> None:
    keeps_freedom(prepared(bundle, mode), "--keep")
    # The first process has ended, its groups are as it left them until delete.
    assert read("pids", f"{bundle.cgroup}/guest/web", "pids.max", "pids.max") == "7"
    bundle.delete().ok()


# Law 5, subset: a child group asks for more than there is and gets what there is; devices too, on v1.
@all_modes
def test_subset(bundle: Bundle, mode: str) -> None:
    keeps_subset(prepared(bundle, mode, SMALL))


# Devices: the document's rules are those of the limit group; what is made below has no more.
@all_modes
def test_devices(bundle: Bundle, mode: str) -> None:
    bundle.config["linux"]["devices"] = [KMSG]
    keeps_devices(prepared(bundle, mode, {"devices": RULES}))


# Law 6, sight: the container is a guest, by its id, with its limits and its processes.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_sight(bundle: Bundle, mode: str) -> None:
    prepared(bundle, mode).up("sleep 600 & exec sleep 600")
    is_seen(bundle)
    bundle.kill().ok()
    bundle.await_status("stopped")
    bundle.delete().ok()
    assert bundle.id not in bundle.nestrt.run("ls").ok().out


# What delete and gc of guests do to a container with a policy: gc leaves a running one alone.
def test_gc_leaves_containers_alone(bundle: Bundle) -> None:
    bundle.virtual().shell("exec sleep 600").create().ok()
    assert bundle.id not in bundle.nestrt.run("gc").ok().out
    assert bundle.status == "created"
    bundle.start().ok()
    assert bundle.id not in bundle.nestrt.run("gc").ok().out
    assert bundle.status == "running"
    assert bundle.exec("echo", "on").ok().out == "on\n"


# Law 7, opt-in: without an annotation the processes are in the engine's path itself, and nothing more is made.
@pytest.mark.parametrize("namespace", [True, False])
def test_without_a_policy(bundle: Bundle, namespace: bool) -> None:
    bundle.resources(**LIMITS)
    if namespace:
        bundle.namespace("cgroup")
    bundle.up()
    for place in bundle.groups():
        assert (place / "cgroup.procs").read_text() == f"{bundle.pid}\n"
        assert [entry for entry in os.listdir(place) if (place / entry).is_dir()] == []
        assert [name for name in os.listxattr(place) if "nestrt" in name] == []
    assert standing(bundle) == expected()
    assert bundle.id not in bundle.nestrt.run("ls").ok().out
    own = bundle.exec("cat", "/proc/self/cgroup").ok().out
    assert paths(own) == ({"/"} if namespace else {bundle.cgroup})


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("value", ["false", "no", "TRUE"])
def test_annotations_that_do_not_virtualize(bundle: Bundle, value: str) -> None:
    bundle.annotate(level__virtualize=value)
    result = bundle.shell("cut -d: -f3 /proc/self/cgroup | sort -u").run()
    if value == "false":
        assert result.ok().out.strip() == bundle.cgroup
        return
    assert result.rc == 1
    assert "nestrt.level.virtualize" in result.err
    assert len(result.err.splitlines()) == 1
    assert bundle.leftovers() == []


# What other annotations say is done; what they say wrongly is said, and nothing is made.
@pytest.mark.slow_on_vm
def test_annotations(bundle: Bundle, new_bundle: NewBundle) -> None:
    bundle.virtual().annotate(view__mount="ro", partition__max_groups="5", partition__max_depth="3")
    place = hierarchies()[0].mountpoint
    answers = bundle.ask({"make": f"mkdir {place}/web", "see": f"ls -d {place}/init"}, "--keep")
    assert "Read-only file system" in answers.refused("make")
    answers.text("see")
    v2 = v2_hierarchy()
    if v2 is not None:
        assert (v2.group(bundle.cgroup) / "cgroup.max.descendants").read_text() == "5\n"
        assert (v2.group(bundle.cgroup) / "cgroup.max.depth").read_text() == "3\n"
    bundle.delete().ok()
    for values in ({"view__mount": "none"}, {"policy": "nested"}, {"view__controllers": "pids,cpu"}):
        one = new_bundle().virtual().annotate(**values)
        one.args("true").run().ok()
    for values in ({"view__nowhere": "x"}, {"level__max_level": "0"}, {"policy": "nosuch"}):
        one = new_bundle().virtual().annotate(**values)
        result = one.args("true").run()
        assert (result.rc, len(result.err.splitlines())) == (1, 1), result
        assert "nestrt." in result.err or "nosuch" in result.err, result
        assert one.leftovers() == []


# systemd as the first process's program would start in the guest root itself.
def test_starting_in_the_guest_root(bundle: Bundle) -> None:
    bundle.virtual().annotate(view__start_in=".")
    assert bundle.shell("cut -d: -f3 /proc/self/cgroup | sort -u").run().ok().out == "/\n"


# Levels: a guest of launch, or a container, runs a bundle with a policy, and that one again. Limits hold at each level.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("first", ["launch", "bundle"])
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_levels(bundle: Bundle, guest_name: str, python: PythonRoot, tmp_path: Path, first: str, mode: str) -> None:
    policy = '[level]\nmax_level = 3\n[user]\ncapabilities = "all"\n[partition]\nmax_groups = 400\nmax_depth = 30\n'
    three = bundle_inside(python, "three", 128 * MIB, False, INSIDE, [COMMAND])
    two = bundle_inside(python, "two", 256 * MIB, mode == "userns", {**INSIDE, "three": quoted(three)}, [COMMAND])
    questions = {**INSIDE, "two": quoted(two)}
    if first == "launch":
        file = tmp_path / "levels.toml"
        file.write_text(policy)
        words = (*python.options, "--mount", "type=tmpfs,target=/tmp", "--policy", str(file), "-m", "512M")
        users = () if mode == "userns" else ("--userns", "none")
        command = ("--name", guest_name, *users, "--", "sh", "-c", script(questions))
        result = bundle.nestrt.launch(*words, *command, timeout=60)
        at_one = parse(result.out)
        assert "two" in at_one, result
        top = f"/nestrt/{guest_name}"
    else:
        prepared(python_bundle(bundle, python), mode, {"memory": {"limit": 512 * MIB}})
        bundle.annotate(policy="nested")
        at_one = bundle.ask(questions, "--keep", timeout=60)
        top = bundle.cgroup
    seen(at_one, 512 * MIB)
    at_two = within(at_one, "two")
    seen(at_two, 256 * MIB)
    at_three = within(at_two, "three")
    seen(at_three, 128 * MIB)
    # run has taken its container's groups away again, at each level, and nothing else stays above the view.
    for hierarchy in hierarchies():
        own = hierarchy.group(top)
        names = [str(place.relative_to(own)) for place in below(own)[1:]]
        assert not [name for name in names if "two" in name or "three" in name], names
        assert all(name.split("/")[0] == "guest" for name in names), names


# While they run the host sees them all: the groups lie in each other, whoever made them.
@pytest.mark.slow_on_vm
def test_the_host_sees_containers_of_containers(bundle: Bundle, python: PythonRoot) -> None:
    prepared(python_bundle(bundle, python), "root", {"memory": {"limit": 512 * MIB}})
    bundle.annotate(policy="nested")
    two = bundle_inside(python, "two", 256 * MIB, False, {"stay": "exec sleep 600"}, [COMMAND])
    bundle.up(two)
    place = f"{bundle.cgroup}/guest/inner/two"
    wait_for(lambda: any((d / "guest/init").is_dir() for d in groups(place)), "the inner container", 20)

    def names() -> set[str]:
        return {row["name"] for row in json.loads(bundle.nestrt.run("ls", "--format", "json").ok().out)}

    wait_for(lambda: {bundle.id, f"{bundle.id}/two"} <= names(), "both to be seen")
    assert read("memory", place, *MEMORY) == str(256 * MIB)
    found = mark(place)
    assert (found["name"], found["level"]) == ("two", 2)
    bundle.delete("--force", timeout=30).ok()
    assert bundle.leftovers() == []


# No source exceeds what the level has: a container's container asks for more than the container has.
@pytest.mark.slow_on_vm
def test_a_level_gives_no_more_than_it_has(bundle: Bundle, python: PythonRoot) -> None:
    prepared(python_bundle(bundle, python), "root", {"memory": {"limit": 256 * MIB}})
    bundle.annotate(policy="nested")
    result = bundle.ask(
        {"two": bundle_inside(python, "two", 512 * MIB, False, {"x": "echo ran"}, [COMMAND])}, timeout=40
    )
    text = result.refused("two")
    assert "ran" not in text.splitlines()
    assert f"memory 512M: level 1 ({bundle.id}) has 256M" in text, text


# The kernel's own word on all of it: what the host's tools find by the engine's path is the whole container.
def test_the_engines_path_counts_all(bundle: Bundle) -> None:
    prepared(bundle, "nouserns")
    bundle.up("sleep 600 & sleep 600 & wait")
    wait_for(
        lambda: len(json.loads(bundle.verb("ps", "--format", "json", bundle.id).ok().out)) == 3, "ps to show three"
    )
    assert int(read("pids", bundle.cgroup, "pids.current", "pids.current")) == 3
    assert bundle.cgroup.startswith(PARENT)
    stats = json.loads(bundle.verb("events", "--stats", bundle.id).ok().out)
    assert stats["data"]["pids"]["current"] == 3
    assert "pids" in controllers()
    bundle.verb("update", "--pids-limit", "50", bundle.id).ok()
    assert read("pids", bundle.cgroup, "pids.max", "pids.max") == "50"
    shown = bundle.exec("cat", inside("pids", "/", "pids.max", "pids.max")).ok().out
    assert shown == "50\n"
    bundle.verb("pause", bundle.id).ok()
    assert bundle.status == "paused"
    bundle.verb("resume", bundle.id).ok()
