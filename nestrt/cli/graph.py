"""``nestrt graph``: a picture of the nest, as SVG or HTML."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time

from nestrt.cli._arguments import between
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nestrt graph",
        description="Draw every guest at every level: what it was given, and what it uses of that.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a guest: web, web/db, a short id, its limit group")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where to (default: standard output)")
    parser.add_argument("--format", choices=("svg", "html"), help="default: by FILE's name, else svg")
    parser.add_argument("--by", choices=RESOURCES, default="memory", help="what is drawn (default: memory)")
    parser.add_argument(
        "--depth",
        type=between(0, 1000),
        metavar="N",
        help="groups at most N below a guest root (0: none); guests always",
    )
    parser.add_argument(
        "--min-share", type=between(0, 50, float), metavar="PERCENT", default=1.0,
        help="boxes thinner than this part of the picture are drawn as one with their neighbours (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--sample", type=between(0, 60, float), metavar="SECONDS",
        help="for how long to watch what CPU time is used (default: 1 with --by cpu, else 0: not at all)",
    )  # fmt: skip
    parser.add_argument("--theme", choices=("auto", "light", "dark"), default="auto", help="default: the reader's own")
    return parser


def main(argv: list[str]) -> int:
    """Carry out ``nestrt graph ARGV``. Returns 0; raises NotFound, InputError, HostError, OSError."""
    options = _parser().parse_args(argv)
    form = options.format or SUFFIXES.get(os.path.splitext(options.output)[1].lower(), "svg")
    seconds = options.sample if options.sample is not None else float(options.by == "cpu")
    before = _check(options.output) if options.output != "-" else None
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

        pieces = html(placed, heading, subtitle, options.theme, options.min_share / 100)
    else:
        pieces = svg(placed, heading, subtitle, options.theme, options.min_share / 100)
    data = "".join(pieces).encode()
    if options.output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        _replace(options.output, data, before)
    return 0


def _replace(path: str, data: bytes, before: os.stat_result | None) -> None:
    """Write *path* at once or not at all, with the owner and mode that it had *before*, as far as this process may.

    A symbolic link that it has become meanwhile is replaced, not followed.
    """
    directory, name = os.path.split(path)
    at = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temporary = f".nestrt-graph.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600 if before else 0o666, dir_fd=at)
        try:
            with open(fd, "wb") as file:
                if before:
                    with contextlib.suppress(OSError):
                        os.fchown(fd, before.st_uid, before.st_gid)
                    os.fchmod(fd, before.st_mode & 0o777)
                file.write(data)
            os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            os.unlink(temporary, dir_fd=at)
            raise
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise
    finally:
        os.close(at)


def _check(path: str) -> os.stat_result | None:
    """What is no regular file is not written to: InputError. OSError where there is no such directory.

    Returns what is there."""
    import stat

    directory, name = os.path.split(path)
    os.stat(directory or ".")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        found = None
    mode = found.st_mode if found else stat.S_IFREG
    if stat.S_ISLNK(mode):
        raise InputError("write", path, "it is a symbolic link", "name the file itself")
    if stat.S_ISDIR(mode) or not name:
        raise InputError("write", path, "it is a directory", "name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError("write", path, "it is no regular file", "name a file, or write to standard output")
    return found
