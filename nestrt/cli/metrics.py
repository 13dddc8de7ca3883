"""``nestrt metrics``: guests in the OpenMetrics format, once or served over HTTP for Prometheus."""

from __future__ import annotations

import argparse
import threading
import time

from nestrt.cli._arguments import count
from nestrt.cli._formats import write_text
from nestrt.cli._metrics_listen import listeners
from nestrt.cli._metrics_server import Server
from nestrt.cli._view import note_unseen
from nestrt.host.metrics import MOST_GROUPS, MOST_GUESTS, OPENMETRICS, TEXT, Collector, Picture
from nestrt.host.sight import Sight, find
from nestrt.host.walk import empty_view, walk
from nestrt.probe.facts import read_hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.host.walk import Guest, View

EPILOG = """
ADDRESS is 127.0.0.1:PORT, [::1]:PORT or unix:/PATH; without it the text goes to standard output, once.
A socket that systemd has opened is served without --listen. See nestrt-metrics(1) for the metrics.
"""


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode; write 0660")
    return mode


# Looking for guests takes 10 µs for each group in each hierarchy: after a walk of 1 s what it has found, and what of
# that is still there, is believed for 10 s.
WALK_SHARE = 10.0


class Scraper:
    """Pictures for whoever asks: those who ask while one is taken get that one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.names: list[str] = options.names
        self.hierarchies = read_hierarchies()
        self.collector = Collector(self.hierarchies, options.groups, options.max_guests, options.max_groups)
        self.lock = threading.Lock()
        self.taken = 0  # pictures
        self.last: Picture | None = None
        self.view: View | None = None
        self.again = 0.0  # when to walk again (monotonic, s)

    def _walk(self) -> View:
        began = time.monotonic()
        if self.view is None or began >= self.again:
            self.view = walk(self.hierarchies)
            now = time.monotonic()
            self.again = now + WALK_SHARE * (now - began)
        return self.view

    def take(self) -> Picture:
        """One walk, or none where a recent one's guests are all there. Raises NotFound, InputError of the names."""
        picture = self._take()
        if picture.gone:
            self.again = 0.0
            if self.names:  # one of these, maybe
                picture = self._take()
        return picture

    def _take(self) -> Picture:
        began = time.monotonic()
        sight = Sight(self._walk())
        tops = [find(sight.view, name) for name in self.names] or sight.view.guests
        guests: list[Guest] = list({guest.path: guest for top in tops for guest in top.everyone()}.values())
        return self.collector.picture(sight, guests, began)

    def picture(self) -> Picture:
        """A picture that was not finished when this was called. Raises what take() raises."""
        before = self.taken
        with self.lock:
            if self.last is None or self.taken == before:
                self.last = self.take()
                self.taken += 1
            return self.last

    def answer(self, openmetrics: bool) -> tuple[str, bytes]:
        """Content type and body."""
        text = "".join(self.picture().text(openmetrics))
        return (OPENMETRICS if openmetrics else TEXT), text.encode()


def main(argv: list[str]) -> int:
    """Carry out ``nestrt metrics ARGV``. Returns 0; raises NotFound, InputError, StateError, HostError."""
    parser = argparse.ArgumentParser(
        prog="nestrt metrics",
        description="Guests at all levels in the OpenMetrics format, for Prometheus.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="these guests only, with their guests")
    parser.add_argument("--groups", action="store_true", help="also the groups that guests have made")
    parser.add_argument("--max-guests", type=count, default=MOST_GUESTS, metavar="N", help=f"default {MOST_GUESTS}")
    parser.add_argument("--max-groups", type=count, default=MOST_GROUPS, metavar="N", help=f"default {MOST_GROUPS}")
    parser.add_argument("--format", choices=("openmetrics", "text"), default="openmetrics", help="text: 0.0.4")
    parser.add_argument("--listen", action="append", default=[], metavar="ADDRESS", help="serve /metrics there")
    parser.add_argument("--mode", type=_mode, default=0o600, help="of the Unix socket, default 0600")
    parser.add_argument("--allow-remote", action="store_true", help="other addresses than this machine's own too")
    options = parser.parse_args(argv)
    sockets = listeners(options.listen, options.mode, options.allow_remote)
    scraper = Scraper(options)
    note_unseen(empty_view(scraper.hierarchies))
    if not sockets:
        return write_text(scraper.picture().text(options.format == "openmetrics"))
    return Server(sockets, scraper.answer).run()
