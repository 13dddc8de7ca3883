"""Guests changed from the host: update, freeze, thaw, kill, exec.

::

    /nestrt/NAME                limit group: what update writes
             └ guest            guest root: shows the same
                ├ init          first process; where exec puts another
                ├ web           a child group of the guest's own
                └ nestrt/in     limit group of a guest's guest: a claim, as the host sees it
                   └ guest/init
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nestrt.act import remove
from nestrt.probe.facts import read_hierarchies
from support.broker import running, start_guest
from support.bundles import Bundle
from support.guests import MODES, directory, inside, nested
from support.hostside import (
    cpus_online,
    group_file,
    guest_root,
    has_v1,
    hierarchies,
    is_v2_only,
    limit_group,
    mark,
    processes,
    read,
    scratch_disk,
)
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import Nestrt, Result, wait_for
from support.silent_file import silent

MIB = 1 << 20
MEMORY = "memory", "memory.limit_in_bytes", "memory.max"
PIDS = "pids", "pids.max", "pids.max"
CPUS = "cpuset", "cpuset.cpus", "cpuset.cpus"
QUOTA = "cpu", "cpu.cfs_quota_us", "cpu.max"
SHARES = "cpu", "cpu.shares", "cpu.weight"
FUSE = "c 10:229 rwm"
WORK = "while :; do sleep 0.05; done"


def begin(nestrt: Nestrt, name: str, root: Path, *options: str, script: str = "", mode: str = "userns") -> None:
    """A guest that has done what *script* says, and goes on."""
    shell = f"{script}\ntouch /tmp/ready; {WORK}"
    nestrt.launch("--rootfs", root, "--name", name, "-d", *MODES[mode], *options, "--", "sh", "-c", shell).ok()
    wait_for(lambda: nestrt.run("exec", name, "test", "-e", "/tmp/ready").rc == 0, "the guest")


def both(name: str, file: tuple[str, str, str]) -> set[str]:
    """What limit group and guest root have in *file*: the same, in one set."""
    return {read(file[0], group, *file[1:]) for group in (limit_group(name), guest_root(name))}


def refused(result: Result, status: int, *words: str) -> str:
    assert result.rc == status, result
    assert result.err.count("\n") == 1, result
    assert result.out == "", result
    for word in words:
        assert word in result.err, result
    return result.err


def quota(us: int | str) -> str:
    return str(us) if has_v1("cpu") else f"{us} 100000"


# update: the limit group, what the guest sees of it, marks and stamp; the guest's own groups are cut down to it.
@pytest.mark.parametrize("mode", ["userns", pytest.param("nouserns", marks=pytest.mark.slow_on_vm)])
def test_update(nestrt: Nestrt, guest_name: str, make_busybox: Callable[[], Path], mode: str) -> None:
    name, cpus = guest_name, cpus_online()
    script = (
        f"mkdir {directory('cpuset', 'web')}; mkdir -p {directory('cpu', 'web')}; mkdir -p {directory('pids', 'web')}"
    )
    begin(nestrt, name, make_busybox(), "-m", "64M", "--pids", "90", script=script, mode=mode)
    done = nestrt.run(
        "update", name, "-m", "96M", "--pids", "40", "--cpus", "0", "--cpu-quota", "0.5", "--cpu-weight", "200"
    ).ok()
    assert (done.out, done.err) == ("", "")
    assert both(name, MEMORY) == {str(96 * MIB)}
    assert both(name, PIDS) == {"40"}
    assert both(name, CPUS) == {"0"}
    assert both(name, QUOTA) == {quota(50000)}
    assert len(both(name, SHARES)) == 1
    seen = nestrt.run("exec", name, "cat", inside("memory", "/", *MEMORY[1:]), inside("pids", "/", *PIDS[1:])).ok()
    assert seen.out.split() == [str(96 * MIB), "40"]
    limits = mark(limit_group(name))["limits"]
    assert {key: limits[key] for key in ("memory", "pids", "cpus", "cpu_quota", "cpu_weight")} == {
        "memory": 96 * MIB, "pids": 40, "cpus": "0", "cpu_quota": 50000, "cpu_weight": 200}  # fmt: skip
    stamp = json.loads(nestrt.run("show", name, "--format", "json").ok().out)["stamp"]["limits"]
    assert (stamp["memory"], stamp["pids"], stamp["cpu_quota"]) == (96 * MIB, 40, 50000)

    nestrt.run("update", "--memory", "max", name, "--cpu-quota", "max", "--pids", "max", "--cpus", f"0-{cpus - 1}").ok()
    assert both(name, PIDS) == {"max"}
    assert both(name, QUOTA) == {quota("-1" if has_v1("cpu") else "max")}
    assert both(name, CPUS) == {f"0-{cpus - 1}" if cpus > 1 else "0"}
    assert both(name, MEMORY).pop() in ("max", "9223372036854771712")

    refused(nestrt.run("update", name, "-m", "900T"), 2, "memory 900T", "ask for")
    refused(nestrt.run("update", name, "--cpus", "8000"), 2, "CPUs 8000")
    refused(nestrt.run("update", name, "-m", "lots"), 2, "lots", "not a size")
    refused(nestrt.run("update", name), 2, "nothing is to be changed")
    refused(nestrt.run("update", "nestrt-no-such", "-m", "1G"), 3, "no such guest")


def can_use(nestrt: Nestrt, name: str, node: str = "/dev/fuse") -> bool:
    return nestrt.run("exec", name, "sh", "-c", f": < {node}").rc == 0


def test_update_devices(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """A device more and less, in the group of every process, with its node."""
    name = guest_name
    begin(nestrt, name, busybox, mode="nouserns")  # the host's node is its root's alone
    assert not can_use(nestrt, name)
    nestrt.run("update", name, "--device", FUSE, "--pids", "60").ok()
    assert can_use(nestrt, name)
    assert can_use(nestrt, name, "/dev/null")
    assert FUSE in mark(limit_group(name))["limits"]["devices"]
    nestrt.run("update", name, "--deny-device", FUSE).ok()
    assert not can_use(nestrt, name)
    assert FUSE not in mark(limit_group(name))["limits"]["devices"]
    # All or nothing: what cannot be taken away leaves the other limits as they were.
    refused(nestrt.run("update", name, "--pids", "30", "--deny-device", "c 136:7 rw"), 2, "rules have no exceptions")
    assert both(name, PIDS) == {"60"}


@pytest.mark.v1
def test_what_the_kernel_refuses_is_taken_back(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """30 MiB of a tmpfs cannot be reclaimed without swap: EBUSY, after the CPU weight was written."""
    name = guest_name
    begin(nestrt, name, busybox, "-m", "64M", "--swap", "0", "--cpu-weight", "100",
          script="dd if=/dev/zero of=/dev/shm/x bs=1M count=30 2>/dev/null")  # fmt: skip
    before = both(name, SHARES)
    result = nestrt.run("update", name, "-m", "8M", "--cpu-weight", "300", "--pids", "20")
    refused(result, 4, "unable to set memory limit", "allow more, or free memory first")
    assert both(name, SHARES) == before
    assert both(name, MEMORY) == {str(64 * MIB)}
    assert both(name, PIDS) == {"max"}
    # More memory, and swap that was limited to none stays so.
    nestrt.run("update", name, "-m", "80M").ok()
    assert both(name, ("memory", "memory.memsw.limit_in_bytes", "")) == {str(80 * MIB)}


# A guest is no container, and was not made of a document.
def test_what_only_containers_take(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    name = guest_name
    begin(nestrt, name, busybox)
    refused(nestrt.run("update", name, "--pids-limit", "10"), 2, f"guest {name}: --pids-limit is for", "--pids 10")
    refused(nestrt.run("update", name, "--memory-swap", "300M"), 2, f"guest {name}: --memory-swap is for", "--help")
    refused(nestrt.run("exec", "--cap", "CAP_KILL", name, "true"), 2, f"guest {name}: --cap is for", "--help")
    # What engines look for, where there is neither.
    refused(nestrt.run("update", f"{name}-no", "--pids-limit", "10"), 1, "container does not exist")
    refused(nestrt.run("exec", "--cap", "CAP_KILL", f"{name}-no", "true"), 255, "container does not exist")
    if has_v1("io") and scratch_disk():
        result = nestrt.run("update", name, "--io", f"{scratch_disk()} rbps=1M")
        assert "linux.resources" not in refused(result, 5, f"of guest {name}: cgroup v1", "where it is started")


@pytest.mark.slow_on_vm
def test_a_broker_is_asked(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    """It keeps the guest's CPU numbers, tells subscribers, and writes its audit."""
    with running() as broker:
        guest = start_guest(nestrt, python, guest_name, "--cpus", "0")
        assert guest.call("Info")["cpus"] == 1
        nestrt.run("update", guest_name, "--cpus", f"0-{cpus_online() - 1}", "-m", "200M", "--device", FUSE).ok()
        assert guest.call("Info")["cpus"] == cpus_online()
        assert both(guest_name, MEMORY) == {str(200 * MIB)}
        assert {entry["key"] for entry in broker.entries(guest_name)} >= {"memory.max", "cpuset.cpus", "devices"}
        refused(nestrt.run("update", guest_name, "--cpus", "8000"), 2, "CPUs 8000")
        nestrt.stop()
        nestrt.run("delete", "--force", guest_name).ok()


def test_a_container_of_this_runtime(nestrt: Nestrt, bundle: Bundle) -> None:
    """By the wider form: its state file says the truth, and its own update goes on from there."""
    bundle.virtual().resources(memory={"limit": 64 * MIB}).up()
    group = bundle.cgroup
    nestrt.run("update", bundle.id, "-m", "96M", "--device", FUSE).ok()
    assert {read("memory", f"{group}{end}", *MEMORY[1:]) for end in ("", "/guest")} == {str(96 * MIB)}
    state = json.loads((bundle.state_root / bundle.id / "state.json").read_text())
    assert state["resources"]["memory"]["limit"] == 96 * MIB
    assert state["resources"]["devices"][-1]["minor"] == 229
    bundle.verb("update", "--pids-limit", "33", bundle.id).ok()
    assert mark(group)["limits"]["memory"] == 96 * MIB
    assert nestrt.run("exec", "-it", bundle.id, "sh", "-c", "exit 3").rc == 3
    nestrt.run("kill", bundle.id, "--signal", "KILL").ok()
    wait_for(lambda: not processes(group), "its end")


@pytest.mark.slow_on_vm
def test_a_container_that_a_broker_changes(nestrt: Nestrt, bundle: Bundle) -> None:
    """Whether its root asks the broker or the command line: state file, device program and broker agree."""
    with running() as broker:
        bundle.virtual().annotate(level__broker="required").resources(memory={"limit": 64 * MIB}).up()
        state = bundle.state_root / bundle.id / "state.json"
        asked = {"memory.max": "96M", "cpu.max": "0.5"}
        broker.call("SetLimits", guest=bundle.id, settings=asked, devices=["default", FUSE])
        known = json.loads(state.read_text())["resources"]
        assert known["memory"]["limit"] == 96 * MIB
        assert known["devices"][-1]["minor"] == 229
        broker.call("SetLimits", guest=bundle.id, settings={"cpu.max": "max"})
        assert read("cpu", bundle.cgroup, *QUOTA[1:]).split()[0] in ("-1", "max")
        file = bundle.path / "resources.json"
        file.write_text(json.dumps({"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c",
                                                 "major": 1, "minor": 3, "access": "rw"}]}))  # fmt: skip
        bundle.verb("update", "--resources", str(file), bundle.id).ok()
        assert "c 10:229 rwm" not in mark(bundle.cgroup)["limits"]["devices"]
        assert mark(bundle.cgroup)["limits"]["memory"] == 96 * MIB
        nestrt.run("update", bundle.id, "-m", "80M", "--device", FUSE).ok()
        assert json.loads(state.read_text())["resources"]["memory"]["limit"] == 80 * MIB
        assert [e["new"] for e in broker.entries(bundle.id) if e["key"] == "memory.max"][-1] == 80 * MIB
        bundle.kill().ok()


# A guest whose runtime has named the guest root: systemd-nspawn's is called "payload".
def test_a_guest_root_of_another_name(nestrt: Nestrt) -> None:
    name = f"nestrt-named-{os.getpid()}"
    first = min(read_hierarchies(), key=lambda h: (h.version != 2, h.name != "systemd", h.name))
    try:
        for hierarchy in hierarchies():
            for group in (f"/{name}", f"/{name}/payload"):
                place = hierarchy.group(group)
                place.mkdir()
                if hierarchy.version == 2:
                    for controller in hierarchy.controllers if group == f"/{name}" else ():
                        (place / "cgroup.subtree_control").write_text(f"+{controller}")
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if hierarchy.version == 1 and (place / file).exists():
                        (place / file).write_text((place.parent / file).read_text())
            text: dict[str, object] = {"v": 1, "name": name, "id": "x", "root": "payload"}
            if hierarchy.mountpoint == Path(first.mountpoint):
                text = {**text, "level": 1, "state": "running", "limits": {"memory": 64 * MIB}}
            os.setxattr(hierarchy.group(f"/{name}"), "trusted.nestrt", json.dumps(text).encode())
        nestrt.run("update", name, "-m", "96M", "--pids", "40", "--cpus", "0").ok()
        for group in (f"/{name}", f"/{name}/payload"):
            assert (read("memory", group, *MEMORY[1:]), read("pids", group, *PIDS[1:])) == (str(96 * MIB), "40")
            assert read("cpuset", group, *CPUS[1:]) == "0"
        assert mark(f"/{name}")["limits"]["memory"] == 96 * MIB
    finally:
        for hierarchy in hierarchies():
            for group in (f"/{name}/payload", f"/{name}"):
                if hierarchy.group(group).is_dir():
                    hierarchy.group(group).rmdir()


# freeze, thaw


def frozen_for_itself(name: str) -> bool:
    for hierarchy in hierarchies():
        file = hierarchy.group(f"{guest_root(name)}/web") / (
            "freezer.state" if hierarchy.version == 1 else "cgroup.freeze"
        )
        if file.exists() and file.read_text().strip() in ("FROZEN", "1"):
            return True
    return False


def test_freeze_and_thaw(nestrt: Nestrt, new_guest: Callable[[], str], make_busybox: Callable[[], Path]) -> None:
    """All stop; what the guest has stopped itself stays so; whoever is in the guest does not stop himself."""
    name, other, root = new_guest(), new_guest(), make_busybox()
    web = directory("freezer", "web") if has_v1("freezer") else directory("cpu", "web")
    stop = f"echo FROZEN > {web}/freezer.state" if has_v1("freezer") else f"echo 1 > {web}/cgroup.freeze"
    begin(nestrt, name, root, script=f"mkdir -p {web}; (sleep 1000 & echo $! > {web}/cgroup.procs); {stop}")
    begin(nestrt, other, make_busybox())

    def state(of: str) -> str:
        return str(json.loads(nestrt.run("show", of, "--format", "json").ok().out)["state"])

    nestrt.run("freeze", name, other).ok()
    assert (state(name), state(other)) == ("paused", "paused")
    refused(nestrt.run("exec", name, "true"), 125, "frozen", f"nestrt thaw {name}")
    failed = nestrt.run("thaw", "nestrt-no-such", name, other)
    assert (failed.rc, failed.err.count("\n")) == (3, 1)
    assert (state(name), state(other)) == ("running", "running")
    assert frozen_for_itself(name)
    if not has_v1("freezer"):
        return  # the rest needs no other kernel
    procs = group_file("freezer", f"{guest_root(name)}/init", "cgroup.procs", "cgroup.procs")
    words = f"echo $$ > {procs}; exec {nestrt.command} freeze {name}"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=20 * SLOW, check=False)
    assert done.returncode == 4
    assert "runs in it" in done.stderr
    assert state(name) == "running"


def writes(pid: int) -> bool:
    """Whether the process waits in its write, or for the one that writes, as it opens the file."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "D" or (state == "S" and os.readlink(f"/proc/{pid}/fd/1") == "/tmp/f/file")
    except OSError:  # it has none
        return False


@pytest.mark.v1
@pytest.mark.slow_on_vm
def test_what_does_not_stop(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """Of two that write to a FUSE file one has the lock, and stops with it; the other cannot: all go on."""
    begin(nestrt, guest_name, busybox, script="mkdir -p /tmp/f; touch /tmp/f/file")
    pid = mark(limit_group(guest_name))["pid"]
    with silent(pid, "/tmp/f/file", "write"):
        for _ in range(2):
            nestrt.run("exec", "-d", guest_name, "sh", "-c", "echo x >> /tmp/f/file").ok()
        wait_for(lambda: sum(map(writes, processes(limit_group(guest_name)))) == 2, "both to write")
        refused(nestrt.run("freeze", guest_name, timeout=40), 4, "do not stop (pid ", guest_name)
        assert nestrt.run("exec", guest_name, "true").rc == 0
    nestrt.run("kill", guest_name).ok()


# kill


def test_kill(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    """TERM reaches every process once; KILL all of them, frozen ones too."""
    name = guest_name
    each = "sh -c 'trap \"echo got >> /tmp/told\" TERM; while :; do sleep 0.05; done' &"
    begin(nestrt, name, busybox, script=f"trap : TERM; rm -f /tmp/told; {each} {each} {each} sleep 0.2")
    nestrt.run("kill", name, "--signal", "TERM").ok()
    wait_for(lambda: len(nestrt.run("exec", name, "cat", "/tmp/told").out.split()) == 3, "the signal in all")
    refused(nestrt.run("kill", name, "--signal", "NONE"), 2, "unknown signal")
    nestrt.run("freeze", name).ok()
    nestrt.run("kill", name).ok()
    assert not processes(limit_group(name))
    refused(nestrt.run("kill", name), 4, "no processes")


FORKS = "import os\nwhile True:\n try:\n  os.fork()\n except OSError:\n  pass\n"


@pytest.mark.parametrize("hybrid", [True, False], ids=["cgroup.kill", "freezer"])
def test_a_guest_that_forks_is_killed_wholly(nestrt: Nestrt, guest_name: str, python: PythonRoot, hybrid: bool) -> None:
    """By cgroup.kill, and without a v2 tree by the v1 freezer."""
    if not hybrid and is_v2_only():
        return
    command = ("--pids", "400", "--cpu-quota", "0.5", "--", "/usr/bin/python3", "-c", FORKS)
    nestrt.launch(*python.options, "--name", guest_name, "-d", *command).ok()
    wait_for(lambda: len(processes(limit_group(guest_name))) > 100, "many processes", 30)
    if hybrid:
        nestrt.run("kill", guest_name).ok()
    else:
        remove.kill(tuple(h for h in read_hierarchies() if h.version == 1), limit_group(guest_name))
    assert not processes(limit_group(guest_name))


# exec


def facts(pid: int | str) -> dict[str, str]:
    """What decides on a process's rights."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kept = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Umask")
    return {key: rows[key].strip() for key in kept}


def namespaces(pid: int) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in os.listdir(f"/proc/{pid}/ns")}


@pytest.mark.parametrize(
    "mode", ["root", *(pytest.param(m, marks=pytest.mark.slow_on_vm) for m in MODES if m != "root")]
)
def test_exec_is_as_the_first_process(nestrt: Nestrt, guest_name: str, busybox: Path, mode: str) -> None:
    """Namespaces, groups in every hierarchy, user, capabilities, limits, descriptors: those of the first process."""
    name = guest_name
    begin(nestrt, name, busybox, mode=mode)
    first = mark(limit_group(name))["pid"]
    nestrt.run("exec", "-d", name, "sleep", "1234").ok()
    pid = wait_for(lambda: [p for p in processes(limit_group(name)) if b"1234" in command(p)], "it")[0]
    assert facts(pid) == facts(first)
    assert namespaces(pid) == namespaces(first)
    assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{first}/cgroup").read_text()
    assert Path(f"/proc/{pid}/limits").read_text() == Path(f"/proc/{first}/limits").read_text()
    assert os.path.samestat(os.stat(f"/proc/{pid}/root/"), os.stat(f"/proc/{first}/root/"))
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")} == {"/dev/null"}
    if mode != "userns":
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()  # or it would open groups by handle


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow_on_vm
def test_exec_words(nestrt: Nestrt, guest_name: str, busybox: Path) -> None:
    name = guest_name
    begin(nestrt, name, busybox)
    assert nestrt.run("exec", name, "sh", "-c", "exit 42").rc == 42
    assert nestrt.run("exec", name, "sh", "-c", "kill -TERM $$").rc == 128 + signal.SIGTERM
    assert nestrt.run("exec", name, "--", "cat", input="hello").out == "hello"
    refused(nestrt.run("exec", name, "no-such-program"), 127, "no-such-program")
    refused(nestrt.run("exec", name, "/etc/passwd"), 126, "/etc/passwd")
    wrong = refused(nestrt.run("exec", "-w", "/no.such", name, "true"), 125, " /no.such in", "no such file or")
    assert "config.json" not in wrong, wrong
    assert "process." not in wrong, wrong
    wrong = refused(nestrt.run("exec", "-u", "4000000000", name, "true"), 125, "4000000000")
    assert "Mappings" not in wrong, wrong
    refused(nestrt.run("exec", "-u", "nobody-here", name, "true"), 125, "nobody-here")
    refused(nestrt.run("exec", "nestrt-no-such", "true"), 255, "does not exist")
    assert nestrt.run("exec", "-t", name, "sh", "-c", "test -t 0 && tty").ok().out.strip() == "/dev/pts/0"
    words = ("-u", "user", "-e", "A=b", "-e", "NESTRT_KEPT", "-w", "/tmp")
    environment = {"PATH": os.environ["PATH"], "NESTRT_KEPT": "kept", "NESTRT_SECRET": "secret"}
    shown = nestrt.run(
        "exec", *words, name, "sh", "-c", "id; env; pwd; grep Cap /proc/self/status", env=environment
    ).ok()
    assert "uid=1000(user) gid=1000(user)" in shown.out
    assert {"A=b", "NESTRT_KEPT=kept", "/tmp"} <= set(shown.out.splitlines())
    assert "secret" not in shown.out
    assert "CapPrm:\t0000000000000000" in shown.out
    done = subprocess.run(
        [nestrt.command, "exec", name, "sh", "-c", "pwd; ls /proc/self/cwd/ | head -1"],
        capture_output=True, text=True, cwd="/proc", stdin=subprocess.DEVNULL, timeout=20 * SLOW, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "/"
    nestrt.run("kill", name).ok()
    refused(nestrt.run("exec", name, "true"), 125, "has ended")


# A guest's guest, which the host knows by what the guest says: its groups, and the processes that really are there.
@pytest.mark.slow_on_vm
def test_a_guest_of_a_guest(nestrt: Nestrt, guest_name: str, python: PythonRoot) -> None:
    inner, group = f"{guest_name}/in", f"{guest_root(guest_name)}/nestrt/in"
    start = nested(python, "-d --name in -m 32M", "sleep 1000")
    nestrt.launch(*python.options, "--mount", "type=tmpfs,target=/tmp", "--name", guest_name, "-d", "-m", "256M",
                  "--", "sh", "-c", f"{start}; sleep 1000").ok()  # fmt: skip
    wait_for(lambda: nestrt.run("exec", inner, "true").rc == 0, "the guest's guest", 30)
    assert nestrt.run("exec", inner, "hostname").ok().out == "in\n"
    nestrt.run("update", inner, "-m", "48M", "--pids", "30").ok()
    for end in ("", "/guest"):
        assert read("memory", group + end, *MEMORY[1:]) == str(48 * MIB)
        assert read("pids", group + end, *PIDS[1:]) == "30"
    assert mark(group)["limits"]["pids"] == 30
    refused(nestrt.run("update", inner, "-m", "300M"), 2, f"guest {guest_name} has 256M")
    refused(nestrt.run("update", inner, "--device", FUSE), 2, f"guest {guest_name} is not allowed it")
    nestrt.run("freeze", guest_name).ok()
    refused(nestrt.run("thaw", inner), 4, f"guest {guest_name} is frozen")
    nestrt.run("thaw", guest_name).ok()
    nestrt.run("kill", inner).ok()
    assert not processes(group)
    assert processes(limit_group(guest_name))


@pytest.mark.slow_on_vm
def test_help(nestrt: Nestrt) -> None:
    for words in (("freeze",), ("thaw",), ("kill", "--signal", "TERM"), ("update", "--cpus", "0")):
        assert "usage: nestrt" in nestrt.run(*words, "--help").ok().out
    for verb, own, runtime in (
        ("kill", "--signal", "Send SIGNAL (default: SIGTERM)"),
        ("update", "--deny-device", "--cpu-period"),
        ("exec", "--unfiltered", "--console-socket"),
    ):
        both = nestrt.run(verb, "--help").ok().out
        assert both.index(own) < both.index("As a verb of the OCI runtime") < both.index(runtime)
        assert own not in nestrt.run("--debug", verb, "--help").ok().out
