"""Marks and stamps: the extended attributes that say which guest a group belongs to.

A mark stands on a limit group. ``trusted.nestrt`` needs CAP_SYS_ADMIN in the
initial user namespace; ``user.nestrt`` can be set by whoever owns the group, so
what it says is what somebody inside says. Nothing here believes either: sizes
are bounded, every value goes through a typed getter, and a value that does not
fit is left out and named in ``problems``. No function raises for bad content.

Sources: xattr(7); fs/kernfs/inode.c (KERNFS_USER_XATTR_SIZE_LIMIT, 128 KiB per
group, 64 KiB per value by VFS).
"""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TRUSTED = "trusted.nestrt"
USER = "user.nestrt"
STAMPS = ("security.nestrt", "user.nestrt")

# A mark that nestrt writes has 1 to 2 KiB. The kernel allows 64 KiB, decoding makes that a hundred times
# as large, and a guest may have thousands of groups.
LARGEST = 16384
LONGEST_TEXT = 4096
MOST_ITEMS = 256
DEEPEST_VALUE = 4
LARGEST_NUMBER = (1 << 63) - 1
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def escape(text: str) -> str:
    r"""*text* with everything that a terminal would obey, or that is not a character, as ``\x1b`` and the like.

    Names of groups, commands and marks are the guest's to choose. A backslash is doubled, so that
    an escape cannot be forged either.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else ascii(c)[1:-1] for c in text)


def valid_name(text: str) -> bool:
    """Whether *text* can be a guest's name: ``[A-Za-z0-9][A-Za-z0-9_.-]{0,63}``."""
    return 0 < len(text) <= 64 and text[0] not in "_.-" and NAME_CHARACTERS.issuperset(text)


@record
class Mark:
    """What a mark says. Absent or unusable values have the default, and -1 stands for an unknown number.

    *attribute* is ``trusted.nestrt`` or ``user.nestrt``; *whole* is false for the short marks
    of the hierarchies that are not the primary one. *pid* and *start* (clock ticks since boot,
    proc_pid_stat(5) field 22) are as the launching level sees them; *created* is in seconds since 1970.
    *ids* are (inside, outside, count) at the launching level. *view*, *limits*, *partition*, *quota*, *quota_most* and
    *net* are as nestrt's mark format has them, cut down to plain bounded values. *root* is the name of the guest root.
    *runtime* is "launch", "nestrt" (the OCI runtime) or "plugin" (another runtime's guest), *engine* what called it:
    "podman", "docker", "lxc"; "" where not known. *locked*: the guest may not change its tree.
    """

    attribute: str
    name: str = ""
    id: str = ""
    level: int = -1
    state: str = ""
    pid: int = -1
    start: int = -1
    created: int = -1
    rootfs: str = ""
    command: tuple[str, ...] = ()
    policy: str = ""
    virtualize: bool = True
    max_level: int = -1
    ids: tuple[tuple[int, int, int], ...] = ()
    view: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None
    partition: dict[str, Any] | None = None
    broker: str = "none"
    quota: dict[str, Any] | None = None
    quota_most: dict[str, Any] | None = None
    max_groups: int = -1
    max_depth: int = -1
    net: dict[str, Any] | None = None
    rm: bool = False
    runtime: str = ""
    engine: str = ""
    locked: bool = False
    root: str = "guest"
    whole: bool = False
    problems: tuple[str, ...] = ()

    @property
    def made_by(self) -> str:
        """Runtime and engine in one word: "launch", "podman/plugin"; "" where the mark does not say."""
        return "/".join(part for part in (self.engine, self.runtime) if part)


def _plain(value: Any, depth: int = 0) -> Any:
    """*value* with long texts, long lists and deep nesting cut off; numbers are integers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_NUMBER else None
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if depth < DEEPEST_VALUE and isinstance(value, list):
        return [_plain(item, depth + 1) for item in value[:MOST_ITEMS]]
    if depth < DEEPEST_VALUE and isinstance(value, dict):
        return {key[:64]: _plain(item, depth + 1) for key, item in list(value.items())[:MOST_ITEMS]}
    return None


class _Getter:
    """Typed access to a decoded object that somebody else wrote; remembers what did not fit."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []

    def _bad(self, key: str, wanted: str) -> None:
        self.problems.append(f"{key} is not {wanted}")

    def number(self, key: str, low: int = -1) -> int:
        value = self.values.get(key, -1)
        if type(value) is int and low <= value <= LARGEST_NUMBER:
            return value
        self._bad(key, "a number in range")
        return -1

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if isinstance(value, str) and len(value) <= LONGEST_TEXT:
            return value
        self._bad(key, "a text")
        return ""

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(item[:LONGEST_TEXT] for item in value[:MOST_ITEMS])
        self._bad(key, "a list of texts")
        return ()

    def mapping(self, key: str) -> dict[str, Any] | None:
        value = self.values.get(key)
        if value is None or isinstance(value, dict):
            return None if value is None else _plain(value)
        self._bad(key, "an object")
        return None

    def ranges(self, key: str) -> tuple[tuple[int, int, int], ...]:
        value = self.values.get(key, [])
        if isinstance(value, list) and len(value) <= 340:  # the kernel's own limit, user_namespaces(7)
            rows = [row for row in value if isinstance(row, list) and len(row) == 3]
            rows = [row for row in rows if all(type(item) is int and 0 <= item < 1 << 32 for item in row)]
            if len(rows) == len(value):
                return tuple((row[0], row[1], row[2]) for row in rows)
        self._bad(key, "a list of [inside, outside, count]")
        return ()


def parse(raw: bytes, attribute: str) -> Mark:
    """The mark in *raw*, an extended attribute's value. Never raises; see ``Mark.problems``."""
    if len(raw) > LARGEST:
        return Mark(attribute, problems=(f"{len(raw)} bytes, more than {LARGEST}",))
    try:
        values = jsontext.loads(raw.decode())
    except ValueError:  # UnicodeDecodeError is one, so are numbers of 5000 digits and nesting without end
        return Mark(attribute, problems=("not JSON",))
    if not isinstance(values, dict):
        return Mark(attribute, problems=("not a JSON object",))
    get = _Getter(values)
    if values.get("v") != 1:
        get.problems.append("v is not 1, the version that this nestrt reads")
    name, state = values.get("name"), values.get("state", "")
    if not isinstance(name, str) or not valid_name(name):
        get.problems.append("name is not a guest's name")
        name = ""
    if state not in ("", "creating", "running"):
        get.problems.append("state is neither creating nor running")
        state = ""
    return Mark(
        attribute=attribute,
        name=name,
        id=get.text("id")[:64],
        level=get.number("level"),
        state=state,
        pid=get.number("pid"),
        start=get.number("start"),
        created=get.number("created"),
        rootfs=get.text("rootfs"),
        command=get.texts("command"),
        policy=get.text("policy"),
        virtualize=values.get("virtualize") is not False,
        max_level=get.number("max_level"),
        ids=get.ranges("ids"),
        view=get.mapping("view"),
        limits=get.mapping("limits"),
        partition=get.mapping("partition"),
        broker=get.text("broker") or "none",
        quota=get.mapping("quota"),
        quota_most=get.mapping("quota_most"),
        max_groups=get.number("max_groups"),
        max_depth=get.number("max_depth"),
        net=get.mapping("net"),
        rm=values.get("rm") is True,
        runtime=get.text("runtime")[:32],
        engine=get.text("engine")[:32],
        locked=values.get("locked") is True,
        root=_root(values.get("root")),
        whole="state" in values or "command" in values,
        problems=tuple(get.problems),
    )


def _root(value: Any) -> str:
    """The name of the guest root below the limit group, where it is not nestrt that chooses it: systemd-nspawn."""
    return value if isinstance(value, str) and valid_name(value) else "guest"


def read_mark(directory: str | int, names: list[str]) -> Mark | None:
    """The mark of a group, given the *names* of its attributes; the host's word before a claim.

    *directory* is a path or a descriptor. None if it has none, or the group is gone.
    """
    for attribute in (TRUSTED, USER):
        if attribute in names:
            try:
                return parse(os.getxattr(directory, attribute), attribute)
            except OSError:
                continue
    return None


def read_stamp(directory: str) -> dict[str, Any]:
    """The stamp on a guest root, as plain bounded values; {} if there is none or it cannot be read.

    ``security.nestrt`` wins over ``user.nestrt``; the key "attribute" says which it is.
    """
    for attribute in STAMPS:
        try:
            raw = os.getxattr(directory, attribute)
            values = jsontext.loads(raw.decode()) if len(raw) <= LARGEST else None
        except (OSError, ValueError):
            continue
        if isinstance(values, dict):
            return {**_plain(values), "attribute": attribute}
    return {}
