"""The hooks that a runtime calls once a guest is there: createRuntime, poststart, poststop.

What they do was planned when the limit group was made, and stands in the guest's record.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.act import records, script
from nestrt.errors import HostError, InputError, NestrtError, StateError
from nestrt.kernel import pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As plan.rewrite writes them into the document's annotations.
NOTE, RECORD = "io.nestrt.limit-group", "io.nestrt.record"
WHERE = "the container's state"


class State:
    """The state of a container, as a runtime gives it to a hook (runtime.md, "State"), checked in form.

    *group* and *record* are what a rewrite has noted in the annotations, "" for a container that has none.
    """

    def __init__(self, content: bytes) -> None:
        """Raises InputError."""
        try:
            value = jsontext.loads(content.decode("utf-8", "replace"))
        except ValueError as error:
            raise InputError("read", WHERE, str(error), "give it one whole JSON document") from None
        if not isinstance(value, dict):
            raise InputError("read", WHERE, "it is not an object", "give it what a runtime gives to a hook")
        self.id = _text(value, "id")
        self.bundle = _text(value, "bundle") or _text(value, "bundlePath")
        if not self.bundle.startswith("/") or "\0" in self.bundle:
            raise InputError("read", f"{WHERE}, bundle", "it is no absolute path", "give the bundle's directory")
        pid = value.get("pid", 0)
        if type(pid) is not int or not 0 <= pid < 1 << 31:
            raise InputError("read", f"{WHERE}, pid", "it is no process's number", "give it as a number")
        self.pid = pid
        annotations = value.get("annotations") or {}
        if not isinstance(annotations, dict):
            raise InputError("read", f"{WHERE}, annotations", "it is not an object", "write an object")
        self.group = _text(annotations, NOTE)
        self.record = _text(annotations, RECORD)
        if self.record and (self.record in (".", "..") or "/" in self.record or "\0" in self.record):
            raise InputError("read", f"{WHERE}, annotation {RECORD}", "it names no record", "leave it out")


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key) or ""
    if not isinstance(found, str):
        raise InputError("read", f"{WHERE}, {key}", "it is not text", "write text")
    return found


def own_record(state: State) -> records.Record | None:
    """The record of the state's guest, locked; None where there is none, or it is another's."""
    if not state.record or not state.group:
        return None
    record = records.open_record(state.record)
    if record is None:
        return None
    try:
        if record.text("group") == state.group and _is_its(record, state):
            return record
    except BaseException:
        record.close()
        raise
    record.close()
    return None


def _is_its(record: records.Record, state: State) -> bool:
    """Whether the record is of the state's container: by its bundle, and where that was not known, by its document.

    For the bundle crun gives its own working directory, which is "/" when it has made devices in a user namespace; then
    it is the container of which a process is in the guest root, later that of the first process, or which has ended.
    """
    if state.bundle == "/":
        if record.values.get("started") is not True:
            return bool(state.pid) and _is_inside(state.pid, record.text("group"))
        first = record.number("pid")
        return pidfd.start_time(first) != record.number("start") or state.pid == first
    if record.text("bundle"):
        return record.text("bundle") == state.bundle
    from nestrt.cli.hook import read_file

    try:
        document = jsontext.loads(read_file(f"{state.bundle}/config.json").decode("utf-8", "replace"))
    except (NestrtError, ValueError):
        return False
    linux = document.get("linux") if isinstance(document, dict) else None
    path = linux.get("cgroupsPath") if isinstance(linux, dict) else None
    # systemd's own way to name a scope is not a path; the runtime has made the group of it by then.
    return path == f"{state.group}/guest" or (isinstance(path, str) and "/" not in path)


def create_runtime(state: State, single: dict[str, str]) -> int:
    """Settle the guest's groups, and look whether the laws hold."""
    if not state.group:
        return _require_none(state, single.get("policy", ""))
    record = own_record(state)
    if record is not None and record.values.get("later") is True and "script" not in record.values:
        from nestrt.cli import _scope

        try:
            _scope.settle(record, state, single.get("policy", ""))
        except BaseException:
            record.close()
            raise
    if record is None or "script" not in record.values:
        raise StateError(
            "settle",
            f"container {state.id}",
            f"nobody has prepared the limit group {state.group}",
            f"start it again; only nestrt writes the annotation {NOTE}",
        )
    try:
        _settle(record, state)
        return _check(record, state, started=False)
    finally:
        record.close()


def _require_none(state: State, policy_name: str) -> int:
    """0 where no policy is meant for a container whose document nobody has rewritten. Raises HostError."""
    from nestrt.cli import _plugin
    from nestrt.cli.hook import read_file

    path = f"{state.bundle}/config.json"
    document, spec = _plugin.read(read_file(path), path)
    guest = _plugin.find(document, spec, state.bundle, policy_name, state.id)
    if guest is None:
        return 0
    raise HostError(
        "settle",
        f"guest {guest.name}",
        f"policy {guest.host.source} is meant for it, and its config was not rewritten",
        "bind the precreate hook too (nestrt hooks install), or let nestrt wrap be the engine's runtime",
    )


def _settle(record: records.Record, state: State) -> None:
    group = record.text("group")
    start = pidfd.start_time(state.pid) if state.pid else None
    if start is None or not _is_inside(state.pid, group):
        reason = "its first process has ended" if start is None else "its first process is not in the guest root"
        raise StateError("settle", f"guest {record.text('name')}", reason, "look at what the runtime says")
    if record.values.get("started") is True and record.number("start") == start:
        return  # an engine that has the hook by two names
    operations = record.values["script"]
    now = records.hierarchies(record)
    if any(h.mountpoint.startswith(records.DETACHED) for h in now):
        operations = jsontext.loads(records.moved(jsontext.dumps(operations), record, now))
    if record.number("holder"):
        from nestrt.act import holder

        holder.release(record, now)
    script.run(operations, state.pid)
    bundle = record.text("bundle") if state.bundle == "/" else state.bundle
    record.values.update(bundle=bundle, started=True, pid=state.pid, start=start)
    record.save()


def _is_inside(pid: int, group: str) -> bool:
    """Whether the runtime has put *pid* where its document says."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            paths = [line.rstrip("\n").split(":", 2)[2] for line in file]
    except OSError:
        return False
    root = f"{group}/guest"
    return any(path == root or path.startswith(root + "/") for path in paths)


def _check(record: records.Record, state: State, started: bool) -> int:
    """Read the laws back. In a strict policy one that does not hold is an error; else it is reported once."""
    from nestrt.cli import _verdict

    return _verdict.check(record, state.pid, started)


def poststart(state: State, single: dict[str, str]) -> int:
    """Look whether the laws hold, now that the program runs."""
    record = own_record(state)
    if record is None:
        return 0
    try:
        return _check(record, state, started=True)
    finally:
        record.close()


def poststop(state: State, single: dict[str, str]) -> int:
    """Remove what is the guest's; what is another's stays, whatever the state says."""
    from nestrt.act import plugin

    record = own_record(state)
    if record is not None:
        try:
            plugin.take_back(record, records.hierarchies(record))
        finally:
            record.close()
    if records.names():
        from nestrt.probe.facts import read_hierarchies

        plugin.sweep(read_hierarchies())
    return 0


STAGES = {"createRuntime": create_runtime, "poststart": poststart, "poststop": poststop}
