"""Start guests and show each law of nestrt holding or not. Run by examples/quickstart.

Every line with PASS or FAIL is computed from what the commands above it did. Exit
status: 0 if all hold, 1 if one does not, 4 if another run is under way, 5 if this
machine cannot run guests, 130 on Ctrl-C.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time

import laws
from machine import (
    BOLD,
    MAIN,
    NORMAL,
    RED,
    WORK,
    Guest,
    Host,
    Report,
    Unable,
    clean_up,
    look,
    mount_lines,
    root_filesystem,
)


def limits_of(host: Host) -> list[str]:
    """Options of launch for the limits of the guests."""
    limits, memory = ["--pids", str(laws.PIDS)], host.directory("memory")
    if memory:
        limits += ["-m", f"{laws.MEMORY}M"]
        # v1 counts swap only where the kernel was booted to.
        if memory == host.v2 or os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"):
            limits += ["--swap", "0"]
    return limits


def run(report: Report, host: Host) -> None:
    """All laws, in order. Raises Unable."""
    mounts = mount_lines()
    words, options, inner = root_filesystem()
    cpus = sorted(os.sched_getaffinity(0))[:2]
    given = f"{cpus[0]}-{cpus[-1]}" if cpus[-1] == cpus[0] + 1 else ",".join(map(str, cpus))
    limits = limits_of(host)
    own = [*limits, "--cpus", given] if host.directory("cpuset") else limits
    print(f"{BOLD}nestrt quickstart{NORMAL}\n  host    {host.kind}, Linux {os.uname().release}\n  root    {words}")
    print(f"  guest   nestrt launch --name {MAIN} {' '.join(own)} --rootfs … -- sh")
    guests: list[Guest] = []
    try:
        guest = Guest(report, "guest#", MAIN, *own, *options)
        guests.append(guest)
        laws.view(report, host, guest)
        root_guest = laws.clamp(report, host, [*limits, *options])
        guests.append(root_guest)
        laws.lock(report, host, guest, root_guest, given)
        laws.freedom(report, host, guest, cpus)
        laws.subset(report, host, guest, root_guest, given)
        laws.sight(report, host, guest, inner)
        laws.opt_in(report, host, options)
    finally:
        for one in guests:
            one.close()
    laws.nothing_lost(report, host, options, mounts)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report, began = Report(), time.monotonic()
    lock = os.open(f"{WORK}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("quickstart: another one is running on this machine; wait for it", file=sys.stderr)
        return 4
    try:
        host = look()
        clean_up()
        WORK.mkdir(mode=0o755)
        run(report, host)
    except Unable as error:
        print(f"quickstart: this machine cannot run it: {error}", file=sys.stderr)
        return 5
    except OSError as error:
        print(f"quickstart: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nquickstart: interrupted; cleaning up", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        clean_up()
    checks = report.passed + len(report.failed)
    print(f"\n{BOLD}8 laws, {report.passed} of {checks} checks hold; {time.monotonic() - began:.1f} s{NORMAL}")
    for text in report.failed:
        print(f"  {RED}FAIL{NORMAL}  {text}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
