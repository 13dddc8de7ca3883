"""A container of systemd-nspawn's service: which group is the limit group, what its unit must have, and the drop-in."""

from __future__ import annotations

import os

import pytest

from nestrt.cli import _nspawn
from nestrt.errors import HostError, InputError
from nestrt.level.check import Has
from nestrt.level.devices import DEFAULT_RULES
from nestrt.level.limits import Limits
from nestrt.level.policy import Policy
from nestrt.plan import lxc, nspawn
from nestrt.plan.facts import Facts, Hierarchy, Level
from nestrt.plan.host_steps import Attach, AttachDeviceProgram, Delegate, MakeGroup, MarkRunning, SetFile, SetMark
from nestrt.plan.ids import Identity
from nestrt.record import replace

V2 = Hierarchy("", 2, ("cpu", "memory", "pids"), "", "/sys/fs/cgroup")
UNIT = "/machine.slice/systemd-nspawn@web.service"
PRIVATE = Identity(((0, 700000, 65536),), ((0, 700000, 65536),), 700000, 700000, private=True)


def facts() -> Facts:
    return Facts(
        (V2,), V2, Level(), "trusted.nestrt", "security.nestrt", False, (), (), None, ("cgroup.procs",), 0, Has()
    )


def container(policy: Policy, stands: Limits, programs: int = 1) -> lxc.Container:
    found = replace(lxc.within(policy, stands, PRIVATE), start_in=".")
    return lxc.Container(nspawn.Payload("web", "/", (), found, cgroup=UNIT), stands, programs)


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        (UNIT, UNIT),
        (f"{UNIT}/.control", UNIT),
        ("/system.slice/a.service", "/system.slice/a.service"),
        ("/", ""),
        ("/a.service", ""),
        ("/machine.slice/machine-web.scope", ""),
        (f"{UNIT}/payload", ""),
        ("/user.slice/x", ""),
    ],
)
def test_the_services_group(path: str, unit: str) -> None:
    if unit:
        assert nspawn.unit_of(path) == unit
        return
    with pytest.raises(HostError, match="no service's"):
        nspawn.unit_of(path)


@pytest.mark.parametrize(
    ("policy", "unit", "line"),
    [
        (Limits(), Limits(), ""),
        (Limits(memory=64 << 20), Limits(memory=64 << 20), ""),
        (Limits(memory=64 << 20), Limits(memory=32 << 20), ""),
        (Limits(memory=64 << 20), Limits(), "MemoryMax=64M"),
        (Limits(memory=64 << 20), Limits(memory=128 << 20), "MemoryMax=64M"),
        (Limits(memory=-1), Limits(), ""),
        (Limits(swap=0), Limits(), "MemorySwapMax=0"),
        (Limits(pids=100), Limits(pids=16384), "TasksMax=100"),
        (Limits(cpu_quota=150_000), Limits(), "CPUQuota=150%"),
        (Limits(cpu_quota=12_500), Limits(), "CPUQuota=12.5%"),
        (Limits(cpus=frozenset((0, 1))), Limits(), "AllowedCPUs=0-1"),
        (Limits(cpus=frozenset((0, 1))), Limits(cpus=frozenset((1,))), ""),
        (Limits(cpus=frozenset((0, 1))), Limits(cpus=frozenset((1, 2))), "AllowedCPUs=0-1"),
        (Limits(mems=frozenset((0,))), Limits(), "AllowedMemoryNodes=0"),
    ],
)
def test_the_unit_has_to_have_the_policys_limits(policy: Limits, unit: Limits, line: str) -> None:
    """systemd writes them all again whenever one changes, so they are not set behind its back."""
    if not line:
        nspawn.require(policy, unit, "web")
        return
    with pytest.raises(HostError) as raised:
        nspawn.require(policy, unit, "web")
    assert line in str(raised.value)
    assert "systemctl edit systemd-nspawn@web" in str(raised.value)


def test_before_the_start() -> None:
    """Mark, caps and device rules on the service's group, and nothing that systemd would write."""
    policy = Policy(max_groups=7, max_depth=3, limits=Limits(memory=4096, devices=DEFAULT_RULES))
    steps = nspawn.prepare(container(policy, Limits(memory=4096, pids=9)), facts(), DEFAULT_RULES, "0123", 7)
    assert all(getattr(step, "group", UNIT) == UNIT for step in steps)
    assert [(s.file, s.value) for s in steps if isinstance(s, SetFile)] == [
        ("cgroup.max.descendants", "7"),
        ("cgroup.max.depth", "3"),
    ]
    assert [s.attribute for s in steps if isinstance(s, SetMark)] == ["trusted.nestrt"]
    assert [s.rules for s in steps if isinstance(s, AttachDeviceProgram)]


def test_after_the_start() -> None:
    """nspawn's own group is the guest root: it shows what the unit has; no process is moved."""
    request = container(Policy(), Limits(memory=4096, pids=9)).request
    assert (request.guest_root, request.first_group) == (f"{UNIT}/payload", f"{UNIT}/payload")
    steps = nspawn.settle(request, facts(), PRIVATE, "0123", 7)
    payload = f"{UNIT}/payload"
    assert [(s.group, s.file, s.value) for s in steps if isinstance(s, SetFile)] == [
        (payload, "memory.max", "4096"),
        (payload, "pids.max", "9"),
    ]
    assert [s.group for s in steps if isinstance(s, MakeGroup)] == [payload]
    assert [(s.group, s.uid) for s in steps if isinstance(s, Delegate)] == [(payload, 700000)]
    assert [s.group for s in steps if isinstance(s, SetMark)] == [payload]  # the stamp
    assert isinstance(steps[-1], MarkRunning)
    assert not [s for s in steps if isinstance(s, Attach)]


def test_wrong_words() -> None:
    for argv in ([], ["start-pre"], ["stop", "web"], ["start-pre", "a", "b"], ["start-pre", "a/b"]):
        with pytest.raises(InputError):
            _nspawn.main(argv)


def test_only_root_of_a_host_whose_controllers_are_v2s() -> None:
    """nspawn leaves a container in the service's own group, or the root group, of every v1 hierarchy."""
    v1 = os.path.isdir("/sys/fs/cgroup/memory/") or os.path.isdir("/sys/fs/cgroup/pids")
    with pytest.raises(HostError) as raised:
        _nspawn.main(["start-pre", "web"])
    if os.geteuid() != 0:
        assert "root of the host" in str(raised.value)
    elif v1:
        assert "in which systemd-nspawn makes no groups of its own" in str(raised.value)
    else:
        assert "no service's" in str(raised.value)
