"""config.json, process.json and resources: what is read, and every mistake by its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from unit import oci_configs

from nestrt.errors import InputError
from nestrt.oci import document
from nestrt.oci.model import Affinity, Device, Hook, IoPriority, Mount, Namespace, Rlimit, Scheduler, Spec, SyscallArg
from nestrt.oci.parse_linux import sysctl_name, sysctl_path
from nestrt.oci.resources import DeviceRule, ThrottleDevice, WeightDevice
from nestrt.record import replace

MISSING: Any = object()
MINIMAL = {"ociVersion": "1.0.0", "root": {"path": "rootfs"}}


def load(value: object) -> Spec:
    return document.load(json.dumps(value), "/b/config.json")


def changed(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """*base* with *value* at that place ("a.b.0.c"), or without it."""
    place: Any = base
    *parents, last = [int(step) if step.isdigit() else step.replace("~", ".") for step in path.split(".")]
    for step in parents:
        place = place[step]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return base


def refused(parse: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        parse()
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def test_podmans_document() -> None:
    spec = load(oci_configs.podman())
    process = spec.process
    assert process is not None
    assert (process.args, process.cwd, process.terminal) == (("sleep", "1"), "/", True)
    assert (process.user.umask, process.user.additional_gids) == (0o22, (1, 10))
    assert process.rlimits[1] == Rlimit("RLIMIT_NPROC", 2**64 - 1, 2**64 - 1)
    assert process.capabilities is not None
    assert process.capabilities.bounding == tuple(oci_configs.CAPS)
    assert process.capabilities.ambient == ()
    assert (spec.version, spec.root_readonly, spec.hostname) == ("1.0.2-dev", False, "web")
    assert spec.mounts[2] == Mount("/owned", "bind", "/srv", (), ((0, 1000, 10),), ((0, 1000, 10),))
    assert spec.hooks.poststop == (Hook("/usr/bin/podman", ("podman", "x"), ("A=b",), 5),)
    assert spec.annotation("io.podman.annotations.init") == "FALSE"
    assert spec.namespace("network") == Namespace("network", "/run/netns/cni-1")
    assert spec.gid_mappings == ((0, 100000, 1000), (1000, 1000, 1))
    assert spec.devices == (Device("/dev/fuse", "c", 10, 229, 0o666, 0, None),)
    assert spec.sysctl == (
        ("fs.mqueue.msg_max", "10"), ("kernel.shmmax", "1"), ("net.ipv4.ping_group_range", "0 0"),
    )  # fmt: skip
    assert (spec.rootfs_propagation, spec.cgroups_path) == ("slave", "/machine/libpod-1")
    assert (spec.masked, spec.readonly) == (("/proc/acpi", "/proc/kcore"), ("/proc/bus",))
    assert spec.warnings == ()


def test_podmans_resources() -> None:
    found = load(oci_configs.podman()).resources
    assert found.devices == (DeviceRule(False, "a", None, None, "rwm"), DeviceRule(True, "c", 10, None, "rw"))
    assert (found.memory.limit, found.memory.swap, found.memory.kernel) == (512 << 20, -1, None)
    assert (found.cpu.shares, found.cpu.quota, found.cpu.cpus, found.cpu.idle) == (512, 50000, "0-1", None)
    assert found.pids == 2048
    assert found.block_io.weight_device == (WeightDevice(8, 0, 500),)
    assert found.block_io.throttle_read_bps == (ThrottleDevice(8, 0, 1000),)
    assert found.hugepages == (("2MB", 1 << 30),)
    assert found.rdma == (("mlx5_0", 2, None),)
    assert (found.net_class, found.net_prio) == (1048577, (("eth0", 3),))
    assert found.unified == (("memory.high", "1000"),)


def test_podmans_seccomp() -> None:
    seccomp = load(oci_configs.podman()).seccomp
    assert seccomp is not None
    assert (seccomp.default_action, seccomp.default_errno_ret, seccomp.flags) == ("SCMP_ACT_ERRNO", 38, None)
    assert seccomp.syscalls[0].names == ("read", "write")
    assert seccomp.syscalls[1].args == (SyscallArg(0, 131072, 0, "SCMP_CMP_EQ"),)
    assert seccomp.syscalls[2].errno_ret == 1


def test_dockers_document() -> None:
    spec = load(oci_configs.docker())
    process = spec.process
    assert process is not None
    assert (process.console_size, process.apparmor_profile, process.rlimits) == ((24, 80), "docker-default", ())
    assert process.io_priority == IoPriority("IOPRIO_CLASS_BE", 4)
    assert process.scheduler == Scheduler("SCHED_OTHER", 5, 0, ("SCHED_FLAG_RESET_ON_FORK",))
    assert process.affinity == Affinity("0", "0-1,3")
    assert spec.domainname == "example.org"
    assert spec.time_offsets == (("monotonic", -5, 7), ("boottime", 0, 0))
    assert spec.devices[0].file_mode == 0o666, "the bits of the file's type are no permission"
    assert spec.resources.block_io.weight == 0
    assert (spec.resources.memory.disable_oom_killer, spec.resources.memory.swappiness) == (False, 60)
    assert spec.intel_rdt is not None
    assert spec.intel_rdt.clos_id == "gold"
    assert spec.personality is not None


def test_the_least_document() -> None:
    spec = load(MINIMAL)
    assert spec == Spec("1.0.0", root_path="rootfs")
    assert refused(lambda: document.require_process(spec, "F")).obj == "F, process"


def test_null_is_absent_and_unknown_fields_are_ignored() -> None:
    more = {"process": None, "hooks": None, "mounts": None, "linux": {"seccomp": None, "future": {"a": [1.5]}}, "vm": 3}
    assert load({**MINIMAL, **more}) == load(MINIMAL)


def test_names_are_found_in_any_case_as_by_go() -> None:
    assert load({"OCIVersion": "1.0.0", "Root": {"PATH": "rootfs", "readOnly": True}}).root_readonly


def test_the_last_of_two_names_counts() -> None:
    text = '{"ociVersion": "1.0.0", "root": {"path": "a"}, "root": {"path": "b"}}'
    assert document.load(text, "F").root_path == "b"


@pytest.mark.parametrize("version", [
    "1.0.0", "1.0.0-rc5", "1.0.1-dev", "1.0.2-dev", "1.1.0", "1.1.0-rc.2", "1.2.0", "1.2.1+dev", "1.3.0", "1.12.3",
    "1.0.0-rc1+build-5.x",
])  # fmt: skip
def test_versions_that_are_understood(version: str) -> None:
    assert load({**MINIMAL, "ociVersion": version}).version == version


@pytest.mark.parametrize("version", ["2.0.0", "0.9.0", "10.0.0"])
def test_versions_that_are_unknown(version: str) -> None:
    error = refused(lambda: load({**MINIMAL, "ociVersion": version}))
    assert str(error) == (
        f'cannot read /b/config.json, ociVersion: version "{version}" is unknown; nestrt understands 1.0.0 to 1.2.1'
    )


@pytest.mark.parametrize(
    "version", ["", "1", "1.0", "1.0.0.0", "1.0.x", "v1.0.0", "1.0.0-", "1.0.0-rc..1", "01.0.0", "1.0.0+", "1.0.0-é"]
)
def test_what_is_no_version(version: str) -> None:
    assert "is no version" in refused(lambda: load({**MINIMAL, "ociVersion": version})).reason


WRONG_TYPES = [
    ("process", [], "process", "it is an array, not an object"),
    ("process.args", "sh", "process.args", "it is text, not an array"),
    ("process.args.1", 1, "process.args[1]", "it is a number, not text"),
    ("process.args.0", None, "process.args[0]", "it is null, not text"),
    ("process.args.0", "a\0b", "process.args[0]", "holds a NUL character"),
    ("process.terminal", 1, "process.terminal", "it is a number, not true or false"),
    ("process.user.uid", True, "process.user.uid", "it is a boolean, not a whole number from 0 to 4294967294"),
    ("process.user.uid", 0.0, "process.user.uid", "it is a number with a fraction or an exponent"),
    ("process.user.uid", -1, "process.user.uid", "-1 is out of range"),
    ("process.user.uid", 2**32 - 1, "process.user.uid", "4294967295 is out of range"),
    ("process.user.gid", "0", "process.user.gid", "it is text, not a whole number"),
    ("process.user.gid", 10**1000, "process.user.gid", "is out of range"),
    ("process.user.umask", 0o10000, "process.user.umask", "out of range"),
    ("process.user.additionalGids.0", -5, "process.user.additionalGids[0]", "out of range"),
    ("process.rlimits.1.hard", 2**64, "process.rlimits[1].hard", "out of range"),
    ("linux.resources.memory.limit", 2**63, "linux.resources.memory.limit", "out of range"),
    ("linux.resources.blockIO.weight", 2**16, "linux.resources.blockIO.weight", "out of range"),
    ("linux.seccomp.syscalls.1.args.0.value", -1, "linux.seccomp.syscalls[1].args[0].value", "out of range"),
    ("annotations.x", 1, "annotations.x", "it is a number, not text"),
    ("annotations.", "x", 'annotations[""]', "it is empty"),
    ("annotations.a~b", 1, 'annotations["a.b"]', "not text"),
    ("mounts.0.options.0", {}, "mounts[0].options[0]", "it is an object, not text"),
]


@pytest.mark.parametrize(("path", "value", "place", "reason"), WRONG_TYPES)
def test_a_wrong_type_is_named_with_its_place(path: str, value: object, place: str, reason: str) -> None:
    error = refused(lambda: load(changed(oci_configs.podman(), path, value)))
    assert error.obj == f"/b/config.json, {place}"
    assert reason in error.reason


MISTAKES = [
    ("ociVersion", MISSING, "ociVersion", "it is missing"),
    ("root", MISSING, "root", "it is missing"),
    ("root", None, "root", "it is missing"),
    ("root.path", MISSING, "root.path", "it is missing"),
    ("root.path", "", "root.path", "it is empty"),
    ("process.cwd", MISSING, "process.cwd", "it is missing"),
    ("process.cwd", "", "process.cwd", "is not an absolute path"),
    ("process.cwd", "tmp", "process.cwd", "is not an absolute path"),
    ("process.env.1", "TERM", "process.env[1]", 'has no "="'),
    ("process.env.1", "=x", "process.env[1]", "has no name"),
    ("process.consoleSize.width", 65536, "process.consoleSize.width", "out of range"),
    ("process.rlimits.1.type", "RLIMIT_X", "process.rlimits[1].type", "is no resource limit"),
    ("process.rlimits.1.type", "RLIMIT_NOFILE", "process.rlimits[1].type", "there twice"),
    ("process.rlimits.0.soft", 2**63, "process.rlimits[0].soft", "above the hard limit, 1048576"),
    ("process.rlimits.0.hard", MISSING, "process.rlimits[0].hard", "it is missing"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj", "out of range"),
    ("process.ioPriority.class", "IDLE", "process.ioPriority.class", "is no I/O scheduling class"),
    ("process.ioPriority.priority", 8, "process.ioPriority.priority", "out of range"),
    ("process.scheduler", {}, "process.scheduler.policy", "it is missing"),
    ("process.scheduler.policy", "SCHED_NONE", "process.scheduler.policy", "is no scheduling policy"),
    ("process.scheduler.flags.0", "X", "process.scheduler.flags[0]", "is no scheduling flag"),
    ("process.scheduler.nice", 20, "process.scheduler.nice", "20 is out of range"),
    ("process.scheduler.priority", 1, "process.scheduler.priority", "SCHED_OTHER has no priority"),
    ("process.scheduler.deadline", 1, "process.scheduler.deadline", "SCHED_OTHER has no deadline"),
    ("process.execCPUAffinity.final", "0-", "process.execCPUAffinity.final", "is no list of CPUs"),
    ("process.execCPUAffinity.final", "a", "process.execCPUAffinity.final", "is no list of CPUs"),
    ("process.execCPUAffinity.initial", "3-1", "process.execCPUAffinity.initial", "turned round"),
    ("mounts.0.destination", "", "mounts[0].destination", "it is empty"),
    ("mounts.0.destination", MISSING, "mounts[0].destination", "it is missing"),
    ("mounts.0.source", "a\0", "mounts[0].source", "NUL"),
    ("mounts.2.uidMappings", MISSING, "mounts[2].uidMappings", "it is missing"),
    ("mounts.2.gidMappings", [], "mounts[2].gidMappings", "it is missing"),
    ("hooks.prestart.0.path", "exe", "hooks.prestart[0].path", "is not an absolute path"),
    ("hooks.prestart.0.timeout", 0, "hooks.prestart[0].timeout", "out of range"),
    ("hooks.createRuntime", [{}], "hooks.createRuntime[0].path", "it is missing"),
    ("linux.namespaces.0.type", "net", "linux.namespaces[0].type", "is no namespace type"),
    ("linux.namespaces.0.type", "ipc", "linux.namespaces[2].type", "the ipc namespace is there twice"),
    ("linux.namespaces.0.path", "ns", "linux.namespaces[0].path", "is not an absolute path"),
    ("linux.namespaces.3", {"type": "mount"}, "linux.namespaces[4].type", "there twice"),
    ("linux.uidMappings.0.size", 0, "linux.uidMappings[0].size", "out of range"),
    ("linux.uidMappings.0.size", MISSING, "linux.uidMappings[0].size", "it is missing"),
    ("linux.uidMappings.0.size", 2**32 - 1, "linux.uidMappings[0].size", "last id is above"),
    ("linux.uidMappings.0.containerID", 1, "linux.uidMappings", "id 0 of the container is not mapped"),
    ("linux.uidMappings", MISSING, "linux.uidMappings", "it is missing"),
    ("linux.gidMappings.1.containerID", 999, "linux.gidMappings[1].containerID", "it overlaps [0]"),
    ("linux.gidMappings.1.hostID", 100999, "linux.gidMappings[1].hostID", "it overlaps [0]"),
    ("linux.timeOffsets.realtime", {}, "linux.timeOffsets.realtime", "is no clock"),
    ("linux.timeOffsets.monotonic.nanosecs", 10**9, "linux.timeOffsets.monotonic.nanosecs", "out of range"),
    ("linux.devices.0.path", "fuse", "linux.devices[0].path", "is not an absolute path"),
    ("linux.devices.0.type", "x", "linux.devices[0].type", "is no type of a device"),
    ("linux.devices.0.major", MISSING, "linux.devices[0].major", "it is missing"),
    ("linux.devices.0.minor", 2**20, "linux.devices[0].minor", "out of range"),
    ("linux.sysctl.vm~swappiness", "0", 'linux.sysctl["vm.swappiness"]', "not in a separate kernel namespace"),
    ("linux.sysctl.kernel~hostname", "x", 'linux.sysctl["kernel.hostname"]', "there is a field for it"),
    ("linux.sysctl.net/~~/kernel/core_pattern", "x", "linux.sysctl", "is no name of a kernel parameter"),
    ("linux.sysctl.net~~x", "x", "linux.sysctl", "is no name of a kernel parameter"),
    ("linux.rootfsPropagation", "none", "linux.rootfsPropagation", "is no propagation"),
    ("linux.maskedPaths.1", "proc", "linux.maskedPaths[1]", "is not an absolute path"),
    ("linux.personality.domain", "BSD", "linux.personality.domain", "is no personality"),
    ("linux.intelRdt.closID", "a/b", "linux.intelRdt.closID", "is no name of a directory"),
    ("linux.intelRdt.closID", "..", "linux.intelRdt.closID", "is no name of a directory"),
    ("linux.intelRdt.enableMonitoring", True, "linux.intelRdt.enableMonitoring", "nestrt does not have it"),
    ("linux.intelRdt.schemata", ["L3:0=f"], "linux.intelRdt.schemata", "nestrt does not have it"),
    ("linux.netDevices", {"eth0": {}}, "linux.netDevices", "nestrt does not have it"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, "linux.memoryPolicy", "nestrt does not have it"),
    ("linux.seccomp.defaultAction", MISSING, "linux.seccomp.defaultAction", "it is missing"),
    ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY", "linux.seccomp.defaultAction", "cannot be the default"),
    ("linux.seccomp.defaultAction", "ALLOW", "linux.seccomp.defaultAction", "is no seccomp action"),
    ("linux.seccomp.architectures.1", "x86", "linux.seccomp.architectures[1]", "is no architecture"),
    ("linux.seccomp.flags", ["TSYNC"], "linux.seccomp.flags[0]", "is no seccomp flag"),
    ("linux.seccomp.syscalls.0.names", MISSING, "linux.seccomp.syscalls[0].names", "it is missing"),
    ("linux.seccomp.syscalls.0.names.1", 3, "linux.seccomp.syscalls[0].names[1]", "not text"),
    ("linux.seccomp.syscalls.0.action", "SCMP_ACT_NOTIFY", "linux.seccomp.listenerPath", "it is missing"),
    ("linux.seccomp.syscalls.1.args.0.op", "EQ", "linux.seccomp.syscalls[1].args[0].op", "is no comparison"),
    ("linux.seccomp.syscalls.1.args.0.index", 6, "linux.seccomp.syscalls[1].args[0].index", "out of range"),
    ("linux.seccomp.syscalls.2.errnoRet", 65536, "linux.seccomp.syscalls[2].errnoRet", "out of range"),
    ("linux.resources.devices.1.access", "", "linux.resources.devices[1].access", "is no access"),
    ("linux.resources.devices.1.access", "x", "linux.resources.devices[1].access", "is no access"),
    ("linux.resources.devices.1.access", MISSING, "linux.resources.devices[1].access", "it is missing"),
    ("linux.resources.devices.1.type", "u", "linux.resources.devices[1].type", "is no type of a device rule"),
    ("linux.resources.devices.1.major", -2, "linux.resources.devices[1].major", "out of range"),
    ("linux.resources.memory.swappiness", 101, "linux.resources.memory.swappiness", "out of range"),
    ("linux.resources.blockIO.weight", 5, "linux.resources.blockIO.weight", "out of range"),
    ("linux.resources.hugepageLimits.0.pageSize", "../2MB", "linux.resources.hugepageLimits[0].pageSize", "page size"),
    ("linux.resources.unified", {"../x.y": "1"}, 'linux.resources.unified["../x.y"]', "is no file of cgroup v2"),
    ("linux.resources.unified", {"a.b/../c": "1"}, 'linux.resources.unified["a.b/../c"]', "is no file of cgroup v2"),
    ("linux.resources.unified", {"memory": "1"}, "linux.resources.unified.memory", "is no file of cgroup v2"),
    ("linux.resources.network.priorities.0.name", "", "linux.resources.network.priorities[0].name", "it is empty"),
]


@pytest.mark.parametrize(("path", "value", "place", "reason"), MISTAKES)
def test_a_mistake_is_named_with_its_place(path: str, value: object, place: str, reason: str) -> None:
    assert load(oci_configs.docker())
    error = refused(lambda: load(changed(with_rlimits(oci_configs.docker()), path, value)))
    assert error.obj.startswith(f"/b/config.json, {place}")
    assert reason in error.reason


def with_rlimits(base: dict[str, Any]) -> dict[str, Any]:
    base["process"]["rlimits"] = oci_configs.podman()["process"]["rlimits"]
    return base


# what is said -> the namespace without which it would be the host's
NEEDS = [
    ("hostname", "hostname", "uts"),
    ("domainname", "domainname", "uts"),
    ("linux.maskedPaths", "linux.maskedPaths", "mount"),
    ("linux.readonlyPaths", "linux.readonlyPaths", "mount"),
    ("linux.timeOffsets", "linux.timeOffsets", "time"),
    ("linux.uidMappings", "linux.uidMappings", "user"),
    ("linux.gidMappings", "linux.gidMappings", "user"),
]
VALUES = {
    "hostname": "h",
    "domainname": "d",
    "linux.maskedPaths": ["/x"],
    "linux.readonlyPaths": ["/x"],
    "linux.timeOffsets": {"boottime": {"secs": 1}},
    "linux.uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
    "linux.gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
}


@pytest.mark.parametrize(("path", "place", "needed"), NEEDS)
def test_what_needs_a_namespace(path: str, place: str, needed: str) -> None:
    base: dict[str, Any] = {**MINIMAL, "linux": {"namespaces": []}}
    error = refused(lambda: load(changed(base, path, VALUES[path])))
    assert (error.obj, error.reason) == (f"/b/config.json, {place}", f"it needs a {needed} namespace")
    base["linux"]["namespaces"] = [{"type": needed, **({"path": "/ns"} if needed == "user" else {})}]
    assert load(base)
    changed(base, path, None)
    base["linux"]["namespaces"] = []
    assert load(base)


SYSCTLS = [
    ("kernel.sem", "ipc"),
    ("fs.mqueue.queues_max", "ipc"),
    ("net.core.somaxconn", "network"),
    ("net/core/somaxconn", "network"),
    ("user.max_user_namespaces", "user"),
    ("kernel.domainname", "uts"),
]


@pytest.mark.parametrize(("name", "needed"), SYSCTLS)
def test_a_sysctl_needs_its_namespace(name: str, needed: str) -> None:
    base: dict[str, Any] = {**MINIMAL, "linux": {"sysctl": {name: "1"}}}
    assert f"host's {needed} namespace" in refused(lambda: load(base)).reason
    base["linux"]["namespaces"] = [{"type": needed, "path": "/ns"}]
    assert load(base).sysctl == ((sysctl_name(name), "1"),)


def test_sysctl_spellings() -> None:
    assert sysctl_name("net/ipv4/conf/eth0.1/mtu") == "net.ipv4.conf.eth0/1.mtu"
    assert sysctl_name("net.ipv4.conf.eth0/1.mtu") == "net.ipv4.conf.eth0/1.mtu"
    assert sysctl_path("net.ipv4.conf.eth0/1.mtu") == "net/ipv4/conf/eth0.1/mtu"
    assert sysctl_path("kernel.sem") == "kernel/sem"


def test_offsets_of_a_joined_time_namespace() -> None:
    linux = {"namespaces": [{"type": "time", "path": "/ns"}], "timeOffsets": {"boottime": {"secs": 1}}}
    assert refused(lambda: load({**MINIMAL, "linux": linux})).obj == "/b/config.json, linux.timeOffsets"


def test_a_joined_user_namespace_may_have_mappings_or_none() -> None:
    joined: dict[str, Any] = {"namespaces": [{"type": "user", "path": "/ns"}]}
    assert load({**MINIMAL, "linux": joined}).uid_mappings == ()
    joined["uidMappings"] = [{"containerID": 5, "hostID": 1, "size": 1}]
    assert load({**MINIMAL, "linux": joined}).uid_mappings == ((5, 1, 1),)


def test_seccomp_without_a_default_and_rules_is_none() -> None:
    for nothing in ({}, {"defaultAction": ""}, {"architectures": ["SCMP_ARCH_X86"], "syscalls": []}):
        assert load({**MINIMAL, "linux": {"seccomp": nothing}}).seccomp is None


def test_seccomp_flags_said_and_not_said() -> None:
    base = oci_configs.podman()
    for flags, wanted in ((None, None), ([], ()), (["SECCOMP_FILTER_FLAG_LOG"], ("SECCOMP_FILTER_FLAG_LOG",))):
        seccomp = load(changed(base, "linux.seccomp.flags", flags)).seccomp
        assert seccomp is not None
        assert seccomp.flags == wanted


def test_a_fifo_needs_no_number() -> None:
    spec = load({**MINIMAL, "linux": {"devices": [{"path": "/dev/x", "type": "p"}]}})
    assert spec.devices == (Device("/dev/x", "p"),)


def test_later_fields_that_ask_for_nothing_are_no_mistake() -> None:
    linux = {"netDevices": {}, "memoryPolicy": None, "intelRdt": {"enableMonitoring": False, "schemata": []}}
    spec = load({**MINIMAL, "linux": linux})
    assert spec.intel_rdt is not None


def test_an_empty_word_is_none() -> None:
    linux = {
        "rootfsPropagation": "",
        "namespaces": [{"type": "pid", "path": ""}],
        "resources": {"devices": [{"type": "", "access": "m"}]},
    }
    spec = load({**MINIMAL, "linux": linux})
    assert (spec.rootfs_propagation, spec.namespaces) == ("", (Namespace("pid"),))
    assert spec.resources.devices == (DeviceRule(False, "a", None, None, "m"),)


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    text = r'{"ociVersion": "1.0.0", "root": {"path": "/a\ud800b"}, "annotations": {"k": "\ud83d\ude00"}}'
    spec = document.load(text, "F")
    assert spec.root_path == "/a\ufffdb"
    assert spec.annotation("k") == "\U0001f600"
    process = document.load_process(r'{"cwd": "/", "args": ["\udc80"], "env": ["\ud800=1"]}', "F")
    assert (process.args, process.env) == (("\ufffd",), ("\ufffd=1",))


def test_warnings() -> None:
    base = oci_configs.podman()
    base["mounts"][1]["destination"] = "data"
    base["process"]["capabilities"]["bounding"] = ["CAP_CHOWN", "CAP_FLY", "chown"]
    base["linux"]["personality"] = {"domain": "LINUX", "flags": ["X"]}
    spec = load(base)
    assert spec.warnings == (
        "process.capabilities: no such capability, ignored: CAP_FLY, chown",
        'mounts[1].destination: "data" is taken as relative to /',
        "linux.personality.flags: none is known, ignored",
    )
    assert spec.mounts[1].destination == "/data"
    assert spec.process is not None
    assert spec.process.warnings == spec.warnings[:1]
    assert spec.process.capabilities is not None
    assert spec.process.capabilities.bounding == ("CAP_CHOWN",)
    assert spec.process.capabilities.effective == tuple(oci_configs.CAPS)


def test_a_process_of_its_own() -> None:
    base = oci_configs.podman()
    process = document.load_process(json.dumps(base["process"]), "/p.json")
    assert process == load(base).process
    error = refused(lambda: document.load_process('{"cwd": "/"}', "/p.json"))
    assert str(error).startswith("cannot read /p.json, args: args must not be empty; ")
    assert refused(lambda: document.load_process('{"args": ["a"]}', "/p.json")).obj == "/p.json, cwd"
    assert refused(lambda: document.load_process("null", "/p.json")).obj == "/p.json"


def test_arguments_are_required_for_create_only() -> None:
    spec = load({**MINIMAL, "process": {"cwd": "/"}})
    assert refused(lambda: document.require_process(spec, "F")).obj == "F, process.args"
    assert spec.process is not None
    process = replace(spec.process, args=("x",))
    assert document.require_process(replace(spec, process=process), "F") == process


def test_resources_of_their_own() -> None:
    base = oci_configs.podman()
    assert document.load_resources(json.dumps(base["linux"]["resources"]), "-") == load(base).resources
    assert refused(lambda: document.load_resources('{"cpu": {"shares": 1e3}}', "-")).obj == "-, cpu.shares"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1, column 1: expecting value"),
        ('{\n  "ociVersion": \n}', "line 3, column 1: expecting value"),
        ("null", "it is null, not an object"),
        ("[]", "it is an array, not an object"),
        ("{} x", "line 1, column 4: extra data"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_broken_document(text: str, reason: str) -> None:
    error = refused(lambda: document.load(text, "/b/config.json"))
    assert error.obj == "/b/config.json"
    assert reason in error.reason
