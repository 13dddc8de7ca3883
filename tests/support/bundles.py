"""OCI bundles for tests: a document, a root filesystem, and the command line of engines put to them.

The fixtures are ``new_bundle``, which makes them, and ``bundle``, this one of a test that needs no more.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from support.guests import Answers, parse, script
from support.hostside import directories, groups, hierarchies, processes
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, Result, wait_for

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
MOUNTS = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/tmp", "tmpfs", "tmpfs", ("nosuid", "nodev", "mode=1777")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)
POLICY = {"nestrt.level.virtualize": "true"}
# What the container's root is outside, where it has a user namespace, and how many ids there are.
USER_BASE, USER_COUNT = 1_600_000, 65536
# The top of the groups of all bundles of this process, made and removed by nestrt.
PARENT = f"/nestrt-oci-t-{os.getpid():x}"
ALL_CAPABILITIES = "all"
_numbers = itertools.count(1)


def document(args: Iterable[str] = ("true",)) -> dict[str, Any]:
    """What an engine would write for *args*, with no limits: a dict to change."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [PATH, "HOME=/root"],
            "cwd": "/",
            "capabilities": {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "nestrt",
        "mounts": [
            {"destination": to, "type": kind, "source": source, "options": list(options)}
            for to, kind, source, options in MOUNTS
        ],
        "linux": {"namespaces": [{"type": name} for name in NAMESPACES], "resources": {}},
    }


def bound(source: str, target: str, *options: str) -> dict[str, Any]:
    """An entry of ``mounts`` that binds *source*."""
    return {"destination": target, "type": "bind", "source": source, "options": ["rbind", *options]}


@dataclass(frozen=True)
class Running:
    """A command under way. Its output goes to files: a container that is left running would hold pipes open."""

    process: subprocess.Popen[bytes]
    words: tuple[str, ...]
    out: IO[bytes]
    err: IO[bytes]

    def finish(self, timeout: float = 60.0) -> Result:
        """Wait for it, *timeout* s (times NESTRT_SLOW) at most."""
        rc = self.process.wait(timeout * SLOW)
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Result(self.words, rc, *texts)


class Bundle:
    """One bundle and its container. *config* is written again before each verb that reads it."""

    def __init__(self, nestrt: Nestrt, place: Path, id: str, rootfs: Path, state: Path) -> None:
        self.nestrt = nestrt
        self.path = place
        self.id = id
        self.rootfs = rootfs
        self.state_root = state
        self.cgroup = f"{PARENT}/{id}"
        self.config = document()
        self.config["root"]["path"] = str(rootfs)
        self.config["linux"]["cgroupsPath"] = self.cgroup
        self.globals: list[str] = ["--root", str(state)]

    # the document

    def args(self, *words: str) -> Bundle:
        self.config["process"]["args"] = list(words)
        return self

    def shell(self, text: str) -> Bundle:
        return self.args("sh", "-c", text)

    def annotate(self, **values: str) -> Bundle:
        """``annotate(level__virtualize="true")``: nestrt.level.virtualize."""
        found = self.config.setdefault("annotations", {})
        found.update({f"nestrt.{key.replace('__', '.')}": value for key, value in values.items()})
        return self

    def virtual(self) -> Bundle:
        return self.annotate(level__virtualize="true")

    def namespace(self, type: str, path: str | None = "", **more: Any) -> Bundle:
        """Set one: made new (""), joined (*path*), or shared with the host (None)."""
        entries = [entry for entry in self.config["linux"]["namespaces"] if entry["type"] != type]
        if path is not None:
            entries.append({"type": type, **({"path": path} if path else {}), **more})
        self.config["linux"]["namespaces"] = entries
        return self

    def user_namespace(self, base: int = USER_BASE, count: int = USER_COUNT) -> Bundle:
        """Ids *base* and up; the root filesystem stays the host root's, which is enough to read it."""
        self.namespace("user")
        ids = [{"containerID": 0, "hostID": base, "size": count}]
        self.config["linux"].update(uidMappings=ids, gidMappings=ids)
        return self

    def capabilities(self, *names: str) -> Bundle:
        kinds = ("bounding", "effective", "permitted")
        if names == (ALL_CAPABILITIES,):
            names = tuple(every_capability())
        self.config["process"]["capabilities"] = {kind: list(names) for kind in kinds}
        return self

    def writable_groups(self) -> Bundle:
        """Ask for the mount of the groups to be writable, as engines do for what is privileged."""
        for entry in self.config["mounts"]:
            if entry["type"] == "cgroup":
                entry["options"] = [word for word in entry["options"] if word != "ro"]
        return self

    def mount(self, source: str, target: str, *options: str) -> Bundle:
        self.config["mounts"].append(bound(source, target, *options))
        return self

    def hook(self, stage: str, *args: str, **more: Any) -> Bundle:
        """Add a hook that is a shell script of the host."""
        self.config.setdefault("hooks", {}).setdefault(stage, []).append({"path": args[0], "args": list(args), **more})
        return self

    def resources(self, **values: Any) -> Bundle:
        self.config["linux"]["resources"].update(values)
        return self

    def write(self) -> Bundle:
        (self.path / "config.json").write_text(json.dumps(self.config))
        return self

    # the verbs

    def verb(self, verb: str, *words: str, **named: Any) -> Result:
        """``nestrt --root R VERB WORDS``."""
        return self.nestrt.run(*self.globals, verb, *words, **named)

    def words(self, verb: str, *options: str) -> list[str]:
        """The words of ``create`` or ``run``, after the document has been written."""
        self.write()
        return [*self.globals, verb, "--bundle", str(self.path), *options, self.id]

    def run(self, *options: str, **named: Any) -> Result:
        return self.nestrt.run(*self.words("run", *options), **named)

    def create(self, *options: str, **named: Any) -> Result:
        return self.nestrt.run(*self.words("create", *options), **named)

    def start(self, **named: Any) -> Result:
        return self.verb("start", self.id, **named)

    def begin(self, *words: str, **named: Any) -> Running:
        """Start ``nestrt WORDS`` and return at once; see words() for those of create and run."""
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        return Running(self.nestrt.start(*words, stdout=out, stderr=err, **named), words, out, err)

    def up(self, text: str = "exec sleep 600") -> Bundle:
        """Run a shell with *text* as the first process, detached."""
        self.shell(text).run("--detach").ok()
        return self

    def exec(self, *words: str, options: Iterable[str] = (), **named: Any) -> Result:
        return self.verb("exec", *options, self.id, *words, **named)

    def kill(self, name: str = "KILL", *options: str) -> Result:
        return self.verb("kill", *options, self.id, name)

    def delete(self, *options: str, **named: Any) -> Result:
        return self.verb("delete", *options, self.id, **named)

    def state(self) -> dict[str, Any]:
        """What ``state`` prints. AssertionError if it fails."""
        found = json.loads(self.verb("state", self.id).ok().out)
        assert isinstance(found, dict)
        return found

    @property
    def status(self) -> str:
        return str(self.state()["status"])

    @property
    def pid(self) -> int:
        return int(self.state()["pid"])

    def await_status(self, status: str) -> None:
        wait_for(lambda: self.status == status, f"{self.id} to be {status}")

    # what is asked inside

    def ask(self, questions: Mapping[str, str], *options: str, **named: Any) -> Answers:
        """Run the container with a shell that answers *questions* (see guests.ask)."""
        result = self.shell(script(questions)).run(*options, **named)
        return _answers(result, questions)

    def ask_running(self, questions: Mapping[str, str], *options: str, **named: Any) -> Answers:
        """The same by ``exec``."""
        return _answers(self.exec("sh", "-c", script(questions), options=options, **named), questions)

    # and outside

    def groups(self, below: str = "") -> list[Path]:
        """The container's directories in all hierarchies."""
        return groups(self.cgroup + below)

    def leftovers(self) -> list[str]:
        """What is still there of it, as lines for a reader."""
        found = [f"group {directory}" for directory in groups(self.cgroup)]
        if os.path.lexists(self.state_root / self.id):
            found.append(f"state {self.state_root / self.id}")
        found += [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.id in line]
        return found

    def sweep(self) -> None:
        """Take everything away by hand, whatever nestrt thinks of it."""
        for directory in directories(self.cgroup):
            for file, text in (("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
                if (directory / file).exists():
                    _try((directory / file).write_text, text)
        for _ in range(50):
            alive = processes(self.cgroup)
            if not alive:
                break
            for pid in alive:
                _try(os.kill, pid, signal.SIGKILL)
            time.sleep(0.05)
        for directory in reversed(directories(self.cgroup)):
            _try(directory.rmdir)
        shutil.rmtree(self.state_root / self.id, ignore_errors=True)


def _try(call: Callable[..., object], *args: object) -> None:
    try:
        call(*args)
    except OSError:
        pass


def _answers(result: Result, questions: Mapping[str, str]) -> Answers:
    answers = parse(result.out)
    answers.result = result
    assert list(answers) == list(questions), f"{result.rc}\n{result.out}\n{result.err}"
    return answers


def every_capability() -> list[str]:
    """All that this process has: what engines write for --privileged."""
    from nestrt.kernel.caps import NAMES

    row = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm:"))
    return [name for number, name in enumerate(NAMES) if int(row.split()[1], 16) >> number & 1]


def python_bundle(bundle: Bundle, python: PythonRoot) -> Bundle:
    """Give *bundle* the root filesystem with Python and nestrt in it: a container that runs containers."""
    bundle.config["root"]["path"] = str(python.path)
    words = [word for word in python.mounts if word != "--mount"]
    for word in words:
        keys = dict(part.partition("=")[::2] for part in word.split(","))
        bundle.mount(keys["source"], keys["target"], "ro")
    return bundle


def inner_document(config: Mapping[str, Any], python: PythonRoot, root: str) -> dict[str, Any]:
    """*config* for a container inside a Python container: its root filesystem *root*, completed by mounts.

    Its ids are not shifted, so that what its root is to write has to be mounted.
    """
    found: dict[str, Any] = json.loads(json.dumps(config))
    found["root"] = {"path": root}
    options = ["nosuid", "nodev", "mode=755"]
    found["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    for word in python.inner_mounts:
        if word != "--mount":
            keys = dict(part.partition("=")[::2] for part in word.split(","))
            found["mounts"].append(bound(keys["source"], keys["target"], "ro"))
    return found


def here(text: str, path: str) -> str:
    """A shell command that writes *text* to the file *path*."""
    return f"printf %s {shlex.quote(text)} > {path}"


def clear_parent() -> None:
    """Remove PARENT, which goes with the container that it was made for only if that is the last one in it."""
    for hierarchy in hierarchies():
        _try(hierarchy.group(PARENT).rmdir)


@pytest.fixture
def new_bundle(nestrt: Nestrt, busybox: Path) -> Iterator[Callable[..., Bundle]]:
    """A function that makes bundles. At the end each container is deleted, and the test fails if anything stays."""
    made: list[Bundle] = []
    base = Path(tempfile.mkdtemp(prefix="nestrt-bundles-", dir="/tmp"))
    base.chmod(0o755)

    def new(id: str = "", rootfs: Path | None = None, state: Path | None = None) -> Bundle:
        name = id or f"nestrt-o-{os.getpid():x}-{next(_numbers)}"
        place = base / name
        place.mkdir()
        made.append(Bundle(nestrt, place, name, rootfs or busybox, state or base / "state"))
        return made[-1]

    yield new
    nestrt.stop()
    left: list[str] = []
    for bundle in made:
        try:
            done = bundle.delete("--force")
            if done.rc:
                left.append(str(done))
        except subprocess.TimeoutExpired as error:
            left.append(str(error))
        # What is killed last may still be on its way out.
        end = time.monotonic() + 10 * SLOW
        while (found := bundle.leftovers()) and time.monotonic() < end:
            time.sleep(0.02)
        left += found
        bundle.sweep()
    clear_parent()
    shutil.rmtree(base, ignore_errors=True)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture
def bundle(new_bundle: Callable[..., Bundle]) -> Bundle:
    """This test's one bundle."""
    return new_bundle()
