"""Root filesystems that lie: an image is what its maker wanted it to be, and the launcher mounts into it as root.

    image                         what it is after
    /proc, /dev, … → elsewhere    what is mounted there (CVE-2021-30465, CVE-2025-31133)
    /data → ../tmp/victim         files made outside, by the launcher's mount points
    /bin/x → /proc/self/exe       the host's interpreter, to write to it later (CVE-2019-5736)
    /etc/passwd                   a reader that hangs or eats the memory
    device nodes                  what the device rules close

The victim is a directory of the host that must stay as it was.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.guests import MODES, ask
from support.need import SLOW
from support.rootfs import python_root
from support.runner import Nestrt, Result, leftovers

HOSTS_PYTHON = Path("/usr/bin/python3").resolve()


@pytest.fixture
def victim(scratch: Path) -> Iterator[Path]:
    """A directory of the host, writable for all, where nothing may come to be."""
    place = scratch / "victim"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    yield place
    assert list(place.iterdir()) == [], "the launch made files on the host"


def refused(result: Result) -> None:
    """The launch came to nothing, and says why in one line."""
    assert result.rc == 125, result
    assert len(result.err.splitlines()) == 1, result
    assert "Traceback" not in result.err


def turn_into_link(root: Path, place: str, target: str) -> None:
    """Replace the directory or file *place* of a root filesystem by a symlink to *target*."""
    path = root / place
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# Where nestrt itself mounts there is a symlink, to a directory of the guest or of the host.
@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("proc", "/tmp"),
        pytest.param("dev", "/etc", marks=pytest.mark.slow_on_vm),
        pytest.param("sys", "/tmp", marks=pytest.mark.slow_on_vm),
        pytest.param("run", "/root", marks=pytest.mark.slow_on_vm),
        pytest.param("proc", "VICTIM", marks=pytest.mark.slow_on_vm),
        pytest.param("run", "../../VICTIM", marks=pytest.mark.slow_on_vm),
        pytest.param("sys", "/proc/self/root", marks=pytest.mark.slow_on_vm),
    ],
)
def test_a_link_where_nestrt_mounts_is_refused(
    nestrt: Nestrt,
    guest_name: str,
    make_busybox: Callable[[], Path],
    victim: Path,
    place: str,
    target: str,
    userns: str,
) -> None:
    root = make_busybox()
    turn_into_link(root, place, target.replace("VICTIM", str(victim).lstrip("/") if ".." in target else str(victim)))
    before = sorted(os.listdir(root / "etc") + os.listdir(root / "tmp") + os.listdir(root / "root"))
    result = nestrt.launch("--rootfs", root, "--name", guest_name, *MODES[userns], "--", "true")
    refused(result)
    assert f"/{place}" in result.err
    assert sorted(os.listdir(root / "etc") + os.listdir(root / "tmp") + os.listdir(root / "root")) == before
    assert not leftovers(guest_name)


# A file where a directory belongs.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("place", ["proc", "dev", "sys", "run"])
def test_a_file_where_nestrt_mounts_is_refused(
    nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], place: str
) -> None:
    root = make_busybox()
    (root / place).rmdir()
    (root / place).write_text("")
    refused(nestrt.launch("--rootfs", root, "--name", guest_name, "--", "true"))
    assert not leftovers(guest_name)


# The mount point of a --mount lies behind a symlink of the image that climbs out: `..` ends at the guest's root,
# whatever is mounted there at the time, so the mount point is made in the guest or not at all.
@pytest.mark.parametrize(
    "link",
    [
        "../VICTIM",
        *(
            pytest.param(link, marks=pytest.mark.slow_on_vm)
            for link in ("../../../../VICTIM", "/proc/1/root/VICTIM", "/../VICTIM")
        ),
    ],
)
def test_a_mount_point_behind_a_climbing_link_stays_in_the_guest(
    nestrt: Nestrt, new_guest: Callable[[], str], make_busybox: Callable[[], Path], victim: Path, link: str
) -> None:
    root = make_busybox()
    (root / "data").symlink_to(link.replace("VICTIM", str(victim).lstrip("/")))
    file = root / "etc/hostname"
    file.write_text("x\n")
    for mode in ("nouserns", "userns") if SLOW == 1 else ("nouserns",):
        for mount in ("type=tmpfs,target=/data/made", f"type=bind,source={file},target=/data/file"):
            result = nestrt.launch(
                *("--rootfs", root, "--name", new_guest(), *MODES[mode], "--mount", mount, "--", "true"),
            )
            assert result.rc in (0, 125), result
            assert list(victim.iterdir()) == [], (mode, mount, link)


# The same for the name server's file, which nestrt binds by itself where the guest has a network.
@pytest.mark.slow_on_vm
def test_resolv_conf_behind_a_climbing_link_stays_in_the_guest(
    nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], victim: Path
) -> None:
    root = make_busybox()
    (root / "etc/resolv.conf").symlink_to(f"../..{victim}/made")
    nestrt.launch("--rootfs", root, "--name", guest_name, "--net", "host", "--userns", "none", "--", "true")
    assert list(victim.iterdir()) == []


# The program is a way to the launcher's own executable, in an image that has the libraries it needs. Were it the
# host's Python, "-c" would run; it is a sealed file in memory, which runs nothing and which nobody can write to.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("kind", ["symlink", "script", "path"])
def test_the_hosts_interpreter_is_out_of_reach(nestrt: Nestrt, guest_name: str, tmp_path: Path, kind: str) -> None:
    image = python_root(tmp_path / "image")
    witness = image.path / "tmp/witness"
    code = f"open('/tmp/{witness.name}', 'w').write('python ran')"
    program = image.path / "evil"
    if kind == "symlink":
        program.symlink_to("/proc/self/exe")
    elif kind == "script":
        program.write_text(f"#!/proc/self/exe\n{code}\n")
        program.chmod(0o755)
    before = HOSTS_PYTHON.stat()
    name = "/proc/self/exe" if kind == "path" else "/evil"
    process = nestrt.start(*("launch", *image.options, "--name", guest_name, *MODES["root"], "--", name, "-c", code))
    try:
        assert process.wait(4 if kind == "script" else 20 * SLOW) != 0
    except subprocess.TimeoutExpired:
        # The script is run by its own interpreter, that by the script, and so on: the guest's time, not the host's.
        assert kind == "script"
        nestrt.run("delete", "--force", guest_name, timeout=60).ok()
    assert not witness.exists()
    after = HOSTS_PYTHON.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


# While a guest runs, no process in it is the launcher's program, and no descriptor leads to it.
@pytest.mark.slow_on_vm
def test_no_process_of_the_guest_runs_the_hosts_interpreter(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    answers = ask(
        nestrt,
        {
            "programs": "for p in /proc/[0-9]*; do readlink $p/exe; done",
            "maps": "cat /proc/1/maps",
            "write": ": > /proc/1/exe",
        },
        *("--rootfs", busybox, "--name", guest_name, *MODES["root"]),
    )
    assert set(answers.text("programs").splitlines()) == {"/bin/busybox"}
    assert "python" not in answers.text("maps")
    assert "memfd" not in answers.text("maps")
    answers.refused("write")


def hostile_passwd(root: Path, kind: str) -> None:
    path = root / "etc/passwd"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.write(b"user:x:1000:1000::/:/bin/sh\n")
            file.truncate(100 << 20)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe:\xff\nuser:\xff:1000:1000:\xc3\x28:/:/bin/sh\n\0\n")
    elif kind == "directory":
        path.mkdir()
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "memory":
        path.symlink_to("/proc/self/mem")
    elif kind == "log":
        path.symlink_to("/proc/kmsg")
    elif kind == "ids":
        path.write_text("user:x:4294967295:4294967295::/:/bin/sh\n")
    elif kind == "number":
        path.write_text(f"user:x:{'9' * 5000}:-1::/:/bin/sh\n")


# --user NAME is looked up in the image's own file: it cannot hang the launch, eat memory, or come out as root.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("kind", ["fifo", "huge", "bytes", "directory", "zero", "memory", "log", "ids", "number"])
def test_a_hostile_passwd(nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], kind: str) -> None:
    root = make_busybox()
    hostile_passwd(root, kind)
    result = nestrt.launch(
        *("--rootfs", root, "--name", guest_name, "--memory", "64M", "--user", "user", "--", "id", "-u")
    )
    if kind in ("huge", "bytes"):
        assert (result.rc, result.out) == (0, "1000\n"), result
    else:
        refused(result)
        assert not leftovers(guest_name)


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("user", ["4294967295", "0:4294967295", "4294967296", "-1", "1e3", "", ":", "٣"])
def test_no_user_that_is_none_leaves_root(nestrt: Nestrt, guest_name: str, busybox: Path, user: str) -> None:
    """(uid_t) -1 means "as it is" to setresuid(2): the program would stay root."""
    refused(nestrt.launch("--rootfs", busybox, "--name", guest_name, *MODES["root"], f"--user={user}", "--", "id"))


# Device nodes that came with the image: made by root of the host, so owned by guest root where ids are shifted.
@pytest.mark.parametrize("mode", MODES)
def test_device_nodes_of_the_image_stay_closed(
    nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], mode: str
) -> None:
    root = make_busybox()
    nodes = {"kmsg": (stat.S_IFCHR, 1, 11), "port": (stat.S_IFCHR, 1, 4), "loop": (stat.S_IFBLK, 7, 0)}
    for name, (kind, major, minor) in nodes.items():
        os.mknod(root / "opt" / name, kind | 0o666, os.makedev(major, minor))
    answers = ask(
        nestrt,
        {name: f": < /opt/{name}" for name in nodes},
        *("--rootfs", root, "--name", guest_name, *MODES[mode]),
    )
    for name in nodes:
        assert "not permitted" in answers.refused(name)


# What an image puts in place of nestrt's own /dev, /run and cgroup files is under the mounts, and out of use.
@pytest.mark.slow_on_vm
def test_the_images_own_files_lie_below_the_mounts(
    nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], victim: Path
) -> None:
    root = make_busybox()
    (root / "dev/null").symlink_to(f"{victim}/null")
    (root / "dev/pts").symlink_to(str(victim))
    (root / "dev/shm").symlink_to("/etc")
    (root / "sys/fs").mkdir()
    (root / "sys/fs/cgroup").symlink_to(str(victim))
    (root / "run/nestrt").symlink_to(str(victim))
    (root / "proc/self").mkdir()
    answers = ask(
        nestrt,
        {"null": "[ -c /dev/null ]", "pts": "[ -c /dev/pts/ptmx ]", "run": "ls -A /run", "shm": "ls -A /dev/shm"},
        *("--rootfs", root, "--name", guest_name, *MODES["nouserns"]),
    )
    assert [answers.text(name) for name in answers] == ["", "", "", ""]
