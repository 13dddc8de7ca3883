"""``nestrt ps``: the processes of a container, in all groups at and below its limit group.

Engines call ``ps --format json`` often: that way starts no program and reads one
hierarchy. The table is ps(1)'s own, and only the rows of the container are kept, as runc does.
"""

from __future__ import annotations

import os
import sys

from nestrt import jsontext
from nestrt.act.containers import load
from nestrt.cli.engine import words
from nestrt.cli.options import Option
from nestrt.errors import HostError, InputError, NestrtError
from nestrt.kernel import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.containers import Container
    from nestrt.cli.engine import Globals

OPTIONS = (Option("format", "FORMAT", "table (ps's own), or json: a list of pids", "f", choices=("table", "json")),)
USAGE = """usage: nestrt ps [--format table|json] ID [PS OPTION …]

The processes of a container, with the pids of this level. PS OPTIONs are those of ps(1), -ef if there
are none; its output must have a column PID."""
PS = ("/bin/ps", "/usr/bin/ps")
# One of these has every process: the v2 tree, else a v1 hierarchy in which runc would look too.
USUAL = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/devices")


def main(flags: Globals, argv: list[str]) -> int:
    """Carry out ``nestrt ps``. Raises InputError, NotFound, HostError without ps(1)."""
    given = words("ps", OPTIONS, argv, USAGE, permute=False)
    if given is None:
        return 0
    single, _, operands = given
    if not operands:
        raise InputError("ps", "a container", "no id was given", "write nestrt ps ID")
    container = load(flags.root, operands[0])
    form = single.get("format", "table")
    if form not in ("table", "json"):
        raise InputError("use", f"--format {form!a}", "invalid format option", "table or json")
    pids = processes(container)
    if form == "json":
        sys.stdout.write(jsontext.dumps(pids) + "\n")
        return 0
    text = _run_ps(operands[1:] or ["-ef"])
    for line in rows(text, set(pids)):
        sys.stdout.write(line + "\n")
    return 0


def processes(container: Container) -> list[int]:
    """The pids of the container as this level sees them; [] once it has stopped."""
    if not container.cgroup:
        return family(container.pid) if container.alive() else []
    for place in (*USUAL, ""):
        if not place:
            from nestrt.probe.facts import read_hierarchies  # only where cgroups are in no usual place

            places = [h.mountpoint for h in read_hierarchies()]
        else:
            places = [place]
        for mountpoint in places:
            top = mountpoint + container.cgroup
            if os.path.exists(top + "/cgroup.procs"):
                return sorted(cgroup.processes_below(top) - {0})
    return []


def family(pid: int) -> list[int]:
    """*pid* and all its descendants: /proc/PID/task/TID/children (proc(5)), for a container without groups."""
    found, queue = set(), [pid]
    while queue:
        one = queue.pop()
        found.add(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children", encoding="ascii") as file:
                    queue += [int(word) for word in file.read().split() if int(word) not in found]
        except OSError:
            continue  # it has ended
    return sorted(found)


def rows(text: str, pids: set[int]) -> list[str]:
    """The header of ps's output *text* and its rows for *pids*. Raises InputError without a column PID."""
    header, *lines = text.splitlines() or [""]
    titles = header.split()
    if "PID" not in titles:
        raise InputError("read", "the output of ps", "couldn't find PID field in ps output", "ask ps for the pid too")
    column = titles.index("PID")
    found = [header]
    for line in lines:
        fields = line.split()
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            found.append(line)
    return found


def _run_ps(arguments: list[str]) -> str:
    """What ps(1) prints. Raises HostError where there is none, NestrtError with its own words where it fails."""
    program = next((path for path in PS if os.path.exists(path)), "")
    if not program:
        raise HostError("run", "ps", f"no such file or directory: {PS[0]}", "install procps, or use --format json")
    fd = os.memfd_create("ps", os.MFD_CLOEXEC)  # a file: nobody has to read while ps writes
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, 1), (os.POSIX_SPAWN_DUP2, fd, 2)]
        # Everything that Python opens is close-on-exec, so ps gets nothing else.
        pid = os.posix_spawn(program, ["ps", *arguments], os.environ, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        size = os.fstat(fd).st_size
        text = os.pread(fd, size, 0).decode(errors="replace")
    finally:
        os.close(fd)
    if status:
        raise NestrtError("run", "ps", f"exit status {status}: {text.strip().partition(chr(10))[0]}", "see man ps")
    return text
