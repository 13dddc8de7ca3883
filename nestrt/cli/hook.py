"""``nestrt hook STAGE``: the plugin for other runtimes, called by an engine or a runtime for each container.

It runs as root with input that a container's author has a part in: it reads a bounded document from
standard input and one file of the engine's, opens nothing below the container's root filesystem, and
runs nothing.

    precreate       the config on standard input, the changed one on standard output (podman)
    createRuntime   the container's state on standard input: the groups are settled, the laws read back
    poststart       the laws read back once more, the locks among them
    poststop        all that is the guest's is removed
"""

from __future__ import annotations

import os
import sys
from stat import S_ISREG

from nestrt import jsontext
from nestrt.act import plugin, remove
from nestrt.cli.options import Option, parse, usage
from nestrt.errors import InputError, NestrtError, NotFound, StateError
from nestrt.kernel import pidfd
from nestrt.plan.rewrite import NOTE
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.cli._plugin import Guest

HEAD = """usage: nestrt hook [OPTION …] STAGE

What engines call for each container; nestrt hooks install binds it.

  precreate      reads a container's config.json, writes the changed one
  createRuntime  reads a container's state: settles its groups, checks the laws
  poststart      reads a container's state: checks the laws once more
  poststop       reads a container's state: removes what is nestrt's
  lxc            the hooks of LXC: nestrt hook lxc --help
"""
OPTIONS = (
    Option("policy", "NAME", "for containers that no rule of the host matches (default: none)"),
    Option("parked", "", "createRuntime: on v1 leave the first process in the limit group until it is started"),
    Option("help", "", "this text", "h"),
)
STATE_LIMIT = 8 << 20  # bytes: a container's annotations are in it
CHUNK = 1 << 20


def read_input(limit: int, what: str) -> bytes:
    """Standard input, whole. Raises InputError where it is longer than *limit* bytes."""
    found = b""
    while chunk := os.read(0, CHUNK):
        found += chunk
        if len(found) > limit:
            raise InputError("read", what, f"it is longer than {limit >> 20} MiB", "shorten it")
    return found


class State:
    """The state of a container, as a runtime gives it to a hook (runtime.md, "State"), checked in form."""

    def __init__(self, content: bytes) -> None:
        """Raises InputError."""
        where = "the container's state"
        try:
            value = jsontext.loads(content.decode("utf-8", "replace"))
        except ValueError as error:
            raise InputError("read", where, str(error), "give it one whole JSON document") from None
        if not isinstance(value, dict):
            raise InputError("read", where, "it is not an object", "give it what a runtime gives to a hook")
        self.id = self._text(value, "id")
        self.bundle = self._text(value, "bundle") or self._text(value, "bundlePath")
        pid = value.get("pid", 0)
        if type(pid) is not int or not 0 <= pid < 1 << 31:
            raise InputError("read", f"{where}, pid", "it is no process's number", "give it as a number")
        self.pid = pid
        annotations = value.get("annotations") or {}
        if not isinstance(annotations, dict):
            raise InputError("read", f"{where}, annotations", "it is not an object", "write an object")
        note = annotations.get(NOTE)
        self.group = note if isinstance(note, str) else ""
        if self.group and (not self.group.startswith("/") or ".." in self.group.split("/") or "\0" in self.group):
            raise InputError("read", f"{where}, annotation {NOTE}", "it is no group's path", "leave it out")
        if not self.bundle.startswith("/") or "\0" in self.bundle:
            raise InputError("read", f"{where}, bundle", "it is no absolute path", "give the bundle's directory")

    def _text(self, value: dict[str, Any], key: str) -> str:
        found = value.get(key) or ""
        if not isinstance(found, str):
            raise InputError("read", f"the container's state, {key}", "it is not text", "write text")
        return found

    def config(self) -> bytes:
        """The bundle's config.json. Raises NotFound, InputError."""
        return read_file(f"{self.bundle}/config.json")


def read_file(path: str) -> bytes:
    """A regular file of at most 16 MiB; its last name is not followed. Raises NotFound, InputError."""
    from nestrt.cli._plugin import CONFIG_LIMIT

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise NotFound("read", path, (error.strerror or "").lower(), "let the state name the bundle") from error
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise InputError("read", path, "it is not a regular file", "let the state name the bundle")
        with open(fd, "rb", closefd=False) as file:
            return file.read(CONFIG_LIMIT + 1)
    finally:
        os.close(fd)


def precreate(single: dict[str, str]) -> int:
    """Write the config back as it came, or as a policy wants it."""
    from nestrt.cli import _plugin

    where = "the container's config"
    content = read_input(_plugin.CONFIG_LIMIT, where)
    document, spec = _plugin.read(content, where)
    guest = _plugin.find(document, spec, "", single.get("policy", ""))
    if guest is None:
        _write(content)
        return 0
    text, record = _plugin.make(guest, guest.bundle.cgroup, _plugin.maker(os.getppid()))
    try:
        _write(text.encode())
    except OSError:
        _plugin.undo(record, guest)
        raise
    plugin.sweep(guest.facts.hierarchies, record.name)
    record.close()
    return 0


def _write(content: bytes) -> None:
    while content:
        content = content[os.write(1, content) :]


def create_runtime(state: State, single: dict[str, str]) -> int:
    """Settle the guest's groups, and look whether the laws hold."""
    from nestrt.cli import _plugin

    document, spec = _plugin.read(state.config(), f"{state.bundle}/config.json")
    guest = _plugin.find(document, spec, state.bundle, single.get("policy", ""), state.id)
    if guest is None:
        return 0
    mark = _plugin.mark_of(guest)
    record = plugin.open_record(str(mark["record"]))
    if record is None or record.text("id") != mark.get("id"):
        raise StateError("settle", f"guest {guest.name}", "it is being removed", "start it again")
    try:
        _settle(guest, mark, state, record, "parked" in single)
    finally:
        record.close()
    return _check(guest, state, started=False)


def _settle(guest: Guest, mark: dict[str, Any], state: State, record: plugin.Record, parked: bool) -> None:
    from nestrt.plan.plugin import settle

    start = pidfd.start_time(state.pid) if state.pid else None
    if start is None or not _is_inside(state.pid, guest):
        reason = "its first process has ended" if start is None else "its first process is not in the guest root"
        raise StateError("settle", f"guest {guest.name}", reason, "look at what the runtime says")
    worker = plugin.Worker(guest.name, state.pid)
    worker.run(settle(guest.bundle, guest.facts, jsontext.dumps(mark), parked))
    request = guest.bundle.request
    assert request is not None
    first = request.first_group[len(request.limit_group) + 1 :]
    record.values.update(bundle=state.bundle, started=True, pid=state.pid, start=start, first=first, parked=parked)
    record.save()


def _is_inside(pid: int, guest: Guest) -> bool:
    """Whether the runtime has put *pid* where the document says."""
    from nestrt.kernel.mountinfo import read_cgroups

    root = guest.bundle.cgroup + "/guest"
    found = read_cgroups(pid)
    return any(path == root or path.startswith(root + "/") for path in found.values())


def _check(guest: Guest, state: State, started: bool) -> int:
    return 0


def poststart(state: State, single: dict[str, str]) -> int:
    """Look whether the laws hold, now that the program runs."""
    from nestrt.cli import _plugin

    if not state.group:
        return 0
    document, spec = _plugin.read(state.config(), f"{state.bundle}/config.json")
    guest = _plugin.find(document, spec, state.bundle, single.get("policy", ""), state.id)
    return _check(guest, state, started=True) if guest is not None else 0


def poststop(state: State, single: dict[str, str]) -> int:
    """Remove what is the guest's; what is another's stays, whatever the state says."""
    if not state.group:
        return 0
    hierarchies = read_hierarchies()
    mark: dict[str, Any] = {}
    for hierarchy in hierarchies:
        mark = remove.read_mark(hierarchy, state.group)
        if "record" in mark:
            break
    name = mark.get("record")
    record = plugin.open_record(name) if isinstance(name, str) and name in plugin.names() else None
    if record is not None:
        try:
            if record.text("group") == state.group and record.text("bundle") in ("", state.bundle):
                plugin.take_back(record, hierarchies)
        finally:
            record.close()
    plugin.sweep(hierarchies)
    return 0


STAGES = {"createRuntime": create_runtime, "poststart": poststart, "poststop": poststop}


def main(argv: list[str]) -> int:
    """*argv* are the words after ``hook``. Returns the exit status; what is wrong is one line on standard error."""
    os.chdir("/")
    os.umask(0o022)
    single, _, rest = parse(OPTIONS, argv, "hook")
    if rest and not single:
        single, _, more = parse(OPTIONS, rest[1:], "hook")
        rest = rest[:1] + more
    if "help" in single:
        sys.stdout.write(usage(HEAD, OPTIONS))
        return 0
    if len(rest) != 1 or rest[0] not in ("precreate", *STAGES):
        stage = rest[0] if rest else ""
        raise InputError("run", f"hook {stage!a}", "no such stage", f"known: precreate, {', '.join(STAGES)}")
    if rest[0] == "precreate":
        return precreate(single)
    return STAGES[rest[0]](State(read_input(STATE_LIMIT, "the container's state")), single)


class Refused(NestrtError):
    """A law does not hold, and the policy is strict."""
