"""linux.resources: what is written for a new group and for a live one, on v1 and on v2, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.controllers.base import Setting
from nestrt.controllers.cpu import documented_weight
from nestrt.controllers.names import expand
from nestrt.controllers.table import (
    CONTROLLERS,
    by_name,
    ignored,
    missing,
    resource_settings,
)
from nestrt.controllers.update import merge, update_settings
from nestrt.errors import HostError, InputError, StateError
from nestrt.oci.resources import BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice, WeightDevice
from nestrt.record import replace

V1 = "cpuset cpu cpuacct blkio memory devices freezer net_cls perf_event net_prio hugetlb pids rdma misc".split()
V2 = "cpuset cpu io memory hugetlb pids rdma misc".split()
NAMES = {1: V1, 2: V2}
M = 1 << 20

# What engines send where their users ask for nothing: docker 20.10, podman 4.3, containerd 1.6 (ctr), runc's update.
NOTHING = (
    Resources(),
    Resources(memory=Memory(disable_oom_killer=False), cpu=Cpu(shares=0), pids=0, block_io=BlockIo(weight=0)),
    Resources(memory=Memory(swappiness=-1), pids=-1),
    Resources(cpu=Cpu(shares=0, quota=0, period=0, realtime_runtime=0, realtime_period=0)),
    Resources(memory=Memory(0, 0, 0, 0, 0, None, False, None, None), cpu=Cpu(0, 0, None, 0, 0, 0, "", "", None)),
    Resources(memory=Memory(swappiness=2**64 - 1), net_class=0),
    Resources(memory=Memory(kernel=-1, kernel_tcp=-1)),
)


def written(resources: Resources, name: str, version: int) -> list[tuple[str, str]]:
    return [(item.file, item.value) for item in resource_settings(resources, (name,), version)]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("resources", NOTHING)
def test_what_engines_send_for_nothing_limits_nothing(resources: Resources, version: int) -> None:
    assert [item for item in resource_settings(resources, NAMES[version], version) if item.value != "max"] == []
    assert missing(resources, ()) == []
    assert ignored(resources) == []


def test_memory() -> None:
    both = Resources(memory=Memory(limit=512 * M, swap=768 * M, reservation=256 * M))
    assert written(both, "memory", 1) == [
        ("memory.limit_in_bytes", str(512 * M)),
        ("memory.memsw.limit_in_bytes", str(768 * M)),
        ("memory.soft_limit_in_bytes", str(256 * M)),
    ]
    assert written(both, "memory", 2) == [
        ("memory.max", str(512 * M)),
        ("memory.swap.max", str(256 * M)),
        ("memory.low", str(256 * M)),
    ]
    alone = Resources(memory=Memory(limit=512 * M))
    assert written(alone, "memory", 1) == [("memory.limit_in_bytes", str(512 * M))]
    assert written(alone, "memory", 2) == [("memory.max", str(512 * M))]


def test_no_swap_and_any_swap() -> None:
    none, any_ = Resources(memory=Memory(limit=M, swap=M)), Resources(memory=Memory(limit=M, swap=-1))
    assert resource_settings(none, V2, 2)[1] == Setting(
        "memory.swap.max", "0", optional=True, field="linux.resources.memory.swap"
    )
    assert written(none, "memory", 1)[1] == ("memory.memsw.limit_in_bytes", str(M))
    assert not resource_settings(none, V1, 1)[1].optional
    assert written(any_, "memory", 2)[1] == ("memory.swap.max", "max")
    assert written(any_, "memory", 1)[1] == ("memory.memsw.limit_in_bytes", "-1")


def test_unlimited_memory_has_unlimited_swap_where_it_is_counted() -> None:
    resources = Resources(memory=Memory(limit=-1))
    assert written(resources, "memory", 2) == [("memory.max", "max"), ("memory.swap.max", "max")]
    assert written(resources, "memory", 1) == [("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")]
    assert resource_settings(resources, V1, 1)[1].optional
    assert resource_settings(resources, V2, 2)[1].optional


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        (Memory(swap=M), "unable to set swap limit without memory limit"),
        (Memory(limit=-1, swap=M), "unable to set swap limit without memory limit"),
        (Memory(limit=2 * M, swap=M), "memory\\+swap limit should be >= memory limit"),
        (Memory(swappiness=101), "valid range is 0-100"),
    ],
)
def test_memory_that_does_not_fit_is_refused(memory: Memory, reason: str, version: int) -> None:
    with pytest.raises(InputError, match=rf"linux\.resources\.memory\.swap.*{reason}"):
        resource_settings(Resources(memory=memory), ("memory",), version)


def test_cpu() -> None:
    resources = Resources(cpu=Cpu(shares=512, quota=150_000, period=50_000, cpus="0-1,3", mems="0"))
    assert written(resources, "cpu", 1) == [
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "50000"),
        ("cpu.cfs_quota_us", "150000"),
    ]
    assert written(resources, "cpu", 2) == [("cpu.weight", "20"), ("cpu.max", "150000 50000")]
    for version in (1, 2):
        assert written(resources, "cpuset", version) == [("cpuset.cpus", "0-1,3"), ("cpuset.mems", "0")]
    assert written(Resources(cpu=Cpu(quota=-1)), "cpu", 2) == [("cpu.max", "max 100000")]
    assert written(Resources(cpu=Cpu(quota=-1)), "cpu", 1) == [("cpu.cfs_quota_us", "-1")]
    assert written(Resources(cpu=Cpu(period=50_000)), "cpu", 2) == [("cpu.max", "max 50000")]
    assert written(Resources(cpu=Cpu(quota=20_000)), "cpu", 2) == [("cpu.max", "20000 100000")]


def test_shares_as_runc_and_crun_count_weight() -> None:
    known = [(2, 1), (1024, 39), (262_144, 10_000), (512, 20), (1, 1), (10**9, 10_000)]
    assert [(shares, documented_weight(shares)) for shares, _ in known] == known


@pytest.mark.parametrize(("shares", "word"), [(1, "minimum allowed cpu-shares is 2"), (262_145, "maximum allowed")])
def test_shares_that_v1_would_change_are_refused(shares: int, word: str) -> None:
    with pytest.raises(InputError, match=word):
        resource_settings(Resources(cpu=Cpu(shares=shares)), ("cpu",), 1)


def test_burst_comes_after_the_quota_that_bounds_it() -> None:
    resources = Resources(cpu=Cpu(quota=20_000, burst=10_000))
    assert written(resources, "cpu", 1)[-1] == ("cpu.cfs_burst_us", "10000")
    assert written(resources, "cpu", 2)[-1] == ("cpu.max.burst", "10000")
    for version, burst in ((1, 10_000), (2, 10_000), (1, 0), (2, 0)):
        setting = resource_settings(Resources(cpu=Cpu(burst=burst)), ("cpu",), version)[0]
        assert (setting.value, setting.optional) == (str(burst), burst == 0)


@pytest.mark.parametrize("version", [1, 2])
def test_an_idle_group_takes_no_weight(version: int) -> None:
    weight = {1: "cpu.shares", 2: "cpu.weight"}[version]
    idle, busy = Resources(cpu=Cpu(shares=512, idle=1)), Resources(cpu=Cpu(shares=512, idle=0))
    assert [file for file, _ in written(idle, "cpu", version)] == [weight, "cpu.idle"]
    assert [file for file, _ in written(busy, "cpu", version)] == ["cpu.idle", weight]


def test_pids() -> None:
    for version in (1, 2):
        for count, value in ((100, "100"), (0, "max"), (-1, "max"), (-5, "max"), (1, "1")):
            assert written(Resources(pids=count), "pids", version) == [("pids.max", value)]


def test_io() -> None:
    block = BlockIo(
        weight=500,
        weight_device=(WeightDevice(8, 0, 10), WeightDevice(8, 16, 1000)),
        throttle_read_bps=(ThrottleDevice(8, 0, M),),
        throttle_write_bps=(ThrottleDevice(8, 0, 2 * M),),
        throttle_read_iops=(ThrottleDevice(8, 16, 10),),
        throttle_write_iops=(ThrottleDevice(8, 16, 0),),
    )
    v1 = resource_settings(Resources(block_io=block), ("blkio",), 1)
    assert [(s.file, s.value, s.unless) for s in v1] == [
        ("blkio.weight", "500", ""),
        ("blkio.bfq.weight", "500", "blkio.weight"),
        ("blkio.weight_device", "8:0 10", ""),
        ("blkio.bfq.weight_device", "8:0 10", "blkio.weight_device"),
        ("blkio.weight_device", "8:16 1000", ""),
        ("blkio.bfq.weight_device", "8:16 1000", "blkio.weight_device"),
        ("blkio.throttle.read_bps_device", "8:0 1048576", ""),
        ("blkio.throttle.write_bps_device", "8:0 2097152", ""),
        ("blkio.throttle.read_iops_device", "8:16 10", ""),
        ("blkio.throttle.write_iops_device", "8:16 0", ""),
    ]
    v2 = resource_settings(Resources(block_io=block), ("io",), 2)
    assert [(s.file, s.value, s.unless) for s in v2] == [
        ("io.bfq.weight", "500", ""),
        ("io.weight", "4950", "io.bfq.weight"),
        ("io.bfq.weight", "8:0 10", ""),
        ("io.weight", "8:0 1", "io.bfq.weight"),
        ("io.bfq.weight", "8:16 1000", ""),
        ("io.weight", "8:16 10000", "io.bfq.weight"),
        ("io.max", "8:0 rbps=1048576", ""),
        ("io.max", "8:0 wbps=2097152", ""),
        ("io.max", "8:16 riops=10", ""),
        ("io.max", "8:16 wiops=max", ""),
    ]
    # Of two files for one thing the first may be absent, and the other not: no weight is lost in silence.
    assert all(s.optional == (s.file in ("blkio.weight", "blkio.weight_device", "io.bfq.weight")) for s in (*v1, *v2))
    with pytest.raises(InputError, match="use 10 to 1000"):
        resource_settings(Resources(block_io=BlockIo(weight=9)), ("io",), 2)


def test_leaf_weight_is_of_v1() -> None:
    block = BlockIo(leaf_weight=10, weight_device=(WeightDevice(8, 0, None, 20),))
    assert written(Resources(block_io=block), "blkio", 1) == [
        ("blkio.leaf_weight", "10"),
        ("blkio.leaf_weight_device", "8:0 20"),
    ]


def test_hugepages() -> None:
    resources = Resources(hugepages=(("2MB", 4 * M), ("1GB", 0)))
    assert [(s.file, s.value, s.optional) for s in resource_settings(resources, ("hugetlb",), 2)] == [
        ("hugetlb.2MB.rsvd.max", str(4 * M), True),
        ("hugetlb.2MB.max", str(4 * M), False),
        ("hugetlb.1GB.rsvd.max", "0", True),
        ("hugetlb.1GB.max", "0", False),
    ]
    assert written(resources, "hugetlb", 1)[1] == ("hugetlb.2MB.limit_in_bytes", str(4 * M))
    with pytest.raises(InputError, match="page size"):
        resource_settings(Resources(hugepages=(("2MB/../../x", 1),)), ("hugetlb",), 2)


def test_rdma_and_network() -> None:
    rdma = Resources(rdma=(("mlx5_1", 3, 10_000), ("mlx4_0", None, 1000), ("rxe3", None, None)))
    for version in (1, 2):
        assert written(rdma, "rdma", version) == [
            ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
            ("rdma.max", "mlx4_0 hca_object=1000"),
        ]
    network = Resources(net_class=0x100001, net_prio=(("eth0", 500), ("eth1", 1000)))
    assert written(network, "net_cls", 1) == [("net_cls.classid", "1048577")]
    assert written(network, "net_prio", 1) == [("net_prio.ifpriomap", "eth0 500"), ("net_prio.ifpriomap", "eth1 1000")]
    assert missing(network, V2) == ["linux.resources.network.classID", "linux.resources.network.priorities"]


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        (Resources(memory=Memory(swappiness=0)), "memory.swappiness"),
        (Resources(memory=Memory(disable_oom_killer=True)), "memory.disableOOMKiller"),
        (Resources(memory=Memory(use_hierarchy=False)), "memory.useHierarchy"),
        (Resources(cpu=Cpu(realtime_runtime=950_000)), "cpu.realtimeRuntime"),
        (Resources(cpu=Cpu(realtime_period=1_000_000)), "cpu.realtimePeriod"),
        (Resources(block_io=BlockIo(leaf_weight=10)), "blockIO.leafWeight"),
        (Resources(block_io=BlockIo(weight_device=(WeightDevice(8, 0, 10, 10),))), "blockIO.leafWeightDevice"),
    ],
)
def test_what_v2_has_not_is_an_error_that_names_it_and_written_on_v1(resources: Resources, field: str) -> None:
    with pytest.raises(HostError, match=rf"linux\.resources\.{field}:"):
        resource_settings(resources, V2, 2)
    assert f"linux.resources.{field}" in [item.field for item in resource_settings(resources, V1, 1)]


@pytest.mark.parametrize("version", [1, 2])
def test_every_write_names_its_field_and_a_file_of_the_table(version: int) -> None:
    block = BlockIo(10, None, (WeightDevice(8, 0, 10),), (ThrottleDevice(8, 0, 1),), (), (), (ThrottleDevice(8, 0, 1),))
    resources = Resources(
        memory=Memory(M, M, 2 * M), cpu=Cpu(2, 1000, 1, 1000, None, None, "0", "0", 0), pids=1, block_io=block,
        hugepages=(("2MB", 1),), rdma=(("a", 1, 1),), net_class=1, net_prio=(("lo", 1),),
    )  # fmt: skip
    found = resource_settings(resources, NAMES[version], version)
    names = {file.name for item in CONTROLLERS for file in item.files(version)}
    files = {item.file for item in found}
    assert set(expand(names, sorted(files))) == files
    assert all(item.field.startswith("linux.resources.") for item in found)
    assert len({item.field for item in found}) >= (15 if version == 1 else 13)


def test_missing_names_what_no_hierarchy_has_and_was_asked_for() -> None:
    resources = Resources(memory=Memory(limit=M, swap=-1), pids=10, hugepages=(("2MB", 1),), rdma=(("a", 1, 1),))
    assert missing(resources, [*V1, *V2]) == []
    assert missing(resources, ["memory", "pids"]) == [
        "linux.resources.hugepageLimits[2MB]",
        "linux.resources.rdma[a]",
    ]
    assert missing(resources, []) == [
        "linux.resources.memory.limit",
        "linux.resources.pids.limit",
        "linux.resources.hugepageLimits[2MB]",
        "linux.resources.rdma[a]",
    ]
    assert missing(Resources(memory=Memory(limit=-1, reservation=-1), cpu=Cpu(quota=-1), pids=-1), []) == []
    assert missing(Resources(block_io=BlockIo(weight=10)), ["io"]) == missing(resources, ["blkio", *V1]) == []


def test_kernel_memory_is_taken_and_ignored() -> None:
    resources = Resources(memory=Memory(kernel=M, kernel_tcp=M))
    assert resource_settings(resources, V1, 1) == resource_settings(resources, V2, 2) == ()
    assert ignored(resources) == ["linux.resources.memory.kernel", "linux.resources.memory.kernelTCP"]


def test_unified_comes_last_and_line_by_line() -> None:
    unified = (("memory.high", "1000"), ("io.max", "8:0 rbps=1\n8:16 wbps=max\n"), ("cgroup.max.depth", "3"))
    resources = Resources(memory=Memory(limit=M), unified=unified)
    assert written(resources, "memory", 2) == [
        ("memory.max", str(M)),
        ("memory.high", "1000"),
        ("cgroup.max.depth", "3"),
    ]
    assert written(resources, "io", 2)[:2] == [("io.max", "8:0 rbps=1"), ("io.max", "8:16 wbps=max")]
    assert written(resources, "memory", 1) == [("memory.limit_in_bytes", str(M))]


def test_unified_is_for_the_controllers_of_the_v2_tree() -> None:
    resources = Resources(unified=(("memory.high", "1"), ("hugetlb.2MB.max", "1"), ("cgroup.max.depth", "1")))
    # A hybrid host whose v2 tree has hugetlb: the core's files are there too.
    assert missing(resources, V1, ("hugetlb",)) == ["linux.resources.unified[memory.high]"]
    assert missing(resources, V1, V2) == []
    assert len(missing(resources, V1)) == 3


@pytest.mark.parametrize(
    "file", ["../memory.max", "memory.max/x", "/memory.max", "memory", ".", "..", "", ".max", "a."]
)
def test_unified_keys_that_are_no_files_are_refused(file: str) -> None:
    resources = Resources(unified=((file, "1"),))
    for use in (lambda: resource_settings(resources, V2, 2), lambda: missing(resources, V2, V2)):
        with pytest.raises(InputError, match="must be"):
            use()


# --- live groups


class Group:
    """The rules of the kernel for cpu and memory files, on v1 or v2, with a parent of a CPU share."""

    def __init__(self, files: dict[str, str], share: float = 8.0) -> None:
        self.files, self.share = dict(files), share
        self.widest = self.cpu_share()

    def read(self, file: str) -> str:
        if file not in self.files:
            raise FileNotFoundError(file)
        return self.files[file] + "\n"

    def number(self, file: str, default: int = -1) -> int:
        return int(self.files.get(file, default))

    def cpu_share(self) -> float:
        quota = self.number("cpu.cfs_quota_us")
        return self.share if quota < 0 else quota / self.number("cpu.cfs_period_us", 100_000)

    def write(self, setting: Setting) -> None:
        assert setting.file in self.files or setting.optional, setting
        if setting.file not in self.files:
            return
        before = self.files[setting.file]
        self.files[setting.file] = (
            str(2**63 - 4096) if "limit_in" in setting.file and setting.value == "-1" else setting.value
        )
        limit, both = self.number("memory.limit_in_bytes", 0), self.number("memory.memsw.limit_in_bytes", 2**63)
        burst, quota = self.number("cpu.cfs_burst_us", 0), self.number("cpu.cfs_quota_us")
        if limit > both or self.cpu_share() > self.share or 0 <= quota < burst:
            self.files[setting.file] = before
            raise OSError(22, f"EINVAL {setting}")
        self.widest = max(self.widest, self.cpu_share())


LIMITS = st.sampled_from([M, 2 * M, 4 * M, 8 * M, 2**63 - 4096])


@settings(max_examples=300)
@given(
    LIMITS, LIMITS, st.sampled_from([None, 0, -1, M, 3 * M, 8 * M]), st.sampled_from([None, 0, -1, M, 5 * M, 16 * M])
)
def test_memory_and_swap_of_v1_never_cross(limit: int, more: int, new_limit: int | None, new_swap: int | None) -> None:
    both = max(limit, more)
    group = Group({"memory.limit_in_bytes": str(limit), "memory.memsw.limit_in_bytes": str(both)})
    new = Resources(memory=Memory(limit=new_limit, swap=new_swap))
    fits = new_limit if new_limit else limit
    try:
        found = update_settings(None, new, ("memory",), 1, group.read)
    except InputError:
        unlimited = fits < 0 or fits >= 2**62
        refused = new_swap and new_swap > 0 and (unlimited or new_swap < fits)
        assert refused or (not new_swap and (new_limit or 0) > both)
        return
    for setting in found:
        group.write(setting)
    if new_limit:
        assert group.number("memory.limit_in_bytes") == (new_limit if new_limit > 0 else 2**63 - 4096)
    if new_swap and new_swap > 0:
        assert group.number("memory.memsw.limit_in_bytes") == new_swap


QUOTAS, PERIODS = st.sampled_from([-1, 1000, 50_000, 100_000, 400_000]), st.sampled_from([10_000, 100_000, 1_000_000])


@settings(max_examples=400)
@given(QUOTAS, PERIODS, st.sampled_from([None, 0, -1, 2000, 60_000, 300_000]), st.none() | PERIODS)
def test_quota_and_period_of_v1_are_never_wider_than_before_and_after(
    quota: int, period: int, new_quota: int | None, new_period: int | None
) -> None:
    group = Group({"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": str(period)}, share=100.0)
    before = group.cpu_share()
    for setting in update_settings(
        None, Resources(cpu=Cpu(quota=new_quota, period=new_period)), ("cpu",), 1, group.read
    ):
        group.write(setting)
    assert group.widest <= max(before, group.cpu_share())
    assert group.number("cpu.cfs_quota_us") == (new_quota or quota)
    assert group.number("cpu.cfs_period_us") == (new_period or period)


@given(st.sampled_from([(1000, 500), (50_000, 0), (100_000, 100_000), (-1, 70_000)]),
       st.sampled_from([(1000, 1000), (2000, 0), (90_000, 60_000), (-1, 100_000)]))  # fmt: skip
def test_burst_fits_its_quota_at_every_moment(has: tuple[int, int], new: tuple[int, int]) -> None:
    group = Group({"cpu.cfs_quota_us": str(has[0]), "cpu.cfs_burst_us": str(has[1])})
    for setting in update_settings(None, Resources(cpu=Cpu(quota=new[0], burst=new[1])), ("cpu",), 1, group.read):
        group.write(setting)
    assert (group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_burst_us")) == new


def updated(
    files: dict[str, str], old: Resources | None, new: Resources, name: str, version: int
) -> list[tuple[str, str]]:
    found = update_settings(old, new, (name,), version, Group(files).read)
    return [(item.file, item.value) for item in found]


def test_v2_quota_and_period_keep_each_other() -> None:
    files = {"cpu.max": "20000 50000"}
    assert updated(files, None, Resources(cpu=Cpu(quota=30_000)), "cpu", 2) == [("cpu.max", "30000 50000")]
    assert updated(files, None, Resources(cpu=Cpu(period=40_000)), "cpu", 2) == [("cpu.max", "20000 40000")]
    assert updated({"cpu.max": "max 100000"}, None, Resources(cpu=Cpu(period=40_000)), "cpu", 2) == [
        ("cpu.max", "max 40000")
    ]
    # No file to read: what the document said.
    old = Resources(cpu=Cpu(quota=20_000, period=50_000))
    assert updated({}, old, Resources(cpu=Cpu(quota=30_000)), "cpu", 2) == [("cpu.max", "30000 50000")]
    assert updated({}, None, Resources(cpu=Cpu(quota=30_000)), "cpu", 2) == [("cpu.max", "30000 100000")]


def test_v2_swap_alone_counts_from_the_memory_that_the_group_has() -> None:
    new = Resources(memory=Memory(swap=3 * M))
    assert updated({"memory.max": str(M)}, None, new, "memory", 2) == [("memory.swap.max", str(2 * M))]
    assert updated({}, Resources(memory=Memory(limit=2 * M)), new, "memory", 2) == [("memory.swap.max", str(M))]
    with pytest.raises(InputError, match="unable to set swap limit without memory limit"):
        updated({"memory.max": "max"}, None, new, "memory", 2)


def test_more_memory_than_memory_and_swap_names_the_remedy() -> None:
    files = {"memory.limit_in_bytes": str(M), "memory.memsw.limit_in_bytes": str(2 * M)}
    with pytest.raises(InputError, match=r"memory\.limit 4194304.*is 2097152; give memory\.swap"):
        updated(files, None, Resources(memory=Memory(limit=4 * M)), "memory", 1)


def test_check_before_update_refuses_what_is_in_use() -> None:
    v1 = {"memory.limit_in_bytes": str(8 * M), "memory.memsw.limit_in_bytes": str(8 * M)}
    v1 |= {"memory.usage_in_bytes": str(3 * M), "memory.memsw.usage_in_bytes": str(4 * M)}
    v2 = {"memory.max": str(8 * M), "memory.current": str(3 * M), "memory.swap.current": str(M)}
    for version, files in ((1, v1), (2, v2)):
        with pytest.raises(StateError, match="rejecting memory limit 3145728 <= usage 3145728"):
            updated(files, None, Resources(memory=Memory(limit=3 * M, check_before_update=True)), "memory", version)
        with pytest.raises(StateError, match=r"rejecting memory\+swap limit 4194304 <= usage 4194304"):
            updated(
                files,
                None,
                Resources(memory=Memory(3 * M + 1, None, 4 * M, check_before_update=True)),
                "memory",
                version,
            )
        asked_once = Resources(memory=Memory(check_before_update=True))
        with pytest.raises(StateError):
            updated(files, asked_once, Resources(memory=Memory(limit=M, swap=-1)), "memory", version)
        assert updated(files, None, Resources(memory=Memory(limit=M)), "memory", version)
        assert updated(files, None, Resources(memory=Memory(limit=4 * M, check_before_update=True)), "memory", version)
        # Nothing to read is no reason to refuse.
        assert updated({}, None, Resources(memory=Memory(limit=M, check_before_update=True)), "memory", version)


@pytest.mark.parametrize("version", [1, 2])
def test_what_an_update_does_not_say_stays(version: int) -> None:
    said_nothing = Resources(
        memory=Memory(0, 0, 0, 0, 0), cpu=Cpu(0, 0, None, 0, 0, 0, "", ""), pids=0, block_io=BlockIo(weight=0)
    )
    files: dict[str, str] = {}
    assert update_settings(None, said_nothing, NAMES[version], version, Group(files).read) == ()
    old = Resources(devices=(DeviceRule(False),), memory=Memory(limit=M), cpu=Cpu(shares=5), pids=7, net_class=3)
    assert merge(old, said_nothing) == old
    assert updated(files, old, Resources(pids=-1), "pids", version) == [("pids.max", "max")]
    assert updated(files, old, Resources(unified=(("pids.max", "3"),)), "pids", version) == (
        [("pids.max", "3")] if version == 2 else []
    )


def test_the_oom_killer_can_be_given_back() -> None:
    old, new = Resources(memory=Memory(disable_oom_killer=True)), Resources(memory=Memory(disable_oom_killer=False))
    assert updated({}, old, new, "memory", 1) == [("memory.oom_control", "0")]
    assert updated({}, new, new, "memory", 1) == []


def test_merging() -> None:
    old = Resources(
        memory=Memory(limit=M, swap=2 * M, swappiness=10),
        cpu=Cpu(quota=1000, period=2000, burst=5, cpus="0", idle=1),
        block_io=BlockIo(weight=10, throttle_read_bps=(ThrottleDevice(8, 0, 1), ThrottleDevice(8, 16, 2))),
        hugepages=(("2MB", 1),),
        unified=(("memory.high", "1"), ("memory.low", "2")),
    )
    new = Resources(
        memory=Memory(limit=-1, swappiness=0),
        cpu=Cpu(quota=5000, burst=0, idle=0, mems="0"),
        block_io=BlockIo(throttle_read_bps=(ThrottleDevice(8, 0, 9),)),
        hugepages=(("1GB", 2), ("2MB", 3)),
        unified=(("memory.high", "max"),),
    )
    assert merge(old, new) == Resources(
        memory=Memory(limit=-1, swap=2 * M, swappiness=0),
        cpu=Cpu(quota=5000, period=2000, burst=0, cpus="0", mems="0", idle=0),
        block_io=BlockIo(weight=10, throttle_read_bps=(ThrottleDevice(8, 16, 2), ThrottleDevice(8, 0, 9))),
        hugepages=(("1GB", 2), ("2MB", 3)),
        unified=(("memory.low", "2"), ("memory.high", "max")),
    )
    assert merge(old, Resources()) == old
    assert merge(Resources(), new) == new
    assert merge(merge(old, new), new) == merge(old, new)


def test_limits_and_documents_are_two_ways_to_the_same_files() -> None:
    assert by_name("cpu").resources is not by_name("cpu").settings
    assert by_name("dmem").resources(Resources(pids=1), 2) == ()
    assert replace(Setting("a", "1"), field="x") != Setting("a", "1") == Setting("a", "1", False)
