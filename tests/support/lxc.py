"""LXC in a Nest: containers of busybox, made guests by the plugin's hooks.

Names of containers begin with the test run's own: LXC's groups are below the root of every hierarchy.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nestrt.act import records
from support.engines import RUNTIME, Nest, kill
from support.guests import Answers, parse, script
from support.hostside import groups, processes
from support.runner import Result, wait_for

NESTRT = RUNTIME
CONFIG = "/usr/share/lxc/config"
IDS = 700000
_numbers = itertools.count(1)


def limit_group(name: str) -> str:
    """The limit group of a container."""
    return f"/lxc.payload.{name}"


class Lxc:
    """The commands; *nest* is where they run, *root* the root filesystem that containers get copies of."""

    def __init__(self, nest: Nest, root: Path) -> None:
        self.nest = nest
        self.root = root
        self.path = f"{nest.store}/lxc"
        nest.inside(self.path).mkdir()
        nest.inside(self.path).chmod(0o755)
        for file in ("/etc/subuid", "/etc/subgid"):
            with nest.inside(file).open("a") as opened:
                opened.write(f"root:{IDS}:65536\n")
        self.names: list[str] = []

    def __call__(self, command: str, name: str, *argv: str, **named: Any) -> Result:
        """Run ``lxc-COMMAND -n NAME ARGV`` in the Nest (see command)."""
        return self.nest.run(f"lxc-{command}", "-P", self.path, "-n", name, *argv, **named)

    def directory(self, name: str) -> Path:
        """The container's directory, as the host reaches it."""
        return self.nest.inside(f"{self.path}/{name}")

    def rootfs(self, name: str) -> Path:
        return self.directory(name) / "rootfs"

    def make(self, *lines: str, private: bool = False, guest: bool = True) -> str:
        """Make a container with *lines* at the end of its configuration; return its name. *private*: ids of its own;
        *guest*: with the lines that make it one."""
        name = f"nestrt-lxc-{os.getpid()}-{next(_numbers)}"
        self.names.append(name)
        self.directory(name).mkdir()
        shutil.copytree(self.root, self.rootfs(name), symlinks=True)
        words = [
            f"lxc.include = {CONFIG}/common.conf",
            f"lxc.uts.name = {name}",
            f"lxc.rootfs.path = dir:{self.path}/{name}/rootfs",
            "lxc.net.0.type = empty",
            "lxc.apparmor.profile = unconfined",
        ]
        if private:
            subprocess.run(("chown", "-hR", f"{IDS}:{IDS}", os.fspath(self.rootfs(name))), check=True)
            words += [f"lxc.include = {CONFIG}/userns.conf", *(f"lxc.idmap = {kind} 0 {IDS} 65536" for kind in "ug")]
        if guest:
            words.append(self.nest.run(NESTRT, "hook", "lxc", "config", name).ok().out)
            words.append(f"lxc.cgroup.dir.monitor.pivot = {self.nest.group.strip('/')}/pivot")
        (self.directory(name) / "config").write_text("\n".join([*words, *lines, ""]))
        return name

    def start(self, name: str, *argv: str) -> Result:
        """Start the container detached, to run *argv*, else to sleep; its log is in said()."""
        self.log(name).unlink(missing_ok=True)
        return self("start", name, "-l", "DEBUG", "-o", f"{self.path}/{name}/log", "--", *(argv or ("sleep", "1000")))

    def log(self, name: str) -> Path:
        return self.directory(name) / "log"

    def said(self, name: str) -> list[str]:
        """What the hooks have said, as LXC's log has it."""
        lines = self.log(name).read_text(errors="replace").splitlines()
        return [line.partition("nestrt: ")[2] for line in lines if "nestrt: " in line]

    def pid(self, name: str) -> int:
        """The first process."""
        return int(self("info", name, "-p", "-H").ok().out)

    def monitor(self, name: str) -> int:
        return int(Path(f"/proc/{self.pid(name)}/stat").read_text().rpartition(")")[2].split()[1])

    def ask(self, name: str, questions: dict[str, str]) -> Answers:
        """Put *questions* to a shell that is attached to the container."""
        result = self("attach", name, "--", "/bin/sh", "-c", script(questions))
        answers = parse(result.out)
        answers.result = result
        assert list(answers) == list(questions), f"{result}"
        return answers

    def nestrt(self, *argv: str) -> Result:
        return self.nest.run(NESTRT, *argv)

    def records(self) -> list[dict[str, Any]]:
        """What the plugin has on record."""
        directory = self.nest.inside("/run/nestrt/plugin")
        found = []
        for file in directory.iterdir() if directory.is_dir() else ():
            try:
                found.append(records.parse(file.read_bytes()))
            except OSError:  # being removed
                continue
        return [values for values in found if values]

    def left(self, name: str) -> list[str]:
        """What is there of a container that has ended: groups, its record, processes."""
        found = [f"group {path}" for path in (*groups(limit_group(name)), *groups(f"/lxc.monitor.{name}"))]
        found += [f"record {record}" for record in self.records() if record.get("container") == name]
        return found + [f"process {pid} {line}" for pid, line in self.nest.processes().items() if name in line]

    def clear(self) -> list[str]:
        """Stop and remove all containers; what stays of them."""
        found: list[str] = []
        self.nestrt("gc")
        for name in self.names:
            self("stop", name, "-k")
            left: Iterable[str] = []
            try:
                wait_for(lambda name=name: not self.left(name), "", 15.0)  # type: ignore[misc]
            except AssertionError:
                left = self.left(name)
                kill(processes(limit_group(name)))
                self.nestrt("gc")
            found += left
            shutil.rmtree(self.directory(name))
        self.names.clear()
        return found
