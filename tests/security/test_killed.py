"""Law 8, nothing lost: whatever is killed, and whenever, all is removed again, and no guest ran with looser limits.

launcher        1  2  3 … clone … go                       each number is a step of the plan; after each
first process                1  2  3 … go → program        of them one of the two is killed
                                              └ writes "ran" and sleeps: the host looks at its limits then
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.attack import guest_pids, limits_of
from support.guests import MODES
from support.hostside import groups, hierarchies, limit_group
from support.killing import count_steps, gone, kill_at_removal, launch_and_kill
from support.need import SLOW
from support.runner import STATE, Nestrt, leftovers, links, wait_for

LIMITS = ("--memory", "64M", "--pids", "40", "--cpus", "0", "--cpu-quota", "0.5", "--device", "c 10:229 r")
# How many parts the exhaustive loops are cut into, so that none is long.
PARTS = 4
_WITNESS = "echo ran > /witness/$0; exec sleep 300"


@pytest.fixture
def witness(scratch: Path) -> Path:
    """A directory that every guest may write to: what runs in one leaves a file with the guest's name."""
    place = scratch / "witness"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    return place


def words(root: Path, witness: Path, name: str, mode: str) -> list[str]:
    return [
        *("--rootfs", str(root), "--name", name, *MODES[mode], *LIMITS, "--rm"),
        *("--mount", f"type=bind,source={witness},target=/witness", "--", "sh", "-c", _WITNESS, name),
    ]


def expected_limits() -> dict[str, str]:
    stands = {"memory": str(64 << 20), "pids": "40", "cpus": "0", "quota": "50000"}
    if any(h.version == 2 for h in hierarchies()):
        stands.update({"cgroup.max.descendants": "1000", "cgroup.max.depth": "8"})
    return stands


def settle(name: str, first: int, witness: Path) -> bool:
    """Wait until the guest has ended or its program runs; whether it runs, and then with all of its limits."""

    def settled() -> bool:
        return (witness / name).exists() or (not first or gone(first)) and not guest_pids(name)

    wait_for(settled, f"guest {name} to end or to run")
    if not (witness / name).exists():
        return False
    try:
        if guest_pids(name):
            assert limits_of(limit_group(name)) == expected_limits()
            for hierarchy in hierarchies():
                members = (hierarchy.group(limit_group(name)) / "guest/init/cgroup.procs").read_text().split()
                assert members, f"the program is not in its group of {hierarchy.mountpoint}"
    except (AssertionError, OSError):
        if guest_pids(name):  # else it has ended meanwhile, and its launcher removes its groups
            raise
    return True


def anything_left(name: str) -> list[str]:
    """leftovers() but for a process that only names the guest: these tests themselves."""
    return [line for line in leftovers(name) if "pytest" not in line]


def kill_the_launcher(
    nestrt: Nestrt, points: list[tuple[str, int]], root: Path, witness: Path, mode: str, new_guest: Callable[[], str]
) -> None:
    """Kill the launcher at all *points*, then collect: gc takes all but guests whose program runs."""
    running, ended = [], []
    names = {}
    for point in points:
        name = names[point] = new_guest()
        killed = launch_and_kill(witness / "errors", "launcher", *point, words(root, witness, name, mode))
        assert killed.reached, (point, killed)
        (running if settle(name, killed.first, witness) else ended).append(name)
    taken = nestrt.run("gc", timeout=60).ok().out.split()
    told = {name: point for point, name in names.items()}
    for name in ended:
        assert not anything_left(name), (told[name], taken)
    for name in running:
        # It runs as it was asked for, and goes on until it is deleted; unless its launch was not over: then gc took it.
        if name not in taken:
            assert settle(name, 0, witness)
            nestrt.run("delete", "--force", name).ok()
        assert not anything_left(name), told[name]
    # Only the last steps let the program run.
    assert len(running) <= 4, [told[name] for name in running]


def all_points(nestrt: Nestrt, root: Path, witness: Path, mode: str) -> list[tuple[str, int]]:
    steps = count_steps(nestrt, *words(root, witness, "nestrt-count", mode))
    # The guest's last step, Execute, is never seen done.
    return [("host", n + 1) for n in range(steps["host"])] + [("guest", n + 1) for n in range(steps["guest"] - 1)]


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_the_launcher_killed_after_each_step(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, witness: Path, mode: str, part: int
) -> None:
    points = all_points(nestrt, busybox, witness, mode)[part::PARTS]
    kill_the_launcher(nestrt, points, busybox, witness, mode, new_guest)


@pytest.mark.parametrize("mode", ["userns", "root"])
def test_the_launcher_killed_at_some_steps(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, witness: Path, mode: str
) -> None:
    points = all_points(nestrt, busybox, witness, mode)
    some = points[:: len(points) // 3] + [point for point in points if point[0] == "host"][-2:]
    kill_the_launcher(nestrt, some, busybox, witness, mode, new_guest)


def kill_the_first_process(
    nestrt: Nestrt, points: list[tuple[str, int]], root: Path, witness: Path, mode: str, new_guest: Callable[[], str]
) -> None:
    """Kill the first process at all *points*: the launcher says so in one line and takes everything back itself."""
    steps = count_steps(nestrt, *words(root, witness, "nestrt-count", mode))
    # From its word "ready" on it is told to go on at any moment; a killed guest is all that can be told then.
    late = {("guest", steps["guest"] - n) for n in (1, 2)} | {("host", steps["host"] - n) for n in range(6)}
    for point in points:
        name = new_guest()
        killed = launch_and_kill(witness / "errors", "first", *point, words(root, witness, name, mode))
        if not killed.first:
            continue
        status = os.waitstatus_to_exitcode(killed.status)
        if point in late:
            assert status in (125, 137), (point, killed)
        else:
            assert status == 125, (point, killed)
            assert not (witness / name).exists(), point
        assert len(killed.err.splitlines()) == (status == 125), (point, killed.err)
        assert "Traceback" not in killed.err
        assert not anything_left(name), point


def points_with_first(nestrt: Nestrt, root: Path, witness: Path, mode: str) -> list[tuple[str, int]]:
    """The points at which there is a first process, the launcher's among them."""
    lines = nestrt.launch("--dry-run", *words(root, witness, "nestrt-count", mode)).ok().out.splitlines()
    host = [line for line in lines if line.startswith("host ")]
    clone = next(n for n, line in enumerate(host) if "clone the first process" in line)
    points = all_points(nestrt, root, witness, mode)
    return [point for point in points if point[0] == "guest" or point[1] > clone]


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_the_first_process_killed_after_each_step(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, witness: Path, mode: str, part: int
) -> None:
    points = points_with_first(nestrt, busybox, witness, mode)[part::2]
    kill_the_first_process(nestrt, points, busybox, witness, mode, new_guest)


def test_the_first_process_killed_at_some_steps(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, witness: Path
) -> None:
    points = points_with_first(nestrt, busybox, witness, "userns")
    kill_the_first_process(nestrt, points[:: len(points) // 3], busybox, witness, "userns", new_guest)


# A guest with groups of its own; delete is killed after each thing it removed, and started again.
@pytest.mark.parametrize("command", ["delete", "gc"])
def test_delete_and_gc_killed_half_way(
    nestrt: Nestrt, guest_name: str, busybox: Path, tmp_path: Path, command: str
) -> None:
    tree = hierarchies()[0].mountpoint
    script = f"cd {tree}; mkdir a b a/c" + ("; exec sleep 300" if command == "delete" else "")
    nestrt.launch("-d", "--rm", "--rootfs", busybox, "--name", guest_name, "--", "sh", "-c", script).ok()
    if command == "gc":
        wait_for(lambda: not guest_pids(guest_name), "the guest to end")
    argv = ["delete", "--force", guest_name] if command == "delete" else ["gc"]
    kills = 0
    step = 1 if SLOW == 1 else 3
    while leftovers(guest_name):
        kill_at_removal(tmp_path / "errors", step, argv)
        kills += 1
        assert kills < 200, leftovers(guest_name)
    assert kills >= (len(hierarchies()) if SLOW == 1 else 2)
    assert nestrt.run("gc").ok().out == ""
    assert not groups(limit_group(guest_name))


@pytest.fixture
def collector(nestrt: Nestrt, tmp_path: Path) -> Iterator[None]:
    """A shell that runs gc again and again."""
    import subprocess

    collect = f"while [ ! -e {tmp_path}/stop ]; do {nestrt.command} gc; done"
    process = subprocess.Popen(["sh", "-c", collect], stdout=subprocess.DEVNULL)
    yield
    (tmp_path / "stop").touch()
    process.wait()


@pytest.mark.slow_on_vm
@pytest.mark.usefixtures("collector")
def test_gc_takes_nothing_from_launches_under_way(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    """Launches side by side, all with one gc after the other: each runs to its end, and nothing is left."""
    names = [new_guest() for _ in range(16)]
    for batch in (names[:8], names[8:]):
        started = [
            nestrt.start("launch", "--rm", "--rootfs", busybox, "--name", name, "--", "sh", "-c", "sleep 0.1; exit 7")
            for name in batch
        ]
        for process in started:
            _, err = process.communicate(timeout=50)
            assert (process.returncode, err) == (7, b"")
    assert not [line for name in names for line in leftovers(name)]


def test_a_launch_killed_before_its_program_ran_is_not_taken_for_an_ended_guest(
    nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, witness: Path
) -> None:
    """Without --rm gc keeps guests that have ended. What never ran is not one of them, however late the kill."""
    for late in range(4):
        name = new_guest()
        args = [word for word in words(busybox, witness, name, "userns") if word != "--rm"]
        steps = count_steps(nestrt, *args)
        killed = launch_and_kill(witness / "errors", "launcher", "host", steps["host"] - late, args)
        assert killed.reached
        if settle(name, killed.first, witness):
            continue
        nestrt.run("gc").ok()
        assert not anything_left(name), late


@pytest.mark.slow_on_vm
def test_no_network_interface_stays(nestrt: Nestrt, guest_name: str, busybox: Path, witness: Path) -> None:
    """Killed right after the guest was connected to the bridge: gc takes the interface and the address back."""
    args = ["--net", "veth", *words(busybox, witness, guest_name, "userns")]
    before = links()
    lines = nestrt.launch("--dry-run", *args).ok().out.splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith("host") and "to the bridge" in line)
    killed = launch_and_kill(witness / "errors", "launcher", "host", number, args)
    assert killed.reached, killed
    assert not settle(guest_name, killed.first, witness)
    nestrt.run("gc").ok()
    assert links() <= before
    assert not anything_left(guest_name)


def test_no_id_stays_reserved(nestrt: Nestrt, guest_name: str, busybox: Path, witness: Path) -> None:
    """The range of ids is given back by gc, whether or not the state file came to be."""
    args = words(busybox, witness, guest_name, "userns")
    lines = nestrt.launch("--dry-run", *args).ok().out.splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith("host") and "reserve the ids" in line)
    assert launch_and_kill(witness / "errors", "launcher", "host", number, args).reached
    reserved = [link for link in (STATE / "ids").iterdir() if os.readlink(link) == guest_name]
    assert len(reserved) == 1
    (STATE / "guests" / guest_name).unlink()
    nestrt.run("gc").ok()
    assert not os.path.lexists(reserved[0])
