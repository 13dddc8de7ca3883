"""``nestrt broker``: the daemon that does for guests what the kernel does not delegate, and what it can be asked."""

from __future__ import annotations

import os
import signal
import sys

from nestrt.broker.audit_line import DIRECTORY, audit_directory
from nestrt.cli.options import Option, parse, usage
from nestrt.cli.version import VERSION
from nestrt.errors import HostError, InputError
from nestrt.packages import find_package
from nestrt.plan.broker import AUDIT
from nestrt.record import replace

HEAD = """usage: nestrt broker [OPTION …]
       nestrt broker status | rules GUEST [FILE] | release GUEST | drain

Serve the guests of this level whose policy says broker = "wanted" or "required".
"""
# By the first word: what the broker that runs is asked, in _broker_host.py.
ACTIONS = {
    "status": "the guests that the broker serves",
    "rules": "show or set the host's own rules for new processes of a guest",
    "release": "stop serving a guest",
    "drain": "have the broker finish what was asked, and end",
}
OPTIONS = (
    Option("requests", "N", "requests a second of one guest (default: 1000); more wait"),
    Option("connections", "N", "connections of one guest (default: 64)"),
    Option("message", "BYTES", "longest call (default: 65536)"),
    Option("audit", "DIR", f"where changes are written down (default: ${AUDIT}, else {DIRECTORY})"),
    Option("embedded", "NAME", "serve this guest alone, until standard input ends; launch --broker=embedded does it"),
    Option("cgroup", "GROUP", "the limit group of that guest"),
    Option("help", "", "this text", "h"),
)
ROWS = "".join(f"  {word:8} {text}\n" for word, text in ACTIONS.items())
TAIL = f"""
A guest's policy may say other requests, connections and message for that guest: [broker], nestrt-policy(5).

The broker that runs is asked by root:

{ROWS}
SIGTERM ends it in order. Started again, it finds all guests by their marks. systemd: sd_notify(3) and sockets by
sd_listen_fds(3); units are in examples/broker.
"""


def _number(single: dict[str, str], name: str, usual: int, low: int, high: int) -> int:
    text = single.get(name, str(usual))
    if not text.isascii() or not text.isdigit() or not low <= int(text[:12]) <= high:
        raise InputError("read", f"--{name} {text}", "no such number", f"write {low} to {high}")
    return int(text)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT, or until drained; or ask. Returns the exit status."""
    if argv and argv[0] in ACTIONS:
        from nestrt.cli import _broker_host

        return _broker_host.main(argv)
    single, _, words = parse(OPTIONS, argv, "broker")
    if "help" in single:
        sys.stdout.write(usage(HEAD, OPTIONS, TAIL))
        return 0
    if words:
        raise InputError("read", f"argument {words[0]}", "broker takes none", "see nestrt broker --help")
    if os.geteuid() != 0:
        raise HostError("serve", "guests", "only root of a level has guests with a broker", "run it as root")
    find_package("trio", "python3-trio")
    from nestrt.broker.daemon import run
    from nestrt.broker.quota import Options
    from nestrt.level.policy import QUOTAS

    usual = Options()
    options = replace(
        usual,
        requests=_number(single, "requests", usual.requests, *QUOTAS["broker_requests"]),
        connections=_number(single, "connections", usual.connections, *QUOTAS["broker_connections"]),
        message_bytes=_number(single, "message", usual.message_bytes, *QUOTAS["broker_message"]),
        version=VERSION,
        audit=os.path.abspath(single.get("audit") or audit_directory()),
    )
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    return run(options, single.get("embedded", ""), single.get("cgroup", ""))

