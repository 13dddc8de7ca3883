"""A container of LXC: what its configuration says, what stands on its groups, and the steps that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestrt.cli import _lxc
from nestrt.errors import HostError, InputError
from nestrt.level.check import Has
from nestrt.level.devices import DEFAULT_RULES, EVERYTHING, DeviceRule, format_rule
from nestrt.level.limits import IoLimit, Limits
from nestrt.level.policy import Policy
from nestrt.plan import lxc
from nestrt.plan.facts import Facts, Hierarchy, Level
from nestrt.plan.guest_steps import LockFiles, MountNew
from nestrt.plan.host_steps import AttachDeviceProgram, Delegate, MakeGroup, SetFile, SetMark
from nestrt.plan.ids import Identity
from nestrt.plan.request import Request
from nestrt.plan.standing import standing, tighter
from nestrt.record import replace

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = "/usr/local/bin/nestrt"


def h(name: str, version: int, *controllers: str, options: str = "") -> Hierarchy:
    place = "/sys/fs/cgroup" + (f"/{name}" if name else "")
    return Hierarchy(name, version, controllers, options or ",".join(controllers), place)


MEMORY, PIDS, CPU = h("memory", 1, "memory"), h("pids", 1, "pids"), h("cpu", 1, "cpu")
DEVICES, BLKIO, CPUSET = h("devices", 1, "devices"), h("blkio", 1, "blkio"), h("cpuset", 1, "cpuset")
UNIFIED = h("unified", 2)
V2 = h("", 2, "cpuset", "cpu", "io", "memory", "pids", "hugetlb")
SHARED = Identity()
PRIVATE = Identity(((0, 700000, 65536),), ((0, 700000, 65536),), 700000, 700000, private=True)
GROUP = "/lxc.payload.web"


def facts(*hierarchies: Hierarchy) -> Facts:
    found = hierarchies or (UNIFIED, MEMORY, PIDS, DEVICES)
    primary = next(item for item in found if item.version == 2)
    return Facts(
        found, primary, Level(), "trusted.nestrt", "security.nestrt", False, (), (), None, ("cgroup.procs",), 0, Has()
    )


# --- its configuration ---------------------------------------------------------------------------


def test_the_configuration_says_where_its_groups_are() -> None:
    found = lxc.places(lxc.configuration("web", PROGRAM))
    assert found == lxc.Places("lxc.payload.web", "guest", "lxc.monitor.web", False)
    assert lxc.limit_group_name("web") == found.container


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", lxc.Places()),
        ("lxc.cgroup.dir.container=a/b\n", lxc.Places("a/b")),
        ("  lxc.cgroup.dir.container\t=\t 'a b' \n", lxc.Places("a b")),
        ("# lxc.cgroup.dir.container = a\n  #lxc.cgroup.dir.monitor = b", lxc.Places()),
        # The last line of a key holds, and one without a value takes it away.
        ("lxc.cgroup.dir.container = a\nlxc.cgroup.dir.container = b", lxc.Places("b")),
        ("lxc.cgroup.dir.container = a\nlxc.cgroup.dir.container =", lxc.Places()),
        ("lxc.cgroup.dir.containers = a\nlxc.cgroup.dir.container.inner.x = b\nnonsense", lxc.Places()),
        ("lxc.cgroup.relative = 1", lxc.Places(relative=True)),
        ("lxc.cgroup.relative = 0", lxc.Places()),
        ("lxc.cgroup.dir.monitor = \"m\"\nlxc.cgroup.dir.container.inner = 'guest'", lxc.Places("", "guest", "m")),
    ],
)
def test_places(text: str, found: lxc.Places) -> None:
    assert lxc.places(text) == found


@pytest.mark.parametrize(
    ("base", "group", "path"),
    [
        ("/", "lxc.payload.web", "/lxc.payload.web"),
        ("/init.scope", "a/b", "/a/b"),
        ("/user.slice/x", "a", "/user.slice/x/a"),
        ("/", "", ""),
        ("/", "/", ""),
        ("/", "../a", ""),
        ("/", "a/../../b", ""),
        ("/", "/a//b/", "/a/b"),
    ],
)
def test_below(base: str, group: str, path: str) -> None:
    assert lxc.below(base, group) == path


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "a b", "a\nlxc.hook.mount = x", "é", "a#b", "a" * 200, "'"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="no name of a group"):
        lxc.configuration(name, PROGRAM)


def test_the_ready_file_is_what_the_command_writes() -> None:
    """hooks/lxc/nestrt.conf is the part without a container's name, below its own comment."""
    text = (CHECKOUT / "hooks/lxc/nestrt.conf").read_text()
    comment, _, rest = text.partition("\n\n")
    assert all(line.startswith("#") for line in comment.splitlines())
    assert rest == lxc.include(PROGRAM)
    for line in lxc.configuration("NAME", PROGRAM).splitlines()[1:3]:
        assert f"#   {line}" in comment


def test_the_hooks_are_those_of_the_command() -> None:
    assert tuple(_lxc.RUN) == lxc.HOOKS


# --- what LXC says, and the kernel ---------------------------------------------------------------


def test_a_call() -> None:
    said = _lxc.call({"LXC_NAME": "web", "LXC_CONFIG_FILE": "/var/lib/lxc/web/config", "LXC_PID": "12"})
    assert (said.name, said.directory, said.pid) == ("web", "/var/lib/lxc/web", 12)
    assert _lxc.call({"LXC_NAME": "web"}).key != said.key
    assert _lxc.call({"LXC_NAME": "web", "LXC_CONFIG_FILE": "relative"}).config == ""
    for wrong in ({}, {"LXC_NAME": "a/b"}, {"LXC_NAME": "a", "LXC_PID": "-1"}, {"LXC_NAME": "a", "LXC_PID": "9" * 40}):
        with pytest.raises(InputError):
            _lxc.call(wrong)


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    import os

    (tmp_path / "long").write_bytes(b"#" * (_lxc.CONFIG_LIMIT + 1))
    (tmp_path / "binary").write_bytes(b"\xff\n")
    os.mkfifo(tmp_path / "fifo")
    for name in ("absent", "long", "fifo", "."):
        assert _lxc._text(str(tmp_path / name)) == ""
    assert _lxc._text(str(tmp_path / "binary")) == "\ufffd\n"


def test_the_limit_group_is_where_the_first_process_is() -> None:
    assert lxc.limit_group_of({"memory": "/a/guest", "": "/a/guest"}, "web") == "/a"
    for groups, reason in (
        ({"memory": "/a"}, "in no guest root"),
        ({"memory": "/guest"}, "in no guest root"),
        ({"memory": "/a/guest/b"}, "in no guest root"),
        ({"memory": "/a/guest", "": "/"}, "hierarchy cgroup2, in no guest root"),
        ({"memory": "/a/guest", "": "/b/guest"}, "not the same in all hierarchies"),
    ):
        with pytest.raises(HostError, match=reason) as raised:
            lxc.limit_group_of(groups, "web")
        assert raised.value.remedy


@pytest.mark.parametrize(
    ("hierarchy", "texts", "limits"),
    [
        (MEMORY, {"memory.limit_in_bytes": "9223372036854771712"}, Limits()),
        (MEMORY, {"memory.limit_in_bytes": "4096", "memory.memsw.limit_in_bytes": "9223372036854771712"}, Limits(4096)),
        (MEMORY, {"memory.limit_in_bytes": "4096", "memory.memsw.limit_in_bytes": "8192"}, Limits(4096, 4096)),
        (PIDS, {"pids.max": "max"}, Limits()),
        (PIDS, {"pids.max": "0"}, Limits(pids=0)),
        (CPU, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, Limits()),
        (CPU, {"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "50000"}, Limits(cpu_quota=50000)),
        (
            BLKIO,
            {"blkio.throttle.read_bps_device": "8:0 1048576", "blkio.throttle.write_iops_device": "8:0 10\n8:16 5"},
            Limits(io=(IoLimit("8:0", rbps=1048576, wiops=10), IoLimit("8:16", wiops=5))),
        ),
        (DEVICES, {"devices.list": "a *:* rwm"}, Limits(devices=EVERYTHING)),
        (
            DEVICES,
            {"devices.list": "c 1:3 rwm\nb *:* m"},
            Limits(devices=(DeviceRule("c", 1, 3, "rwm"), DeviceRule("b", None, None, "m"))),
        ),
        (CPUSET, {"cpuset.cpus": "0-3", "cpuset.mems": "0"}, Limits(cpus=frozenset(range(4)))),
        (V2, {"memory.max": "max", "memory.swap.max": "0", "cpu.max": "max 100000"}, Limits(swap=0)),
        (V2, {"cpu.max": "50000 100000", "cpuset.cpus": ""}, Limits(cpu_quota=50000)),
        (V2, {"io.max": "8:0 rbps=max wbps=5 riops=max wiops=max"}, Limits(io=(IoLimit("8:0", wbps=5),))),
        (
            V2,
            {"hugetlb.2MB.max": "4194304", "hugetlb.1GB.max": "9223372036854771712", "hugetlb.2MB.rsvd.max": "1"},
            Limits(hugetlb=(("2MB", 4194304),)),
        ),
    ],
)
def test_what_stands(hierarchy: Hierarchy, texts: dict[str, str], limits: Limits) -> None:
    above = {"cpuset.cpus": "0-7", "cpuset.mems": "0"}
    assert standing(hierarchy, texts, above) == limits


def test_of_two_limits_the_smaller() -> None:
    stands = Limits(memory=64, pids=10, devices=DEFAULT_RULES)
    policy = lxc.within(Policy(limits=Limits(memory=32, pids=20, cpu_quota=5)), stands, PRIVATE)
    assert policy.limits == Limits(memory=32, pids=10, cpu_quota=5, devices=DEFAULT_RULES)
    assert (policy.user_namespace, policy.uid_map) == ("map", PRIVATE.uids)
    assert tighter(policy.limits, stands) == Limits(memory=32, cpu_quota=5)
    # v1 counts both together
    assert tighter(Limits(memory=32, swap=0), Limits(memory=64, swap=0)) == Limits(memory=32, swap=0)
    assert tighter(Limits(memory=64, swap=0), Limits(memory=64)) == Limits(memory=64, swap=0)


# --- the steps -----------------------------------------------------------------------------------


def container(policy: Policy, stands: Limits, who: Identity, programs: int = 0) -> lxc.Container:
    found = lxc.within(policy, stands, who)
    return lxc.Container(Request("web", "/", (), found, cgroup=GROUP), stands, programs)


def steps(policy: Policy, stands: Limits, who: Identity, *hierarchies: Hierarchy, programs: int = 0) -> list[object]:
    made = container(policy, stands, who, programs)
    return list(lxc.adopt(made, facts(*hierarchies), who, policy.limits.devices, "0123", 7))


def test_what_lxc_has_written_stays_and_is_shown() -> None:
    done = steps(Policy(), Limits(memory=4096, pids=5, devices=DEFAULT_RULES), PRIVATE)
    written = [(step.group, step.file, step.value) for step in done if isinstance(step, SetFile)]
    assert (f"{GROUP}/guest", "memory.limit_in_bytes", "4096") in written
    assert (f"{GROUP}/guest", "pids.max", "5") in written
    limited = [row for row in written if row[0] == GROUP]
    assert limited == [(GROUP, "cgroup.max.descendants", "1000"), (GROUP, "cgroup.max.depth", "8")]
    marks = [step for step in done if isinstance(step, SetMark) and step.group == GROUP]
    assert len(marks) == 4
    assert all(step.group != GROUP for step in done if isinstance(step, Delegate))
    assert {step.uid for step in done if isinstance(step, Delegate)} == {700000}


def test_the_policys_limits_come_first_on_the_limit_group() -> None:
    """The guest root is never made, shown or handed over before all that bounds it stands."""
    done = steps(Policy(limits=Limits(memory=2048)), Limits(memory=4096, devices=DEFAULT_RULES), SHARED)
    index = {
        group: [
            n
            for n, step in enumerate(done)
            if isinstance(step, SetFile) and (step.group, step.file) == (group, "memory.limit_in_bytes")
        ]
        for group in (GROUP, f"{GROUP}/guest")
    }
    assert len(index[GROUP]) == len(index[f"{GROUP}/guest"]) == 1
    assert index[GROUP] < index[f"{GROUP}/guest"]
    first = next(
        n for n, step in enumerate(done) if isinstance(step, MakeGroup) and step.group == f"{GROUP}/guest/init"
    )
    assert first > min(n for n, step in enumerate(done) if isinstance(step, SetMark))


def device_writes(done: list[object]) -> list[tuple[str, str, str]]:
    return [
        (step.group, step.file, step.value)
        for step in done
        if isinstance(step, SetFile) and step.file.startswith("devices.")
    ]


def test_devices_that_the_policy_takes_away_on_v1() -> None:
    null, fuse = DeviceRule("c", 1, 3, "rwm"), DeviceRule("c", 10, 229, "rwm")
    rules = (DeviceRule("c", 1, 3, "rw"),)
    done = steps(Policy(limits=Limits(devices=rules)), Limits(devices=(null, fuse)), SHARED)
    allowed = [("devices.allow", "c 1:3 rw")]
    assert device_writes(done) == [
        *((GROUP, "devices.deny", format_rule(rule)) for rule in (null, fuse)),
        *((group, *line) for group in (GROUP, f"{GROUP}/guest") for line in allowed),
    ]
    # Nothing is written where the policy allows as much, or says nothing.
    for asked in (None, (null, fuse), EVERYTHING):
        assert not device_writes(steps(Policy(limits=Limits(devices=asked)), Limits(devices=(null, fuse)), SHARED))


def test_all_devices_of_the_host() -> None:
    for asked in (None, DEFAULT_RULES):
        with pytest.raises(HostError, match="all devices of the host"):
            steps(Policy(limits=Limits(devices=asked)), Limits(devices=EVERYTHING), PRIVATE)
    steps(Policy(limits=Limits(devices=EVERYTHING)), Limits(devices=EVERYTHING), SHARED)


@pytest.mark.parametrize(
    ("asked", "programs", "attached"), [(None, 0, True), (None, 1, False), ((DeviceRule("c", 1, 3, "r"),), 1, True)]
)
def test_devices_on_v2(asked: tuple[DeviceRule, ...] | None, programs: int, attached: bool) -> None:
    """LXC's program stays where there is one; the kernel asks both."""
    done = steps(Policy(limits=Limits(devices=asked)), Limits(), SHARED, V2, programs=programs)
    found = [step for step in done if isinstance(step, AttachDeviceProgram)]
    assert bool(found) is attached
    assert all(step.group == GROUP for step in found)


def test_throttles_of_v1_need_ids_of_its_own() -> None:
    limits = Limits(io=(IoLimit("8:0", rbps=1),), devices=DEFAULT_RULES)
    for who in (SHARED, PRIVATE):
        made = container(Policy(), limits, who)
        if who is PRIVATE:
            lxc.require(made, facts(UNIFIED, BLKIO, DEVICES), who)
        else:
            with pytest.raises(HostError, match="v1 throttles no child groups"):
                lxc.require(made, facts(UNIFIED, BLKIO, DEVICES), who)
        lxc.require(made, facts(V2), who)


def test_v2_limits_without_a_word_of_their_own_are_shown() -> None:
    made = replace(container(Policy(), Limits(), PRIVATE, 1), shown=(("", (("memory.high", "4096"),)),))
    done = lxc.adopt(made, facts(V2), PRIVATE, None, "0123", 7)
    assert [(s.group, s.value) for s in done if isinstance(s, SetFile) and s.file == "memory.high"] == [
        (f"{GROUP}/guest", "4096")
    ]


def test_the_view_is_that_of_a_launch() -> None:
    for who in (SHARED, PRIVATE):
        request = container(Policy(), Limits(), who).request
        done = lxc.view(request, facts(), who)
        assert [step.target for step in done if isinstance(step, MountNew)] == [
            "/sys/fs/cgroup",
            *(item.mountpoint for item in facts().hierarchies),
        ]
        assert bool([step for step in done if isinstance(step, LockFiles)]) is (who is SHARED)
        tmpfs = next(step for step in done if isinstance(step, MountNew))
        assert tmpfs.options.endswith(",uid=700000,gid=700000") is (who is PRIVATE)
