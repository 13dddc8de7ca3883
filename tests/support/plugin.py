"""Containers of other runtimes that the plugin makes guests: bundles by ``nestrt wrap``.

::

    test ──▶ nestrt wrap --runtime RUNTIME --root R VERB …  ──exec──▶ RUNTIME --root R VERB …
               │                                                        └ hooks: nestrt hook createRuntime, poststop
               └ /run/nestrt/plugin/RECORD, limit group, config.json
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.act.records import parse
from support.bundles import Bundle, clear_parent
from support.hostside import hierarchies, hierarchy_of, is_v2_only
from support.need import SLOW, require
from support.rootfs import CHECKOUT
from support.runner import STATE, Nestrt, Result, wait_for

RUNC, CRUN = "/usr/sbin/runc", "/usr/bin/crun"
# Debian's crun 1.8 takes no hybrid host whose v2 tree has a controller.
RUNTIMES = (RUNC, CRUN) if is_v2_only() else (RUNC,)
COMMAND = str(CHECKOUT / "hooks" / "nestrt")
RECORDS = STATE / "plugin"
NOTE = "io.nestrt.limit-group"
_numbers = itertools.count(1)


def records_of(bundle: Wrapped) -> list[str]:
    """The names of the records of *bundle*, whatever their groups."""
    return [name for name, values in records().items() if str(bundle.path) == values.get("bundle")]


def records(directory: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """The plugin's records by their names."""
    found = {}
    for name in os.listdir(directory) if directory.exists() else ():
        try:
            values = parse((directory / name).read_bytes())
        except OSError:  # it went meanwhile
            continue
        if values:
            found[name] = values
    return found


class Wrapped(Bundle):
    """A bundle whose verbs are those of *runtime*, by ``nestrt wrap``; without a policy until one is annotated."""

    def __init__(self, nestrt: Nestrt, place: Path, id: str, rootfs: Path, state: Path, runtime: str = RUNC) -> None:
        super().__init__(nestrt, place, id, rootfs, state)
        self.runtime = runtime
        self.host_policy = ""

    @property
    def wrap(self) -> list[str]:
        """The words before those of the runtime."""
        policy = ["--policy", self.host_policy] if self.host_policy else []
        return ["wrap", "--runtime", self.runtime, *policy]

    @property
    def globals(self) -> list[str]:
        return [*self.wrap, "--root", str(self.state_root)]

    @globals.setter
    def globals(self, words: list[str]) -> None:
        """Bundle sets its own."""

    def guest(self, policy: str = "nested") -> Wrapped:
        """Give it a policy by annotation."""
        self.annotate(policy=policy)
        return self

    def plain(self, *words: str, **named: Any) -> Result:
        """The runtime itself with ``--root R WORDS``, past the plugin."""
        argv = (self.runtime, "--root", str(self.state_root), *words)
        named.setdefault("stdin", subprocess.DEVNULL)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(argv, stdout=out, stderr=err, timeout=60 * SLOW, **named)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            return Result(argv, done.returncode, *texts)

    def words_of_runtime(self, verb: str, *options: str) -> list[str]:
        """The words of ``create`` or ``run`` for plain(), after the document has been written."""
        self.write()
        return [verb, "--bundle", str(self.path), *options, self.id]

    @property
    def document(self) -> dict[str, Any]:
        """The config.json that is there now."""
        found: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        return found

    def record(self) -> dict[str, Any]:
        """What nestrt has noted of it; {} if nothing."""
        return next((values for values in records().values() if values.get("group") == self.cgroup), {})

    def start(self, **named: Any) -> Result:
        return self.verb("start", self.id, **named)

    def gone(self) -> None:
        """AssertionError unless all that it had is away, once what dies has had a moment."""
        wait_for(lambda: not self.leftovers(), f"nothing of {self.id}: {self.leftovers()}", 10)

    def gone_by_force(self) -> None:
        """Delete it by force; AssertionError unless all is away then."""
        self.delete("--force").ok()
        self.gone()

    def leftovers(self) -> list[str]:
        found = super().leftovers()
        mine = (self.cgroup, str(self.path))
        found += [f"record {n}" for n, v in records().items() if v.get("group") in mine or v.get("bundle") in mine]
        found += [f"file {path}" for path in self.path.iterdir() if ".nestrt." in path.name]
        return found

    def sweep(self) -> None:
        for name, values in records().items():
            if values.get("group") == self.cgroup:
                (RECORDS / name).unlink(missing_ok=True)
        super().sweep()


def with_etc(etc: Path, place: Path) -> Nestrt:
    """The command where /etc is the directory *etc*, in a mount namespace that each call has to itself."""
    script = place / "nestrt-with-etc"
    mount = f"mount --bind '{etc}' /etc"
    script.write_text(
        f'#!/bin/sh\nexec unshare --mount --propagation private sh -c "{mount} && exec {COMMAND} \\"\\$@\\"" sh "$@"\n'
    )
    script.chmod(0o755)
    command = Nestrt()
    command.command = str(script)
    return command


def wrapped_bundles(nestrt: Nestrt, busybox: Path, runtime: str = RUNC) -> Iterator[Callable[..., Wrapped]]:
    """The body of a fixture: gives a function that makes bundles for *runtime*.

    At the end each container is deleted by force, and the test fails if anything stays.
    """
    require("runtime", None if os.access(runtime, os.X_OK) else f"{runtime} is not installed")
    made: list[Wrapped] = []
    base = Path(tempfile.mkdtemp(prefix="nestrt-plugin-", dir="/tmp"))
    base.chmod(0o755)

    def new(id: str = "", rootfs: Path | None = None, state: Path | None = None) -> Wrapped:
        name = id or f"nestrt-w-{os.getpid():x}-{next(_numbers)}"
        place = Path(tempfile.mkdtemp(prefix="bundle-", dir=base))
        place.chmod(0o755)
        made.append(Wrapped(nestrt, place, name, rootfs or busybox, state or base / "state", runtime))
        return made[-1]

    yield new
    nestrt.stop()
    left: list[str] = []
    for bundle in made:
        try:
            bundle.delete("--force")  # runc has a status of its own for one that is not there
        except subprocess.TimeoutExpired as error:
            left.append(str(error))
        end = time.monotonic() + 10 * SLOW
        while (found := bundle.leftovers()) and time.monotonic() < end:
            time.sleep(0.02)
        left += found
        bundle.sweep()
    clear_parent()
    shutil.rmtree(base, ignore_errors=True)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


def memberships(pid: int) -> dict[str, str]:
    """The groups of *pid* as the host sees them, by a hierarchy's mountpoint."""
    found = {}
    rows = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for hierarchy in hierarchies():
        for _, names, path in rows:
            given = frozenset(names.removeprefix("name=").split(",")) if names else frozenset()
            own = hierarchy.controllers or frozenset({hierarchy.name})
            if (hierarchy.version == 2 and not names) or (hierarchy.version == 1 and given == own):
                found[str(hierarchy.mountpoint)] = path
    assert len(found) == len(hierarchies()), rows
    return found


def standing(controller: str, group: str, v1: str, v2: str) -> str:
    """The content of the limit file of *group*, stripped; "" where the group is not there."""
    hierarchy = hierarchy_of(controller)
    assert hierarchy is not None, f"no hierarchy has {controller}"
    file = hierarchy.group(group) / (v1 if hierarchy.version == 1 else v2)
    return file.read_text().strip() if file.exists() else ""
