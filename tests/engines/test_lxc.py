"""LXC's containers as guests, by hooks of the plugin: with ids of their own ("private") and without ("shared").

::

    lxc.payload.NAME       limit group: LXC makes it, with its own limits; the policy's, caps and mark by start-host
      └ guest              guest root: the container's "/"
          ├ init           its first process
          ├ .lxc           lxc-attach's, in the v2 tree
          └ web            child groups of its own
    lxc.monitor.NAME       the monitor, which calls the hooks
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.engines import command, remove_groups
from support.hostside import group_file, groups, hierarchies, mark, processes, read, scratch_disk
from support.killing import gone as has_ended
from support.lxc import IDS, NESTRT, Lxc, limit_group
from support.rootfs import CHECKOUT
from support.runner import wait_for

MIB = 1 << 20
LIMITS = (
    "lxc.cgroup.memory.limit_in_bytes = 64M",
    "lxc.cgroup.pids.max = 40",
    "lxc.cgroup.cpuset.cpus = 0",
    "lxc.cgroup.cpu.cfs_quota_us = 50000",
)
MEMORY = group_file("memory", "/", "memory.limit_in_bytes", "memory.max")
PIDS = group_file("pids", "/", "pids.max", "pids.max")


@pytest.fixture(params=["shared", "private"])
def private(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "private"


def running(lxc: Lxc, name: str, *argv: str) -> str:
    """Start *name*; return its limit group."""
    started = lxc.start(name, *argv)
    assert started.rc == 0, (str(started), lxc.said(name), lxc.log(name).read_text(errors="replace")[-3000:])
    assert not lxc.said(name)
    return limit_group(name)


def standing(group: str) -> dict[str, str]:
    return {
        "memory": read("memory", group, "memory.limit_in_bytes", "memory.max"),
        "pids": read("pids", group, "pids.max", "pids.max"),
        "cpus": read("cpuset", group, "cpuset.cpus", "cpuset.cpus"),
        "quota": read("cpu", group, "cpu.cfs_quota_us", "cpu.max").split()[0],
    }


EXPECTED = {"memory": str(64 * MIB), "pids": "40", "cpus": "0", "quota": "50000"}


def mount_words(n: int) -> str:
    """A shell command that mounts the host's hierarchy *n* again, at /mnt/N."""
    h = hierarchies()[n]
    options = ",".join(sorted(h.controllers)) or f"none,name={h.name}"
    kind = "cgroup2 none" if h.version == 2 else f"cgroup -o {options} none"
    return f"mkdir -p /mnt/{n}; mount -t {kind} /mnt/{n}"


# lxc.payload.NAME has 64 MiB and 40 processes; the container sees both at its "/", can write neither, and
# sees its root however it mounts a hierarchy.
def test_view_and_lock(lxc: Lxc, private: bool) -> None:
    name = lxc.make(*LIMITS, private=private)
    group = running(lxc, name)
    names = "ls /mnt/{0} | grep -E '^(init|guest|lxc.*)$'"
    fresh = {f"fresh {n}": f"{mount_words(n)} && {names.format(n)}" for n in range(len(hierarchies()))}
    answers = lxc.ask(
        name,
        {
            "first": "cut -d: -f3 /proc/1/cgroup | sort -u",
            "own": "cut -d: -f3 /proc/self/cgroup | sort -u",
            "roots": "grep cgroup /proc/self/mountinfo | grep -v tmpfs | cut -d' ' -f4 | grep -v '^/[a-z_0-9A-Z.]*$'",
            "mounts": "grep -c ' - cgroup' /proc/self/mountinfo",
            "memory": f"cat {MEMORY}",
            "pids": f"cat {PIDS}",
            "raise": f"echo 8G > {MEMORY}",
            "more": f"echo 400 > {PIDS}",
            "above": "ls -d /sys/fs/cgroup/*/lxc.* /sys/fs/cgroup/lxc.*",
            **fresh,
        },
    )
    assert answers.text("first") == "/init"
    assert set(answers.text("own").split()) <= {"/", "/.lxc"}  # lxc-attach enters the root on v1
    assert answers["roots"].text == ""
    assert int(answers.text("mounts")) >= len(hierarchies())
    assert answers.text("memory") == EXPECTED["memory"]
    assert answers.text("pids") == EXPECTED["pids"]
    for question in ("raise", "more"):
        assert ("ermission" if private else "Read-only") in answers.refused(question)
    answers.refused("above")
    for question in fresh:
        assert answers.text(question) == "init"
    assert standing(group) == standing(f"{group}/guest") == EXPECTED
    # The view's own directory is the container's root's to write.
    assert Path(f"/proc/{lxc.pid(name)}/root/sys/fs/cgroup").stat().st_uid == (IDS if private else 0)


FRESH = "".join(f"{mount_words(n)}; " for n in range(len(hierarchies())))
RAISE = (
    "for d in /mnt/* /sys/fs/cgroup/*; do for f in $d/*max $d/*limit_in_bytes $d/*quota_us $d/cpuset.cpus; do "
    "echo 8G > $f; echo max > $f; echo -1 > $f; echo 0-1 > $f; done; done 2>/dev/null; true"
)


# The attack: covers off, everything mounted again, a nested cgroup namespace (for which nsdelegate would let go),
# every limit raised; then more is taken than the limit group has.
def test_clamp(lxc: Lxc, private: bool) -> None:
    name = lxc.make(*LIMITS, "lxc.mount.entry = /usr usr none bind,ro,create=dir 0 0", private=private)
    for library in ("lib", "lib64"):
        (lxc.rootfs(name) / library).symlink_to(f"usr/{library}")  # unshare(1) is not busybox's
    group = running(lxc, name)
    enter = "; ".join(f"mkdir -p {h.mountpoint}/evil; echo 0 > {h.mountpoint}/evil/cgroup.procs" for h in hierarchies())
    answers = lxc.ask(
        name,
        {
            "uncover": "for d in $(grep -o '/sys/fs/cgroup/[^ ]*[.][^ ]*' /proc/self/mountinfo); do umount $d; done; "
            + RAISE,
            "fresh": FRESH + RAISE,
            "nest": f"{enter}; /usr/bin/unshare -C -m sh -c '{FRESH} {RAISE}; cut -d: -f3 /proc/self/cgroup | sort -u'",
            "handle": "grep Seccomp: /proc/self/status",
            "eat": f"{enter}; dd if=/dev/zero of=/dev/null bs=96M count=1; echo status $?",
            "cpu": f"{enter}; taskset 2 true",
            "fork": f"{enter}; n=0; while [ $n -lt 60 ]; do sleep 600 < /dev/null > /dev/null 2>&1 & n=$((n+1)); "
            "echo $n; done",
        },
    )
    assert answers.text("nest").splitlines()[-1] == "/"
    assert standing(group) == EXPECTED
    assert answers.text("handle").split()[-1] == "2"
    assert "status 137" in answers["eat"].text, answers["eat"]
    answers.refused("cpu")
    started = [int(line) for line in answers["fork"].text.splitlines() if line.isdigit()]
    assert 10 < max(started) < 40, answers["fork"]
    if private:  # without ids of its own it may lie to itself about what it has
        assert standing(f"{group}/guest") == EXPECTED


# Below its root: groups of its own, at once, with less than it has; in the v2 tree the controllers are enabled.
def test_freedom(lxc: Lxc, private: bool) -> None:
    name = lxc.make(*LIMITS, private=private)
    group = running(lxc, name)
    web = {controller: group_file(controller, "/web", "x", "x").parent for controller in ("memory", "pids", "cpuset")}
    answers = lxc.ask(
        name,
        {
            "make": "; ".join(f"mkdir -p {h.mountpoint}/web" for h in hierarchies()),
            "memory": f"echo 16M > {web['memory']}/{MEMORY.name} && cat {web['memory']}/{MEMORY.name}",
            "pids": f"echo 5 > {web['pids']}/pids.max && cat {web['pids']}/pids.max",
            "cpus": f"cat {web['cpuset']}/cpuset.cpus",
            "enter": "; ".join(f"echo 0 > {h.mountpoint}/web/cgroup.procs" for h in hierarchies())
            + "; cut -d: -f3 /proc/self/cgroup | sort -u",
            "device": f"echo 'c 1:5 rwm' > {group_file('devices', '/web', 'devices.deny', '')}",
            "move": "; ".join(f"echo 1 > {h.mountpoint}/web/cgroup.procs" for h in hierarchies())
            + "; cut -d: -f3 /proc/1/cgroup | sort -u",
        },
    )
    answers.text("make")
    assert answers.text("memory") == str(16 * MIB)
    assert answers.text("pids") == "5"
    assert answers.text("cpus") == "0"
    assert answers.text("enter") == "/web"
    assert answers.text("move") == "/web"
    if private:
        answers.refused("device")  # the kernel takes no rules from inside a user namespace
    else:
        answers.text("device")
    for h in hierarchies():
        if h.version == 2:
            enabled = (h.group(f"{group}/guest") / "cgroup.subtree_control").read_text().split()
            assert set(enabled) == set(h.controllers)
            assert (h.group(group) / "cgroup.max.descendants").read_text() == "4000\n"
            assert (h.group(group) / "cgroup.max.depth").read_text() == "20\n"


def test_sight(lxc: Lxc, private: bool) -> None:
    name = lxc.make(*LIMITS, private=private)
    group = running(lxc, name)
    lxc.ask(name, {"make": f"mkdir {MEMORY.parent}/web"}).text("make")
    found = mark(group)
    assert (found["name"], found["state"], found["pid"], found["engine"]) == (name, "running", lxc.pid(name), "lxc")
    assert found["limits"]["memory"] == 64 * MIB
    assert found["ids"] == ([[0, IDS, 65536]] if private else [])
    assert f"{name}  level 1, running, pid {lxc.pid(name)}" in lxc.nestrt("tree", name).ok().out
    assert "web" in lxc.nestrt("tree", name).out
    # LXC's own commands find what they look for.
    assert "RUNNING" in lxc("info", name).ok().out
    assert lxc("cgroup", name, MEMORY.name).ok().out.strip() == EXPECTED["memory"]
    lxc("freeze", name).ok()
    assert "FROZEN" in lxc("info", name).ok().out
    lxc("unfreeze", name).ok()


def test_every_law_is_found_to_hold(lxc: Lxc, private: bool) -> None:
    """What nestrt check tries. It cannot tell what LXC's system call filter forbids; and root of the host's ids with
    CAP_SYS_ADMIN can lie to itself about what it has."""
    name = lxc.make(*LIMITS, private=private)
    running(lxc, name)
    found = lxc.nestrt("check", name)
    words = [line.split("  ", 1) for line in found.out.splitlines() if line[:1].isalpha()]
    assert len(words) == 8, found
    broken = {law: rest.split()[0] for law, rest in words if rest.split()[0] != "ok"}
    assert broken == ({} if private else {"clamp": "unknown", "lock": "FAILED"}), found
    assert (found.rc == 0) is private


POLICY = """
[level]
strict = true
[view]
controllers = ["cpu", "memory", "pids", "cpuset"]
[partition]
max_groups = 12
max_depth = 4
[limits]
memory = "32M"
pids = 100
devices = ["c 1:3 rw", "c 1:5 rw", "c 5:0 rw", "c 5:2 rwm", "c 136:* rw"]
"""
BINDINGS = """
[[rule]]
match = { cgroup = "/lxc.payload.*" }
policy = "tight"
"""


@pytest.fixture
def bound(lxc: Lxc) -> Iterator[Callable[[str, str], None]]:
    """A function that gives the Nest's host a policy "tight", and bindings."""
    etc = lxc.nest.inside("/etc/nestrt")

    def bind(policy: str, bindings: str) -> None:
        (etc / "policies").mkdir(parents=True)
        for file, text in ((etc / "bindings.toml", bindings), (etc / "policies/tight.toml", policy)):
            file.write_text(text)
            file.chmod(0o644)

    yield bind
    subprocess.run(("rm", "-rf", os.fspath(etc)), check=True)


# The host has bound a policy: of two limits the smaller holds, of devices what both allow, and the view has
# only what the policy lets it see.
def test_the_hosts_policy(lxc: Lxc, private: bool, bound: Callable[[str, str], None]) -> None:
    bound(POLICY, BINDINGS)
    name = lxc.make(*LIMITS, "lxc.cgroup.devices.allow = c 10:229 rwm", private=private)
    group = running(lxc, name)
    assert standing(group) == standing(f"{group}/guest") == {**EXPECTED, "memory": str(32 * MIB)}
    rules = sorted(read("devices", group, "devices.list", "").splitlines())
    assert rules == sorted(["c 1:3 rw", "c 1:5 rw", "c 5:0 rw", "c 5:2 rwm", "c 136:* rw"])
    assert rules == sorted(read("devices", f"{group}/guest/init", "devices.list", "").splitlines())
    v2 = next(h for h in hierarchies() if h.version == 2)
    assert (v2.group(group) / "cgroup.max.descendants").read_text() == "12\n"
    answers = lxc.ask(
        name,
        {
            "null": "echo x > /dev/null",
            "random": "head -c 1 /dev/urandom",
            "fuse": "mknod /tmp/fuse c 10 229 && : < /tmp/fuse",
            "view": "ls /sys/fs/cgroup",
        },
    )
    answers.text("null")
    answers.refused("random")
    answers.refused("fuse")
    assert {"memory", "pids", "cpu", "cpuset"} <= set(answers.text("view").split())
    assert not {"freezer", "devices", "blkio"} & set(answers.text("view").split())
    assert mark(group)["policy"].endswith("tight.toml")


def test_a_guest_that_starts_in_its_root(lxc: Lxc, private: bool, bound: Callable[[str, str], None]) -> None:
    """For systemd: the first process stays where it is and enables controllers itself."""
    bound('[view]\nstart_in = "."\n', BINDINGS)
    name = lxc.make(private=private)
    running(lxc, name)
    assert lxc.ask(name, {"first": "cut -d: -f3 /proc/1/cgroup | sort -u"}).text("first") == "/"


# --- the end of it -------------------------------------------------------------------------------


MONITOR = "/lxc.monitor."


def gone(lxc: Lxc, name: str) -> None:
    wait_for(lambda: not lxc.left(name), f"{name} to be gone: {lxc.left(name)}")


def end(pid: int) -> None:
    """Kill it; LXC takes the container for a running one until it has ended."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: has_ended(pid), f"{pid} to end")


@pytest.mark.parametrize("how", ["stop", "kill", "exit"])
def test_nothing_stays(lxc: Lxc, private: bool, how: str) -> None:
    name = lxc.make(private=private)
    programs = {"stop": "trap 'exit 0' PWR TERM; sleep 1000 & wait", "exit": "while ! [ -e /go ]; do sleep 0.05; done"}
    group = running(lxc, name, "sh", "-c", programs.get(how, "sleep 1000"))
    deep = f"{MEMORY.parent}/a/b/c"
    answers = lxc.ask(name, {"leave": f"mkdir -p {deep}; echo 0 > {deep}/cgroup.procs; sleep 500 & true"})
    answers.text("leave")
    if how == "exit":
        (lxc.rootfs(name) / "go").touch()
    else:
        lxc("stop", name, *(("-k",) if how == "kill" else ("-t", "5"))).ok()
    gone(lxc, name)
    assert not processes(group)


# The monitor is killed: the kernel ends the container (PR_SET_PDEATHSIG), and nobody calls post-stop.
@pytest.mark.parametrize("then", ["gc", "start"])
def test_a_killed_monitor(lxc: Lxc, private: bool, then: str) -> None:
    name = lxc.make(private=private)
    group = running(lxc, name)
    lxc.ask(name, {"make": f"mkdir {MEMORY.parent}/web"}).text("make")
    end(lxc.monitor(name))
    if then == "gc":
        wait_for(lambda: not processes(group), "the container to end")
        assert groups(group)
        lxc.nestrt("gc").ok()
    else:
        assert running(lxc, name) == group
        assert len([record for record in lxc.records() if record.get("container") == name]) == 1
        lxc("stop", name, "-k").ok()
    gone(lxc, name)


def test_a_container_that_outlives_its_monitor(lxc: Lxc) -> None:
    """It was told to: nobody takes it for a leftover."""
    name = lxc.make("lxc.monitor.signal.pdeath = SIGCONT", private=True)
    running(lxc, name)
    pid = lxc.pid(name)
    end(lxc.monitor(name))
    lxc.nestrt("gc").ok()
    assert lxc.start(name).rc != 0
    assert len(lxc.said(name)) == 1
    assert "an earlier start of it lives" in lxc.said(name)[0]
    assert processes(limit_group(name)) == {pid}
    end(pid)
    running(lxc, name)
    lxc("stop", name, "-k").ok()
    gone(lxc, name)


# Killed while it starts: whatever is there by then, a later start takes it away. LXC's first process may be there
# still, waiting for the monitor that is no more; then lxc-start waits for it, too, until gc has ended it.
@pytest.mark.parametrize("after", [0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
def test_killed_while_it_starts(lxc: Lxc, after: float) -> None:
    name = lxc.make(*LIMITS, private=True)
    argv = lxc.nest.words("lxc-start", "-P", lxc.path, "-n", name, "-F", "--", "sleep", "1000")
    started = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: lxc.records() or started.poll() is not None, "the record")
    try:
        started.wait(after or 0.001)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
    lxc.nestrt("gc").ok()
    running(lxc, name)
    assert standing(limit_group(name)) == EXPECTED
    lxc("stop", name, "-k").ok()
    gone(lxc, name)


# --- refusals ------------------------------------------------------------------------------------


def refused(lxc: Lxc, name: str, *fragments: str) -> None:
    started = lxc.start(name)
    assert started.rc != 0, (str(started), lxc.said(name))
    said = lxc.said(name)
    assert len(said) == 1, said
    for fragment in fragments:
        assert fragment in said[0], said
    left = lxc.left(name)
    wait_for(lambda: not [line for line in lxc.left(name) if MONITOR not in line], f"{name} to be gone: {left}")
    # LXC's own groups, which it sometimes leaves when it has failed to start a container, with nobody in them.
    remove_groups(f"{MONITOR}{name}")
    assert lxc.left(name) == []


def test_what_is_no_guest_is_refused(lxc: Lxc) -> None:
    """One line says what is missing; the container's program never runs."""
    no_inner = lxc.make("lxc.cgroup.dir.container.inner =")
    refused(lxc, no_inner, "in no guest root", f"nestrt hook lxc config {no_inner}")
    all_devices = lxc.make("lxc.cgroup.devices.deny =", "lxc.cgroup.devices.allow =")
    refused(lxc, all_devices, "all devices of the host")
    no_filter = lxc.make("lxc.seccomp.profile =")
    refused(lxc, no_filter, "by file handle", "lxc.seccomp.profile")
    throttled = lxc.make(f"lxc.cgroup.blkio.throttle.read_bps_device = {scratch_disk()} 1048576")
    refused(lxc, throttled, "v1 throttles no child groups", "lxc.idmap")
    no_record = lxc.make("lxc.hook.pre-start =")
    refused(lxc, no_record, "has no record", "pre-start")
    no_namespace = lxc.make("lxc.namespace.keep = cgroup user")
    refused(lxc, no_namespace, "its cgroup namespace begins at /", "lxc.namespace.keep")


def test_a_policy_that_is_not_there(lxc: Lxc, bound: Callable[[str, str], None]) -> None:
    bound(POLICY, BINDINGS.replace('"tight"', '"absent"'))
    refused(lxc, lxc.make(), 'policy "absent"')


def test_hooks_of_version_1(lxc: Lxc) -> None:
    """LXC gives no arguments then."""
    running(lxc, lxc.make("lxc.hook.version = 1"))


def test_hooks_are_for_lxc(lxc: Lxc) -> None:
    for argv, text in (
        (("pre-start",), "LXC_NAME"),
        (("start-host", "a", "lxc", "mount"), "no such hook"),
        (("mount",), "no such hook"),
        (("config", "a/b"), "no name"),
    ):
        result = lxc.nestrt("hook", "lxc", *argv)
        assert result.rc == 2, result
        assert text in result.err
        assert result.err.count("\n") == 1
    env = {"LXC_NAME": "nestrt-x", "LXC_PID": "1"}
    result = lxc.nest.run(NESTRT, "hook", "lxc", "start-host", env=env)
    assert result.rc == 4, result
    assert "no child of who calls" in result.err


# --- hostile root filesystems --------------------------------------------------------------------


# The image has links where mounts go; LXC mounts nothing there, so that only nestrt's own care is tried.
@pytest.mark.parametrize("place", ["sys", "sys/fs", "sys/fs/cgroup"])
def test_links_in_the_image(lxc: Lxc, private: bool, place: str, tmp_path: Path) -> None:
    name = lxc.make("lxc.mount.auto =", private=private)
    bait = lxc.nest.inside(f"{lxc.path}/bait-{os.path.basename(place)}-{private}")
    bait.mkdir()
    root = lxc.rootfs(name)
    for entry in ("sys", "sys/fs", "sys/fs/cgroup"):
        if entry == place:
            if (root / entry).is_dir():
                (root / entry).rmdir()
            # To the host's directory, and by a way up and out.
            (root / entry).symlink_to("/../../../../../.." + f"{lxc.path}/{bait.name}")
            break
        (root / entry).mkdir(exist_ok=True)
    refused(lxc, name, "symbolic link")
    assert not list(bait.iterdir())
    assert not [row for row in Path("/proc/self/mountinfo").read_text().splitlines() if bait.name in row]


def test_a_view_that_is_there_already_is_replaced(lxc: Lxc, private: bool) -> None:
    """LXC's own mounts of the hierarchies have no locks."""
    name = lxc.make("lxc.mount.auto = cgroup:rw:force", *LIMITS, private=private)
    running(lxc, name)
    answers = lxc.ask(
        name,
        {
            "count": "grep -c ' /sys/fs/cgroup ' /proc/self/mountinfo",
            "raise": f"echo 8G > {MEMORY}",
        },
    )
    assert answers.text("count") == "1"
    answers.refused("raise")


def test_the_example(lxc: Lxc) -> None:
    """examples/lxc/run, by itself on this host, as a user would."""
    done = command((os.fspath(CHECKOUT / "examples/lxc/run"),))
    assert done.rc == 0, done
    assert done.out.splitlines()[-1] == "6 passed, 0 failed"
    assert not [row for row in Path("/proc/self/mountinfo").read_text().splitlines() if "/etc/subuid" in row]
