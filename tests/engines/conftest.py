"""The engines of a session, each started when the first test asks for it, and their clean-up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import Containerd, Docker
from support.engine_guests import FIXTURES, Start
from support.engines import Nest, image_archive
from support.lxc import Lxc
from support.need import require
from support.plugin_engines import HookedPodman, WrappedContainerd, WrappedDocker, fail_if_left
from support.podman import IMAGE, Podman


def _needs(*programs: str) -> None:
    missing = [name for name in programs if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    require("engines", f"not installed: {' '.join(missing)}" if missing else None)


@pytest.fixture(scope="session")
def nest(scratch: Path) -> Iterator[Nest]:
    """The namespaces in which the session's engines run."""
    _needs("unshare", "nsenter", "ip")
    found = Nest(scratch / "nest")
    yield found
    found.close()


@pytest.fixture(scope="session")
def archive(scratch: Path, busybox: Path, nest: Nest) -> str:
    """An image of busybox, named IMAGE, as a file in the Nest."""
    file = image_archive(busybox, scratch / "image.tar", IMAGE)
    return nest.copy(file, "image.tar")


@pytest.fixture(scope="session")
def podman_engine(nest: Nest, archive: str) -> Podman:
    _needs("podman", "conmon", "/usr/lib/podman/netavark")
    return Podman(nest, archive)


@pytest.fixture
def podman(podman_engine: Podman) -> Iterator[Podman]:
    """podman; at the end its containers are removed, and the test fails if anything of them stays."""
    yield podman_engine
    left = podman_engine.clear()
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def containerd_engine(nest: Nest, archive: str) -> Iterator[Containerd]:
    _needs("containerd", "containerd-shim-runc-v2", "ctr")
    found = Containerd(nest, archive)
    yield found
    found.close()


@pytest.fixture
def containerd(containerd_engine: Containerd) -> Iterator[Containerd]:
    """containerd; at the end its containers are removed, and the test fails if anything of them stays."""
    yield containerd_engine
    left = containerd_engine.clear()
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def docker_engine(nest: Nest, archive: str) -> Iterator[Docker]:
    _needs("dockerd", "docker", "containerd", "iptables")
    found = Docker(nest, archive)
    yield found
    found.close()


@pytest.fixture
def docker(docker_engine: Docker) -> Iterator[Docker]:
    """docker; at the end its containers are removed, and the test fails if anything of them stays."""
    yield docker_engine
    left = docker_engine.clear()
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def lxc_engine(nest: Nest, busybox: Path) -> Lxc:
    _needs("lxc-start", "newuidmap")
    return Lxc(nest, busybox)


@pytest.fixture
def lxc(lxc_engine: Lxc) -> Iterator[Lxc]:
    """LXC; at the end its containers are removed, and the test fails if anything of them stays."""
    yield lxc_engine
    if left := lxc_engine.clear():
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def hooked_podman_engine(podman_engine: Podman) -> HookedPodman:
    _needs("runc")
    return HookedPodman(podman_engine)


@pytest.fixture
def hooked_podman(hooked_podman_engine: HookedPodman) -> Iterator[HookedPodman]:
    """podman with runc and the plugin; the test fails if anything of its containers or of nestrt stays."""
    yield hooked_podman_engine
    fail_if_left(hooked_podman_engine)


@pytest.fixture(scope="session")
def wrapped_docker_engine(nest: Nest, archive: str) -> Iterator[WrappedDocker]:
    _needs("dockerd", "docker", "containerd", "runc")
    found = WrappedDocker(nest, archive)
    yield found
    found.close()


@pytest.fixture
def wrapped_docker(wrapped_docker_engine: WrappedDocker) -> Iterator[WrappedDocker]:
    """docker with runc and the plugin; the test fails if anything of its containers or of nestrt stays."""
    yield wrapped_docker_engine
    fail_if_left(wrapped_docker_engine)


@pytest.fixture(scope="session")
def wrapped_containerd_engine(containerd_engine: Containerd) -> WrappedContainerd:
    _needs("runc")
    return WrappedContainerd(containerd_engine)


@pytest.fixture
def wrapped_containerd(wrapped_containerd_engine: WrappedContainerd) -> Iterator[WrappedContainerd]:
    """containerd with runc and the plugin; the test fails if anything of its containers or of nestrt stays."""
    yield wrapped_containerd_engine
    fail_if_left(wrapped_containerd_engine)


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Start:
    """Starts guests of the engine that the test's parameter names, see support.engine_guests.every."""
    kind = getattr(request, "param", "podman")
    return Start(kind, request.getfixturevalue(FIXTURES[kind]))
