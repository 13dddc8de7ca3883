"""The laws for a bundle's container with a policy, whichever runtime started it: nestrt, or another and the plugin.

::

    host                          the container
    /…/ID      512M, 90 pids      nowhere: the engine's path is the limit group
       guest/                     "/" of every hierarchy
         init/                    first process
         web/                     what it makes
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from support.bundles import Bundle, document, every_capability, here, inner_document
from support.guests import Answers, directory, inside, parse, script
from support.hostside import has_v1, hierarchies, hierarchy_of, is_v2_only, mark, read
from support.need import require
from support.rootfs import PythonRoot

MIB = 1 << 20
CPUS = sorted(os.sched_getaffinity(0))
MEMORY = "memory.limit_in_bytes", "memory.max"
LIMITS = {
    "memory": {"limit": 512 * MIB},
    "pids": {"limit": 90},
    "cpu": {"quota": 60000, "period": 100000, "cpus": str(CPUS[0])},
}
SMALL = {"memory": {"limit": 128 * MIB}, "pids": {"limit": 10}, "cpu": {"cpus": str(CPUS[0])}}
WISHES = (
    ("memory", *MEMORY, str(8 << 30)),
    ("pids", "pids.max", "pids.max", "max"),
    ("cpuset", "cpuset.cpus", "cpuset.cpus", f"0-{max(1, len(CPUS) - 1)}"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max", "400000"),
)
KMSG = {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}
RULES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
]
FIRST_GROUP = "cut -d: -f3 /proc/self/cgroup | sort -u"


def paths(text: str) -> set[str]:
    return {line.split(":", 2)[2] for line in text.splitlines()}


def cgroup_mounts(text: str) -> list[tuple[str, str]]:
    """(root, place) of each cgroup mount in a mountinfo."""
    rows = [line.split(" - ") for line in text.splitlines()]
    return [(row[0].split()[3], row[0].split()[4]) for row in rows if row[1].split()[0] in ("cgroup", "cgroup2")]


def options_of(number: int) -> str:
    """mount's words for the host's hierarchy of that *number*."""
    hierarchy = hierarchies()[number]
    if hierarchy.version == 2:
        return "-t cgroup2"
    return f"-t cgroup -o {','.join(sorted(hierarchy.controllers) or ['none', f'name={hierarchy.name}'])}"


def keeps_view(bundle: Bundle, may_mount: bool) -> None:
    """Law 1: every mount and /proc/self/cgroup begin at the guest root, and so does what the guest mounts itself."""
    fresh = {
        f"mount {number}": f"mkdir -p /tmp/m; mount {how} none /tmp/m && (cd /tmp/m; echo */) && umount /tmp/m"
        for number, how in enumerate(map(options_of, range(len(hierarchies()))))
    }
    answers = bundle.ask(
        {
            "cgroup": "cat /proc/self/cgroup",
            "first": "cat /proc/1/cgroup",
            "mountinfo": "cat /proc/self/mountinfo",
            "groups": "; ".join(f"cd {h.mountpoint} && echo {h.mountpoint} */" for h in hierarchies()),
            **(fresh if may_mount else {}),
        }
    )
    assert paths(answers.text("cgroup")) == {"/init"}
    assert paths(answers.text("first")) == {"/init"}
    mounts = cgroup_mounts(answers.text("mountinfo"))
    assert {place for root, place in mounts if root == "/"} == {str(h.mountpoint) for h in hierarchies()}
    assert all(root.count("/") == 1 and root != "/init" for root, _ in mounts), mounts
    assert bundle.id not in "".join(map(" ".join, mounts)) + answers.text("cgroup")
    assert answers.text("groups").splitlines() == [f"{h.mountpoint} init/" for h in hierarchies()]
    for name in fresh if may_mount else {}:
        assert answers.text(name) == "init/", name


def standing(bundle: Bundle) -> dict[str, str]:
    return {name: read(name, bundle.cgroup, v1, v2) for name, v1, v2, _ in WISHES}


def expected() -> dict[str, str]:
    quota = "60000" if has_v1("cpu") else "60000 100000"
    return {"memory": str(512 * MIB), "pids": "90", "cpuset": str(CPUS[0]), "cpu": quota}


def keeps_limits(bundle: Bundle, may_mount: bool, holds_locks: bool) -> None:
    """Laws 2 and 3 for a running *bundle* with LIMITS: they stand above the view, whose files show them and stay.

    *may_mount*: it has the right to mount, and so may write the files of its guest root. *holds_locks*: nor may it
    take a lock off its file.
    """
    assert standing(bundle) == expected()
    questions = {}
    for name, v1, v2, wish in WISHES:
        file = inside(name, "/", v1, v2)
        questions[f"shown {name}"] = f"cat {file}"
        questions[f"write {name}"] = f"echo {wish} > {file}"
        questions[f"move {name}"] = f"mv {file} {file}.x || umount {file}"
    answers = bundle.ask_running(questions)
    for name, value in expected().items():
        assert answers.text(f"shown {name}") == value, name
        text = answers.refused(f"write {name}")
        assert "Permission denied" in text or "Read-only file system" in text, (name, text)
        if holds_locks:
            answers.refused(f"move {name}")
    if may_mount:
        again = {}
        for number, hierarchy in enumerate(hierarchies()):
            point = f"/tmp/m{number}"
            writes = "; ".join(
                f"echo {wish} > {point}/{v1 if hierarchy.version == 1 else v2}"
                for name, v1, v2, wish in WISHES
                if hierarchy_of(name) == hierarchy
            )
            again[f"again {number}"] = (
                f"mkdir {point} && mount {options_of(number)} none {point} && cd {point}; {writes or ':'}; true"
            )
        bundle.ask_running(again)
    assert standing(bundle) == expected()
    # And what it makes below holds no more than that.
    make = f"mkdir {directory('memory', '/evil')}; echo {8 << 30} > {inside('memory', '/evil', *MEMORY)}; true"
    hog = f"echo 0 > {directory('memory', '/evil')}/cgroup.procs; dd if=/dev/zero of=/dev/null bs=700M count=1"
    answers = bundle.ask_running({"make": make, "hog": hog})
    assert answers["hog"].rc in (1, 9, 137), answers["hog"]


def keeps_freedom(bundle: Bundle, *options: str) -> None:
    """Law 4 for a *bundle* with LIMITS: mkdir and echo below the root, at once. *options* are for ``run``."""
    made = " ".join(f"{h.mountpoint}/web" for h in hierarchies())
    rows = [
        ("memory", *MEMORY, str(64 * MIB)),
        ("pids", "pids.max", "pids.max", "7"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", "30000"),
    ]
    questions = {"mkdir": f"mkdir {made}"}
    for name, v1, v2, value in rows:
        questions[name] = f"echo {value} > {inside(name, '/web', v1, v2)} && cat {inside(name, '/web', v1, v2)}"
    questions["cpus"] = f"cat {inside('cpuset', '/web', 'cpuset.cpus', 'cpuset.cpus.effective')}"
    questions["move"] = "".join(f"echo 0 > {h.mountpoint}/web/cgroup.procs && " for h in hierarchies()) + FIRST_GROUP
    more = " ".join(f"{h.mountpoint}/x" for h in hierarchies())
    questions["remove"] = f"mkdir {more} && rmdir {more}"
    answers = bundle.ask(questions, *options)
    answers.text("mkdir")
    for name, _, _, value in rows:
        assert answers.text(name).split()[0] == value, name
    assert answers.text("cpus") == str(CPUS[0])
    assert answers.text("move") == "/web"
    answers.text("remove")


def keeps_subset(bundle: Bundle) -> None:
    """Law 5 for a *bundle* with SMALL: a child group asks for more than there is and gets what there is."""
    web = {name: directory(name, "/web") for name in ("memory", "pids", "cpuset")}
    answers = bundle.ask(
        {
            "make": f"mkdir -p {' '.join(set(web.values()))}",
            "memory": f"echo {900 * MIB} > {inside('memory', '/web', *MEMORY)}; echo 0 > {web['memory']}/cgroup.procs; "
            "dd if=/dev/zero of=/dev/null bs=200M count=1",
            "pids": f"echo 900 > {web['pids']}/pids.max; echo 0 > {web['pids']}/cgroup.procs; "
            "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 20 & done; true",
            "cpus": f"echo 0-{max(CPUS)} > {web['cpuset']}/cpuset.cpus; echo 0 > {web['cpuset']}/cgroup.procs; "
            "grep Cpus_allowed_list /proc/self/status",
        }
    )
    answers.text("make")
    assert answers["memory"].rc in (1, 9, 137), answers["memory"]
    assert "can't fork" in answers["pids"].text
    assert answers["cpus"].text.split()[-1] == str(CPUS[0])


def keeps_devices(bundle: Bundle) -> Answers:
    """Law 5 for a *bundle* with KMSG and RULES: its rules are the limit group's, and what is made below has no more."""
    tree = hierarchies()[0] if is_v2_only() else hierarchy_of("devices")
    require("devices", None if tree else "no hierarchy has devices")
    assert tree is not None
    place = f"{tree.mountpoint}/web"
    answers = bundle.ask(
        {
            "null": "echo > /dev/null",
            "other": "head -c 1 /dev/kmsg",
            "below": f"mkdir {place}; echo 'c 1:11 rwm' > {place}/devices.allow; echo 0 > {place}/cgroup.procs; "
            "head -c 1 /dev/kmsg",
            "full": "head -c 3 /dev/zero | wc -c",
            "make": "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg",
        }
    )
    answers.text("null")
    assert "not permitted" in answers.refused("other")
    assert "not permitted" in answers.refused("below")
    assert answers.text("full") == "3"  # every container has it: runtime-spec, "Default Devices"
    return answers


def is_seen(bundle: Bundle) -> None:
    """Law 6 for a running *bundle* with LIMITS: the container is a guest, by its id, with its limits and processes."""
    run = bundle.nestrt.run
    (row,) = (row for row in json.loads(run("ls", "--format", "json").ok().out) if row["name"] == bundle.id)
    assert (row["level"], row["state"], row["pid"], row["path"]) == (1, "running", bundle.pid, bundle.cgroup)
    assert (row["memory"]["limit"], row["pids"]["limit"], row["cpus"]) == (512 * MIB, 90, str(CPUS[0]))
    assert row["claim"] is False
    assert bundle.id in run("tree").ok().out
    shown = run("show", bundle.id).ok().out
    assert bundle.cgroup in shown
    assert str(bundle.pid) in shown
    found = mark(bundle.cgroup)
    assert (found["name"], found["level"], found["state"]) == (bundle.id, 1, "running")


# --- levels ------------------------------------------------------------------------------------------

INSIDE = {
    "cgroup": FIRST_GROUP,
    "memory": f"cat {inside('memory', '/', *MEMORY)}",
    "write": f"echo 900000000 > {inside('memory', '/', *MEMORY)}",
    "child": f"cd {hierarchies()[0].mountpoint} && mkdir web && echo 0 > web/cgroup.procs; ls -d web",
}


def seen(answers: Answers, memory: int, kept: bool = False) -> None:
    """What INSIDE is answered where *memory* bytes are the limit.

    *kept*: on v1 the first process stays in the guest root: root of a user namespace may not move it.
    """
    assert answers.text("cgroup") in ("/init", *(("/\n/init",) if kept else ()))
    assert answers.text("memory") == str(memory)
    assert "Permission denied" in answers["write"].text or "Read-only file system" in answers["write"].text
    assert answers.text("child") == "web"


def quoted(command: str) -> str:
    """*command* with each line of its output behind a ">", so that answers can hold answers."""
    return f"{{ {command}; }} >/tmp/told 2>&1; status=$?; sed 's/^/>/' /tmp/told; exit $status"


def within(answers: Answers, name: str) -> Answers:
    inner = parse(answers.text(name).replace("\n>", "\n").removeprefix(">"))
    assert inner, answers[name]
    return inner


def bundle_inside(
    python: PythonRoot, name: str, memory: int, userns: bool, questions: dict[str, str], runtime: Sequence[str]
) -> str:
    """A shell command of a Python guest: run a bundle with a policy by *runtime*, below the view; it answers."""
    config: dict[str, Any] = document(["sh", "-c", script(questions)])
    config["annotations"] = {"nestrt.level.virtualize": "true", "nestrt.policy": "nested"}
    config["linux"].update(cgroupsPath=f"/inner/{name}", resources={"memory": {"limit": memory}})
    config["process"]["capabilities"] = {kind: every_capability() for kind in ("bounding", "effective", "permitted")}
    if userns:
        config["linux"]["namespaces"].append({"type": "user"})
        ids = [{"containerID": 0, "hostID": 20000, "size": 20000}]
        config["linux"].update(uidMappings=ids, gidMappings=ids)
    root = f"/tmp/{name}/rootfs"
    found = inner_document(config, python, root)
    return (
        f"mkdir -p /tmp/{name} && /mkroot {root} && {here(json.dumps(found), f'/tmp/{name}/config.json')} && "
        f"{' '.join(runtime)} --root /tmp/{name}-state run --bundle /tmp/{name} {name}"
    )
