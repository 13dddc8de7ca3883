"""``nestrt graph``: a picture of the nest, as SVG or HTML."""

from __future__ import annotations

import argparse
import os
import sys
import time

from nestrt.cli._view import look
from nestrt.errors import InputError
from nestrt.host.marks import escape
from nestrt.host.picture import RESOURCES, Painter
from nestrt.host.picture_place import place
from nestrt.host.picture_svg import svg
from nestrt.host.render import moment
from nestrt.host.sight import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

EPILOG = """
A box is as wide as what its group was given is of what the group around it has, and filled as high as it is
used. Hatched boxes have no limit of their own. Point at a box to see its figures; in HTML click to zoom.
"""
SUFFIXES = {".svg": "svg", ".html": "html", ".htm": "html"}
TITLES = {"memory": "Memory", "cpu": "CPU time", "pids": "Processes"}


def _depth(text: str) -> int:
    depth = int(text)
    if depth < 0:
        raise ValueError
    return depth


def _share(text: str) -> float:
    share = float(text.removesuffix("%"))
    if not 0 <= share <= 50:
        raise ValueError
    return share / 100


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 60:
        raise ValueError
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nestrt graph",
        description="Draw every guest at every level: what it was given, and what it uses of that.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _share.__name__, _seconds.__name__, _depth.__name__ = "percentage from 0 to 50", "seconds from 0 to 60", "depth"
    parser.add_argument("name", metavar="NAME", nargs="?", help="one guest: web, web/db, or its limit group's path")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where to (default: standard output)")
    parser.add_argument("--format", choices=("svg", "html"), help="default: by FILE's name, else svg")
    parser.add_argument("--by", choices=RESOURCES, default="memory", help="what is drawn (default: memory)")
    parser.add_argument(
        "--depth", type=_depth, metavar="N", help="groups at most N below a guest root (0: none); guests always"
    )
    parser.add_argument(
        "--min-share", type=_share, metavar="PERCENT", default=0.01,
        help="boxes thinner than this part of the picture are drawn as one with their neighbours (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--sample", type=_seconds, metavar="SECONDS",
        help="for how long to watch what CPU time is used (default: 1 with --by cpu, else 0: not at all)",
    )  # fmt: skip
    parser.add_argument("--theme", choices=("auto", "light", "dark"), default="auto", help="default: the reader's own")
    return parser


def main(argv: list[str]) -> int:
    """Carry out ``nestrt graph ARGV``. Returns 0; raises NotFound, InputError, HostError, OSError."""
    options = _parser().parse_args(argv)
    form = options.format or SUFFIXES.get(os.path.splitext(options.output)[1].lower(), "svg")
    seconds = options.sample if options.sample is not None else float(options.by == "cpu")
    sight = look()
    painter = Painter(sight, options.by, options.depth, seconds)
    box = painter.one(find(sight.view, options.name)) if options.name else painter.nest()
    placed = place(box, options.by)
    guests = sum(each.kind == "guest" for each in box.everyone())
    heading = f"{TITLES[options.by]} of {box.name if options.name else escape(os.uname().nodename)}"
    subtitle = f"level {box.level} · {guests} guest{'' if guests == 1 else 's'} · {moment(int(time.time()))}"
    pieces: Iterable[str]
    if form == "html":
        from nestrt.host.picture_html import html

        pieces = html(placed, heading, subtitle, options.theme, options.min_share)
    else:
        pieces = svg(placed, heading, subtitle, options.theme, options.min_share)
    data = "".join(pieces).encode()
    if options.output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        _replace(options.output, data)
    return 0


def _replace(path: str, data: bytes) -> None:
    """Write *path* at once or not at all. What is no regular file is not written to: InputError."""
    directory, name = os.path.split(path)
    at = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(at, name, path)
        temporary = f".{name[:200]}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o666, dir_fd=at)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            os.unlink(temporary, dir_fd=at)
            raise
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(at)


def _check(at: int, name: str, path: str) -> None:
    import stat

    if not name:
        raise InputError("write", path, "it is a directory", "name a file in it")
    try:
        mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise InputError("write", path, "it is a symbolic link", "name the file itself")
    if not stat.S_ISREG(mode):
        raise InputError("write", path, "it is no regular file", "name a file, or write to standard output")
