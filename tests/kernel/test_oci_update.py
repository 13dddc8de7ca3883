"""update: other limits for a live container, on the limit group, the guest root, and the guest's own groups.

::

    /nestrt-test-NAME-PID              limit group: the limits, and what update writes
                   └ guest             guest root: shows the same
                       ├ init          first group
                       └ web           a child group with limits of its own
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nestrt.act import containers
from nestrt.act.update import Update
from nestrt.errors import KernelError
from nestrt.kernel import bpf, cgroup
from nestrt.oci.resources import Cpu, DeviceRule, Resources
from nestrt.plan.update_quota import ratio
from nestrt.probe.facts import read_hierarchies
from support.byhand import CALL, ByHand, container, enter, make_group
from support.hostside import Hierarchy, below, has_v1, hierarchy_of, v2_hierarchy
from support.need import SLOW, require
from support.rootfs import CHECKOUT

ENVIRONMENT = {"PYTHONPATH": str(CHECKOUT), "PATH": os.environ["PATH"]}
MIB = 1 << 20


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def guest(state: Path) -> Iterator[ByHand]:
    with container(state, "update", virtualized=True, resources={}) as made:
        (state / made.id / "config.json").write_text(json.dumps({"linux": {"resources": {}}}))
        yield made


@pytest.fixture
def plain(state: Path) -> Iterator[ByHand]:
    """Without a policy: its process stands in the limit group itself."""
    with container(state, "plain", resources={}) as made:
        (state / made.id / "config.json").write_text(json.dumps({"linux": {"resources": {}}}))
        yield made


def update(one: ByHand, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", CALL, *one.words, "update", *words, one.id]
    return subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, input=given, timeout=30 * SLOW)


def ok(one: ByHand, *words: str, given: str = "") -> str:
    done = update(one, *words, given=given)
    assert done.returncode == 0, done
    return done.stderr


def refused(one: ByHand, *words: str, given: str = "") -> str:
    done = update(one, *words, given=given)
    assert done.returncode != 0, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def tree(controller: str) -> Hierarchy:
    hierarchy = hierarchy_of(controller)
    require(controller, None if hierarchy else "no such controller here")
    assert hierarchy is not None
    return hierarchy


def value(controller: str, group: str, v1: str, v2: str) -> str:
    hierarchy = tree(controller)
    return (hierarchy.group(group) / (v1 if hierarchy.version == 1 else v2)).read_text().strip()


def write(controller: str, group: str, v1: str, v2: str, text: str) -> None:
    hierarchy = tree(controller)
    (hierarchy.group(group) / (v1 if hierarchy.version == 1 else v2)).write_text(text)


def memory(group: str) -> str:
    return value("memory", group, "memory.limit_in_bytes", "memory.max")


def test_the_guest_root_follows(guest: ByHand) -> None:
    ok(guest, "--memory", "64M", "--pids-limit", "50", "--cpu-share", "512")
    for group in (guest.cgroup, guest.cgroup + "/guest"):
        assert memory(group) == str(64 * MIB)
        assert value("pids", group, "pids.max", "pids.max") == "50"
        assert value("cpu", group, "cpu.shares", "cpu.weight") in ("512", "20", "59")
    assert guest.document()["resources"] == {
        "memory": {"limit": 64 * MIB},
        "cpu": {"shares": 512},
        "pids": {"limit": 50},
    }
    ok(guest, "--memory", "128M")
    assert memory(guest.cgroup) == memory(guest.cgroup + "/guest") == str(128 * MIB)
    assert guest.document()["resources"]["pids"] == {"limit": 50}, "what was not named stays"


def test_resources_as_docker_sends_them(plain: ByHand) -> None:
    """dockerd: ``update --resources - ID`` with zeros for what does not change."""
    text = json.dumps(
        {
            "memory": {"limit": 96 * MIB, "swap": 192 * MIB, "reservation": 0, "kernel": 0},
            "cpu": {"shares": 0, "quota": 50_000, "period": 100_000, "realtimeRuntime": 0, "cpus": "", "mems": ""},
            "blockIO": {"weight": 0},
            "pids": {"limit": 70},
        }
    )
    ok(plain, "--resources", "-", given=text)
    assert memory(plain.cgroup) == str(96 * MIB)
    assert value("cpu", plain.cgroup, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    ok(plain, "-r", "-", given='{"pids": {"limit": -1}}')
    assert value("pids", plain.cgroup, "pids.max", "pids.max") == "max"
    assert memory(plain.cgroup) == str(96 * MIB)


@pytest.mark.slow_on_vm
def test_resources_from_a_file_and_bad_ones(plain: ByHand, tmp_path: Path) -> None:
    file = tmp_path / "resources.json"
    file.write_text('{"pids": {"limit": 33}}')
    ok(plain, f"--resources={file}")
    assert value("pids", plain.cgroup, "pids.max", "pids.max") == "33"
    assert "no such file or directory" in refused(plain, "-r", str(tmp_path / "none"))
    assert "pids.limit" in refused(plain, "-r", "-", given='{"pids": {"limit": "many"}}')
    assert "line 1" in refused(plain, "-r", "-", given='{"pids": ')
    for words in (("--memory", "much"), ("--cpu-period", "-5"), ("--blkio-weight", "5"), ("--cpu-quota", "x")):
        assert words[0] in refused(plain, *words)
    assert "does not exist" in update(ByHand(plain.state, "nobody", "", plain.process, False)).stderr


@pytest.mark.slow_on_vm
def test_a_stopped_container(plain: ByHand) -> None:
    plain.process.kill()
    plain.process.wait()
    assert "container not running" in refused(plain, "--pids-limit", "5")


def test_a_failing_update_leaves_what_was(guest: ByHand) -> None:
    """The last value is one that the kernel refuses: the memory limit that was written first goes back."""
    ok(guest, "--memory", "64M", "--pids-limit", "50", "--cpu-quota", "20000", "--cpu-period", "100000")
    before = guest.document()
    line = refused(guest, "--memory", "32M", "--pids-limit", "99", "--cpu-quota", "1", "--cpu-period", "50000")
    assert "linux.resources.cpu" in line
    for group in (guest.cgroup, guest.cgroup + "/guest"):
        assert memory(group) == str(64 * MIB)
        assert value("pids", group, "pids.max", "pids.max") == "50"
        assert value("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "20000"
    if has_v1("cpu"):
        assert value("cpu", guest.cgroup, "cpu.cfs_period_us", "") == "100000"
    assert guest.document() == before


@pytest.mark.v1
def test_less_memory_than_is_in_use(plain: ByHand) -> None:
    require("cgroup-v1", None if has_v1("memory") else "memory is not on v1")
    write("memory", plain.cgroup, "memory.limit_in_bytes", "memory.max", str(256 * MIB))
    pid = subprocess.Popen(
        ["/usr/bin/python3", "-ISc", "input(); b = bytearray(b'x' * (48 << 20)); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert pid.stdin is not None
    try:
        assert pid.stdout is not None
        write("memory", plain.cgroup, "cgroup.procs", "cgroup.procs", str(pid.pid))
        pid.stdin.write(b"\n")
        pid.stdin.flush()
        pid.stdout.readline()
        line = refused(plain, "--memory", "8M", "--memory-swap", "8M")
        assert "linux.resources.memory" in line
        assert memory(plain.cgroup) == str(256 * MIB)
    finally:
        pid.kill()
        pid.communicate()


def cpus() -> list[int]:
    found = sorted(os.sched_getaffinity(0))
    require("two CPUs", None if len(found) > 1 else "only one CPU")
    return found


def allowed(controller_group: str) -> str:
    """The CPUs that a group's processes may use."""
    return value("cpuset", controller_group, "cpuset.effective_cpus", "cpuset.cpus.effective")


# v2: a group with processes, such as the plain container's, has no children with controllers.
@pytest.mark.parametrize("which", ["guest", pytest.param("plain", marks=pytest.mark.v1)])
def test_fewer_cpus_for_a_guest_that_has_divided_them(request: pytest.FixtureRequest, which: str) -> None:
    """``web`` has the second CPU alone, which the guest is to lose: v1 refuses that while a child has it (EBUSY)."""
    one: ByHand = request.getfixturevalue(which)
    first, second = cpus()[:2]
    both = value("cpuset", one.cgroup, "cpuset.effective_cpus", "cpuset.cpus.effective")
    root = one.cgroup + ("/guest" if one.virtualized else "")
    web = root + "/web"
    deep = web + "/deep"
    for group in (web, deep):
        make_group(group, "cpuset")
    for group in (deep, web):
        write("cpuset", group, "cpuset.cpus", "cpuset.cpus", str(second))
    ok(one, "--cpuset-cpus", str(first))
    for group in (one.cgroup, root, web, deep):
        assert allowed(group) == str(first), group
    ok(one, "--cpuset-cpus", str(second))
    for group in (one.cgroup, root, web, deep):
        assert allowed(group) == str(second), group
    ok(one, "--cpuset-cpus", both)
    assert allowed(one.cgroup) == allowed(root) == both
    if one.virtualized:
        assert allowed(root + "/init") == both, "a group that had all of its parent goes on having all"


@pytest.mark.v1
def test_a_guest_that_fights_for_its_cpus_loses(guest: ByHand) -> None:
    """A process of the guest widens its own group again and again, as long as the guest root lets it."""
    require("cgroup-v1", None if has_v1("cpuset") else "cpuset is not on v1")
    first = cpus()[0]
    both = value("cpuset", guest.cgroup, "cpuset.cpus", "")
    web = guest.cgroup + "/guest/web"
    make_group(web)
    file = tree("cpuset").group(web) / "cpuset.cpus"
    fighter = subprocess.Popen(
        ["sh", "-c", f"while :; do echo {both} >{file}; done 2>/dev/null"], stderr=subprocess.DEVNULL
    )
    try:
        enter(web, fighter.pid)
        for _ in range(4):
            ok(guest, "--cpuset-cpus", str(first))
            assert allowed(guest.cgroup) == allowed(web) == str(first)
            ok(guest, "--cpuset-cpus", both)
    finally:
        fighter.kill()
        fighter.wait()


def test_less_quota_than_a_child_group_has(guest: ByHand) -> None:
    root, web = guest.cgroup + "/guest", guest.cgroup + "/guest/web"
    make_group(web)
    ok(guest, "--cpu-quota", "80000", "--cpu-period", "100000")
    v1 = has_v1("cpu")
    if v1:
        write("cpu", web, "cpu.cfs_quota_us", "", "60000")
    else:
        write("cpu", web, "", "cpu.max", "60000 100000")
    ok(guest, "--cpu-quota", "30000")
    shown = [value("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0] for group in (guest.cgroup, root, web)]
    assert shown == ["30000", "30000", "30000" if v1 else "60000"], "v2 clamps by itself"
    # Another period, with a share of a CPU that is the same: no pair on the way may be refused.
    ok(guest, "--cpu-quota", "120000", "--cpu-period", "400000")
    ok(guest, "--cpu-quota", "9000", "--cpu-period", "30000")
    ok(guest, "--cpu-quota", "-1")
    assert value("cpu", guest.cgroup, "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")
    assert value("cpu", root, "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")


def pairs(one: ByHand) -> dict[str, tuple[int, int]]:
    """Quota and period of every group of the container (v1)."""
    top = tree("cpu").group(one.cgroup)
    found = {}
    for path in sorted(below(top)):
        texts = [(path / f"cpu.cfs_{word}_us").read_text() for word in ("quota", "period")]
        found[str(path)] = (int(texts[0]), int(texts[1]))
    return found


def watched(one: ByHand, monkeypatch: pytest.MonkeyPatch, stop: int = 0) -> list[dict[str, tuple[int, int]]]:
    """What pairs() says after each write to the groups, from now on. The *stop*-th is refused (EBUSY)."""
    seen = [pairs(one)]
    write = cgroup.write

    def looking(path: str, value: str) -> None:
        if len(seen) == stop:
            seen.append(seen[-1])
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        write(path, value)
        seen.append(pairs(one))

    monkeypatch.setattr(cgroup, "write", looking)
    return seen


@pytest.mark.v1
@pytest.mark.parametrize("which", ["guest", "plain"])
def test_no_more_cpu_than_before_and_after_at_any_write(
    request: pytest.FixtureRequest, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 % in another period, with a child that has 50 %; then any write is refused, and all goes back."""
    require("cgroup-v1", None if has_v1("cpu") else "cpu is not on v1")
    one: ByHand = request.getfixturevalue(which)
    web = one.cgroup + ("/guest/web" if one.virtualized else "/web")
    make_group(web, "cpu")
    ok(one, "--cpu-quota", "50000", "--cpu-period", "100000")
    write("cpu", web, "cpu.cfs_quota_us", "", "50000")

    def update_to(quota: int, period: int) -> None:
        made = containers.load(str(one.state), one.id)
        Update(made, read_hierarchies(), Resources(), Resources(cpu=Cpu(quota=quota, period=period))).carry_out()

    def no_more_than(*most: dict[str, tuple[int, int]]) -> None:
        for moment in seen:
            for path, pair in moment.items():
                assert ratio(*pair) <= max(ratio(*state[path]) for state in most), (path, seen)

    before = pairs(one)
    for quota, period in ((10_000, 20_000), (50_000, 100_000), (500_000, 1_000_000), (50_000, 100_000)):
        with monkeypatch.context() as patch:
            seen = watched(one, patch)
            update_to(quota, period)
        assert len(seen) > 4
        no_more_than(before)
        after = pairs(one)
        tops = [path for path in after if not path.endswith(("/web", "/init"))]
        assert {after[path] for path in tops} == {(quota, period)}
        web_path = str(tree("cpu").group(web))
        assert after[web_path] == before[web_path], "of its own choice, and within what there is"
    count = len(seen)
    for stop in range(1, count):
        with monkeypatch.context() as patch:
            seen = watched(one, patch, stop)
            with suppress(KernelError):  # where it is not tried once more, with the container frozen
                update_to(10_000, 20_000)
        no_more_than(before)
        if pairs(one) != before:
            update_to(50_000, 100_000)
        assert pairs(one) == before


def test_more_burst_with_more_quota(guest: ByHand) -> None:
    hierarchy = tree("cpu")
    file = hierarchy.group(guest.cgroup) / ("cpu.cfs_burst_us" if hierarchy.version == 1 else "cpu.max.burst")
    require("cpu burst", None if file.exists() else "before Linux 5.14")
    ok(guest, "--cpu-quota", "20000", "--cpu-period", "100000", "--cpu-burst", "15000")
    ok(guest, "--cpu-quota", "50000", "--cpu-burst", "40000")
    assert file.read_text().strip() == "40000"
    if hierarchy.version == 1:
        ok(guest, "--cpu-quota", "30000")
        assert file.read_text().strip() == "30000", "the kernel has no burst above the quota"


@pytest.mark.v1
def test_a_burst_comes_back(guest: ByHand) -> None:
    """50 % in a fiftieth of the period: meanwhile the child's quota has to be less than the burst it has."""
    require("cgroup-v1", None if has_v1("cpu") else "cpu is not on v1")
    web = tree("cpu").group(guest.cgroup) / "guest/web"
    web.mkdir()
    burst = web / "cpu.cfs_burst_us"
    require("cpu burst", None if burst.exists() else "before Linux 5.14")
    ok(guest, "--cpu-quota", "50000", "--cpu-period", "100000")
    (web / "cpu.cfs_quota_us").write_text("50000")
    burst.write_text("30000")
    ok(guest, "--cpu-quota", "1000", "--cpu-period", "2000")
    assert (web / "cpu.cfs_quota_us").read_text().strip() == "50000"
    assert burst.read_text().strip() == "30000"
    # What comes after the quota is refused: more burst than quota.
    refused(guest, "--cpu-quota", "1500", "--cpu-period", "100000", "--cpu-burst", "2000")
    assert (web / "cpu.cfs_quota_us").read_text().strip() == "50000"
    assert burst.read_text().strip() == "30000"
    assert set(pairs(guest).values()) == {(1000, 2000), (50_000, 100_000), (-1, 100_000)}


def test_the_stamp_and_the_mark_follow(guest: ByHand) -> None:
    primary = v2_hierarchy() or tree("memory")
    root, top = primary.group(guest.cgroup + "/guest"), primary.group(guest.cgroup)
    for path, attribute in ((root, "security.nestrt"), (top, "trusted.nestrt")):
        os.setxattr(path, attribute, json.dumps({"v": 1, "name": "x", "limits": {"pids": 5, "memory": 1}}).encode())
    ok(guest, "--memory", "64M", "--cpu-quota", "50000", "--cpu-period", "200000")
    for path, attribute in ((root, "security.nestrt"), (top, "trusted.nestrt")):
        assert json.loads(os.getxattr(path, attribute)) == {
            "v": 1,
            "name": "x",
            "limits": {"pids": 5, "memory": 64 * MIB, "cpu_quota": 25_000},
        }


# Devices


def may(group: str, path: str, flags: int = os.O_RDONLY) -> bool:
    """Whether a process of *group*, in every hierarchy, can open *path*."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            for hierarchy in (hierarchy_of("devices"), v2_hierarchy()):
                if hierarchy is not None:
                    (hierarchy.group(group) / "cgroup.procs").write_text(str(os.getpid()))
            os.close(os.open(path, flags))
            status = 0
        except OSError as error:
            status = 1 if error.errno == errno.EPERM else 3
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), status
    return status == 0


def rule(access: str, major: int = -1, minor: int = -1, allow: bool = True) -> dict[str, Any]:
    return {"allow": allow, "type": "c", "major": major, "minor": minor, "access": access}


KMSG = (1, 11)
EVERYTHING_DENIED = {"allow": False, "access": "rwm"}


def test_device_rules_of_a_live_guest(guest: ByHand) -> None:
    """/dev/kmsg is taken from the whole guest, its child group too, and given again; /dev/null stays."""
    first = guest.cgroup + "/guest/init"
    if has_v1("devices"):
        deny_all_first(guest)
    document = [EVERYTHING_DENIED, rule("rwm", *KMSG)]
    ok(guest, "-r", "-", given=json.dumps({"devices": document}))
    assert may(first, "/dev/null", os.O_RDWR)
    assert may(first, "/dev/kmsg")
    ok(guest, "-r", "-", given=json.dumps({"devices": [EVERYTHING_DENIED]}))
    assert not may(first, "/dev/kmsg")
    assert may(first, "/dev/null", os.O_RDWR)
    ok(guest, "-r", "-", given=json.dumps({"devices": document}))
    assert may(first, "/dev/kmsg")
    if not has_v1("devices"):
        tree_v2 = v2_hierarchy()
        assert tree_v2 is not None
        assert len(bpf.query(str(tree_v2.group(guest.cgroup)))) == 1, "one program in the place of another"


def deny_all_first(guest: ByHand) -> None:
    """Give the devices groups of *guest* an allow-list, as create does before it makes the groups below."""
    hierarchy = tree("devices")
    groups = [guest.cgroup + suffix for suffix in ("", "/guest", "/guest/init")]
    home = hierarchy.mountpoint / "cgroup.procs"
    home.write_text(str(guest.pid))
    for group in reversed(groups):
        hierarchy.group(group).rmdir()
    for group in groups:
        hierarchy.group(group).mkdir()
        if group == guest.cgroup:
            (hierarchy.group(group) / "devices.deny").write_text("a")
            (hierarchy.group(group) / "devices.allow").write_text("c 1:3 rwm")
    (hierarchy.group(groups[-1]) / "cgroup.procs").write_text(str(guest.pid))


def test_device_rules_of_a_plain_container(plain: ByHand) -> None:
    ok(plain, "-r", "-", given=json.dumps({"devices": [EVERYTHING_DENIED, rule("r", *KMSG)]}))
    assert may(plain.cgroup, "/dev/kmsg")
    assert not may(plain.cgroup, "/dev/kmsg", os.O_RDWR)
    ok(plain, "-r", "-", given=json.dumps({"devices": [EVERYTHING_DENIED]}))
    assert not may(plain.cgroup, "/dev/kmsg")


@pytest.mark.v1
def test_all_devices_cannot_be_taken_from_a_v1_guest_that_has_groups(guest: ByHand) -> None:
    require("cgroup-v1", None if has_v1("devices") else "devices is not on v1")
    line = refused(guest, "--resources", "-", given=json.dumps({"devices": [EVERYTHING_DENIED], "pids": {"limit": 9}}))
    assert "linux.resources.devices" in line
    assert value("pids", guest.cgroup, "pids.max", "pids.max") == "max", "nothing else was changed"


def lines(one: ByHand, suffix: str = "") -> set[str]:
    return set((tree("devices").group(one.cgroup + suffix) / "devices.list").read_text().splitlines())

@pytest.mark.v1
@pytest.mark.parametrize("below", [False, True])
def test_device_rules_that_are_refused_take_nothing_away(
    request: pytest.FixtureRequest, below: bool
) -> None:
    """A block device is asked for, beside less than the container has, and the group above has none::

        /nestrt-test-above-PID          every character device
                           └ in         c 10:229                limit group
                              └ guest                           with below=True
                                 ├ init
                                 └ web
    """
    require("cgroup-v1", None if has_v1("devices") else "devices is not on v1")
    above = f"/nestrt-test-above-{os.getpid()}"
    hierarchy = tree("devices")
    one: ByHand = request.getfixturevalue("guest" if below else "plain")
    narrow = hierarchy.group(above)
    narrow.mkdir()
    inner = above + "/in"
    suffixes = ["", "/guest", "/guest/init", "/guest/web"] if below else [""]
    try:
        (narrow / "devices.deny").write_text("a")
        for line in ("c *:* rwm", "b *:* m"):
            (narrow / "devices.allow").write_text(line)
        moved = ByHand(one.state, one.id, inner, one.process, one.virtualized)
        for suffix in suffixes:
            hierarchy.group(inner + suffix).mkdir()
            if not suffix:
                for line in ("c *:* rwm", "b *:* m"):
                    (hierarchy.group(inner) / "devices.deny").write_text(line)
                for line in ("c *:* m", "c 10:229 rwm", "c 1:3 rwm"):
                    (hierarchy.group(inner) / "devices.allow").write_text(line)
        (hierarchy.group(inner + suffixes[2 if below else 0]) / "cgroup.procs").write_text(str(one.pid))
        state = one.state / one.id / "state.json"
        document = one.document()
        state.write_text(json.dumps({**document, "cgroup": inner}))
        before = [lines(moved, suffix) for suffix in suffixes]
        assert "c 10:229 rwm" in before[-1]
        asked = [EVERYTHING_DENIED, {"allow": True, "type": "b", "major": 7, "minor": 0, "access": "rwm"}]
        line = refused(one, "-r", "-", given=json.dumps({"devices": asked}))
        assert "linux.resources.devices" in line
        assert [lines(moved, suffix) for suffix in suffixes] == before
        ok(one, "-r", "-", given=json.dumps({"devices": [EVERYTHING_DENIED]}))
        assert all("c 10:229 rwm" not in lines(moved, suffix) for suffix in suffixes)
        state.write_text(json.dumps(document))
    finally:
        home = hierarchy.group(one.cgroup + ("/guest/init" if below else ""))
        (home / "cgroup.procs").write_text(str(one.pid))
        for suffix in reversed(suffixes):
            if hierarchy.group(inner + suffix).exists():
                hierarchy.group(inner + suffix).rmdir()
        narrow.rmdir()


# Two at a time


def given_to(process: subprocess.Popen[str], fifo: Path, text: str) -> None:
    """Write *text* into the named pipe when *process* has opened it, for which it has read the state before."""
    end = time.monotonic() + 20 * SLOW
    while process.poll() is None and time.monotonic() < end:
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody reads yet
            time.sleep(0.001)
            continue
        os.write(fd, text.encode())
        os.close(fd)
        return
    process.kill()
    pytest.fail(f"it does not read its limits: {process.communicate()}")


def at_the_lock(one: ByHand, process: subprocess.Popen[str]) -> None:
    """Wait until *process* has the container's directory open, which another has locked."""
    end = time.monotonic() + 20 * SLOW
    directory = str(one.state / one.id)
    while process.poll() is None and time.monotonic() < end:
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(fd) == directory:
                    return
        time.sleep(0.001)
    process.kill()
    pytest.fail(f"it does not wait for the lock: {process.communicate()}")


def meanwhile(one: ByHand, change: Callable[[], None], limits: dict[str, Any]) -> tuple[int, str]:
    """The status and the error of an update while which another, who has the container's lock, does *change*."""
    fifo = one.state / "limits"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    lock = containers.lock(str(one.state / one.id))
    try:
        argv = [sys.executable, "-c", CALL, *one.words, "update", "-r", str(fifo), one.id]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        given_to(process, fifo, json.dumps(limits))
        at_the_lock(one, process)
        change()
    finally:
        os.close(lock)
    _, error = process.communicate(timeout=30 * SLOW)
    return process.returncode, error


def test_two_updates_keep_what_each_has_set(plain: ByHand) -> None:
    file = plain.state / plain.id / "state.json"

    def other() -> None:
        file.write_text(json.dumps({**plain.document(), "resources": {"pids": {"limit": 44}}}))

    assert meanwhile(plain, other, {"memory": {"limit": 64 * MIB}}) == (0, "")
    assert plain.document()["resources"] == {"pids": {"limit": 44}, "memory": {"limit": 64 * MIB}}


def test_an_update_beside_delete_and_create(plain: ByHand) -> None:
    """The state of the container that is gone is not written over that of the next one of this name."""
    directory = plain.state / plain.id
    config, document = (directory / "config.json").read_text(), plain.document()

    def delete() -> None:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()

    def delete_and_create() -> None:
        delete()
        directory.mkdir()
        (directory / "config.json").write_text(config)
        (directory / "state.json").write_text(json.dumps({**document, "bundle": "/another"}))

    for change in (delete_and_create, delete):
        status, error = meanwhile(plain, change, {"pids": {"limit": 40}})
        assert status != 0
        assert "container does not exist" in error
        if directory.exists():
            assert plain.document() == {**document, "bundle": "/another"}
    assert not directory.exists()
    assert value("pids", plain.cgroup, "pids.max", "pids.max") == "max"


def test_a_state_that_cannot_be_kept_changes_nothing(plain: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the state file is written."""
    from nestrt.cli import update as verb

    made = containers.load(str(plain.state), plain.id)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), made.directory)

    monkeypatch.setattr(made, "save", full)
    with pytest.raises(OSError, match="No space left"):
        verb.apply(made, Resources(pids=40, cpu=Cpu(quota=20_000), devices=(DeviceRule(False),)))
    assert may(plain.cgroup, "/dev/kmsg")
    if has_v1("devices"):
        assert lines(plain) == {"a *:* rwm"}
    assert value("pids", plain.cgroup, "pids.max", "pids.max") == "max"
    assert value("cpu", plain.cgroup, "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")


def test_a_device_program_goes_back(plain: ByHand) -> None:
    """The first, which nothing was there for, and another in its place."""
    hierarchy = v2_hierarchy()
    require("cgroup-v2", None if hierarchy else "no v2 tree")
    assert hierarchy is not None
    group = str(hierarchy.group(plain.cgroup))
    made = containers.load(str(plain.state), plain.id)
    v2 = tuple(h for h in read_hierarchies() if h.version == 2)

    def update_to(*rules: DeviceRule) -> Update:
        change = Update(made, v2, Resources(), Resources())
        change.carry_out(rules)
        return change

    change = update_to(DeviceRule(True))
    assert len(bpf.query(group)) == 1
    change.back()
    assert bpf.query(group) == ()
    update_to(DeviceRule(True)).close()
    first = bpf.query(group)
    change = update_to(DeviceRule(False))
    second = bpf.query(group)
    assert len(second) == 1
    assert second != first
    change.back()
    change.close()
    assert bpf.query(group) == first
    assert made.document["deviceProgram"] == first[0]
