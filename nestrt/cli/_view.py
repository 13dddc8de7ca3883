"""What the commands that look at guests have in common: the walk, and writing what was seen."""

from __future__ import annotations

import os
import sys

from nestrt.errors import HostError
from nestrt.host.render import ASCII, GLYPHS
from nestrt.host.sight import Sight
from nestrt.host.style import Style
from nestrt.host.walk import walk, walk_to
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nestrt.host.walk import View


def look(names: Iterable[str] = ()) -> Sight:
    """Walk this level's groups; with *names*, of the guests only those that they lead to. Says on standard error what
    cannot be seen. Raises HostError without cgroups."""
    names = tuple(names)
    sight = Sight(walk_to(read_hierarchies(), names) if names else walk(read_hierarchies()))
    note_unseen(sight.view)
    return sight


def note_unseen(view: View) -> None:
    """Say on standard error what of *view* cannot be seen."""
    if view.level == 0 and os.geteuid() != 0:
        note = "nestrt: the host's marks (trusted.nestrt) are for root to read: run it as root to see more"
        print(note, file=sys.stderr)


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def style() -> Style:
    """Colours and bars, if standard output is a terminal and NO_COLOR is not set."""
    colour = on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(colour, glyphs() is GLYPHS)


def width() -> int | None:
    """The columns of the terminal; None where output is not one, or does not know."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None if on_terminal() else None
    except OSError:
        return None


def glyphs() -> tuple[str, str, str, str]:
    """Lines of a tree that standard output can encode, and that the locale is for."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return GLYPHS if utf8 and _locale() not in ("", "C", "POSIX") else ASCII


def _locale() -> str:
    """The locale that the user chose for characters, "" where none is."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        value = os.environ.get(name, "")
        # In the C locale the interpreter itself sets this one, and has its UTF-8 mode (PEP 538, PEP 540).
        own = name == "LC_CTYPE" and sys.flags.utf8_mode and value in ("C.UTF-8", "C.utf8", "UTF-8")
        if value and not own:
            return value
    return ""


def encoded(text: str) -> bytes:
    """*text* for standard output, whatever its encoding."""
    # main() has its own way for a locale that is not UTF-8.
    errors = "nestrt" if sys.stdout.errors == "nestrt" else "backslashreplace"
    return text.encode(sys.stdout.encoding or "utf-8", errors)


def write(lines: Iterable[str]) -> int:
    """Write *lines* to standard output; 0. A reader who has gone away (``| head``) is no error."""
    text = "".join(line + "\n" for line in lines)
    try:
        sys.stdout.buffer.write(encoded(text))
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise HostError("write to", "standard output", error.strerror or "it failed") from error
    return 0


def write_json(value: object) -> int:
    """Write *value* as JSON, indented, all of it ASCII: what guests wrote cannot reach the terminal."""
    import json

    return write([json.dumps(value, indent=2)])
