"""Statistics from files as kernels write them, in runc's form, without a kernel: a hierarchy is a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestrt.cli.events import duration
from nestrt.errors import InputError
from nestrt.host.stats import NO_LIMIT, read_stats, shaped
from nestrt.plan.facts import Hierarchy

BLKIO = "8:0 Read 1282048\n8:0 Write 2195456\n8:0 Sync 2195456\n8:0 Async 1282048\n8:0 Total 3477504\nTotal 3477504\n"
PRESSURE = "some avg10=0.50 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"


def hierarchy(directory: Path, version: int, controllers: str, **files: str) -> Hierarchy:
    """A hierarchy whose group /x has *files*; their names with __ for a dot."""
    group = directory / "x"
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text + "\n")
    return Hierarchy(directory.name, version, tuple(controllers.split()), "", str(directory))


def test_v1(tmp_path: Path) -> None:
    found = (
        hierarchy(
            tmp_path / "cpuacct",
            1,
            "cpuacct",
            cpuacct__usage="5000",
            cpuacct__usage_percpu="2000 3000",
            cpuacct__usage_all="cpu user system\n0 1500 500\n1 3000 0",
            cpuacct__stat="user 12\nsystem 34",
        ),
        hierarchy(tmp_path / "cpu", 1, "cpu", cpu__stat="nr_periods 7\nnr_throttled 2\nthrottled_time 99\nnr_bursts 0"),
        hierarchy(
            tmp_path / "memory",
            1,
            "memory",
            memory__stat="cache 4096\nrss 8192",
            memory__usage_in_bytes="12288",
            memory__limit_in_bytes="67108864",
            memory__max_usage_in_bytes="20480",
            memory__failcnt="3",
            memory__memsw__usage_in_bytes="12288",
            memory__memsw__limit_in_bytes="134217728",
            memory__memsw__max_usage_in_bytes="20480",
            memory__memsw__failcnt="0",
        ),
        hierarchy(tmp_path / "pids", 1, "pids", pids__current="4", pids__max="100"),
        hierarchy(
            tmp_path / "blkio",
            1,
            "blkio",
            blkio__bfq__io_serviced_recursive="",
            blkio__throttle__io_serviced_recursive=BLKIO,
            blkio__throttle__io_service_bytes_recursive=BLKIO,
        ),
        hierarchy(
            tmp_path / "cpuset",
            1,
            "cpuset",
            cpuset__cpus="0-1,3",
            cpuset__mems="0",
            cpuset__sched_load_balance="1",
            cpuset__sched_relax_domain_level="-1",
        ),
        hierarchy(
            tmp_path / "hugetlb",
            1,
            "hugetlb",
            hugetlb__2MB__usage_in_bytes="1",
            hugetlb__2MB__rsvd__usage_in_bytes="2097152",
            hugetlb__2MB__rsvd__max_usage_in_bytes="4194304",
            hugetlb__2MB__rsvd__failcnt="5",
        ),
    )
    stats = read_stats(found, "/x")
    assert stats["cpu"] == {
        "usage": {
            "total": 5000,
            "percpu": [2000, 3000],
            "percpu_kernel": [500, 0],
            "percpu_user": [1500, 3000],
            "kernel": 340_000_000,
            "user": 120_000_000,
        },
        "throttling": {"periods": 7, "throttledPeriods": 2, "throttledTime": 99},
    }
    assert stats["memory"]["cache"] == 4096
    assert stats["memory"]["raw"] == {"cache": 4096, "rss": 8192}
    assert stats["memory"]["usage"] == {"limit": 64 << 20, "usage": 12288, "max": 20480, "failcnt": 3}
    assert stats["memory"]["swap"]["limit"] == 128 << 20
    assert stats["memory"]["kernelTCP"] == {"limit": 0, "failcnt": 0}
    assert stats["pids"] == {"current": 4, "limit": 100}
    assert stats["cpuset"]["cpus"] == [0, 1, 3]
    assert (stats["cpuset"]["sched_load_balance"], stats["cpuset"]["sched_relax_domain_level"]) == (1, -1)
    assert stats["blkio"]["ioServicedRecursive"][:2] == [
        {"major": 8, "op": "Read", "value": 1282048},
        {"major": 8, "op": "Write", "value": 2195456},
    ]
    assert len(stats["blkio"]["ioServiceBytesRecursive"]) == 5, "the line of the grand total is not an entry"
    assert stats["hugetlb"] == {"2MB": {"usage": 2097152, "max": 4194304, "failcnt": 5}}


def test_v2(tmp_path: Path) -> None:
    tree = hierarchy(
        tmp_path / "unified",
        2,
        "cpuset cpu io memory hugetlb pids",
        cpu__stat="usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 5\nnr_throttled 1\nthrottled_usec 2",
        cpu__pressure=PRESSURE,
        memory__stat="anon 1\nfile 8192",
        memory__current="1000",
        memory__max="5000",
        memory__peak="2000",
        memory__swap__current="30",
        memory__swap__max="700",
        io__stat="8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0",
        pids__current="2",
        pids__max="max",
        hugetlb__2MB__current="4096",
        hugetlb__2MB__events="max 3",
    )
    stats = read_stats((tree,), "/x")
    assert stats["cpu"]["usage"] == {"total": 10_000, "kernel": 3000, "user": 7000}
    assert stats["cpu"]["throttling"] == {"periods": 5, "throttledPeriods": 1, "throttledTime": 2000}
    assert stats["cpu"]["psi"]["some"] == {"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 1234}
    assert stats["memory"]["cache"] == 8192
    assert stats["memory"]["usage"] == {"limit": 5000, "usage": 1000, "max": 2000, "failcnt": 0}
    assert stats["memory"]["swap"] == {"limit": 5700, "usage": 1030, "failcnt": 0}, "memory and swap, as v1 counts"
    assert stats["pids"] == {"current": 2}, "no limit is said by leaving it out"
    assert stats["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 8, "minor": 16, "op": "Read", "value": 1},
        {"major": 8, "minor": 16, "op": "Write", "value": 2},
    ]
    assert stats["hugetlb"] == {"2MB": {"usage": 4096, "failcnt": 3}}


def test_no_limit_on_v2(tmp_path: Path) -> None:
    tree = hierarchy(
        tmp_path / "unified", 2, "memory", memory__current="1", memory__max="max", memory__swap__max="max"
    )
    memory = read_stats((tree,), "/x")["memory"]
    assert memory["usage"]["limit"] == memory["swap"]["limit"] == NO_LIMIT


def test_v2_without_the_pids_controller_counts_processes(tmp_path: Path) -> None:
    tree = hierarchy(tmp_path / "unified", 2, "", cgroup__procs="1\n2")
    inner = tmp_path / "unified" / "x" / "guest"
    inner.mkdir()
    (inner / "cgroup.procs").write_text("3\n")
    assert read_stats((tree,), "/x")["pids"] == {"current": 3}


def test_a_hybrid_host_counts_everything_once(tmp_path: Path) -> None:
    """The v2 tree has cpu.stat and pressure files without any controller; v1 is asked for what v1 has."""
    v1 = hierarchy(tmp_path / "cpuacct", 1, "cpuacct", cpuacct__usage="5000", cpuacct__stat="user 0\nsystem 0")
    v2 = hierarchy(tmp_path / "unified", 2, "", cpu__stat="usage_usec 77", cpu__pressure=PRESSURE)
    stats = read_stats((v2, v1), "/x")
    assert stats["cpu"]["usage"]["total"] == 5000
    assert "psi" not in stats["cpu"]


def test_the_form_is_whole_without_any_value() -> None:
    stats = shaped({})
    assert stats["cpu"] == {"usage": {"kernel": 0, "user": 0}, "throttling": {}}
    assert stats["memory"]["usage"] == {"limit": 0, "failcnt": 0}
    assert stats["cpuset"]["cpu_exclusive"] == 0
    assert "cpus" not in stats["cpuset"]
    assert (stats["pids"], stats["blkio"], stats["hugetlb"], stats["intel_rdt"]) == ({}, {}, {}, {})
    assert stats["network_interfaces"] is None


def test_a_group_that_has_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_stats((Hierarchy("x", 2, (), "", str(tmp_path)),), "/nothing")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("100ms", 0.1), ("1m30s", 90), ("1.5h", 5400), ("250us", 0.00025), ("1h2m3s", 3723), (".5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "0", "0s", "-1s", "1.2.3s", "5x", "5 s", ".s", "s5"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(InputError):
        duration(text)
