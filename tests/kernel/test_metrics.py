"""``nestrt metrics``: figures are the kernel's own, and clients of the server cannot hurt it or each other.

/nestrt/G              limit group, launched, level 1        [64M] 50 pids, half a CPU
         └ guest       its root
           ├ init      a process that counts
           └ in"…      claim of the guest, level 2            [unlimited: 64M effective]
             └ guest   a sleeping process
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.byhand import enter, make_group, remove_groups
from support.hostside import groups, limit_group, read, v2_hierarchy
from support.need import SLOW
from support.runner import Nestrt, wait_for

HOSTILE = 'in"\x1b\\n'  # the kernel refuses a newline, and nothing else
SHOWN = '/in"\\x1b\\\\n'  # as people are shown it


def samples(families: dict[str, Metric], name: str, **labels: str) -> list[float]:
    """The values of the samples *name* that have *labels*."""
    found = [sample for family in families.values() for sample in family.samples if sample.name == name]
    return [sample.value for sample in found if labels.items() <= sample.labels.items()]


def families_of(text: str) -> dict[str, Metric]:
    return {family.name: family for family in parse(text)}


@pytest.fixture
def guest(nestrt: Nestrt, guest_name: str, busybox: Path) -> Iterator[str]:
    """The guest of all these tests, with one inside it."""
    limits = ("-m", "64M", "--pids", "50", "--cpus", "0", "--cpu-quota", "0.5")
    counting = "while :; do i=$((i+1)); [ $((i%1000)) = 0 ] && cat /etc/passwd >/dev/null; done"
    words = ("--rootfs", busybox, "--overlay", "--name", guest_name, *limits)
    nestrt.launch("-d", *words, "--", "sh", "-c", counting).ok()
    inner = f"{limit_group(guest_name)}/guest/{HOSTILE}"
    make_group(inner)
    make_group(inner + "/guest")
    for directory in groups(inner):
        mark = {"v": 1, "name": "db", "id": "x\x1b", "state": "running", "command": [], "created": 1763770000}
        os.setxattr(directory, "user.nestrt", json.dumps(mark).encode())
    with subprocess.Popen(["sleep", "1000"]) as process:
        enter(inner + "/guest", process.pid)
        try:
            yield guest_name
        finally:
            remove_groups(inner)


def test_figures_are_the_kernels(nestrt: Nestrt, guest: str) -> None:
    top, inner = limit_group(guest), f"{limit_group(guest)}/guest/{HOSTILE}"
    before = [int(read("pids", path, "pids.current", "pids.current")) for path in (top, inner)]
    text = nestrt.run("metrics", guest, "--groups", timeout=40).ok().out
    assert text.endswith("# EOF\n")
    found = families_of(text)
    outer, nested = {"guest": guest, "level": "1"}, {"guest": f"{guest}/db", "level": "2"}
    for labels, path, pids in ((outer, top, before[0]), (nested, inner, before[1])):
        assert abs(samples(found, "nestrt_guest_pids", **labels)[0] - pids) <= 1  # the shell starts cat
        memory = int(read("memory", path, "memory.usage_in_bytes", "memory.current"))
        assert abs(samples(found, "nestrt_guest_memory_usage_bytes", **labels)[0] - memory) <= 4 << 20
        assert samples(found, "nestrt_guest_memory_effective_limit_bytes", **labels) == [64 << 20]
        assert samples(found, "nestrt_guest_pids_effective_limit", **labels) == [50]
        assert samples(found, "nestrt_guest_cpu_effective_limit_cores", **labels) == [0.5]
        assert samples(found, "nestrt_guest_state", **labels, nestrt_guest_state="running") == [1]
        assert len(samples(found, "nestrt_guest_state", **labels)) == 4
        assert samples(found, "nestrt_guest_frozen", **labels) == [0]
        v2 = v2_hierarchy()
        assert v2
        if (v2.group(path) / "cpu.pressure").exists():
            for resource in ("cpu", "memory", "io"):
                total = int((v2.group(path) / f"{resource}.pressure").read_text().split("total=")[1].split()[0])
                shown = samples(found, "nestrt_guest_pressure_seconds_total", **labels, resource=resource, kind="some")
                assert 0 <= total / 1e6 - shown[0] < 60
    assert samples(found, "nestrt_guest_memory_limit_bytes", **outer) == [64 << 20]
    assert samples(found, "nestrt_guest_memory_limit_bytes", **nested) == [float("inf")]
    assert samples(found, "nestrt_guest_cpu_limit_cores", **outer) == [0.5]
    assert samples(found, "nestrt_guest_start_time_seconds", **nested) == [1763770000]
    assert abs(samples(found, "nestrt_guest_start_time_seconds", **outer)[0] - time.time()) < 300 * SLOW
    info = {sample.labels["guest"]: sample.labels for sample in found["nestrt_guest"].samples}
    assert (info[guest]["path"], info[guest]["claim"], info[guest]["runtime"]) == (top, "false", "launch")
    assert (info[f"{guest}/db"]["claim"], info[f"{guest}/db"]["id"]) == ("true", "x\\x1b")
    assert info[f"{guest}/db"]["path"].endswith(SHOWN)
    seen = {sample.labels["group"] for sample in found["nestrt_group_pids"].samples}
    assert {"/", "/init"} <= seen
    assert samples(found, "nestrt_group_pids", **nested, group="/") == [1]
    assert samples(found, "nestrt_scrape_guests") == [2]
    # The older format has the same samples.
    old = {family.name: family for family in parse_text(nestrt.run("metrics", guest, "--format", "text").ok().out)}
    assert samples(old, "nestrt_guest_memory_limit_bytes", **nested) == [float("inf")]
    assert old["nestrt_guest_cpu_seconds"].type == "counter"
    # No room for both: the outer one comes first.
    few = families_of(nestrt.run("metrics", guest, "--groups", "--max-guests", "1", "--max-groups", "1").ok().out)
    assert samples(few, "nestrt_guest_pids", **outer)
    assert not samples(few, "nestrt_guest_pids", **nested)
    assert samples(few, "nestrt_scrape_guests_left_out") == [1]
    assert samples(few, "nestrt_scrape_groups") == [1]
    assert samples(few, "nestrt_scrape_groups_left_out")[0] >= 2
    assert nestrt.run("ls", guest, "--format", "openmetrics").ok().out.endswith("# EOF\n")


class Served:
    """A server on loopback and on a Unix socket."""

    def __init__(self, nestrt: Nestrt, path: Path, *words: str) -> None:
        self.path = str(path)
        self.process = nestrt.start("metrics", *words, "--listen", "127.0.0.1:0", "--listen", f"unix:{path}")
        assert self.process.stderr
        line = self.process.stderr.readline().decode()
        self.port = int(line.split("127.0.0.1:")[1].split("/")[0])
        assert f"unix:{path}" in self.process.stderr.readline().decode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20 * SLOW)

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20 * SLOW)
        connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    def raw(self, data: bytes) -> bytes:
        """What comes back for *data*, until the server closes."""
        with self.connect() as one:
            one.sendall(data)
            return b"".join(iter(lambda: one.recv(65536), b""))


def test_served(nestrt: Nestrt, guest: str, tmp_path: Path) -> None:
    served = Served(nestrt, tmp_path / "sock", guest)
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
    seen: list[dict[tuple[str, frozenset[tuple[str, str]]], float]] = []
    for number in range(3):
        time.sleep(0.2 * number)  # the guest counts all the time, when it has a CPU
        response = served.get(Accept=accept)
        assert response.status == 200
        assert response.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        found = families_of(response.body.decode())  # type: ignore[attr-defined]
        counters = [family for family in found.values() if family.type == "counter"]
        seen.append({(s.name, frozenset(s.labels.items())): s.value for family in counters for s in family.samples})
    assert len(seen[0]) > 20
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert earlier.keys() == later.keys()
        assert all(later[key] >= earlier[key] for key in earlier)
    key = ("nestrt_guest_cpu_seconds_total", frozenset({"guest": guest, "level": "1"}.items()))
    assert seen[2][key] > seen[0][key], "it counts all the time"

    old = served.get()
    assert old.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert list(parse_text(old.body.decode()))  # type: ignore[attr-defined]
    head = served.get(method="HEAD")
    assert (head.status, head.body) == (200, b"")  # type: ignore[attr-defined]
    assert int(head.headers["content-length"]) > 1000
    assert [served.get(path).status for path in ("/", "/metrics?x=1", "/etc/passwd", "/metrics/")] == [
        200,
        200,
        404,
        404,
    ]
    wrong = served.get(method="POST")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert served.get(Host="evil.example").status == 421
    assert served.get(Host=f"localhost:{served.port}").status == 200
    assert served.raw(b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert served.raw(b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert served.raw(b"GET /" + b"x" * 20000).startswith(b"HTTP/1.1 431")
    two = served.raw(b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    assert two.count(b"HTTP/1.1 200") == 2

    mode = os.stat(served.path).st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(served.path)
        one.sendall(b"GET /metrics HTTP/1.0\r\nHost: anything\r\nAccept: application/openmetrics-text\r\n\r\n")
        whole = b"".join(iter(lambda: one.recv(65536), b""))
    families_of(whole.partition(b"\r\n\r\n")[2].decode())
    assert nestrt.run("metrics", "--listen", f"unix:{served.path}").rc == 4, "somebody listens there"
    assert nestrt.run("metrics", "--listen", f"127.0.0.1:{served.port}").rc == 4

    nestrt.run("delete", "--force", guest)
    assert served.get().status == 500, "the guest that is named has gone"
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(10 * SLOW) == 0
    assert not os.path.exists(served.path)


@pytest.mark.slow_on_vm
def test_slow_clients_and_many_at_once(nestrt: Nestrt, guest: str, tmp_path: Path) -> None:
    """Whoever says nothing, or half of it, or takes nothing, keeps out nobody; a scrape is shared."""
    served = Served(nestrt, tmp_path / "sock", guest)
    slow = [served.connect() for _ in range(40)]
    for number, one in enumerate(slow):
        try:
            one.sendall((b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")[number % 3])
        except OSError:  # it had to go already
            pass
    began = time.monotonic()
    assert served.get().status == 200
    assert time.monotonic() - began < 8 * SLOW
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(served.get().status)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 10
    assert len(os.listdir(f"/proc/{served.process.pid}/task")) <= 17
    for one in slow:
        one.close()
    wait_for(lambda: len(os.listdir(f"/proc/{served.process.pid}/task")) == 1, "their threads")
    # A client that has begun gets READ seconds for the rest.
    began = time.monotonic()
    assert served.raw(b"GET /metrics").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 15 * SLOW
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(10 * SLOW) == 0


@pytest.mark.slow_on_vm
def test_where_it_does_not_listen(nestrt: Nestrt, tmp_path: Path) -> None:
    """Every refusal comes before anything is made; a socket on which nobody listens any more is no obstacle."""
    file = tmp_path / "file"
    file.write_text("x")
    for address, status, reason in (
        ("0.0.0.0:0", 2, "everybody who reaches it could read all guests"),
        ("[::]:0", 2, "--allow-remote"),
        ("example.org:80", 2, "it is no address"),
        ("127.0.0.1:99999", 2, "it is no address"),
        ("unix:relative", 2, "no absolute path"),
        (f"unix:{file}", 2, "no socket"),
        ("unix:/" + "x" * 120, 2, "107 bytes"),
        (f"unix:{tmp_path}/none/sock", 1, "No such file"),
    ):
        done = nestrt.run("metrics", "--listen", f"unix:{tmp_path}/first", "--listen", address)
        assert done.rc == status, done
        assert reason in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "first").exists()
    assert file.read_text() == "x"
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(stale))
    served = Served(nestrt, stale, "--mode", "0666")
    assert stat.S_IMODE(stale.stat().st_mode) == 0o666
    # Somebody else's socket is left alone at the end.
    stale.unlink()
    stale.write_text("other")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(10 * SLOW) == 0
    assert stale.read_text() == "other"


@pytest.mark.slow_on_vm
def test_a_socket_of_systemd(nestrt: Nestrt, tmp_path: Path) -> None:
    """sd_listen_fds(3): LISTEN_PID is the process's own, so a shell sets it and becomes the command."""
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        one.bind(str(tmp_path / "sock"))
        one.listen()
        told.bind(str(tmp_path / "notify"))
        told.settimeout(20 * SLOW)
        script = f'exec 3<&{one.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        argv = ["bash", "-c", script, "bash", nestrt.command, "metrics"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(argv, pass_fds=[one.fileno()], env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                assert told.recv(100) == b"READY=1"
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(tmp_path / "sock"))
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert client.recv(100).startswith(b"HTTP/1.1 200")
                process.terminate()
                assert process.wait(10 * SLOW) == 0
            finally:
                process.kill()
    assert (tmp_path / "sock").exists(), "it is systemd's"
