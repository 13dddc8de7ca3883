"""Limit groups that are systemd scopes: names there and back, what annotations may not do, crun's config, flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli.wrap import Call
from nestrt.errors import HostError, InputError
from nestrt.level.annotations import builtin
from nestrt.oci.partial import load_known
from nestrt.plan.facts import Hierarchy
from nestrt.plan.rewrite import Terms, text_of
from nestrt.plan.scope import below_scope, cgroups_path_of, lockable, require_plain, require_v2
from nestrt.plan.systemd import parse_path

CONFIG = Path(__file__).parent / "configs" / "podman-run-cgroup-manager-systemd.json"
V2 = Hierarchy("", 2, ("cpu", "memory", "hugetlb", "pids"), "", "/sys/fs/cgroup")
V1 = Hierarchy("memory", 1, ("memory",), "memory", "/sys/fs/cgroup/memory")
HOOK = ("/opt/nestrt/hooks/nestrt", "nestrt", "hook")
WORDS = st.text("abz019_.", min_size=1, max_size=8)


@given(st.lists(st.text("abz019_", min_size=1, max_size=5), max_size=3), WORDS | st.just(""), WORDS)
def test_the_group_of_a_scope_tells_its_cgroups_path(slices: list[str], prefix: str, name: str) -> None:
    text = f"{'-'.join(slices) or '-'}.slice:{prefix}:{name}"
    unit = parse_path(text, "id")
    if not unit.is_slice:
        assert cgroups_path_of(unit.group()) == text


@pytest.mark.parametrize("group", ["/machine/web", "/a.slice/web.service", "/a.slice/web.scope", "/a/x-web.scope", "/"])
def test_a_group_that_is_no_scopes_has_none(group: str) -> None:
    with pytest.raises(InputError, match="it is no scope's"):
        cgroups_path_of(group)


@pytest.mark.parametrize(
    "name",
    ["MemoryMax", "MemoryAccounting", "CPUWeight", "CPUQuotaPerSecSec", "TasksMax", "IOWeight", "BlockIOWeight",
     "DevicePolicy", "DeviceAllow", "AllowedCPUs", "StartupCPUWeight", "Slice", "Delegate", "DisableControllers"],
)  # fmt: skip
def test_no_annotation_limits_moves_or_takes_the_scope(name: str) -> None:
    with pytest.raises(InputError, match=f"cannot honour annotation org.systemd.property.{name}: "):
        require_plain((("a", "b"), (f"org.systemd.property.{name}", "uint64 1")))


def test_other_properties_are_the_bundles_to_choose() -> None:
    names = ("TimeoutStopSec", "CollectMode", "After", "RuntimeMaxSec", "KillSignal")
    require_plain(tuple((f"org.systemd.property.{name}", "1") for name in names))
    require_plain((("org.example.MemoryMax", "1"),))


def test_a_runtimes_own_scope_is_divided_on_v2_alone() -> None:
    require_v2((V2,), "web")
    with pytest.raises(HostError, match=r"nestrt hooks install.*cgroupfs"):
        require_v2((V2, V1), "web")


def test_limit_files_that_are_still_to_come() -> None:
    found = lockable(V2, ("2MB", "1GB"))
    assert {"memory.max", "pids.max", "cpu.max", "cgroup.max.depth", "hugetlb.2MB.max", "hugetlb.1GB.rsvd.max"} <= {
        *found
    }
    assert not any("*" in name or name.startswith("io.") for name in found)


def rewritten(text: str, virtual: Hierarchy = V2) -> dict[str, Any]:
    document, spec = load_known(text, "config.json")
    policy = builtin("nested")
    assert policy is not None
    group = parse_path(spec.cgroups_path, "").group()
    terms = Terms(policy, group, (virtual,), {"": lockable(virtual, ("2MB",))}, HOOK, "record")
    return below_scope(document, spec, terms)


def test_crun_makes_the_guest_root_below_the_scope_that_podman_has_named() -> None:
    before = json.loads(CONFIG.read_text())
    found = rewritten(CONFIG.read_text())
    path = before["linux"]["cgroupsPath"]
    assert path.count(":") == 2
    assert found["linux"]["cgroupsPath"] == path
    assert found["annotations"]["run.oci.systemd.subgroup"] == "guest"
    assert found["annotations"]["io.nestrt.limit-group"] == parse_path(path, "").group()
    assert {"type": "cgroup"} in found["linux"]["namespaces"]
    # Nothing of the host's groups is bound: they are not there when mounts are made.
    assert not [mount for mount in found["mounts"] if str(mount.get("source")).startswith("/sys/fs/cgroup")]
    locked = found["linux"]["readonlyPaths"]
    assert locked[: len(before["linux"]["readonlyPaths"])] == before["linux"]["readonlyPaths"]
    for name in ("memory.max", "pids.max", "cpu.max", "hugetlb.2MB.max"):
        assert f"/sys/fs/cgroup/{name}" in locked
    assert [hook["args"][-1] for hook in found["hooks"]["createRuntime"]][-1] == "createRuntime"


def test_done_twice_it_is_the_same_as_done_once() -> None:
    once = text_of(rewritten(CONFIG.read_text()))
    assert text_of(rewritten(once)) == once


@pytest.mark.parametrize(
    ("words", "systemd", "left"),
    [
        ("--systemd-cgroup create --bundle B x", True, "create --bundle B x"),
        ("--root R --systemd-cgroup --log L create x", True, "--root R --log L create x"),
        ("--systemd-cgroup=true run x", True, "run x"),
        ("--systemd-cgroup=1 run x", True, "run x"),
        ("--root=/run/x --cgroup-manager systemd run x", True, "--root=/run/x run x"),
        ("--cgroup-manager=systemd --debug run x --systemd-cgroup", True, "--debug run x --systemd-cgroup"),
        ("--systemd-cgroup=false run x", False, "--systemd-cgroup=false run x"),
        ("--systemd-cgroup=F run x", False, "--systemd-cgroup=F run x"),
        ("--cgroup-manager cgroupfs run x", False, "--cgroup-manager cgroupfs run x"),
        ("--root --systemd-cgroup run x", False, "--root --systemd-cgroup run x"),
        ("run --systemd-cgroup x", False, "run --systemd-cgroup x"),
    ],
)
def test_wrap_takes_the_systemd_driver_out_of_the_runtimes_words(words: str, systemd: bool, left: str) -> None:
    call = Call(words.split())
    assert call.verb in ("create", "run")
    assert call.systemd is systemd
    assert call.without_systemd() == left.split()
