"""What the benchmarks share: the runtimes compared with, their bundles, a clock, and sums.

A peer that uses a user namespace gives its standard streams to the container's root (fchown(2)),
whatever they are: never the host's /dev/null, but pipes or files of the benchmark's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from support.rootfs import CHECKOUT

STUB = str(CHECKOUT / "hooks/nestrt")
PYTHON = "/usr/bin/python3"
IDS = 524288  # where the user namespaces of the others begin
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
TREE = "/sys/fs/cgroup/unified"


def install(packages: dict[str, str]) -> None:
    """Install what is missing of {program: package}, where apt can."""
    missing = [package for program, package in packages.items() if not shutil.which(program)]
    if missing and shutil.which("apt-get"):
        print("installing", *missing, flush=True)
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], **quiet)


def compile_modules() -> None:
    """Without compiled modules every start would compile them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(CHECKOUT / "nestrt")], check=True, env=environment)


def bundle(
    directory: Path, root: Path, args: Sequence[str], userns: bool = False, annotations: dict[str, str] | None = None
) -> Path:
    """Write an OCI bundle for *root*: what ``runc spec`` makes, with all namespaces and a few keys changed."""
    directory.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(directory)], check=True)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["root"] = {"path": str(root), "readonly": False}
    config["process"].update(terminal=False, args=list(args))
    config["process"].pop("rlimits", None)  # raising one needs CAP_SYS_RESOURCE, which not every machine gives
    if userns:
        mapping = [{"containerID": 0, "hostID": IDS, "size": 65536}]
        config["linux"].update(uidMappings=mapping, gidMappings=mapping)
    names = (*NAMESPACES, "user") if userns else NAMESPACES
    config["linux"]["namespaces"] = [{"type": name} for name in names]
    config["annotations"] = annotations or {}
    file.write_text(json.dumps(config))
    return directory


@contextlib.contextmanager
def crun_prefix() -> Iterator[list[str]]:
    """What to start crun by: on a hybrid host whose v2 tree has controllers, a mount namespace without that tree.

    crun refuses such hosts. Entering the namespace costs it a millisecond or two.
    """
    if not (os.path.ismount(TREE) and Path(TREE, "cgroup.controllers").read_text().strip()):
        yield []
        return
    script = f"umount -l {TREE} && echo ready && exec sleep 1000000"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        print("crun does not start where v1 and v2 both have controllers: it runs without the v2 tree here")
        try:
            yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        finally:
            holder.kill()


def clock(argv: Sequence[str]) -> float:
    """Run *argv* once; milliseconds. RuntimeError with its last words if it fails."""
    start = time.perf_counter()
    done = subprocess.run(argv, input="", capture_output=True, text=True)
    spent = (time.perf_counter() - start) * 1000
    if done.returncode:
        raise RuntimeError(last_words(done.stderr or done.stdout, done.returncode))
    return spent


def clock_detached(argv: Sequence[str], scratch: Path) -> float:
    """clock() for what leaves a container behind, which has the files of *scratch* for its streams."""
    with open(scratch / "in", "ab+") as given, open(scratch / "out", "wb+") as out:
        start = time.perf_counter()
        done = subprocess.run(argv, stdin=given, stdout=out, stderr=out)
        spent = (time.perf_counter() - start) * 1000
        out.seek(0)
        if done.returncode:
            raise RuntimeError(last_words(out.read().decode(errors="replace"), done.returncode))
    return spent


def last_words(text: str, status: int) -> str:
    words = text.strip().splitlines()
    return words[-1] if words else f"status {status}"


def high(values: Sequence[float]) -> float:
    """The 90th percentile."""
    return statistics.quantiles(values, n=10)[-1] if len(values) > 1 else values[0]


def proportional(pids: Iterable[int]) -> float:
    """KiB of memory of these processes, each page divided by those that share it: Pss in proc_pid_smaps(5)."""
    total = 0
    for pid in pids:
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (OSError, ValueError):  # it has ended
            continue
        total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return float(total)


def all_processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}
