"""buildah from the distribution's package: a build's steps, and commands in a working container."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.podman import IMAGE, Podman

CONTAINERFILE = f"""
FROM {IMAGE}
ENV A=b
RUN echo "made with $A" > /made && id -u >> /made
RUN --mount=type=cache,target=/cache echo kept > /cache/x
WORKDIR /tmp
USER 1000
RUN pwd > here && id -u >> here
CMD ["cat", "/made", "/tmp/here"]
"""


@pytest.fixture
def working(podman: Podman) -> Iterator[str]:
    """A working container of buildah."""
    name = podman.buildah("from", "--pull-never", IMAGE).ok().out.strip()
    yield name
    podman.buildah("rm", name)


def bud(podman: Podman, text: str, name: str, *options: str) -> None:
    """``buildah bud`` of the Containerfile *text*, as the image *name*."""
    file = podman.nest.write("Containerfile", text)
    directory = f"{podman.nest.store}/tmp"
    group = ("--cgroup-parent", f"{podman.nest.group}/build")  # for buildah, that is the group itself
    podman.buildah("bud", *group, *options, "--pull-never", "-t", name, "-f", file, directory, timeout=120).ok()


def test_bud(podman: Podman) -> None:
    """RUN steps as root and as a user, with a cache mount; podman runs the image."""
    bud(podman, CONTAINERFILE, "localhost/made")
    told = podman.run("--rm", "--", image="localhost/made").ok().out
    assert told.splitlines() == ["made with b", "0", "/tmp", "1000"]
    podman("rmi", "-f", "localhost/made").ok()


def test_bud_fails(podman: Podman) -> None:
    file = podman.nest.write("Containerfile", f"FROM {IMAGE}\nRUN exit 9\n")
    result = podman.buildah("bud", "--pull-never", "-f", file, f"{podman.nest.store}/tmp")
    assert result.rc == 9, result
    assert "exit status 9" in result.err


def test_limited_build(podman: Podman) -> None:
    """--memory holds for the steps of a build."""
    limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null > /limit || :"
    bud(podman, f"FROM {IMAGE}\nRUN {limits}\nCMD cat /limit\n", "localhost/limited", "--memory", "64m")
    assert podman.run("--rm", "--", image="localhost/limited").ok().out.strip() == str(64 << 20)
    podman("rmi", "-f", "localhost/limited").ok()


def test_run(podman: Podman, working: str) -> None:
    words = ("run", "--env", "A=b", "--workingdir", "/tmp", "--user", "1000", working, "--")
    result = podman.buildah(*words, "sh", "-c", "echo $A; pwd; id -u; exit 3")
    assert (result.rc, result.out.split()) == (3, ["b", "/tmp", "1000"]), result
    assert podman.buildah("run", "-t", working, "--", "tty").ok().out.strip() == "/dev/pts/0"
    refused = podman.buildah("run", working, "--", "nosuch")
    assert refused.rc != 0
    assert "executable file not found in $PATH" in refused.err


def test_podman_build(podman: Podman) -> None:
    file = podman.nest.write("Containerfile", f"FROM {IMAGE}\nRUN echo made > /made\nCMD cat /made\n")
    words = ("build", "-q", "--cgroup-parent", f"{podman.nest.group}/build", "-t", "localhost/again", "-f", file)
    podman(*words, f"{podman.nest.store}/tmp", timeout=120).ok()
    assert podman.run("--rm", "--", image="localhost/again").ok().out == "made\n"
    podman("rmi", "-f", "localhost/again").ok()
