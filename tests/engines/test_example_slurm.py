"""examples/slurm: jobs of a real Slurm as guests, by nestrt and by runc with the plugin.

::

    /slurm_NODE                              Slurm's groups; on v2 /system.slice/NODE_slurmstepd.scope/job_1/step_0/user
       └ uid_0/job_1/step_0                  the limits of the allocation
            ├ task_0                         srun's task: the runtime itself
            └ NODE.1.0.0                     limit group: named as the container
                 └ guest                     the guest's "/"
                     ├ init
                     └ part                  what the job makes
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.hostside import has_v1
from support.need import SLOW, require
from support.rootfs import CHECKOUT
from support.runner import wait_for
from support.slurm import EXAMPLES, Slurm, below, missing

MEMORY = 128 << 20
USER = 65534
ALLOCATION = ("--mem=128M", "--cpus-per-task=1")


@pytest.fixture(scope="module", params=["nestrt", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def node(runtime: str) -> Iterator[Slurm]:
    """The node; at the end nothing of it may be left."""
    require("slurm", missing())
    require("engines", None if runtime == "nestrt" or shutil.which("runc") else "not installed: runc")
    found = Slurm(*(["--runc"] if runtime == "runc" else []))
    yield found
    assert found.close() == ""


@pytest.fixture
def slurm(node: Slurm) -> Slurm:
    """The node, once other tests' jobs have gone."""
    wait_for(lambda: not node.groups(), "jobs to go", 20)
    return node


@pytest.fixture(scope="session")
def container(scratch: Path) -> str:
    """The words that make a job of srun a guest."""
    bundle = scratch / "slurm-bundle"
    words = ("--annotation", "nestrt.policy=nested", "--memory", str(1 << 30))
    subprocess.run([CHECKOUT / "examples/bundles/make", *words, bundle, "sh"], check=True)
    return f"--container={bundle}"


def memory_limit(group: Path) -> int:
    """The memory limit of *group* in bytes."""
    file = group / "memory.limit_in_bytes"
    return int((file if file.exists() else group / "memory.max").read_text())


class Job:
    """A job of srun in the background, as guest: *group* is its limit group where its memory is.

    A context: at the end srun has ended.
    """

    def __init__(self, slurm: Slurm, user: int, *argv: str) -> None:
        self.slurm = slurm
        identity = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
        self.process = subprocess.Popen(
            slurm.words(*identity, "srun", "--quiet", *argv),
            env=slurm.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.group = Path()

    def __enter__(self) -> Job:
        try:
            self.group = wait_for(self._found, "the guest to divide what it has", 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _found(self) -> Path | None:
        assert self.process.poll() is None
        jobs = [path for path in self.slurm.groups() if (path / "memory.stat").exists()]
        parts = (part for job in jobs for part in below(job) if part.name == "part" and part.parent.name == "guest")
        return next((part.parent.parent for part in parts), None)

    def pids(self) -> set[int]:
        """The processes of the guest."""
        return {int(word) for path in below(self.group) for word in (path / "cgroup.procs").read_text().split()}


# What a job does first: a child group, by which it is found.
PART = "cd /sys/fs/cgroup; [ -d memory ] && cd memory; mkdir part; "


@pytest.mark.parametrize("option", [[], ["--runc"]], ids=["nestrt", "runc"])
def test_run(option: list[str]) -> None:
    """Every check of the example holds here, and nothing of it stays."""
    require("slurm", missing())
    done = subprocess.run(
        [EXAMPLES / "run", *option], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50 * SLOW
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    count = 12 if not option and has_v1("memory") else 8
    assert done.stdout.splitlines()[-1] == f"{count} passed, 0 failed"
    assert done.stdout.count("  PASS  ") == count
    assert done.stderr == ""
    assert not list(Path("/tmp").glob("nestrt-slurm-*"))


def test_opt_in(slurm: Slurm, container: str, scratch: Path) -> None:
    """A job without a container is Slurm's alone; a bundle without a policy sees no tree of its own."""
    assert "/step_0" in slurm.srun(*ALLOCATION, "cat", "/proc/self/cgroup").ok().out
    bundle = scratch / "slurm-plain"
    if not bundle.exists():
        subprocess.run([CHECKOUT / "examples/bundles/make", bundle, "sh"], check=True)
    plain = slurm.srun(*ALLOCATION, f"--container={bundle}", "cat", "/proc/self/cgroup").ok().out
    assert ":/init\n" not in plain
    rooted = slurm.srun(*ALLOCATION, container, "cat", "/proc/self/cgroup").ok().out
    assert {line.split(":", 2)[2] for line in rooted.split()} == {"/init"}


def test_what_the_job_comes_back_with(slurm: Slurm, container: str) -> None:
    result = slurm.srun(*ALLOCATION, container, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.rc, result.out) == (7, "out\n")
    assert "err" in result.err.splitlines()


def test_the_allocation_bounds_it(slurm: Slurm, container: str) -> None:
    """The bundle asks for 1 GiB and Slurm gives 128 MiB: so has the limit group, and what takes more is killed."""
    with Job(slurm, 0, *ALLOCATION, container, "sh", "-c", f"{PART} sleep 600") as job:
        step = next(path for path in job.group.parents if path.name.startswith(("step_", "user")))
        assert memory_limit(step) == memory_limit(job.group) == memory_limit(job.group / "guest") == MEMORY
        slurm.run("scancel", "--user=root").ok()
        job.process.wait(20 * SLOW)
    # tail keeps what it reads, and nothing of the guest has a limit of its own.
    greedy = slurm.srun(*ALLOCATION, container, "sh", "-c", f"{PART} head -c 300m /dev/zero | tail | wc -c; echo alive")
    assert "314572800" not in greedy.out, greedy


def test_cancelled(slurm: Slurm, runtime: str, container: str) -> None:
    """A guest that hears no signal is killed all the same, and leaves no process, group and state."""
    stubborn = f"{PART} trap '' TERM INT HUP; sleep 600 & while :; do sleep 1; done"
    # The plugin is root's; on v2 Slurm 22.05 gives users no groups.
    for user in (0, USER) if runtime == "nestrt" and has_v1("memory") else (0,):
        with Job(slurm, user, *ALLOCATION, container, "sh", "-c", stubborn) as job:
            pids = wait_for(lambda job=job: len(found := job.pids()) >= 2 and found, "both processes")
            users = set()
            for pid in pids:
                with suppress(FileNotFoundError):  # a short one of the shell's
                    users.add(os.stat(f"/proc/{pid}").st_uid)
            assert users == {user}
            slurm.run("scancel", f"--user={user}").ok()
            job.process.wait(20 * SLOW)
        wait_for(lambda pids=pids: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the guest to end", 20)
        wait_for(lambda: not slurm.groups(), "the job's groups to go", 20)
        assert slurm.run("find", "/run/nestrt-slurm", "-mindepth", "2").ok().out == ""


def test_an_ordinary_user(slurm: Slurm, runtime: str, container: str) -> None:
    """By nestrt: that user is the guest's root, in the groups that Slurm's v1 plugin has given, with Slurm's limits."""
    if runtime == "runc" or not has_v1("memory"):
        result = slurm.srun(*ALLOCATION, container, "true", user=USER)
        assert result.rc != 0
        assert "Traceback" not in result.err
        return
    script = (
        "cat /proc/self/uid_map; cd /sys/fs/cgroup/memory; cat memory.limit_in_bytes; mkdir part; "
        "echo 1M > part/memory.limit_in_bytes && cat part/memory.limit_in_bytes; echo 1G > memory.limit_in_bytes"
    )
    result = slurm.srun(*ALLOCATION, container, "sh", "-c", script, user=USER)
    assert result.out.split() == ["0", str(USER), "1", str(MEMORY), str(1 << 20)]
    assert "memory.limit_in_bytes: Read-only" in result.err
