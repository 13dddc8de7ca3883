"""What a hook does with what it has found of the laws: nothing, one line in the log, or the end of the container."""

from __future__ import annotations

import os
import time

from nestrt.act import records
from nestrt.errors import InputError, NestrtError, one_line
from nestrt.host.laws import read_back
from nestrt.probe.policies import from_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.laws_subject import Finding

SYSLOG = "/dev/log"
LOG = "/var/log/nestrt.log"
WARNING = 4 | 3 << 3  # LOG_WARNING, LOG_DAEMON: syslog(3)


class NotLawful(NestrtError):
    """A law does not hold, and the guest's policy is strict."""


def check(record: records.Record, pid: int, started: bool) -> int:
    """Read the laws back for the guest of *record*, whose first process is *pid*; 0.

    Raises NotLawful in a strict policy where one does not hold: before its start the runtime ends the container
    then, after it nothing of it is left running. Else each is reported once.
    """
    try:
        policy = from_fields(record.values["policy"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("read", f"record {record.path}", "it is damaged", "start the container again") from error
    group = record.text("group")
    found = read_back(
        pid,
        group,
        records.hierarchies(record),
        policy,
        started,
        waiting=record.values.get("parked") is True,
        mark=record.text("mark"),
        every_device=record.values.get("every_device") is True,
        covered=record.values.get("later") is not True,  # there readonlyPaths lock, which come last
    )
    broken = [finding for finding in found if finding.holds is False]
    if not broken:
        return 0
    name = record.text("name")
    if policy.strict:
        if started:
            _end(record)
        first = broken[0]
        raise NotLawful(
            "start",
            f"guest {name}",
            f"law {first.law} does not hold: {first.what}",
            first.remedy or "see nestrt check; strict = false in its policy only reports this",
        )
    _report(record, name, broken)
    return 0


def _end(record: records.Record) -> None:
    """Kill every process of the guest, in all its groups."""
    from nestrt.act import remove

    remove.kill(records.hierarchies(record), record.text("group"))


def _report(record: records.Record, name: str, broken: list[Finding]) -> None:
    """Each finding that has not been reported of this guest: standard error, and the host's log."""
    known = record.values.setdefault("reported", [])
    for finding in broken:
        text = one_line(f"guest {name}: law {finding.law} does not hold: {finding.what}")
        if text in known:
            continue
        known.append(text)
        os.write(2, f"nestrt: warning: {text}\n".encode())
        log(text)
    record.save()


def log(text: str) -> None:
    """One line to syslog(3); where no syslog daemon listens, to /var/log/nestrt.log. Never fails."""
    import _socket

    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
        sock.connect(SYSLOG)
        sock.send(f"<{WARNING}>nestrt[{os.getpid()}]: {text}".encode())
        return
    except OSError:
        pass
    try:
        fd = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY, 0o600)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        os.write(fd, f"{stamp} {text}\n".encode())
        os.close(fd)
    except OSError:
        return
