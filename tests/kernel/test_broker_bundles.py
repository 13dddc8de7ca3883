"""The broker for guests of bundles: nestrt as the runtime, and behind its plugin (``wrap``) runc and crun.

    annotation nestrt.level.broker = "required"     before the container is made, the broker listens for it
    /run/nestrt/guest.sock                          bound into it by its document, whoever carries that out
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.broker import Broker
from support.bundles import Bundle, python_bundle
from support.hostside import group_file
from support.plugin import RUNTIMES, Wrapped, wrapped_bundles
from support.rootfs import PythonRoot
from support.runner import Nestrt, wait_for

ASK = """
import json, socket, sys
def ask(method, **parameters):
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(60)
        try:
            one.connect("/run/nestrt/guest.sock")
        except ConnectionRefusedError as error:  # the socket of a broker that is no more
            return {"error": str(error)}
        one.sendall(json.dumps({"method": "io.nestrt.Guest." + method, "parameters": parameters}).encode() + b"\\0")
        found = b""
        while not found.endswith(b"\\0"):
            chunk = one.recv(65536)
            if not chunk:
                return {"error": "closed"}
            found += chunk
    return json.loads(found[:-1])
words = json.loads(sys.argv[1])
print(json.dumps([ask(method, **parameters) for method, parameters in words]))
"""


def ask(bundle: Bundle, *calls: tuple[str, dict[str, object]]) -> list[dict[str, object]]:
    """The replies to *calls* of a process that the runtime's exec brings in."""
    result = bundle.exec("/usr/bin/python3", "-Ic", ASK, json.dumps(calls), timeout=60).ok()
    found: list[dict[str, object]] = json.loads(result.out)
    return found


def divides(bundle: Bundle, broker: Broker) -> None:
    """The container's root makes a group by the broker, within its own limit; the host sees it."""
    made, more, listed = ask(
        bundle,
        ("Create", {"group": "web", "settings": {"memory.max": "16M"}}),
        ("Set", {"group": "web", "settings": {"memory.max": "9G"}}),
        ("List", {}),
    )
    assert "error" not in made, made
    assert str(more["error"]).endswith("BadValue"), more
    assert "/web" in [group["name"] for group in listed["parameters"]["groups"]]  # type: ignore[index]
    path = group_file("memory", f"{bundle.cgroup}/guest/web", "memory.limit_in_bytes", "memory.max")
    assert path.read_text().strip() == str(16 << 20)
    broker.restart(signal.SIGKILL)
    wait_for(lambda: ask(bundle, ("Info", {}))[0].get("error") is None, "the new broker's socket", 30)
    (info,) = ask(bundle, ("Info", {}))
    assert info["parameters"]["limits"]["memory.max"]["value"] == "64M"  # type: ignore[index]


def prepare(bundle: Bundle, python: PythonRoot) -> Bundle:
    python_bundle(bundle, python)
    # The root filesystem is the host root's: a container's own root makes no mount point in it.
    options = ["nosuid", "nodev", "mode=755"]
    bundle.config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    bundle.annotate(level__broker="required")
    bundle.resources(memory={"limit": 64 << 20})
    return bundle.args("/usr/bin/sleep", "600")


@pytest.mark.parametrize("userns", [False, True], ids=["nouserns", "userns"])
def test_nestrt_as_the_runtime(
    nestrt: Nestrt, bundle: Bundle, python: PythonRoot, broker: Broker, userns: bool
) -> None:
    prepare(bundle, python).virtual()
    if userns:
        bundle.user_namespace()
    bundle.write()
    bundle.run("--detach").ok()
    divides(bundle, broker)
    # The host's change of limits is the broker's to write down, of devices the command's.
    words = ("update", bundle.id, "-m", "96M", "--device", "c 10:229 rwm")
    nestrt.run(*words, env={**os.environ, "NESTRT_AUDIT": str(broker.audit)}).ok()
    keys = [entry["key"] for entry in broker.entries(bundle.id) if entry["method"] == "SetLimits"]
    assert sorted(keys) == ["devices", "memory.max"]


@pytest.fixture(params=RUNTIMES, ids=os.path.basename)
def wrapped(nestrt: Nestrt, busybox: Path, request: pytest.FixtureRequest) -> Iterator[Wrapped]:
    for new in wrapped_bundles(nestrt, busybox, str(request.param)):
        yield new()


def test_behind_the_plugin(wrapped: Wrapped, python: PythonRoot, broker: Broker) -> None:
    prepare(wrapped, python).write()
    wrapped.run("--detach").ok()
    divides(wrapped, broker)
    wrapped.kill("KILL").ok()
    wrapped.await_status("stopped")
    wrapped.delete().ok()
    wait_for(lambda: broker.call("Guests")["guests"] == [], "the broker to let go of it", 20)


def test_required_and_not_there(
    new_bundle: Callable[..., Bundle], python: PythonRoot, broker: Broker, wrapped: Wrapped
) -> None:
    """Nothing is made; with "wanted" it starts, and a line says what it lacks."""
    broker.stop()
    try:
        bundle = prepare(new_bundle(), python).virtual().write()
        told = bundle.run("--detach")
        assert told.rc != 0
        assert "requires a broker" in told.err
        assert bundle.groups() == []
        refused = prepare(wrapped, python).write().run("--detach")
        assert refused.rc != 0
        assert "requires a broker" in refused.err
        assert wrapped.groups() == []
        wanted = prepare(new_bundle(), python).annotate(level__broker="wanted").write()
        assert "gets no broker" in wanted.run("--detach").ok().err
    finally:
        broker.start()
