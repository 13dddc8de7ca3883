"""An engine inside a guest: podman, from the distribution's package, in a guest of ``nestrt launch``.

::

    host      /nestrt/NAME                   limit group of the guest
               └ guest                       the guest's "/": a Debian with podman, as this machine is
                  ├ init                     its first process, and podman
                  └ engine/libpod-ID         what podman's container is told to have (no policy: as under runc)
                     └ guest/init            with a policy: level 2, a tree of its own

No entry script and no right of the host: guest root is an ordinary uid of the host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.engines import PATH, RUNTIME, image_archive
from support.guests import Answers, parse, script
from support.hostside import group_file, groups, limit_group, processes, read
from support.need import require
from support.podman import IMAGE
from support.runner import Nestrt, Result, wait_for

MEMORY, INNER = 256 << 20, 64 << 20
_SETUP = """
set -e
export PATH={path} HOME=/root CONTAINERS_CONF=/engine/containers.conf
cat > $CONTAINERS_CONF <<'END'
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1000:1000"]
[engine]
lock_type = "file"
[network]
network_backend = "netavark"
END
podman() {{
  command podman --root /engine/root --runroot /engine/run --tmpdir /engine/tmp --storage-driver vfs \\
    --cgroup-manager cgroupfs --events-backend file --network-config-dir /engine --runtime {runtime} "$@"
}}
podman load -q -i {archive} >/dev/null
"""


@pytest.fixture(scope="session")
def archive(scratch: Path, busybox: Path) -> Path:
    return image_archive(busybox, scratch / "nested.tar", IMAGE)


def options(name: str, net: str) -> tuple[str, ...]:
    """A guest with this machine's root filesystem, a throw-away layer over it, and tmpfs where podman works."""
    mounts = [word for place in ("/engine", "/run") for word in ("--mount", f"type=tmpfs,target={place}")]
    limits = ("-m", str(MEMORY), "--pids", "400", "--capabilities", "all")
    return ("--name", name, "--rootfs", "/", "--overlay", "--net", net, *limits, *mounts)


@pytest.fixture(autouse=True)
def _podman_is_there() -> None:
    missing = [name for name in ("/usr/bin/podman", "/usr/lib/podman/netavark") if not os.path.exists(name)]
    require("engines", f"not installed: {' '.join(missing)}" if missing else None)


@pytest.fixture
def prepared(scratch: Path, archive: Path) -> Iterator[Callable[[str], str]]:
    """A function that makes a shell script for the guest out of what is to be done once podman is ready there."""
    made: list[Path] = []

    def make(text: str) -> str:
        path = scratch / f"nested-{len(list(scratch.iterdir()))}.sh"
        path.write_text(_SETUP.format(path=PATH, runtime=RUNTIME, archive=archive) + text)
        made.append(path)
        return str(path)

    yield make
    for path in made:
        path.unlink()


def run(nestrt: Nestrt, name: str, file: str, net: str = "none") -> Result:
    return nestrt.launch(*options(name, net), "--", "bash", file, timeout=60)


def test_podman_in_a_guest(nestrt: Nestrt, guest_name: str, prepared: Callable[[str], str]) -> None:
    """Containers run, with networks of all kinds, limits, exit statuses, exec, stats, and a build-up of pods."""
    run_ = "podman run --rm"
    questions = {
        "uid_map": "cat /proc/self/uid_map",
        "status": f"{run_} {IMAGE} sh -c 'exit 3'; echo $?",
        "missing": f"{run_} {IMAGE} nosuch 2>/dev/null; echo $?",
        "none": f"{run_} --network none {IMAGE} ls /sys/class/net",
        "bridge": f"{run_} --network bridge {IMAGE} ip -4 -o addr show dev eth0",
        "limit": f"{run_} --memory {INNER} {IMAGE} sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes "
        "/sys/fs/cgroup/memory.max 2>/dev/null; :'",
        "start": f"podman run -d --name one {IMAGE} sleep 1000",
        "exec": "podman exec one sh -c 'echo inside; exit 5'; echo $?",
        "stats": "podman stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' one",
        "pause": "podman pause one && podman unpause one",
        "stop": "podman rm -f -t 0 one",
        "left": "podman ps -aq | wc -l",
    }
    result = run(nestrt, guest_name, prepared("set +e\n" + script(questions)))
    answers: Answers = parse(result.out)
    assert list(answers) == list(questions), result
    assert answers.text("uid_map").split()[1] != "0"
    assert answers.text("status") == "3"
    assert answers.text("missing") == "127"
    assert answers.text("none") == "lo"
    assert "10.88." in answers.text("bridge")
    assert answers.text("limit") == str(INNER)
    answers.text("start")
    assert answers.text("exec").split() == ["inside", "5"]
    assert answers.text("stats").endswith(" 1")
    answers.text("pause")
    answers.text("stop")
    assert answers.text("left") == "0"


@pytest.mark.parametrize("annotation", ["", "--annotation nestrt.level.virtualize=true"], ids=["plain", "virtual"])
def test_seen_from_the_host(nestrt: Nestrt, guest_name: str, prepared: Callable[[str], str], annotation: str) -> None:
    """The container's groups are below the guest's, whose limit group bounds them; the host sees both limits.

    Without a policy the container may ask for twice what its guest has, and gets no more than that; with one, for
    more than its level has it is not started.
    """
    more = f"podman run --rm {annotation} --network none --memory {MEMORY * 2} {IMAGE} true && exit 99 || :\n"
    asked = MEMORY if annotation else MEMORY * 2
    text = (
        f"{more if annotation else ''}"
        f"podman run -d {annotation} --cgroup-parent /engine --network none --memory {asked} {IMAGE} sleep 987\n"
        f"podman run -d --cgroup-parent /engine --network none --memory {INNER} {IMAGE} sleep 986\n"
        "echo ready; sleep 1000"
    )
    process = nestrt.start("launch", *options(guest_name, "none"), "--", "bash", prepared(text))
    limit = limit_group(guest_name)
    memory = group_file("memory", limit, "memory.limit_in_bytes", "memory.max")

    def running() -> dict[str, int]:
        assert process.poll() is None, process.communicate()
        found = {}
        for pid in processes(limit):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:  # it has ended
                continue
            if words[:1] == ["sleep"] and words[1] in ("987", "986"):
                found[words[1]] = pid
        return found if len(found) == 2 else {}

    pids = wait_for(running, "podman's containers", 30)
    assert memory.read_text().strip() == str(MEMORY)
    for pid in pids.values():
        rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert all(row.split(":", 2)[2].startswith(f"{limit}/guest/engine/libpod-") for row in rows), rows
        assert os.stat(f"/proc/{pid}").st_uid != 0
        virtual = bool(annotation) and pid == pids["987"]
        assert all(row.endswith("/guest/init") == virtual for row in rows), rows
    inner = Path(f"/proc/{pids['986']}/cgroup").read_text()
    path = next(row.split(":", 2)[2] for row in inner.splitlines() if "memory" in row.split(":")[1] or row[:2] == "0:")
    assert read("memory", path, "memory.limit_in_bytes", "memory.max") == str(INNER)
    shown = nestrt.run("tree", "--format", "json").ok().out
    assert guest_name in shown
    nestrt.run("delete", "--force", guest_name).ok()
    wait_for(lambda: not groups(limit), "the guest's groups to go")
