"""What guests may have written, in the text that Prometheus reads; whose samples are left out; what HTTP says."""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.parser import text_string_to_metric_families as parse_text

from nestrt.cli import _metrics_listen
from nestrt.cli._metrics_server import (
    MOST_CONNECTIONS,
    STUCK,
    Connection,
    Refused,
    Request,
    Server,
    is_this_machine,
    wants_openmetrics,
)
from nestrt.cli.metrics import _mode
from nestrt.host.counters import Counters
from nestrt.host.marks import Mark, escape
from nestrt.host.metrics import BOTH, Collector, Picture, label, seconds
from nestrt.host.metrics_share import share
from nestrt.host.sight import Sight
from nestrt.host.walk import Guest, View

# Everything that a path of a group can hold, lone surrogates (bytes that are no UTF-8) too.
TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=40)


@given(TEXTS, TEXTS)
def test_labels_come_back_as_they_were_and_stay_apart(one: str, other: str) -> None:
    picture = Picture(True)
    for text in {one, other}:
        picture.counted("nestrt_group_", BOTH, label("group", text), Counters(memory=1, cpu_usec=2))
    for text, parser in (("".join(picture.text()), parse), ("".join(picture.text(False)), parse_text)):
        text.encode()
        assert text.isascii() or all(c.isprintable() or c == "\n" for c in text)
        families = {family.name: family for family in parser(text)}
        found = [sample.labels["group"] for sample in families["nestrt_group_memory_usage_bytes"].samples]
        assert sorted(found) == sorted({escape(one), escape(other)})
        assert len(found) == len({one, other})


@given(st.integers(0, 1 << 63))
def test_seconds_are_exact(microseconds: int) -> None:
    whole, _, part = seconds(microseconds).partition(".")
    assert int(whole + part) == microseconds
    assert len(part) == 6


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=60), st.integers(0, 40))
def test_nobody_crowds_out_others(items: list[tuple[str, int]], most: int) -> None:
    numbered = list(enumerate(items))
    kept = share(numbered, [owner for owner, _ in items], [depth for _, depth in items], most)
    assert len(kept) == min(most, len(items))
    assert kept == sorted(kept)
    by = {owner: [each for each in kept if each[1][0] == owner] for owner in "abc"}
    for owner, other in itertools.permutations("abc", 2):
        mine = [each for each in numbered if each[1][0] == owner]
        if len(by[owner]) < len(mine):  # something of this one's was left out: nobody has more than one more
            assert len(by[other]) <= len(by[owner]) + 1
            deepest = max((depth for _, (_, depth) in by[owner]), default=-1)
            assert all(depth >= deepest for number, (_, depth) in mine if (number, (owner, depth)) not in by[owner])


def guest(name: str, path: str, claim: bool, level: int = 1) -> Guest:
    return Guest(name, path, level, Mark("trusted.nestrt", name), claim, 0, (), [], [], [])


def test_of_one_name_the_hosts_own_has_it() -> None:
    """Two samples with the same labels would make Prometheus refuse the whole page."""
    guests = [guest("web", "/a", True), guest("web", "/b", False), guest("web", "/c", True), guest("db", "/d", True)]
    sight = Sight(View(0, "host", (), guests))
    collector = Collector((), False)
    # They are gone, so nothing is said of them; their labels are what is looked at.
    assert collector.picture(sight, guests, 0.0).families["nestrt_guest_", ""][1] == []
    from nestrt.host.metrics import _labels

    names = {path: text.split('"')[1] for path, text in _labels(guests, guests).items()}
    assert names == {"/a": "/a", "/b": "web", "/c": "/c", "/d": "db"}
    twice = [guest("web", "/a", False), guest("web", "/b", False)]
    assert {text.split('"')[1] for text in _labels(twice, twice).values()} == {"/a", "/b"}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.3,*/*;q=0.1", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1",
            True,
        ),
        ("application/openmetrics-text;q=0, text/plain", False),
        ("application/openmetrics-text;version=9.0.0", False),
        (";;,=;", False),
    ],
)
def test_what_prometheus_accepts(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9100", "LOCALHOST", "127.0.0.1:9", "127.9.9.9", "[::1]:9", "[::1]"]
)
def test_hosts_of_this_machine(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:9100", "localhost.evil.example", "10.0.0.1", "[fe80::1]:9", "127.0.0.1.evil"],
)
def test_hosts_that_a_page_on_the_web_could_have(host: str) -> None:
    assert not is_this_machine(host)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /metrics", 400),
        (b"GET /metrics HTTP/2.0\r\nHost: x", 505),
        (b"GET /metrics HTTP/1.1", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y", 400),
        (b"GET /metrics HTTP/1.1\r\nHost : x", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n folded", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: b\nTransfer-Encoding: chunked", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: b\rContent-Length: 9", 400),
    ],
)
def test_requests_that_are_none(head: bytes, status: int) -> None:
    with pytest.raises(Refused) as refused:
        Request(head)
    assert refused.value.status == status


@given(st.binary(max_size=200))
def test_any_bytes_as_a_request(head: bytes) -> None:
    try:
        Request(head)
    except Refused:
        pass


def test_a_connection_is_kept_where_nothing_is_in_the_way() -> None:
    assert Request(b"GET / HTTP/1.1\r\nHost: x").keep
    assert not Request(b"GET / HTTP/1.0").keep
    assert Request(b"GET / HTTP/1.0\r\nConnection: Keep-Alive").keep
    assert not Request(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close").keep
    assert not Request(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5").keep
    assert not Request(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked").keep


def test_those_who_take_nothing_make_room() -> None:
    """Clients that ask, and leave a large answer where it is, keep out nobody who comes later."""
    server = Server([], lambda openmetrics: ("text/plain", b"x" * (16 << 20)))
    mine: list[socket.socket] = []

    def ask() -> socket.socket:
        one, other = socket.socketpair()
        mine.append(one)
        server._take(Connection(other, False, server.answer))
        one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        one.settimeout(20)
        return one

    try:
        for _ in range(MOST_CONNECTIONS):
            assert ask().recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(STUCK + 0.2)
        assert ask().recv(15) == b"HTTP/1.1 200 OK"
        assert len(server.connections) <= MOST_CONNECTIONS
    finally:
        for one in mine:
            one.close()


def test_only_the_socket_itself_gets_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the directory may put a symbolic link in the place of the socket at any moment."""
    secret, path = tmp_path / "secret", tmp_path / "sock"
    secret.touch(0o600)

    class Swapped(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o620
            path.unlink()
            path.symlink_to(secret)

    monkeypatch.setattr(_metrics_listen.socket, "socket", Swapped)
    (listener,) = _metrics_listen.listeners([f"unix:{path}"], 0o620, False)
    listener.close()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["rw", "999", "1777", "-1", ""])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no mode; write 0660"):
        _mode(text)
    assert _mode("0640") == 0o640
