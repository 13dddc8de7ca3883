"""Fixtures and rules for all tests: skips, the host's kind, time limits, and guests that clean up."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.broker import Broker, running
from support.bundles import bundle, new_bundle  # noqa: F401 (fixtures)
from support.hostside import is_v2_only
from support.need import SLOW, required
from support.rootfs import PythonRoot, busybox_root, python_root
from support.runner import Nestrt, leftovers, links

# Seconds for one test before it is taken for hung.
TEST_LIMIT = 180 if SLOW == 1 else 300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="1/1", metavar="I/N", help="run only the I-th of N parts of the selection")


def _too_slow(item: pytest.Item) -> bool:
    """Whether *item* is marked slow_on_vm; slow_on_vm(False) at a test lifts the mark of its module."""
    mark = item.get_closest_marker("slow_on_vm")
    return mark is not None and mark.args != (False,)


def _beyond_criu(item: pytest.Item) -> bool:
    """Whether *item* takes a CRIU that this kernel's is not: 4.0 and older know no vDSO of Linux 6.13 and later."""
    if "criu" not in getattr(item, "fixturenames", ()) or "NESTRT_CRIU" in os.environ:
        return False
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor)) < (6, 13):
        return False
    said = subprocess.run(["criu", "--version"], capture_output=True, text=True, check=False).stdout
    return not said or int(said.split()[1].split(".")[0]) < 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this kind of host cannot show, then all but our shard."""
    unfit = "v1" if is_v2_only() else "v2"
    part, _, parts = config.getoption("--shard").partition("/")
    fit = [
        item
        for item in items
        if not item.get_closest_marker(unfit) and not (SLOW > 1 and _too_slow(item)) and not _beyond_criu(item)
    ]
    kept = fit[int(part) - 1 :: int(parts)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _forbid_skip(report: Any) -> None:
    """Make a skip a failure where NESTRT_REQUIRE=all; an expected failure is none."""
    if report.skipped and not hasattr(report, "wasxfail") and "all" in required():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (skips are failures: NESTRT_REQUIRE=all)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a test that hangs, its set-up and clean-up included, by an exception where it hangs."""

    def hung(*_: object) -> None:
        raise TimeoutError(f"{item.nodeid}: not done after {TEST_LIMIT} s")

    previous = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, TEST_LIMIT)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Append "passed failed skipped" to the file NESTRT_TALLY, from which tests/run makes its last line.

    The failures' node ids go to NESTRT_TALLY.failed, for support/second_try.py.
    """
    tally = os.environ.get("NESTRT_TALLY")
    if tally:
        count = {kind: len(terminalreporter.stats.get(kind, ())) for kind in ("passed", "failed", "error", "skipped")}
        with open(tally, "a") as file:
            file.write(f"{count['passed']} {count['failed'] + count['error']} {count['skipped']}\n")
        with open(f"{tally}.failed", "a") as file:
            for report in (*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())):
                file.write(f"{report.nodeid}\n")


@pytest.fixture(scope="session", autouse=True)
def audit_of_commands() -> Iterator[Path]:
    """Where the commands that tests run write their audit: not among the machine's own."""
    directory = Path(tempfile.gettempdir(), f"nestrt-audit-{os.getpid()}")
    os.environ["NESTRT_AUDIT"] = str(directory)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def locale_of_commands() -> None:
    """What they draw is no matter of where tests run."""
    os.environ["LC_ALL"] = "C.UTF-8"


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for the session's root filesystems, reachable for every uid."""
    directory = Path(tempfile.mkdtemp(prefix="nestrt-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def busybox(scratch: Path) -> Path:
    """The session's busybox root filesystem. A test that changes its root's files makes its own (make_busybox)."""
    return busybox_root(scratch / "busybox")


@pytest.fixture
def make_busybox(scratch: Path) -> Iterator[Callable[[], Path]]:
    """A function that makes a busybox root filesystem for this test alone."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="nestrt-root-", dir=scratch)))
        return busybox_root(made[-1])

    yield make
    for path in made:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def python(scratch: Path) -> PythonRoot:
    """The session's root filesystem with Python and nestrt, for guests that launch guests."""
    return python_root(scratch / "python")


@pytest.fixture(params=["userns", "nouserns"])
def userns(request: pytest.FixtureRequest) -> str:
    """Both ways of launching: "userns" (a private range of ids) and "nouserns" (guest root is the host's root)."""
    return str(request.param)


@pytest.fixture
def nestrt() -> Iterator[Nestrt]:
    """The command; what a test started with it and left running is killed."""
    command = Nestrt()
    yield command
    command.stop()


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """The host's broker, for all tests of a module."""
    with running() as one:
        yield one


@pytest.fixture
def new_guest(nestrt: Nestrt) -> Iterator[Callable[[], str]]:
    """A function that gives names for guests. At the end each is deleted, and the test fails if anything stays."""
    names: list[str] = []
    before = links()

    def new() -> str:
        names.append(f"nestrt-t-{os.getpid():x}-{next(_numbers)}")
        return names[-1]

    yield new
    nestrt.stop()
    deletions = [nestrt.run("delete", "--force", name) for name in names]
    left = [line for name in names for line in leftovers(name)]
    left += [f"network interface {link}" for link in links() - before]
    if left:
        told = "\n".join(str(result) for result in deletions if result.rc not in (0, 3))
        pytest.fail("left behind:\n" + "\n".join(left) + f"\n{told}", pytrace=False)


@pytest.fixture
def guest_name(new_guest: Callable[[], str]) -> str:
    """The name of this test's one guest."""
    return new_guest()
