"""Hostile images and callers: what is in an image, a bundle or an environment is never run, imported or followed.

::

    engine ── its environment, its working directory ──▶ nestrt wrap ──▶ runc ──▶ nestrt hook
    image  ── process.env, files, symlinks ──────────────────────────────┘         (root, on the host)

CVE-2025-23266 was a hook that ran with an image's LD_PRELOAD and in an image's directory.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.hostside import hierarchies
from support.need import SLOW
from support.plugin_attack import RUNC, Wrapped, new_wrapped_fixture, wrapped_fixture  # noqa: F401
from support.rootfs import CHECKOUT

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

MakeBusybox = Callable[[], Path]
# Modules that the interpreter or nestrt imports, and packages in their place.
MODULES = (
    "json os re site sitecustomize usercustomize fcntl select time _json signal enum stat posixpath encodings codecs "
    "abc io nestrt nestrt.cli nestrt.errors nestrt.act ctypes subprocess errno"
).split()
PYTHON = {
    "PYTHONSTARTUP": "EVIL/os.py",
    "PYTHONPATH": "EVIL",
    "PYTHONHOME": "EVIL",
    "PYTHONUSERBASE": "EVIL",
    "PYTHONPYCACHEPREFIX": "EVIL",
    "PYTHONINSPECT": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONBREAKPOINT": "os.evil",
    "PYTHONPLATLIBDIR": "evil",
}
# ld.so(8) writes a file NAME.PID for each process that has these.
LOADER = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": "EVIL/loader"}
PRELOAD = {"LD_PRELOAD": "EVIL/evil.so", "LD_AUDIT": "EVIL/evil.so", "LD_LIBRARY_PATH": "EVIL"}


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A directory with modules, programs and libraries that leave a file "ran" where somebody uses them."""
    place = tmp_path / "evil"
    plant(place)
    return place


def plant(place: Path) -> None:
    """Put them into the directory *place*."""
    place.mkdir(parents=True, exist_ok=True)
    # The planted code must itself import nothing.
    code = f"import posix\nposix.close(posix.open({str(place / 'ran')!r}, posix.O_WRONLY | posix.O_CREAT, 0o666))\n"
    for name in MODULES:
        top, dot, rest = name.partition(".")
        if dot or name == "nestrt":
            package = place / top
            package.mkdir(exist_ok=True)
            (package / "__init__.py").write_text(code)
            if rest:
                (package / f"{rest}.py").write_text(code)
        else:
            (place / f"{name}.py").write_text(code)
    for program in ("runc", "python3", "sh", "mount", "env"):
        (place / program).write_text(f"#!/bin/sh\n: > {place / 'ran'}\n")
        (place / program).chmod(0o755)
    (place / "evil.so").write_text("no library")
    place.chmod(0o755)


def environment(place: Path, *parts: dict[str, str]) -> dict[str, str]:
    found = {"PATH": f"{place}:/usr/sbin:/usr/bin:/sbin:/bin"}
    for part in parts:
        found.update({name: value.replace("EVIL", str(place)) for name, value in part.items()})
    return found


def loaded(place: Path) -> list[str]:
    """The programs that ran with LOADER, but for runc itself."""
    programs = []
    for file in place.glob("loader.*"):
        text = file.read_text(errors="replace")
        programs += [line.split("program: ")[1] for line in text.splitlines() if "initialize program: " in line]
    return [name for name in programs if not name.endswith("runc")]


# --- the engine's environment and directory ------------------------------------------------------


# wrap is started as an engine would that has been led astray: no variable of Python's and no file around it counts.
@pytest.mark.parametrize("where", ["environment", "directory", "bundle"])
def test_the_callers_environment_and_directory(wrapped: Wrapped, evil: Path, where: str) -> None:
    env = environment(evil, PYTHON) if where == "environment" else None
    cwd = evil if where == "directory" else None
    if where == "bundle":
        plant(wrapped.path)
        cwd = wrapped.path
    wrapped.shell("exec sleep 600")
    words = wrapped.words("run", "--detach")
    if where == "bundle":
        # As buildah: the bundle is the working directory, and is not named.
        words = [word for word in words if word not in ("--bundle", str(wrapped.path))]
    wrapped.nestrt.run(*words, env=env, cwd=cwd).ok()
    assert wrapped.status == "running"
    assert wrapped.record()["started"] is True
    for verb in (("update", "--pids-limit", "50", wrapped.id), ("delete", "--force", wrapped.id)):
        wrapped.nestrt.run(*wrapped.globals, *verb, env=env, cwd=cwd).ok()
    # precreate, as podman calls it
    argv = (wrapped.nestrt.command, "hook", "precreate")
    done = subprocess.run(
        argv, input=json.dumps(wrapped.config), capture_output=True, text=True, env=env, cwd=cwd, timeout=20 * SLOW
    )
    assert (done.returncode, done.stderr) == (0, "")
    wrapped.stage("poststop", wrapped.hook_state(annotations=json.loads(done.stdout)["annotations"])).ok()
    assert not (evil / "ran").exists()
    assert not (wrapped.path / "ran").exists()


# The runtime is looked for where root's programs are, whatever PATH the engine has.
def test_the_runtime_is_not_looked_for_in_the_callers_path(wrapped: Wrapped, evil: Path) -> None:
    words = ["runc" if word == RUNC else word for word in wrapped.args("true").words("run")]
    wrapped.nestrt.run(*words, env=environment(evil), cwd=evil).ok()
    assert not (evil / "ran").exists()


#   runtime with LD_DEBUG, PYTHONPATH, … in its own environment ──▶ hooks: nothing of that
def test_hooks_do_not_inherit_the_runtimes_environment(wrapped: Wrapped, evil: Path) -> None:
    runtime = evil.with_name("runtime-for-test")
    lines = [f"export {name}='{value}'" for name, value in environment(evil, PYTHON, LOADER).items()]
    runtime.write_text("#!/bin/sh\n" + "\n".join(lines) + f'\nexec {RUNC} "$@"\n')
    runtime.chmod(0o755)
    words = [
        str(runtime) if word == RUNC else word for word in wrapped.shell("exec sleep 600").words("run", "--detach")
    ]
    wrapped.nestrt.run(*words).ok()
    assert wrapped.record()["started"] is True
    end = [str(runtime) if word == RUNC else word for word in wrapped.globals]
    wrapped.nestrt.run(*end, "delete", "--force", wrapped.id).ok()
    assert wrapped.leftovers() == []
    assert loaded(evil) == []
    assert not (evil / "ran").exists()


# --- the image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["python", "loader", "preload", "path"])
def test_the_images_environment(wrapped: Wrapped, evil: Path, kind: str) -> None:
    parts = {"python": PYTHON, "loader": LOADER, "preload": PRELOAD, "path": {}}[kind]
    env = [f"{name}={value}" for name, value in environment(evil, parts).items()]
    wrapped.config["process"]["env"] = [*wrapped.config["process"]["env"], *env]
    # The image's directory is the process's own, the host's is another.
    wrapped.config["process"]["cwd"] = "/tmp"
    wrapped.annotate(level__strict="true").shell("exec sleep 600").run("--detach").ok()
    assert wrapped.record()["started"] is True
    wrapped.exec("/bin/true").ok()
    wrapped.delete("--force").ok()
    assert loaded(evil) == []
    assert not (evil / "ran").exists()
    assert wrapped.leftovers() == []


@pytest.mark.parametrize(
    "place", ["", "usr/lib/python3", "usr/lib/python3.11", "proc", "sys", "run/nestrt", "etc/nestrt"]
)
def test_modules_planted_in_an_image(wrapped: Wrapped, make_busybox: MakeBusybox, place: str) -> None:
    root = make_busybox()
    plant(root / place)
    wrapped.config["root"]["path"] = str(root)
    wrapped.config["process"]["cwd"] = f"/{place}" if place not in ("proc", "sys") else "/"
    wrapped.shell("exec sleep 600").run("--detach").ok()
    wrapped.delete("--force").ok()
    assert not (root / place / "ran").exists()


# Not /dev: runc 1.1 itself follows that one, to put stdin, fd, ptmx, … there.
LINKS = ("sys", "sys/fs", "sys/fs/cgroup", "proc", "run", "etc", "tmp")


#   rootfs/sys ─▶ /tmp/…/outside      whatever the runtime makes of that, nothing outside is made, changed or mounted on
@pytest.mark.parametrize("way", ["absolute", "relative", "loop", "to proc"])
@pytest.mark.parametrize("link", LINKS)
def test_symlinks_in_an_image(wrapped: Wrapped, make_busybox: MakeBusybox, tmp_path: Path, link: str, way: str) -> None:
    root, outside = make_busybox(), tmp_path / "outside"
    for name in ("", "fs", "fs/cgroup", "cgroup", "nestrt", *(f"fs/cgroup/{h.mountpoint.name}" for h in hierarchies())):
        (outside / name).mkdir(exist_ok=True)
        (outside / name / "pids.max").write_text("mine")
    before = snapshot(outside)
    path = root / link
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = {
        "absolute": str(outside),
        "relative": os.path.relpath(outside, path.parent),
        "loop": path.name,
        "to proc": "/proc/self/root" if link != "proc" else "/../..",
    }[way]
    path.symlink_to(target)
    mounts = _mounts()
    wrapped.config["root"]["path"] = str(root)
    wrapped.annotate(level__strict="true")
    result = wrapped.shell("exec sleep 600").run("--detach")
    if result.rc == 0:
        # It works: by the rules of the runtime, in the guest's own root. Then the laws hold.
        assert wrapped.exec("sh", "-c", "cut -d: -f3 /proc/self/cgroup | sort -u").out == "/\n"
        assert wrapped.exec("sh", "-c", "echo 4000 > /sys/fs/cgroup/pids/pids.max").rc != 0
    else:
        assert "Traceback" not in result.err, result
    assert snapshot(outside) == before
    wrapped.delete("--force").ok()
    assert wrapped.leftovers() == []
    assert snapshot(outside) == before
    assert _mounts() == mounts


def snapshot(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): path.read_text() if path.is_file() else "directory" for path in place.rglob("*")
    }


def _mounts() -> list[str]:
    """What is mounted on the host below what tests write to."""
    rows = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(row.split()[4] for row in rows if row.split()[4].startswith("/tmp"))


# --- what a hook opens ---------------------------------------------------------------------------

IN_OPEN, IN_ACCESS, IN_ATTRIB, IN_CREATE = 0x20, 0x1, 0x4, 0x100


@contextmanager
def watched(root: Path) -> Iterator[Callable[[], list[str]]]:
    """A function that tells what has been opened, read, made or changed below *root* (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0
    names: dict[int, str] = {}
    for directory in (str(root), *(str(path) for path in root.rglob("*") if path.is_dir() and not path.is_symlink())):
        number = libc.inotify_add_watch(fd, os.fsencode(directory), IN_OPEN | IN_ACCESS | IN_ATTRIB | IN_CREATE)
        assert number >= 0, directory
        names[number] = directory

    def events() -> list[str]:
        found = []
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return found
            while data:
                number, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                found.append(f"{mask:#x} {names[number]}/{name}")
                data = data[16 + length :]

    try:
        yield events
    finally:
        os.close(fd)


# Hooks, called beside the runtime for a container that is there: no file of the image is opened, nor its directory.
def test_hooks_open_nothing_of_the_image(wrapped: Wrapped, make_busybox: MakeBusybox) -> None:
    root = make_busybox()
    wrapped.config["root"]["path"] = str(root)
    rewritten = json.loads(wrapped.shell("exec sleep 600").stage("precreate", wrapped.config).ok().out)
    stages = rewritten.pop("hooks")
    assert stages
    (wrapped.path / "config.json").write_text(json.dumps(rewritten))
    wrapped.runc("create", "--bundle", str(wrapped.path), wrapped.id).ok()
    state = json.loads(wrapped.runc("state", wrapped.id).out)
    (wrapped.path / "config.json").write_text(json.dumps({**rewritten, "hooks": stages}))
    with watched(root) as events:
        (root / "tmp/control").write_text("")
        assert events(), "the control: something is seen"
        wrapped.stage("createRuntime", {**state, "status": "creating"}).ok()
        wrapped.stage("poststart", {**state, "status": "running"}).ok()
        assert wrapped.record()["started"] is True
        wrapped.stage("poststop", {**state, "status": "stopped"}).ok()
        assert events() == []
    wrapped.runc("delete", "--force", wrapped.id)
    assert wrapped.leftovers() == []


# What a guest can see while it waits and runs: none of nestrt's processes, nor a file of theirs.
def test_no_process_of_nestrt_is_seen_by_the_guest(wrapped: Wrapped) -> None:
    look = (
        ": > /tmp/seen; n=0; while [ $n -lt 40 ]; do for p in /proc/[0-9]*; do "
        "tr '\\0' ' ' < $p/cmdline; echo; done >> /tmp/seen 2> /dev/null; n=$((n+1)); done; touch /tmp/done; sleep 600"
    )
    wrapped.annotate(level__strict="true").up(look)
    for _ in range(6):
        wrapped.exec("true").ok()
    while wrapped.exec("test", "-e", "/tmp/done").rc:
        pass
    seen = wrapped.exec("cat", "/tmp/seen").out
    assert "sleep" in seen or "/proc" in seen
    assert "nestrt" not in seen.replace(wrapped.id, "")
    assert str(CHECKOUT) not in seen
