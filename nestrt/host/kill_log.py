"""Out-of-memory kills in the kernel's log: which group had no memory left, and who was killed in which.

mm/oom_kill.c, dump_oom_victim(), and mm/memcontrol.c, mem_cgroup_print_oom_context()::

    oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=init,mems_allowed=0,
    oom_memcg=/nestrt/web,task_memcg=/nestrt/web/guest/job,task=sh,pid=4711,uid=100000

or ``,global_oom`` instead of oom_memcg where it was the machine's memory. All of it is one line. The names of groups
and of the process are chosen in guests, and may contain all of these words. Three things that nobody chooses keep a
guest from writing another's name into it. What comes before ``,oom_memcg=/`` has no slash behind a sign of equality:
a cpuset is named by one component. The group of the process is the one that had no memory, or below it. And of a path,
the part up to a guest's root was made by levels above. So where a path can be read in several ways, all of them are
in the guest that chose it.
"""

from __future__ import annotations

import re

from nestrt.record import record

_HEAD = re.compile(rb"oom-kill:constraint=CONSTRAINT_[A-Z_]{1,20},nodemask=")
# A process's name has at most 15 bytes (TASK_COMM_LEN).
_TAIL = re.compile(rb",task=(.{0,15}),pid=([0-9]{1,10}),uid=([0-9]{1,10})", re.DOTALL)
_LIMIT, _WHOLE, _GROUP = b",oom_memcg=/", b",global_oom,task_memcg=/", b",task_memcg=/"


@record
class Kill:
    """Process *pid* of user *uid*, called *task*, was killed in *group*, since *limit* had no memory left: a group,
    or None where it was the machine. Paths are those of the memory hierarchy, from the host's root."""

    group: str
    limit: str | None
    task: str
    pid: int
    uid: int


def parse_kill(text: bytes) -> Kill | None:
    """The kill that a record of the kernel's own tells of; None for any other record, and for one that is cut off."""
    if not _HEAD.match(text):
        return None
    for tail in filter(None, (_TAIL.fullmatch(text, at) for at in _places(text, b",task="))):
        limit, group = _groups(text[: tail.start()])
        if group is not None:
            where = None if limit is None else _text(limit)
            return Kill(_text(group), where, _text(tail[1]), int(tail[2]), int(tail[3]))
    return None


def _places(text: bytes, word: bytes) -> list[int]:
    found = []
    at = text.find(word)
    while at >= 0:
        found.append(at)
        at = text.find(word, at + 1)
    return found


def _groups(body: bytes) -> tuple[bytes | None, bytes | None]:
    """The group that had no memory (None: the machine) and the process's; None twice where there are none."""
    at = body.find(_LIMIT)
    whole = body.find(_WHOLE)
    if whole >= 0 and (at < 0 or whole < at):
        return None, body[whole + len(_WHOLE) - 1 :]
    if at < 0:
        return None, None
    rest = body[at + len(_LIMIT) - 1 :]
    for cut in _places(rest, _GROUP):
        limit, group = rest[:cut], rest[cut + len(_GROUP) - 1 :]
        if group == limit or group.startswith(limit.rstrip(b"/") + b"/"):
            return limit, group
    return None, None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
