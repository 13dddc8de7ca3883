"""Many items told of by several processes: in order, whole, and nothing left behind whoever gives up first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from nestrt.errors import NestrtError, StateError
from nestrt.host import spread as module
from nestrt.host.spread import FEWEST, PIECE, spread


@pytest.fixture(autouse=True, params=[1, 2, 5])
def cpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As many CPUs as that."""
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(request.param)))
    return int(request.param)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process and no descriptor may be left."""
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def text(number: int) -> Iterator[str]:
    yield f"<{number}"
    yield "x" * (number * 2000)  # more than a pipe holds
    yield ">"


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1, FEWEST, FEWEST + 1, 10 * PIECE + 3])
def test_all_is_told_in_order(count: int) -> None:
    told = "".join(spread(list(range(count)), text, ", "))
    assert told == ", ".join("".join(text(number)) for number in range(count))


def test_several_processes_tell(cpus: int) -> None:
    told = "".join(spread(list(range(FEWEST)), lambda number: iter(f"{os.getpid()}"), " ")).split()
    pids = set(told)
    assert len(pids) == min(cpus, FEWEST // PIECE)
    assert (str(os.getpid()) in pids) == (cpus == 1)


def test_who_stops_to_listen_leaves_nothing() -> None:
    pieces = spread(list(range(10 * FEWEST)), text, ", ")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["killed", "raises"])
def test_a_process_that_ends_is_said(how: str, cpus: int, capfd: pytest.CaptureFixture[str]) -> None:
    def tell(number: int) -> Iterator[str]:
        if number == FEWEST + 3:
            if how == "raises":
                raise OSError(5, "gone\x1b\ud800")
            os.kill(os.getpid(), signal.SIGKILL)
        yield str(number)

    if cpus == 1:
        if how == "killed":
            return  # nothing was started
        with pytest.raises(OSError, match="gone"):
            list(spread(list(range(2 * FEWEST)), tell, ","))
        return
    raised = how == "raises"
    said = "looking at a part of them failed: OSError: .*gone" if raised else "a process that looked at .* ended"
    with pytest.raises(NestrtError, match=said) as caught:
        list(spread(list(range(2 * FEWEST)), tell, ","))
    assert capfd.readouterr().err == ""
    assert caught.value.status == 5


def test_an_error_of_one_is_the_error_of_all() -> None:
    def tell(number: int) -> Iterator[str]:
        yield str(number)
        if number == FEWEST - 2:
            raise StateError("show", "guest x", "it has ended", "look again")

    with pytest.raises(NestrtError) as caught:
        list(spread(list(range(FEWEST)), tell, ","))
    assert (caught.value.status, str(caught.value)) == (4, "cannot show guest x: it has ended; look again")


@pytest.mark.parametrize("after", [0, 1])
def test_where_no_process_can_be_started_this_one_does_all(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    fork = os.fork

    def refuse() -> int:
        if len(started) == after:
            raise BlockingIOError(11, "no")
        started.append(1)
        return fork()

    monkeypatch.setattr(module.os, "fork", refuse)
    assert "".join(spread(list(range(FEWEST)), text, ",")) == ",".join("".join(text(n)) for n in range(FEWEST))


def test_whoever_started_us_may_ignore_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        told = "".join(spread(list(range(FEWEST)), text, ","))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert told == ",".join("".join(text(number)) for number in range(FEWEST))


def test_one_large_part_is_whole() -> None:
    big = "x" * (3 << 20)
    told = "".join(spread(list(range(FEWEST)), lambda number: iter([big if number == 5 else "y"]), ""))
    assert (told.count("x"), told.count("y")) == (len(big), FEWEST - 1)
