"""The eight laws: each is tried, and what came of it is checked."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from machine import KILLED, MAIN, NESTRT, OPT, PLAIN, ROOT, WORK, Guest, Host, Report, mount_lines, nestrt

MEMORY, PIDS = 128, 64  # of the guest: MiB, processes
CHILD_MEMORY, CHILD_PIDS = 32, 8


def hog(mebibytes: int) -> str:
    """A command that takes that much memory, at once."""
    return f"dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1"


def forks(count: int) -> str:
    """A command that starts *count* processes side by side; it fails if it cannot."""
    return f"for i in $(seq {count}); do sleep 1 & done"


def enter(host: Host, group: str) -> str:
    """A command that moves its shell into a child group."""
    return " && ".join(f"echo $$ > {directory}{group}/cgroup.procs" for directory in host.directories())


def view(report: Report, host: Host, guest: Guest) -> None:
    report.law(1, "View: the guest sees a tree of its own, from its own root")
    _, said = guest.run("cat /proc/self/cgroup", lines=3)
    paths = [line.split(":", 2)[2] for line in said.splitlines()]
    report.check(f"/proc/self/cgroup begins at the guest root of all {len(paths)} hierarchies",
                 set(paths) == {"/init"})  # fmt: skip
    mounts = guest.quiet("cat /proc/self/mountinfo")[1].splitlines()
    roots = {line.split()[3] for line in mounts if " - cgroup" in line}
    points = {line.split()[4] for line in mounts if " - cgroup" in line}
    report.check(f"all {len(points)} mounts of the view begin at the guest root, laid out as on the host",
                 roots == {"/"} and points == set(host.points))  # fmt: skip
    directory = next(iter(host.directories()), "") or next(iter(host.points))
    status, said = guest.run(f"{host.mount(directory)} && stat -c %i /mnt {directory}")
    numbers = said.split()
    report.check("a mount that the guest makes itself shows the same root",
                 status == 0 and len(numbers) == 2 and len(set(numbers)) == 1)  # fmt: skip
    guest.quiet("umount /mnt")


def clamp(report: Report, host: Host, options: list[str]) -> Guest:
    """The strongest attacker: uid 0 of the host with all capabilities, in no user namespace."""
    report.law(2, "Clamp: the limit stands above all that the guest can reach")
    print("      (a second guest: no user namespace, all capabilities)")
    guest = Guest(report, "root-guest#", ROOT, "--userns", "none", "--capabilities", "all", *options)
    controller = "memory" if host.directory("memory") else "pids"
    directory = host.directory(controller)
    file = host.file(controller).replace(directory, "/mnt")
    given, more = (MEMORY << 20, 8 * MEMORY << 20) if controller == "memory" else (PIDS, 8 * PIDS)
    if directory == host.v2:
        # nsdelegate refuses the write at a namespace's own root only: make another namespace below.
        guest.run(f"{host.mount(directory)} && mkdir /mnt/attack")
        guest.run(f"echo $$ > /mnt/attack/cgroup.procs; exec unshare -C sh -c 'echo {more} > {file}'")
    else:
        guest.run(host.mount(directory))
        guest.quiet(f"echo {more} > /mnt/memory.memsw.limit_in_bytes")
        guest.run(f"echo {more} > {file}")
    lifted = guest.run(f"cat {file}")[1] == str(more)
    print(f"      the guest could {'' if lifted else 'not even '}change the limit that it is shown")
    limit = host.limit_group(controller, ROOT)
    report.ran("host#", f"cat {limit}", limit.read_text())
    report.check(f"the limit group still has {given}", limit.read_text().strip() == str(given))
    if controller == "memory":
        status, _ = guest.run(hog(MEMORY + 64))
        report.check(f"a program that takes {MEMORY + 64}M is killed all the same", status == 137)
    else:
        status, said = guest.run(forks(PIDS + 10))
        report.check(f"{PIDS + 10} processes cannot be, all the same", status != 0 and "fork" in said)
    return guest


def lock(report: Report, host: Host, guest: Guest, root_guest: Guest, cpus: str) -> None:
    report.law(3, "Lock: the guest reads its true limits and cannot write them")
    asked = {"memory": (MEMORY << 20, 2 * MEMORY << 20), "pids": (PIDS, 2 * PIDS), "cpuset": (cpus, cpus)}
    for controller in host.controllers():
        file, (given, more) = host.file(controller), asked[controller]
        _, said = guest.run(f"cat {file}")
        status, words = guest.run(f"echo {more} > {file}")
        report.check(f"{os.path.basename(file)} shows what was given, and a write is refused",
                     said == str(given) and status != 0 and "denied" in words)  # fmt: skip
    file = host.file(host.controllers()[0])
    status, words = root_guest.run(f"echo 1 > {file}")
    report.check("without a user namespace the view is locked too", status != 0 and "Read-only" in words)
    status, words = guest.run(f"{OPT}/hooks/nestrt guest set / pids={2 * PIDS}")
    report.check("nestrt guest says what to do instead", status != 0 and "guest create" in words)


def freedom(report: Report, host: Host, guest: Guest, cpus: list[int]) -> None:
    report.law(4, "Freedom: the guest divides what it has, with mkdir and echo")
    status, _ = guest.run("mkdir " + " ".join(f"{directory}/web" for directory in host.directories()))
    values = {"memory": f"{CHILD_MEMORY}M", "pids": str(CHILD_PIDS), "cpuset": str(cpus[0])}
    for controller in host.controllers():
        status |= guest.run(f"echo {values[controller]} > {host.file(controller, '/web')}")[0]
    report.check("the child group /web has limits of its own", status == 0)
    divided(report, host, guest, "/web", "/web is held to its {}")


def divided(report: Report, host: Host, guest: Guest, group: str, text: str) -> None:
    """Check by trying that *group* is held to what /web has."""
    inside = enter(host, group)
    guest.report.ran(guest.prompt, inside, "")
    if host.directory("memory"):
        size = CHILD_MEMORY + 32
        status, words = guest.quiet(f"{inside}\n{hog(size)}")
        report.ran(guest.prompt, hog(size), words)
        report.check(text.format(f"{CHILD_MEMORY}M: {size}M are too much"), status == 137)
    status, words = guest.quiet(f"{inside}\n{forks(2 * CHILD_PIDS)}")
    report.ran(guest.prompt, forks(2 * CHILD_PIDS), words)
    report.check(text.format(f"{CHILD_PIDS} processes: {2 * CHILD_PIDS} cannot be"), status != 0 and "fork" in words)
    guest.quiet(f"kill $(cat {host.directory('pids')}{group}/cgroup.procs)")
    if host.directory("cpuset"):
        words = guest.quiet(f"{inside}\nnproc")[1].strip()
        report.ran(guest.prompt, "nproc", words)
        report.check(text.format("CPU: nproc says 1"), words == "1")


def subset(report: Report, host: Host, guest: Guest, root_guest: Guest, cpus: str) -> None:
    report.law(5, "Subset: a group that asks for more than its parent has gets no more")
    if host.v2 in host.directories():
        own = " ".join(f"+{name}" for name in host.controllers() if host.directory(name) == host.v2)
        guest.run(f"echo '{own}' > {host.v2}/web/cgroup.subtree_control")
    guest.run("mkdir " + " ".join(f"{directory}/web/more" for directory in host.directories()))
    if "cpuset" in host.controllers() and host.directory("cpuset") != host.v2:
        guest.quiet(f"cat {host.file('cpuset', '/web')} > {host.file('cpuset', '/web/more')}")
    for controller, value in (("memory", "1G"), ("pids", "max"), ("cpuset", cpus)):
        if host.directory(controller):
            guest.run(f"echo {value} > {host.file(controller, '/web/more')}")
    divided(report, host, guest, "/web/more", "/web/more is held to what /web has, {}")
    status, words = root_guest.run("mknod /dev/kernel-log c 1 11 && head -c 1 /dev/kernel-log")
    report.check("a device that the guest was not given cannot be opened, not even as the host's uid 0",
                 status != 0 and "not permitted" in words)  # fmt: skip
    devices = host.directory("devices")
    if devices:
        status, _ = root_guest.run(f"mkdir {devices}/web && echo 'c 1:11 r' > {devices}/web/devices.allow")
        report.check("nor given to a child group", status != 0)


def sight(report: Report, host: Host, guest: Guest, inner: list[str]) -> None:
    report.law(6, "Sight: the host sees every group at every level")
    launch, options = f"{OPT}/hooks/nestrt launch", " ".join(inner)
    key, limit, given = ("memory", "-m 48M", 48 << 20) if host.directory("memory") else ("pids", "--pids 20", 20)
    said = guest.quiet(f"{launch} --rm --name view {options} {limit} -- cat /proc/self/cgroup")[1].strip()
    report.ran(guest.prompt, f"nestrt launch --rootfs / --overlay … {limit} -- cat /proc/self/cgroup", said, lines=2)
    paths = {line.split(":", 2)[-1] for line in said.splitlines()}
    report.check("a guest of the guest, at level 2, has a root of its own", paths == {"/init"})
    status, said = guest.quiet(f"{launch} -d --name inner {options} {limit} -- sleep 600")
    report.ran(guest.prompt, f"nestrt launch -d --name inner --rootfs / --overlay … {limit} -- sleep 600", said)
    time.sleep(0.1)
    report.ran("host#", f"nestrt tree -p {MAIN}", nestrt("tree", "-p", MAIN).stdout, lines=30)
    shown = nestrt("show", "--format", "json", f"{MAIN}/inner")
    try:
        facts = json.loads(shown.stdout)
    except ValueError:
        facts = {}
    report.check("the level 2 guest is there", status == 0 and facts.get("level") == 2)
    report.check(f"its limit, {limit}, is there", facts.get(key, {}).get("effective") == given)
    processes = [(p["pid"], p["guest_pid"]) for p in facts.get("processes", ()) if p["command"] == "sleep 600"]
    there = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid, _ in processes]
    report.check("its process is there with the host's pid and the guest's",
                 there == [b"sleep"] and processes[0][1] == 1)  # fmt: skip


def opt_in(report: Report, host: Host, options: list[str]) -> None:
    report.law(7, "Opt-in: a mount namespace alone virtualizes nothing")
    own = Path("/proc/self/cgroup").read_text()
    said = subprocess.run(["unshare", "-m", "cat", "/proc/self/cgroup"], capture_output=True, text=True).stdout
    report.ran("host#", "unshare -m cat /proc/self/cgroup", said, lines=2)
    report.check("unshare -m shows the host's groups, as before", said == own)
    policy = WORK / "plain.toml"
    policy.write_text("[level]\nvirtualize = false\n")
    launch = ["launch", "--rm", "--name", PLAIN, "--policy", str(policy), *options, "--"]
    said = nestrt(*launch, "cat", "/proc/self/cgroup").stdout
    report.ran("host#", "nestrt launch --policy (virtualize = false) … -- cat /proc/self/cgroup", said, lines=2)
    paths = {line.split(":", 2)[-1] for line in said.splitlines()}
    plain = {f"/nestrt/{PLAIN}/guest"}
    report.check("a guest whose policy says virtualize = false sees the host's paths", paths == plain)


def nothing_lost(report: Report, host: Host, options: list[str], mounts: list[str]) -> None:
    report.law(8, "Nothing lost: killed at any point, nestrt leaves what gc or delete removes wholly")
    start = time.monotonic()
    nestrt("launch", "--rm", "--name", KILLED, *options, "--", "true")
    whole = time.monotonic() - start
    lost = 0
    for part in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        with subprocess.Popen([NESTRT, "launch", "--rm", "--name", KILLED, *options, "--", "true"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:  # fmt: skip
            time.sleep(whole * part)
            launcher.kill()
        time.sleep(whole / 2)  # the kernel ends what the launcher had started
        lost += bool([path for path in host.left() if KILLED in path])
        nestrt("gc")
    said = f"6 launches killed on their way: {lost} left something for gc"
    report.ran("host#", "nestrt launch … & kill -9 $!; nestrt gc", said)
    left = [path for path in host.left() if KILLED in path]
    report.check(f"after gc no group, state file or id is left {' '.join(left[:3])}".strip(), not left)

    guest = Guest(report, "guest#", KILLED, "--pids", str(PIDS), *options)
    guest.process.kill()
    guest.process.wait()
    limit = host.limit_group("pids", KILLED)
    report.ran("host#", f"kill -9 LAUNCHER; cat {limit}", limit.read_text())
    report.check("a guest that runs on without its launcher keeps its limits", limit.read_text().strip() == str(PIDS))
    report.ran("host#", f"nestrt delete --force {KILLED}", nestrt("delete", "--force", KILLED).stderr)
    left = host.left()
    report.check(f"of all guests above, at both levels, nothing is left {' '.join(left[:3])}".strip(), not left)
    report.check("the mounts of the host and their options are as before", mount_lines() == mounts)
