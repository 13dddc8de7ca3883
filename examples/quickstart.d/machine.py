"""The machine that the quickstart runs on, the guests it starts, and the report it prints."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NESTRT = str(CHECKOUT / "hooks/nestrt")
OPT = "/opt/nestrt"  # where guests have a copy of the checkout: they launch guests of their own
WORK = Path("/run/nestrt-quickstart")
MAIN, ROOT, PLAIN, KILLED = "quickstart", "quickstart-root", "quickstart-plain", "quickstart-killed"
NAMES = (MAIN, ROOT, PLAIN, KILLED)
OLDEST = (5, 12)  # mount_setattr(2) with MOUNT_ATTR_IDMAP
# The limit that shows a controller's law: v1 file, v2 file.
FILES = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max", "pids.max"),
    "cpuset": ("cpuset.cpus", "cpuset.cpus"),
}
# Options of a v1 hierarchy that do not name it.
NO_NAME = r"(rw|ro|none|xattr|noprefix|clone_children|cpuset_v2_mode|seclabel|release_agent=.*)$"
BOLD, RED, GREEN, DIM, NORMAL = "\033[1m", "\033[31m", "\033[32m", "\033[2m", "\033[0m"
if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
    BOLD = RED = GREEN = DIM = NORMAL = ""


class Unable(Exception):
    """This machine cannot run the quickstart; the text says why and what to do."""


class Report:
    """What is printed, and the count of it."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []
        self.number = 0

    def law(self, number: int, text: str) -> None:
        self.number = number
        print(f"\n{BOLD}law {number}  {text}{NORMAL}")

    def ran(self, where: str, command: str, output: str, lines: int = 6) -> None:
        """Show a command and the first *lines* lines of what it said."""
        print(f"  {DIM}{where}{NORMAL} {command}")
        said = [line for line in output.splitlines() if line.strip()]
        for line in said[:lines]:
            print(f"      {line}")
        if len(said) > lines:
            print(f"      … {len(said) - lines} more")

    def check(self, text: str, holds: bool) -> None:
        if holds:
            self.passed += 1
        else:
            self.failed.append(f"law {self.number}: {text}")
        print(f"  {GREEN}PASS{NORMAL}  {text}" if holds else f"  {RED}FAIL{NORMAL}  {text}", flush=True)


def nestrt(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of nestrt's on the host."""
    return subprocess.run([NESTRT, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)


class Guest:
    """A guest that runs a shell, which is given one command after another."""

    END = "@@quickstart@@"

    def __init__(self, report: Report, prompt: str, name: str, *options: str) -> None:
        self.report, self.prompt, self.name, self.rest = report, prompt, name, b""
        self.process = subprocess.Popen(
            [NESTRT, "launch", "--rm", "--name", name, *options, "--", "sh", "-s"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
        )  # fmt: skip
        status, said = self.quiet("true")
        if status != 0:
            raise Unable(said.strip() or "its first process ended at once")

    def quiet(self, command: str) -> tuple[int, str]:
        """Run *command* in a shell of its own in the guest: its exit status, and what it said."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            line = f"sh -c {shlex.quote(command)} </dev/null 2>&1; printf '\\n{self.END}%s\\n' $?\n"
            self.process.stdin.write(line.encode())
        except BrokenPipeError:
            pass  # it has ended; what it said is still to be read
        found = None
        end = time.monotonic() + 120
        while not found:
            ready = select.select([self.process.stdout], [], [], max(end - time.monotonic(), 0))[0]
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not piece:
                return 255, self.rest.decode(errors="replace")
            self.rest += piece
            found = re.search(rb"\n%s(\d+)\n" % self.END.encode(), self.rest)
        said, self.rest = self.rest[: found.start()], self.rest[found.end() :]
        return int(found[1]), said.decode(errors="replace")

    def run(self, command: str, lines: int = 6) -> tuple[int, str]:
        """The same, shown in the report."""
        status, said = self.quiet(command)
        self.report.ran(self.prompt, command, said, lines)
        return status, said.strip()

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Host:
    """This machine's hierarchies, as its mount table has them (proc_pid_mountinfo(5))."""

    def __init__(self) -> None:
        self.points: dict[str, tuple[str, str]] = {}  # mount point: (options that name it, "" for v2; super options)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            front, _, back = line.partition(" - ")
            fstype, _, options = back.split(" ", 2)
            point = front.split()[4]
            if fstype in ("cgroup", "cgroup2") and (point + "/").startswith("/sys/fs/cgroup/"):
                named = [o for o in options.split(",") if not re.match(NO_NAME, o)]
                self.points[point] = ("" if fstype == "cgroup2" else ",".join(named), options)
        self.v2 = next((point for point, (name, _) in self.points.items() if not name), "")
        v1 = [name for name, _ in self.points.values() if name]
        delegate = "with" if self.v2 and "nsdelegate" in self.points[self.v2][1] else "without"
        self.kind = (
            f"cgroup v2 {delegate} nsdelegate" if not v1
            else f"hybrid: {len(v1)} v1 hierarchies and v2" if self.v2 else f"cgroup v1, {len(v1)} hierarchies"
        )  # fmt: skip

    def directory(self, controller: str) -> str:
        """Where *controller* is mounted, here and in a guest's view; "" if it is nowhere."""
        for point, (name, _) in self.points.items():
            if controller in name.split(","):
                return point
        if self.v2 and controller in Path(self.v2, "cgroup.controllers").read_text().split():
            return self.v2
        return ""

    def file(self, controller: str, group: str = "") -> str:
        """The path of the controller's limit, of a *group* like "/web" below the root of the view."""
        directory = self.directory(controller)
        return f"{directory}{group}/{FILES[controller][directory == self.v2]}"

    def mount(self, directory: str) -> str:
        """A command that mounts the hierarchy of *directory* once more."""
        options = self.points[directory][0]
        return f"mount -t cgroup -o {options} own /mnt" if options else "mount -t cgroup2 own /mnt"

    def limit_group(self, controller: str, name: str) -> Path:
        """The controller's file of the limit group of the guest *name*."""
        return Path(self.file(controller, f"/nestrt/{name}"))

    def controllers(self) -> list[str]:
        return [name for name in FILES if self.directory(name)]

    def directories(self) -> list[str]:
        """The directories that hold the controllers shown here, each once."""
        return list(dict.fromkeys(self.directory(name) for name in self.controllers()))

    def left(self) -> list[str]:
        """What there is of this script's guests: groups, state files, ids."""
        found = [f"{point}/nestrt/{name}" for point in self.points for name in NAMES]
        found += [f"/run/nestrt/guests/{name}" for name in NAMES]
        ids = Path("/run/nestrt/ids")
        links = [str(link) for link in ids.iterdir() if os.readlink(link) in NAMES] if ids.is_dir() else []
        return [path for path in found if os.path.lexists(path)] + links


def copy_checkout(target: Path) -> None:
    """Copy the commands to where every guest can read them: a checkout below /root is for the host's root only."""
    for name in ("nestrt", "hooks"):
        shutil.copytree(CHECKOUT / name, target / name)
    subprocess.run(["chmod", "-R", "a+rX", str(WORK)], check=True)


def root_filesystem() -> tuple[str, list[str], list[str]]:
    """(in words, options of launch, options of a launch inside that guest).

    This machine's own / under a layer that is thrown away, if the kernel id-maps
    its filesystem; else, as in containers, its /usr on a tmpfs.
    """

    def bind(source: str, target: str) -> list[str]:
        return ["--mount", f"type=bind,source={source},target={target},ro"]

    copy_checkout(WORK / "checkout")
    own = bind(str(WORK / "checkout"), OPT)
    usr = [path for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64") if not os.path.islink(path)]
    parts = [word for path in usr if os.path.ismount(path) for word in bind(path, path)]
    options = ["--rootfs", "/", "--overlay", *parts]
    tried = nestrt("launch", "--rm", "--name", MAIN, *options, "--", "true")
    if tried.returncode == 0:
        return "this machine's own /, writes thrown away", options + own, options + bind(OPT, OPT)
    if "id-map" not in tried.stderr:
        raise Unable(tried.stderr.strip().removeprefix("nestrt: "))
    root = WORK / "root"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=16m", "nestrt-quickstart", str(root)], check=True)
    for name in ("dev", "etc", "mnt", "opt/nestrt", "proc", "root", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("passwd", "group", "hostname", "debian_version", "ld.so.cache"):
        if Path("/etc", name).exists():
            shutil.copy(f"/etc/{name}", root / "etc")
    parts = []
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(path):
            (root / path[1:]).symlink_to(os.readlink(path))
        elif os.path.isdir(path):
            (root / path[1:]).mkdir()
            parts += bind(path, path)
    inside = ["--rootfs", "/", "--overlay", *parts, *bind(OPT, OPT)]
    words = "this machine's /usr, read-only, on a tmpfs (its / cannot be id-mapped)"
    return words, ["--rootfs", str(root), *parts, *own], inside


def mount_lines() -> list[str]:
    """The mount table without what is this script's own."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if not line.startswith("nestrt-quickstart ")]


def clean_up() -> None:
    """Remove every guest of the quickstart's, whatever state it is in, and its directory."""
    for name in NAMES:
        nestrt("delete", "--force", name)
    while os.path.ismount(WORK / "root"):
        subprocess.run(["umount", str(WORK / "root")], check=True)
    shutil.rmtree(WORK, ignore_errors=True)


def look() -> Host:
    """Check what can be known beforehand. Raises Unable."""
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        raise Unable(f"Linux 5.12 or later is needed, for id-mapped mounts; this is {release}")
    if not Path("/proc/self/cgroup").exists() or not (host := Host()).points:
        raise Unable("no control groups are mounted below /sys/fs/cgroup: boot with them, or: "
                     "mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup")  # fmt: skip
    if not host.directory("pids"):
        raise Unable("the pids controller is not there: boot a kernel with CONFIG_CGROUP_PIDS")
    return host
