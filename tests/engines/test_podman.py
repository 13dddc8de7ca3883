from __future__ import annotations

from support.podman import Podman


def test_x(podman: Podman) -> None:
    print(podman.run("--rm", "--", "cat", "/proc/self/cgroup").ok())
    print(podman("info").out)
    podman.start("--name", "web", "--", "sleep", "100")
    import subprocess
    print(podman.nest.mounts())
    print(podman.nest.processes())
    subprocess.run("find /sys/fs/cgroup/memory/ -path '*libpod*' -type d; find /sys/fs/cgroup/memory/*nestrt-eng* -type d", shell=True)
