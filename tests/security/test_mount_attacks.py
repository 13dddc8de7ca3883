"""A bundle's image, and one who changes it meanwhile, against the mounts of the first process.

    image                                what it is after
    /proc, /sys → elsewhere              a procfs that the masks miss (CVE-2019-16884, CVE-2023-27561)
    target → ../../victim, /proc/self/fd mounts and mount points outside (CVE-2021-30465)
    target → /proc                       what must stay the kernel's covered (CVE-2019-19921)
    /dev/null → elsewhere                masks of the attacker's choice (CVE-2025-31133)
    /proc moved away after its mount     masks that hide nothing (CVE-2025-52565)
    all of it in a loop                  the moment between look and use

The victim is a directory of the host that must stay as it was, and so must the host's mounts.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nestrt.act.process import Guest
from nestrt.oci.model import Device, Mount, Spec
from support.mounting import DEV, PROC, SYS, USUAL, Refused, mounted, mounts_at, mounts_of, read, spec

# Nothing here depends on the host's kind.
pytestmark = pytest.mark.slow_on_vm

RENAME_EXCHANGE = 2
# Where a mount of these tests would come to light on the host, if it got out; others mount elsewhere, and below.
OF_THE_HOST = {
    *("/", "/proc", "/proc/sys", "/proc/keys", "/proc/uptime", "/sys", "/dev", "/dev/null", "/dev/shm", "/dev/pts"),
    *("/bin", "/etc", "/etc/hostname", "/mnt", "/opt", "/run", "/tmp", "/x", "/esc"),
}


@pytest.fixture
def root(make_busybox: Callable[[], Path]) -> Path:
    return make_busybox()


def mounts_on_the_host(scratch: Path) -> list[str]:
    lines = mounts_at(scratch, *OF_THE_HOST)
    return [line for line in lines if line.split()[4] in OF_THE_HOST or line.split()[4].startswith(str(scratch))]


@pytest.fixture
def victim(scratch: Path) -> Iterator[Path]:
    """A directory of the host, writable for all, where nothing may come to be; nor may a mount anywhere."""
    place = scratch / "victim"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    before = mounts_on_the_host(scratch)
    yield place
    assert list(place.iterdir()) == [], "files were made on the host"
    assert mounts_on_the_host(scratch) == before


def replace_by_link(root: Path, name: str, text: str) -> None:
    path = root / name
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(text)


def exchange(one: Path, other: Path) -> None:
    """renameat2(2), RENAME_EXCHANGE: each gets the other's name at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), RENAME_EXCHANGE)


@contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """A process that does so without end."""
    pid = os.fork()
    if pid == 0:
        try:
            while os.getppid() != 1:
                exchange(one, other)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def look() -> Any:
    return read("/proc/self/mountinfo")


# procfs and sysfs go to a plain directory or nowhere: through a link of the image they are refused.
@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("text", ["/tmp", "VICTIM", "../../../../VICTIM", "/proc/self/root"])
@pytest.mark.parametrize("userns", [False, True])
def test_kernel_filesystems_follow_no_link(root: Path, victim: Path, name: str, text: str, userns: bool) -> None:
    replace_by_link(root, name, text.replace("VICTIM", str(victim).lstrip("/") if ".." in text else str(victim)))
    with pytest.raises(Refused, match=r"symbolic link|not a directory"):
        mounted(spec(PROC, SYS, userns=userns), root, look)


# A parent that is a link is one as well.
def test_a_link_among_the_parents(root: Path, victim: Path) -> None:
    (root / "run/proc").mkdir()
    replace_by_link(root, "opt", "/run")
    with pytest.raises(Refused, match="symbolic link"):
        mounted(spec(Mount("/opt/proc", "proc", "proc", ())), root, look)


# Mount points behind links that climb out, or lead through a descriptor of the first process, stay inside.
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "file", "node"])
@pytest.mark.parametrize(
    "text",
    ["../../../../../../VICTIM", "/../../VICTIM", "VICTIM", "/proc/self/root/VICTIM", "/proc/1/root/../VICTIM"],
)
def test_targets_stay_inside(root: Path, victim: Path, tmp_path: Path, kind: str, text: str) -> None:
    (root / "esc").symlink_to(text.replace("VICTIM", str(victim).lstrip("/")))
    (tmp_path / "file").touch()
    entry = {
        "tmpfs": Mount("/esc/new", "tmpfs", "tmpfs", ()),
        "bind": Mount("/esc/new/dir", "", str(tmp_path), ("bind",)),
        "file": Mount("/esc/new/file", "", str(tmp_path / "file"), ("bind",)),
        "node": Mount("/tmp", "tmpfs", "tmpfs", ()),
    }[kind]
    devices = (Device("/esc/node", "c", 1, 3),) if kind == "node" else ()
    try:
        mounted(spec(*USUAL, entry, devices=devices), root, look)
    except Refused:
        pass


def number_of_the_old_root(root: Path, document: Spec) -> int:
    """The descriptor by which the first process has the host's root: it is the same in the next run."""
    seen: list[int] = []
    answer = mounted(document, root, lambda: seen, hook=lambda held: seen.append(held.old_root))
    assert isinstance(answer[0], int)
    assert answer[0] > 2
    return answer[0]


# The same by the descriptors that the first process has, of the old root above all.
def test_no_way_out_by_descriptors(root: Path, victim: Path) -> None:
    old_root = number_of_the_old_root(root, spec(PROC))
    for number in range(max(3, old_root - 4), old_root + 5):
        (root / f"fd{number}").symlink_to(f"/proc/self/fd/{number}")
        (root / f"last{number}").symlink_to(f"/proc/self/fd/{number}{victim}/new")
        for entry in (
            Mount(f"/fd{number}{victim}/new", "tmpfs", "tmpfs", ()),
            Mount(f"/fd{number}{victim}", "tmpfs", "tmpfs", ()),
            Mount(f"/last{number}", "", "/etc/hostname", ("bind",)),
        ):
            try:
                mounted(spec(PROC, entry), root, look)
            except Refused:
                pass


# What leads to procfs is judged by where it leads.
@pytest.mark.parametrize(
    ("text", "target", "allowed"),
    [
        ("/proc", "/x", False),
        ("/proc", "/x/sys", False),
        ("/proc/sys", "/x", False),
        ("proc", "/x/1/attr", False),
        ("/proc", "/x/uptime", True),
    ],
)
def test_nothing_covers_procfs(root: Path, victim: Path, tmp_path: Path, text: str, target: str, allowed: bool) -> None:
    (root / "x").symlink_to(text)
    (tmp_path / "f").touch()
    source = str(tmp_path / "f") if allowed else str(tmp_path)
    document = spec(PROC, Mount(target, "", source, ("bind",)))
    if allowed:
        assert "/proc/uptime" in mounts_of(mounted(document, root, look))
    else:
        with pytest.raises(Refused, match=r"inside /proc|not of type proc"):
            mounted(document, root, look)


# Before procfs is there as well: a tmpfs at what will be /proc, and a /dev that is /proc.
def test_nothing_takes_the_place_of_procfs(root: Path, victim: Path) -> None:
    (root / "x").symlink_to("proc")
    with pytest.raises(Refused, match="not of type proc"):
        mounted(spec(Mount("/x", "tmpfs", "tmpfs", ()), PROC), root, look)
    replace_by_link(root, "dev", "/proc")
    with pytest.raises(Refused, match=r"not of type proc|inside /proc"):
        mounted(spec(PROC, DEV), root, look)
    (root / "y").symlink_to("/")
    with pytest.raises(Refused, match="root filesystem itself"):
        mounted(spec(Mount("/y", "tmpfs", "tmpfs", ())), root, look)


# An image's /dev without a mount of its own: links and files where the standard nodes belong.
@pytest.mark.parametrize("text", ["/etc/passwd", "/proc/sys/kernel/core_pattern", "VICTIM/null", "file"])
@pytest.mark.parametrize("userns", [False, True])
def test_a_false_null_device(root: Path, victim: Path, text: str, userns: bool) -> None:
    if text == "file":
        (root / "dev/null").touch()
    else:
        (root / "dev/null").symlink_to(text.replace("VICTIM", str(victim)))
    document = spec(PROC, userns=userns, masked=("/proc/keys",))

    def probe() -> Any:
        return [os.stat("/dev/null").st_rdev, os.stat("/proc/keys").st_rdev]

    if userns and text == "file":
        # Bound over: the real one is what there is.
        assert mounted(document, root, probe) == [os.makedev(1, 3)] * 2
        return
    with pytest.raises(Refused, match=r"something else there|symbolic link"):
        mounted(document, root, probe)


# A /dev that leads out: the nodes are made inside.
def test_a_dev_that_leads_out(root: Path, victim: Path) -> None:
    replace_by_link(root, "dev", f"../../../../{victim}")
    assert mounted(spec(PROC), root, lambda: os.stat("/dev/null").st_rdev) == os.makedev(1, 3)


# After procfs is mounted its directory gets another name, and a directory of the image the old one.
@pytest.mark.parametrize("with_link", [False, True])
def test_procfs_moved_away_before_the_masks(root: Path, victim: Path, with_link: bool) -> None:
    (root / "fake/sys").mkdir(parents=True)
    (root / "fake/keys").touch()

    document = spec(PROC, masked=("/proc/keys",), readonly=("/proc/sys",))
    assert "/proc/keys" in mounts_of(mounted(document, root, look))

    def swap(held: Guest) -> None:
        os.write(ask, b"x")
        os.read(done, 1)

    asked, ask = os.pipe()
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(asked, 1)
        (root / "proc").rename(root / "proc-there")
        if with_link:
            (root / "proc").symlink_to("fake")
        else:
            (root / "fake").rename(root / "proc")
        os.write(tell, b"x")
        os._exit(0)
    try:
        with pytest.raises(Refused, match=r"not the kernel's own|symbolic link"):
            mounted(document, root, look, hook=swap)
    finally:
        os.waitpid(pid, 0)
        for fd in (asked, ask, done, tell):
            os.close(fd)


# Renames elsewhere, of no concern to the mounts, do not fail them: a ".." on the way is looked up again (EAGAIN).
@pytest.mark.slow_on_vm
def test_a_busy_host(root: Path, victim: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (root / "srv/deep").mkdir(parents=True)
    (root / "up").symlink_to("srv/deep/../../" * 200 + "srv/deep")
    entries = [Mount(f"/up/{number}", "tmpfs", "tmpfs", ()) for number in range(20)]
    with exchanging(tmp_path / "a", tmp_path / "b"):
        for _ in range(10):
            assert "/srv/deep/19" in mounts_of(mounted(spec(PROC, *entries), root, look))


# Someone exchanges a directory on the way and a link out, all the time.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("text", ["../../../../../../VICTIM", "/proc/self/fd/OLD/VICTIM", "/proc"])
def test_a_race_for_targets(root: Path, victim: Path, tmp_path: Path, text: str) -> None:
    (root / "mnt/a").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    entries = [
        entry
        for number in range(8)
        for entry in (
            Mount(f"/mnt/a/t{number}", "tmpfs", "tmpfs", ()),
            Mount(f"/mnt/a/f{number}", "", str(tmp_path / "file"), ("bind",)),
            Mount(f"/mnt/a/d{number}/e", "", str(tmp_path / "dir"), ("bind", "ro")),
        )
    ]
    document = spec(PROC, *entries, devices=tuple(Device(f"/mnt/a/n{number}", "c", 1, 3) for number in range(8)))
    if "OLD" in text:
        text = text.replace("OLD", str(number_of_the_old_root(root, document)))
        subprocess.run(["rm", "-r", root / "mnt/a"], check=True)
        (root / "mnt/a").mkdir()
    (root / "mnt/b").symlink_to(text.replace("VICTIM", str(victim).lstrip("/")))
    made = 0
    with exchanging(root / "mnt/a", root / "mnt/b"):
        for _ in range(25):
            try:
                found = mounted(document, root, look)
            except Refused:
                continue
            made += 1
            assert not any(target.startswith("/proc/") for target in mounts_of(found))
    assert made or "/proc" in text  # what leads out by procfs may be refused each time


# /proc itself exchanged for a link all the time: it is the kernel's, masks and all, or the container is not.
@pytest.mark.slow_on_vm
def test_a_race_for_procfs(root: Path, victim: Path) -> None:
    (root / "fake/sys").mkdir(parents=True)
    (root / "fake/keys").touch()
    (root / "link").symlink_to("fake")
    document = spec(*USUAL, masked=("/proc/keys",), readonly=("/proc/sys",))

    def probe() -> Any:
        # It has one of the two names at any time.
        for place in ("/proc", "/link") * 100:
            try:
                return [line.split()[4].rpartition("/")[2] for line in read(f"{place}/self/mountinfo").splitlines()]
            except OSError:
                continue
        return []

    refused = 0
    with exchanging(root / "proc", root / "link"):
        for _ in range(40):
            try:
                found = mounted(document, root, probe)
            except Refused:
                refused += 1
            else:
                assert {"keys", "sys"} <= set(found)
    assert refused


# The source is the host's own: its links are followed there.
def test_a_source_behind_a_link(root: Path, victim: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    entry = Mount("/mnt/data", "", str(tmp_path / "link"), ("bind", "ro"))
    assert mounted(spec(PROC, entry), root, lambda: os.listdir("/mnt/data")) == ["file"]


# At the end nothing of the host is left: no mount, no way up, no descriptor of its directories.
@pytest.mark.parametrize("how", ["pivot", "move"])
def test_nothing_of_the_old_root_is_left(root: Path, victim: Path, how: str) -> None:
    def probe() -> Any:
        open_now = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                place = os.stat(f"/proc/self/fd/{name}")
            except OSError:
                continue
            open_now[name] = [place.st_dev, place.st_ino]
        up = os.stat("/../../..")
        return [
            open_now,
            [up.st_dev, up.st_ino],
            os.path.exists(str(victim)),
            os.getcwd(),
            mounts_of(look()).keys().__len__(),
        ]

    found = mounted(spec(PROC, DEV), root, probe, no_pivot=how == "move")
    host = os.stat("/")
    own = root.stat()
    assert [host.st_dev, host.st_ino] not in found[0].values()
    assert found[1] == [own.st_dev, own.st_ino]
    assert found[2] is False
    assert found[3] == "/"
    assert how == "move" or found[4] == 3
