"""CRIU's messages, what is asked of it, and what is read beside its images: without CRIU."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from nestrt.errors import HostError, InputError
from nestrt.oci.getter import load_text
from nestrt.oci.model import Device, Mount, Spec
from nestrt.plan import criu, saved
from nestrt.plan.facts import Hierarchy


# Bytes as protoc --encode writes them for CRIU's rpc.proto.
def test_a_request_is_a_protocol_buffer() -> None:
    options: list[tuple[str, criu.Value]] = [
        ("images_dir_fd", 4),
        ("pid", 300),
        ("leave_running", True),
        ("root", "/r"),
        ("inherit_fd", criu.message("pipe:[7]", 1)),
    ]
    expected = bytes.fromhex("0801 1216 0804 10ac02 1801 6a02 2f72 da01 0a".replace(" ", ""))
    found = criu.request(criu.DUMP, options)
    inner = bytes.fromhex("0804") + bytes.fromhex("10ac02") + bytes.fromhex("1801") + b"\x6a\x02/r"
    inner += b"\xda\x01\x0c" + b"\x0a\x08pipe:[7]" + b"\x10\x01"
    assert found == b"\x08\x01\x12" + bytes([len(inner)]) + inner
    assert found[:2] == expected[:2]


def test_an_option_has_one_number() -> None:
    assert len(set(criu.OPTIONS.values())) == len(criu.OPTIONS)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31 - 1, 2**32, 2**64 - 1])
def test_numbers_come_back(value: int) -> None:
    assert list(criu.fields(criu.field(5, value))) == [(5, value)]


def test_a_negative_number_takes_64_bits() -> None:
    assert list(criu.fields(criu.field(1, -1))) == [(1, 2**64 - 1)]


def test_answers() -> None:
    notify = criu.field(1, criu.NOTIFY) + criu.field(2, True) + criu.field(5, criu.message("post-restore", 42))
    found = criu.answer(notify)
    assert (found.kind, found.success, found.script, found.pid) == (criu.NOTIFY, True, "post-restore", 42)
    failed = criu.field(1, criu.RESTORE) + criu.field(2, False) + criu.field(7, 17) + criu.field(9, "no")
    assert criu.answer(failed) == criu.Answer(criu.RESTORE, False, errno=17, text="no")
    version = criu.field(1, criu.VERSION) + criu.field(2, 1) + criu.field(10, criu.message(3, 17, None, 1))
    assert criu.answer(version).version == 31701


def test_no_bytes_break_the_reader() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        data = chance.randbytes(chance.randrange(40))
        try:
            criu.answer(data)
        except ValueError:
            pass


OWN = """\
44 46 254:0 /srv/root / rw,relatime - ext4 /dev/vda rw
45 44 0:52 / /proc rw - proc proc rw
46 45 0:52 /sys /proc/sys ro - proc proc rw
47 45 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw
48 44 0:53 / /dev rw - tmpfs tmpfs rw
49 44 254:0 /srv/data /data rw - ext4 /dev/vda rw
50 49 0:60 / /data/sub rw - tmpfs tmpfs rw
51 44 254:0 /srv/root/etc /etc ro - ext4 /dev/vda rw
52 44 0:38 /x/guest /sys/fs/cgroup rw - cgroup2 cgroup2 rw
"""
HOST = """\
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:6 / /dev rw - devtmpfs devtmpfs rw
3 1 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
4 1 0:60 / /srv/data/sub rw - tmpfs tmpfs rw
"""


def test_mounts_from_outside() -> None:
    spec = Spec("1.0", mounts=(Mount("/data/", "bind", "/srv/data", ("rbind",)),), masked=("/proc/keys",))
    own, host = criu.placed(OWN), criu.placed(HOST)
    assert criu.external(own, host, spec) == ("/proc/keys", "/data", "/data/sub")
    bound = ("/proc/keys", "/data", "/data/sub", "/sys/fs/cgroup")
    assert criu.external(own, host, spec, ("/sys/fs/cgroup",)) == bound


def test_sources_are_the_new_documents() -> None:
    spec = Spec(
        "1.0",
        mounts=(Mount("/data", "bind", "/other", ("rbind",)),),
        masked=("/proc/keys",),
        devices=(Device("/dev/fuse", "c", 10, 229),),
    )
    found = criu.sources(("/data/sub", "/proc/keys", "/dev/fuse", "/dev/null"), spec)
    assert found == {
        "/data/sub": "/other/sub",
        "/proc/keys": "/dev/null",
        "/dev/fuse": "/dev/fuse",
        "/dev/null": "/dev/null",
    }
    for target in ("/etc", "/database", "/proc/keys2", "/"):
        with pytest.raises(HostError, match="came from outside"):
            criu.sources((target,), spec)


def test_cgroup_binds() -> None:
    spec = Spec("1.0", mounts=(Mount("/sys/fs/cgroup", "cgroup", "cgroup"),))
    v1 = Hierarchy("pids", 1, ("pids",), "pids", "/sys/fs/cgroup/pids")
    v2 = Hierarchy("unified", 2, (), "", "/sys/fs/cgroup/unified")
    assert criu.cgroup_targets(spec, (v2, v1), "/g") == {"/sys/fs/cgroup/pids": "/sys/fs/cgroup/pids/g"}
    assert criu.cgroup_targets(spec, (v2,), "/g") == {"/sys/fs/cgroup": "/sys/fs/cgroup/unified"}


def test_what_a_log_says() -> None:
    log = (
        "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "(00.2) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 path=/x\n"
        "(00.3) Error (criu/cr-dump.c:1698): Dump files (pid: 14103) failed with -1\n"
        "(00.4) Error (criu/cr-dump.c:2128): Dumping FAILED.\n"
    )
    assert criu.errors(log) == "Can't lookup mount=27 for fd=1 path=/x: Dump files (pid: 14103) failed with -1"
    assert criu.known_failure(log) == ""
    old = "(00.03) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n"
    assert "CRIU 4.1" in criu.known_failure(old)


TREES = (
    saved.Tree(
        ("pids",),
        "init",
        (
            saved.Group("", enabled=("pids",)),
            saved.Group("init"),
            saved.Group("web", (("pids.max", "7"),), (("", 5, 6), ("cgroup.procs", 5, 6))),
            saved.Group("web/inner", rules=("c 1:3 rwm",)),
        ),
    ),
)


def read(document: Any) -> tuple[saved.Tree, ...]:
    return load_text(json.dumps(document), "groups", saved.parse_trees)


def test_groups_come_back_as_they_were() -> None:
    assert read(saved.trees_document(TREES)) == TREES
    known = saved.Checkpoint(("pipe:[1]", "", ""), ("/data",), True, ((0, 1000, 10),), ((0, 1000, 10),))
    assert load_text(json.dumps(saved.checkpoint_document(known)), "c", saved.parse_checkpoint) == known


@pytest.mark.parametrize(
    "path", ["..", "web/..", "../x", "/web", "web//x", "web/", ".", "web/../../x", "a\nb", "x" * 256, 7, None]
)
def test_a_path_that_leads_elsewhere_is_refused(path: Any) -> None:
    document = saved.trees_document(TREES)
    document["hierarchies"][0]["groups"].append({"path": path})
    with pytest.raises(InputError):
        read(document)
    document = saved.trees_document(TREES)
    document["hierarchies"][0]["first"] = path
    with pytest.raises(InputError):
        read(document)


@pytest.mark.parametrize("name", ["../pids.max", "web/pids.max", "", ".", "..", 5])
def test_a_file_that_is_elsewhere_is_refused(name: Any) -> None:
    for key, value in (("files", [name, "1"]), ("owners", [name, 0, 0])):
        if key == "owners" and name == "":
            continue  # the directory itself
        document = saved.trees_document(TREES)
        document["hierarchies"][0]["groups"][2][key] = [value]
        with pytest.raises(InputError):
            read(document)


def test_a_group_before_its_parent_is_refused() -> None:
    document = saved.trees_document(TREES)
    document["hierarchies"][0]["groups"].reverse()
    with pytest.raises(InputError, match="before its parent"):
        read(document)


# Orders and what moves processes are never written back, whatever an image says.
def test_files_that_are_written_back() -> None:
    listing = [
        "cgroup.procs",
        "cgroup.kill",
        "cgroup.freeze",
        "memory.max",
        "memory.reclaim",
        "pids.max",
        "io.max",
        "x",
    ]
    found = [file.name for file in saved.setting_files(("memory", "pids", "io"), 2, listing)]
    assert sorted(found) == ["io.max", "memory.max", "pids.max"]
    v1 = ["tasks", "release_agent", "devices.deny", "memory.limit_in_bytes", "memory.force_empty", "freezer.state"]
    found = [file.name for file in saved.setting_files(("memory", "devices", "freezer"), 1, v1)]
    assert found == ["memory.limit_in_bytes"]


def test_owners_move_with_the_user_namespace() -> None:
    old, new = ((0, 100000, 10), (10, 500, 5)), ((0, 200000, 100),)
    assert saved.shifted(100003, old, new) == 200003
    assert saved.shifted(502, old, new) == 200012
    assert saved.shifted(0, old, new) is None
    assert saved.shifted(100003, old, ((0, 300000, 2),)) is None
    assert saved.shifted(5, (), ()) == 5
