"""The engines of a session, each started when the first test asks for it, and their clean-up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemons import Containerd, Docker
from support.engines import Nest, image_archive
from support.lxc import Lxc
from support.need import require
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
