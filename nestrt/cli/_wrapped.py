"""What ``wrap`` does for a container that is there: start, update, delete."""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.act import plugin, records
from nestrt.act.containers import Container
from nestrt.cli.options import parse_go
from nestrt.errors import StateError
from nestrt.kernel import cgroup, pidfd
from nestrt.plan.update import as_json
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.cli.wrap import Call
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources


def _record(call: Call) -> records.Record | None:
    """The container's record, locked; None where it is no guest."""
    name = records.key(call.key)
    return records.open_record(name) if os.path.exists(f"{records.DIRECTORY}/{name}") else None


def start(call: Call, runtime: str) -> int | None:
    """On v1: out of the limit group, in which the engine was to find the first process, into the first group."""
    record = _record(call)
    if record is None:
        return None
    try:
        pid = record.number("pid")
        if record.values.get("parked") is True and pid and pidfd.start_time(pid) == record.number("start"):
            first = record.text("first")
            for h in records.hierarchies(record):
                if h.version == 1 and os.path.isdir(h.path(first)):
                    cgroup.write(h.path(first, "cgroup.procs"), str(pid))
            record.values["parked"] = False
            record.save()
    finally:
        record.close()
    return None


def delete(call: Call, runtime: str) -> int | None:
    """Have the runtime delete it, and remove what is left of the guest: one whose hooks never ran, or could not."""
    record = _record(call)
    if record is None:
        return None
    record.close()  # for the poststop hook
    if {"force", "f"} & call.flags.keys():
        from nestrt.act import remove

        # What a guest has frozen of its own cannot die, and runc waits for it.
        remove.kill(records.hierarchies(record), record.text("group"))
    status = run(runtime, call.words)
    record = _record(call)
    if record is not None:
        try:
            if status == 0:
                plugin.take_back(record, records.hierarchies(record) or read_hierarchies())
        finally:
            record.close()
    return status


def run(runtime: str, words: list[str], shared: int = -1) -> int:
    """Run the real runtime with what is open here, and the descriptor *shared*; its exit status."""
    from nestrt.cli.wrap import become

    pid = os.fork()
    if pid == 0:
        try:
            if shared >= 0:
                os.set_inheritable(shared, True)
            become(runtime, words)
        except OSError:
            pass
        os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


class _Wrapped(Container):
    """A guest of another runtime, for what changes limits: its record is its state file."""

    def __init__(self, record: records.Record, limits: Limits, config: str) -> None:
        values = {"cgroup": record.text("group"), "virtualized": True, "bound": limits.to_mark()}
        if record.text("unit"):
            values.update(driver="systemd", unit=record.text("unit"))
        if "resources" in record.values:
            values["resources"] = record.values["resources"]
        super().__init__(records.DIRECTORY, record.text("container"), values)
        self.record = record
        self.text_of_config = config

    def config(self) -> str:
        return self.text_of_config

    def save(self) -> None:
        self.record.values["resources"] = self.document["resources"]
        self.record.save()


class _Failed(Exception):
    """The runtime's own update has failed, and said why."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def update(call: Call, runtime: str) -> int | None:
    """Change limit group and guest root as ``nestrt update`` does, within the policy; then have the runtime do it too.

    What the runtime refuses is taken back.
    """
    record = _record(call)
    if record is None:
        return None
    try:
        return _update(call, runtime, record)
    except _Failed as failed:
        return failed.status
    finally:
        record.close()


def _update(call: Call, runtime: str, record: records.Record) -> int:
    from nestrt.cli import _plugin
    from nestrt.cli import update as verb
    from nestrt.cli.hook import read_file

    bundle = record.text("bundle")
    path = record.text("config") or f"{bundle}/config.json"
    document, spec = _plugin.read(read_file(path), path)
    guest = _plugin.find(document, spec, bundle, call.policy, call.id)
    if guest is None:
        raise StateError("update", f"container {call.id}", "the host has taken its policy away", "start it again")
    begin = call.words.index("update")
    single, _, _ = parse_go(verb.OPTIONS, call.words[begin + 1 :], "update")
    new = verb.from_file(single["resources"]) if single.get("resources") else verb.from_flags(single)

    def hand_on(resources: Resources) -> None:
        fd = os.memfd_create("nestrt-resources", os.MFD_CLOEXEC)
        os.write(fd, jsontext.dumps(as_json(resources)).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        status = run(runtime, [*call.words[:begin], "update", "--resources", f"/proc/self/fd/{fd}", call.id], fd)
        os.close(fd)
        if status:
            raise _Failed(status)

    verb.apply(_Wrapped(record, guest.host.limits, jsontext.dumps(document)), verb.fixed(new), hand_on)
    return 0


def kill(call: Call, runtime: str) -> int | None:
    """v1: what a guest has frozen of its own cannot die (runc#2105): it is thawed when it has the signal to end."""
    if call.operands[1:2] and call.operands[1].upper().removeprefix("SIG") not in ("9", "KILL"):
        return None
    record = _record(call)
    if record is None:
        return None
    record.close()
    status = run(runtime, call.words)
    plugin.release(record, records.hierarchies(record))
    return status


ACTIONS = {"kill": kill, "start": start, "update": update, "delete": delete}
