"""A bundle's root filesystem on the real kernel: mounts, devices, masks, propagation.

rootfs (a directory of busybox) ── steps ── what the container would see
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.act.process import Guest
from nestrt.oci.model import Device, Mount
from support.hostside import hierarchies, is_v2_only
from support.mounting import PROC, SHM, SYS, USUAL, Refused, mounted, mounts_at, mounts_of, read, shared_mount, spec
from support.need import SLOW


@pytest.fixture
def root(make_busybox: Callable[[], Path]) -> Path:
    path = make_busybox()
    path.parent.chmod(0o755)
    return path


def everything() -> dict[str, Any]:
    return {
        "mounts": read("/proc/self/mountinfo"),
        "dev": {name: list(describe(f"/dev/{name}")) for name in sorted(os.listdir("/dev"))},
    }


def describe(path: str) -> tuple[str, int, int, int, int]:
    found = os.lstat(path)
    kind = os.readlink(path) if stat.S_ISLNK(found.st_mode) else stat.filemode(found.st_mode)[0]
    return kind, stat.S_IMODE(found.st_mode), found.st_rdev, found.st_uid, found.st_gid


# The mounts of ``runc spec``, with and without a user namespace: what stands where; nothing of the host is left.
@pytest.mark.parametrize("userns", [False, True])
def test_the_usual_mounts(root: Path, userns: bool) -> None:
    seen = mounted(spec(*USUAL, userns=userns), root, everything)
    found = mounts_of(seen["mounts"])
    nodes = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")} if userns else set()
    assert set(found) == {"/", *(mount.destination for mount in USUAL), *nodes}
    assert found["/proc"][0] == "proc"
    assert {"nosuid", "nodev", "noexec"} <= found["/proc"][1]
    assert "ro" in found["/sys"][1]
    assert "strictatime" not in found["/dev"][1]
    assert "relatime" not in found["/dev"][1]
    assert "size=65536k" in found["/dev"][3]
    assert {"mode=620", "ptmxmode=666"} <= found["/dev/pts"][3]
    dev = seen["dev"]
    for name, number in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
        assert dev[name][:3] == ["c", 0o666, os.makedev(1, number)], name
        assert userns or dev[name][3:] == [0, 0]
    links = {name: dev[name][0] for name in ("ptmx", "fd", "stdin", "stdout", "stderr")}
    assert links == {
        "ptmx": "pts/ptmx",
        "fd": "/proc/self/fd",
        **{n: f"/proc/self/fd/{i}" for i, n in enumerate(("stdin", "stdout", "stderr"))},
    }


# While hooks run, the mounts stand at the bundle's own path, where the host would look; after the pivot they are gone.
def test_hooks_see_the_root_where_the_host_has_it(root: Path) -> None:
    seen: dict[str, Any] = {}

    def hook(held: Guest) -> None:
        image = os.open("/", os.O_PATH | os.O_DIRECTORY)
        os.fchdir(held.old_root)
        os.chroot(".")
        seen["kind"] = mounts_of(read("/proc/self/mountinfo")).get(f"{root}/proc", ("",))[0]
        seen["here"] = os.path.exists(f"{root}/dev/null")
        os.fchdir(image)
        os.chroot(".")

    assert mounted(spec(*USUAL), root, lambda: [seen, os.path.exists(str(root))], hook=hook) == [
        {"kind": "proc", "here": True},
        False,
    ]


# --no-pivot: the same root, and no procfs or sysfs of the host left in the namespace that is not masked.
def test_without_pivot(root: Path) -> None:
    found = mounted(spec(*USUAL), root, lambda: [read("/proc/self/mountinfo"), os.listdir("/")], no_pivot=True)
    assert "bin" in found[1]
    assert {"/proc", "/dev/shm"} <= set(mounts_of(found[0]))


# Options of binds; the source is on a mount with flags of its own.
#
#   option words          mount without a user namespace     with one
#   rbind                 as the source: nosuid              the same
#   rbind,ro              ro; the source's nosuid goes       ro,nosuid: it is locked
#   rbind,suid            nosuid goes                        refused
@pytest.mark.slow_on_vm
@pytest.mark.parametrize(
    ("words", "plain", "private"),
    [
        ("rbind", {"rw", "nosuid"}, {"rw", "nosuid"}),
        ("rbind,ro", {"ro"}, {"ro", "nosuid"}),
        ("bind,ro,nodev", {"ro", "nodev"}, {"ro", "nosuid", "nodev"}),
        ("rbind,rw,noexec", {"rw", "noexec"}, {"rw", "nosuid", "noexec"}),
        ("rbind,suid,noatime", {"rw", "noatime"}, None),
        ("rbind,rro,nosuid", {"ro", "nosuid"}, {"ro", "nosuid"}),
        ("rbind,nosymfollow,nosuid", {"rw", "nosuid", "nosymfollow"}, {"rw", "nosuid", "nosymfollow"}),
    ],
)
@pytest.mark.parametrize("userns", [False, True])
def test_options_of_binds(
    root: Path, tmp_path: Path, words: str, plain: set[str], private: set[str] | None, userns: bool
) -> None:
    tmp_path.chmod(0o755)
    with shared_mount(tmp_path):
        subprocess.run(["mount", "-o", "remount,bind,nosuid", tmp_path], check=True)
        document = spec(PROC, Mount("/data", "none", str(tmp_path), tuple(words.split(","))), userns=userns)
        wanted = private if userns else plain
        if wanted is None:
            with pytest.raises(Refused, match="locked"):
                mounted(document, root, everything)
            return
        found = mounts_of(mounted(document, root, lambda: read("/proc/self/mountinfo")))["/data"]
        assert found[1] - {"relatime"} == wanted


# rro reaches what is mounted below the source, ro does not.
def test_recursive_attributes(root: Path, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    with shared_mount(tmp_path), shared_mount(below):
        for word, deep in (("ro", "rw"), ("rro", "ro")):
            document = spec(PROC, Mount("/data", "", str(tmp_path), ("rbind", word)))
            found = mounts_of(mounted(document, root, lambda: read("/proc/self/mountinfo")))
            assert "ro" in found["/data"][1]
            assert deep in found["/data/below"][1]


# The root filesystem and a source lie on shared mounts of the host. What is mounted in the container stays there,
# unless both the root and the bind ask for it; and the host's own new mounts come in by rslave.
@pytest.mark.parametrize("userns", [False, True])
def test_nothing_propagates_to_the_host(root: Path, tmp_path: Path, userns: bool) -> None:
    tmp_path.chmod(0o755)
    inner = tmp_path / "inner"
    inner.mkdir()
    with shared_mount(root), shared_mount(tmp_path):
        document = spec(
            *USUAL,
            Mount("/data", "", str(tmp_path), ("rbind",)),
            Mount("/data/inner", "tmpfs", "tmpfs", ()),
            Mount("/shared", "", str(tmp_path), ("rbind", "rshared")),
            Mount("/shared/inner", "tmpfs", "tmpfs", ()),
            Mount("/private", "", str(tmp_path), ("rbind", "rprivate")),
            userns=userns,
        )
        before = mounts_at(root, tmp_path)
        found = mounts_of(mounted(document, root, lambda: read("/proc/self/mountinfo")))
        assert mounts_at(root, tmp_path) == before
        assert "shared" not in found["/data"][2]
        assert "master" in found["/data"][2]
        assert "shared" in found["/shared"][2]
        assert found["/private"][2] == ""
        assert "master" in found["/"][2]
        assert "shared" not in found["/"][2]


# rootfsPropagation: the root's own type, and that a bind is the host's peer only where both ask for it.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize(
    ("word", "root_type", "bind_type"),
    [
        ("rprivate", "", ""),
        ("rslave", "master", "master"),
        ("shared", "shared", "shared"),
        ("runbindable", "unbindable", ""),
    ],
)
def test_root_propagation(root: Path, tmp_path: Path, word: str, root_type: str, bind_type: str) -> None:
    (tmp_path / "inner").mkdir()
    with shared_mount(root), shared_mount(tmp_path):
        document = spec(PROC, Mount("/data", "", str(tmp_path), ("rbind",)), rootfs_propagation=word)

        def probe() -> list[str]:
            text = read("/proc/self/mountinfo")
            subprocess_mount("tmpfs", "/data/inner")
            return [text]

        before = set(mounts_at(root, tmp_path))
        found = mounts_of(mounted(document, root, probe)[0])
        new = {line.split()[4] for line in set(mounts_at(root, tmp_path)) - before}
        assert found["/"][2].partition(":")[0] == root_type
        if word == "runbindable":
            assert found["/data"][2] == "unbindable"
        else:
            assert found["/data"][2].partition(":")[0] == bind_type
        assert new == ({f"{tmp_path}/inner"} if word == "shared" else set())
        if new:
            subprocess.run(["umount", f"{tmp_path}/inner"], check=True)


def subprocess_mount(kind: str, target: str) -> None:
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/busybox", ["busybox", "mount", "-t", kind, kind, target])
    assert os.waitpid(pid, 0)[1] == 0


# A launch on a shared root filesystem, with a shared bind: the host's mounts are the same while the guest runs.
@pytest.mark.slow_on_vm
def test_a_launch_on_shared_mounts(nestrt: Any, guest_name: str, root: Path, tmp_path: Path, userns: str) -> None:
    from support.guests import MODES

    tmp_path.chmod(0o755)
    (root / "opt/inner").mkdir()
    (tmp_path / "inner").mkdir()
    with shared_mount(root), shared_mount(tmp_path):
        before = mounts_at(root, tmp_path)
        options = ["--rootfs", root, "--name", guest_name, *MODES[userns], "--rm"]
        options += ["--mount", f"type=bind,source={tmp_path},target=/mnt"]
        options += ["--mount", "type=tmpfs,target=/mnt/inner", "--mount", "type=tmpfs,target=/opt/inner"]
        process = nestrt.start("launch", *options, "--", "sh", "-c", "echo ready; read line", stdin=subprocess.PIPE)
        assert process.stdout.readline().strip() in ("ready", b"ready"), process.stderr.read()
        during = mounts_at(root, tmp_path)
        process.stdin.close()
        process.wait(30 * SLOW)
        assert during == before


# tmpfs: the mount point's mode unless one is said; tmpcopyup brings what the image has there, and ro comes after.
@pytest.mark.parametrize("userns", [False, True])
def test_tmpfs_and_copy_up(root: Path, userns: bool) -> None:
    place = root / "opt/data"
    (place / "deep").mkdir(parents=True)
    (place / "deep/file").write_text("text")
    (place / "deep/file").chmod(0o4711)
    os.symlink("/nowhere", place / "link")
    os.mkfifo(place / "fifo", 0o640)
    os.setxattr(place / "deep/file", "trusted.nestrt-test", b"x")
    place.chmod(0o751)
    os.chown(place / "deep/file", 7, 8)
    (place / "deep/file").chmod(0o4711)
    (root / "tmp/keep").mkdir(mode=0o1770)
    (root / "tmp/keep").chmod(0o1770)
    document = spec(
        PROC,
        Mount("/opt/data", "tmpfs", "tmpfs", ("tmpcopyup", "ro", "size=1m")),
        Mount("/opt/data/deep/more", "tmpfs", "tmpfs", ()),
        Mount("/tmp/keep", "tmpfs", "tmpfs", ("size=1m",)),
        Mount("/tmp/new", "tmpfs", "tmpfs", ("mode=0700",)),
        userns=userns,
    )

    def probe() -> Any:
        found = os.stat("/opt/data/deep/file")
        return [
            read("/opt/data/deep/file"), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid,
            os.readlink("/opt/data/link"), stat.filemode(os.lstat("/opt/data/fifo").st_mode),
            oct(os.stat("/opt/data").st_mode & 0o7777), oct(os.stat("/tmp/keep").st_mode & 0o7777),
            oct(os.stat("/tmp/new").st_mode & 0o7777), read("/proc/self/mountinfo"),
        ]  # fmt: skip

    *found, text = mounted(document, root, probe)
    assert found == [
        "text",
        *([0o711, 0, 0] if userns else [0o4711, 7, 8]),
        "/nowhere",
        "prw-r-----",
        "0o751",
        "0o1770",
        "0o700",
    ]
    assert "ro" in mounts_of(text)["/opt/data"][1]


# linux.devices: mode, owner, a fifo, one that takes a standard one's place; read-only /dev is locked at the end.
def test_devices(root: Path) -> None:
    devices = (
        Device("/dev/fuse", "c", 10, 229, 0o20640, 3, 4),
        Device("/dev/deep/pipe", "p", 0, 0, 0o622),
        Device("/dev/null", "c", 1, 3, 0o600),
        Device("/dev/block", "b", 7, 0),
        Device("/dev/ptmx", "c", 5, 2),
    )
    os.umask(0o077)
    try:
        read_only = Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "mode=755", "ro"))
        found = mounted(
            spec(PROC, read_only, SHM, devices=devices),
            root,
            lambda: {**everything(), "pipe": list(describe("/dev/deep/pipe"))},
        )
    finally:
        os.umask(0o022)
    dev = found["dev"]
    assert dev["fuse"] == ["c", 0o640, os.makedev(10, 229), 3, 4]
    assert found["pipe"][:2] == ["p", 0o622]
    assert dev["null"][1] == 0o600
    assert dev["block"][:3] == ["b", 0o666, os.makedev(7, 0)]
    assert dev["ptmx"][0] == "pts/ptmx"
    found = mounts_of(found["mounts"])
    assert "ro" in found["/dev"][1]
    assert "rw" in found["/dev/shm"][1]


# In a user namespace the host's node is bound; one that the host has not, or has as another, is an error.
def test_devices_in_a_user_namespace(root: Path) -> None:
    kmsg = Device("/dev/kmsg", "c", 1, 11)
    found = mounted(spec(*USUAL, userns=True, devices=(kmsg,)), root, everything)
    assert found["dev"]["kmsg"][2] == os.makedev(1, 11)
    for wrong in (Device("/dev/nestrt-none", "c", 1, 11), Device("/dev/kmsg", "c", 1, 3)):
        with pytest.raises(Refused, match=r"linux\.devices\[0\]"):
            mounted(spec(*USUAL, userns=True, devices=(wrong,)), root, everything)


# A bound /dev is left as it is.
def test_a_bound_dev_is_left_alone(root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "only").touch()
    found = mounted(spec(PROC, Mount("/dev", "bind", str(tmp_path), ("rbind", "ro"))), root, everything)
    assert list(found["dev"]) == ["only"]
    assert "ro" in mounts_of(found["mounts"])["/dev"][1]


# Masks and read-only paths; what is not there is passed over, and one tmpfs serves all directories.
@pytest.mark.parametrize("userns", [False, True])
def test_masks(root: Path, userns: bool) -> None:
    (root / "opt/secret").mkdir()
    (root / "opt/secret/key").write_text("x")
    (root / "opt/file").write_text("x")
    files = ("/opt/secret", "/opt/file", "/opt/file", "/opt/file/none")
    document = spec(
        *USUAL,
        userns=userns,
        masked=(*("/proc/keys", "/proc/acpi", "/proc/nestrt-none", "/sys/firmware"), *files),
        readonly=("/proc/sys", "/proc/bus", "/opt", "/proc/nestrt-none"),
        root_readonly=True,
    )

    def probe() -> Any:
        null = os.stat("/opt/file").st_rdev
        return [os.listdir("/opt/secret"), null, read("/proc/keys"), read("/proc/self/mountinfo")]

    empty, null, keys, text = mounted(document, root, probe)
    found = mounts_of(text)
    assert (empty, null, keys) == ([], os.makedev(1, 3), "")
    assert {"ro"} <= found["/opt"][1] & found["/proc/sys"][1] & found["/opt/secret"][1] & found["/"][1]
    assert {"nosuid", "nodev", "noexec"} <= found["/proc/sys"][1]
    directories = [line.split()[2] for line in text.splitlines() if line.split()[4] in ("/opt/secret", "/sys/firmware")]
    assert len(set(directories)) == 1
    assert "/proc/nestrt-none" not in found


# An id-mapped bind: by mappings of its own, and by the container's user namespace.
def test_id_mapped_binds(root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "nestrt-test", tmp_path], check=True)
    try:
        (tmp_path / "file").touch()
        own = Mount("/own", "", str(tmp_path), ("bind",), ((0, 5000, 10),), ((0, 6000, 10),))
        found = mounted(spec(PROC, own), root, lambda: [os.stat("/own/file").st_uid, os.stat("/own/file").st_gid])
        assert found == [5000, 6000]
        theirs = Mount("/theirs", "", str(tmp_path), ("bind", "idmap"))
        found = mounted(spec(PROC, theirs, userns=True), root, lambda: os.stat("/theirs/file").st_uid)
        assert found == 0
        with pytest.raises(Refused, match=r"mounts\[1\]"):
            mounted(spec(PROC, theirs), root, everything)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    bad = Mount("/bad", "", "/proc", ("bind",), ((0, 5000, 10),), ((0, 6000, 10),))
    with pytest.raises(Refused, match=r"mounts\[1\]\): its filesystem cannot be id-mapped"):
        mounted(spec(PROC, bad), root, everything)


# Errors: what engines look for, and where in the document it is.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("/x", "", "/nestrt-none", ("bind",)), ("no such file or directory", "mounts[1]", "/nestrt-none")),
        (Mount("/x", "nestrtfs", "x", ()), ("no such device", "mounts[1]")),
        (Mount("/x", "tmpfs", "x", ("nonsense=1",)), ("invalid argument", "nonsense=1")),
        (Mount("/proc/self", "tmpfs", "x", ()), ("inside /proc",)),
        (Mount("/bin/busybox/x", "tmpfs", "x", ()), ("not a directory",)),
        (Mount("/tmp", "", "/etc/hostname", ("bind",)), ("not a directory", "/tmp")),
    ],
)
def test_errors(root: Path, mount: Mount, words: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        mounted(spec(PROC, mount), root, everything)
    for word in words:
        assert word in str(caught.value)


# A filesystem that only mount(2) can be given all flags of, and one with a read-only tmpfs among them.
def test_flags_of_mount_2(root: Path) -> None:
    document = spec(
        PROC,
        Mount("/opt", "tmpfs", "tmpfs", ("iversion", "ro", "nosuid", "size=1m", "rshared")),
        Mount("/opt/deep", "tmpfs", "tmpfs", ("sync", "lazytime", "dirsync")),
    )
    found = mounts_of(mounted(document, root, lambda: read("/proc/self/mountinfo")))
    assert {"ro", "nosuid"} <= found["/opt"][1]
    assert "size=1024k" in found["/opt"][3]
    assert "shared" in found["/opt"][2]
    assert {"sync", "lazytime", "dirsync"} <= found["/opt/deep"][3] | {"dirsync"}


# A sysfs shows the network namespace of its mounter's user namespace only: what the error says to do instead.
def test_sysfs_in_a_user_namespace(root: Path) -> None:
    with pytest.raises(Refused, match=r"mount sysfs at /sys .*operation not permitted; .*bind it"):
        mounted(spec(PROC, SYS, userns=True), root, everything, own_network=False)
    bound = Mount("/sys", "none", "/sys", ("rbind", "ro", "nosuid"))
    found = mounted(spec(PROC, bound, userns=True), root, everything, own_network=False)
    assert {"ro", "nosuid"} <= mounts_of(found["mounts"])["/sys"][1]


# Missing targets are made; a file for a file; a source relative to the bundle; an overlay; a remount.
def test_targets_and_types(root: Path, tmp_path: Path) -> None:
    (root.parent / f"{root.name}-file").write_text("hello")
    (root / "lower").mkdir()
    (root / "lower/x").touch()
    document = spec(
        PROC,
        Mount("/new/deep/file", "bind", f"{root.name}-file", ("bind", "ro")),
        Mount("rel/dir", "tmpfs", "tmpfs", ("nr_inodes=100",)),
        Mount("/rel/dir", "", "", ("remount", "ro", "nosuid")),
        Mount("/opt", "overlay", "merged", ("lowerdir=/lower:/mnt", "ro", "noatime")),
    )

    def probe() -> Any:
        mode = oct(os.stat("/new/deep").st_mode)
        return [read("/new/deep/file"), mode, os.listdir("/opt"), read("/proc/self/mountinfo")]

    try:
        text, mode, merged, mounts = mounted(document, root, probe)
    finally:
        (root.parent / f"{root.name}-file").unlink()
    assert (text, mode, merged) == ("hello", "0o40755", ["x"])
    found = mounts_of(mounts)
    assert {"ro", "nosuid"} <= found["/rel/dir"][1]
    assert "nr_inodes=100" in found["/rel/dir"][3]
    assert found["/opt"][0] == "overlay"
    assert {"ro", "noatime"} <= found["/opt"][1]


# Without a mount namespace of its own: only a chroot, and nothing is mounted.
def test_without_a_mount_namespace(root: Path) -> None:
    from nestrt.record import replace

    document = replace(spec(), namespaces=())
    before = mounts_at(root)
    found = mounted(document, root, lambda: [sorted(os.listdir("/")), describe("/dev/null")[0]])
    assert "bin" in found[0]
    assert found[1] == "c"
    assert mounts_at(root) == before
    with pytest.raises(Refused, match="mount namespace"):
        mounted(replace(document, mounts=(PROC,)), root, everything)


# --- cgroup ---

CGROUP = Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro"))


@pytest.fixture
def group() -> Iterator[str]:
    """A group in every hierarchy."""
    name = f"/nestrt-mounts-{os.getpid()}"
    places = [hierarchy.group(name) for hierarchy in hierarchies()]
    for place in places:
        place.mkdir()
    yield name
    for place in places:
        place.rmdir()


# v1 and hybrid: a tmpfs, and each v1 hierarchy: by the namespace's root, or bound from the container's own group.
@pytest.mark.v1
@pytest.mark.parametrize("cgroupns", [False, True])
@pytest.mark.parametrize("userns", [False, True])
def test_cgroup_v1(root: Path, group: str, cgroupns: bool, userns: bool) -> None:
    document = spec(PROC, SYS, CGROUP, cgroupns=cgroupns, userns=userns)
    text = mounted(document, root, lambda: read("/proc/self/mountinfo"), group=group)
    found = mounts_of(text)
    assert found["/sys/fs/cgroup"][0] == "tmpfs"
    shown = {target.rpartition("/")[2] for target, mount in found.items() if mount[0] == "cgroup"}
    assert shown == {hierarchy.mountpoint.name for hierarchy in hierarchies() if hierarchy.version == 1}
    for line in text.splitlines():
        if " - cgroup " in line:
            assert "ro" in line.split()[5].split(",")
            assert cgroupns or line.split()[3] == group
    assert "cgroup2" not in {mount[0] for mount in found.values()}


# The v2 tree without a cgroup namespace is a bind: the superblock's options stay as the host has them.
@pytest.mark.parametrize("cgroupns", [False, True])
@pytest.mark.parametrize("userns", [False, True])
def test_cgroup_v2(root: Path, group: str, cgroupns: bool, userns: bool) -> None:
    kind = "cgroup" if is_v2_only() else "cgroup2"
    before = mounts_at("/sys/fs/cgroup")
    document = spec(PROC, SYS, Mount("/cg", kind, "cgroup", ("ro",)), cgroupns=cgroupns, userns=userns)
    found = mounted(document, root, lambda: [read("/proc/self/mountinfo"), os.listdir("/cg")], group=group)
    mounts = mounts_of(found[0])
    assert mounts["/cg"][0] == "cgroup2"
    assert "ro" in mounts["/cg"][1]
    assert "cgroup.procs" in found[1]
    assert mounts_at("/sys/fs/cgroup") == before
