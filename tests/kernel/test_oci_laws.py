"""The laws for a bundle's container: what a policy by annotation makes of it, with an engine's own limits.

    host                          the container (nestrt.level.virtualize=true)
    /…/ID      512M, 90 pids      nowhere: the engine's path is the limit group
       guest/                     "/" of every hierarchy
         init/                    first process
         web/                     what it makes

The same for ``launch``: test_view, test_lock, test_freedom, test_subset, test_clamp, test_levels, test_optin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.bundles import PARENT, Bundle, document, every_capability, here, inner_document, python_bundle
from support.guests import Answers, controllers, directory, inside, parse, script
from support.hostside import (
    groups,
    has_v1,
    hierarchies,
    hierarchy_of,
    is_v2_only,
    mark,
    read,
    v2_hierarchy,
)  # fmt: skip
from support.need import require
from support.rootfs import COMMAND, PythonRoot
from support.runner import wait_for

NewBundle = Callable[..., Bundle]
MIB = 1 << 20
CPUS = sorted(os.sched_getaffinity(0))
MEMORY = "memory.limit_in_bytes", "memory.max"
# Root of a user namespace; root with an engine's usual few capabilities; root with all of them (--privileged).
MODES = ["userns", "nouserns", "root"]
all_modes = pytest.mark.parametrize("mode", MODES)
LIMITS = {
    "memory": {"limit": 512 * MIB},
    "pids": {"limit": 90},
    "cpu": {"quota": 60000, "period": 100000, "cpus": str(CPUS[0])},
}


def prepared(bundle: Bundle, mode: str, limits: dict[str, Any] | None = None) -> Bundle:
    """*bundle* with a policy, in one of MODES."""
    bundle.virtual().resources(**(LIMITS if limits is None else limits))
    if mode == "userns":
        bundle.user_namespace().capabilities("all")
    elif mode == "root":
        bundle.capabilities("all")
    return bundle


def memberships(text: str) -> set[str]:
    return {line.split(":", 2)[2] for line in text.splitlines()}


def cgroup_mounts(text: str) -> list[tuple[str, str]]:
    rows = [line.split(" - ") for line in text.splitlines()]
    return [(row[0].split()[3], row[0].split()[4]) for row in rows if row[1].split()[0] in ("cgroup", "cgroup2")]


def options_of(number: int) -> str:
    hierarchy = hierarchies()[number]
    if hierarchy.version == 2:
        return "-t cgroup2"
    return f"-t cgroup -o {','.join(sorted(hierarchy.controllers) or ['none', f'name={hierarchy.name}'])}"


# Law 1, view: every mount and /proc/self/cgroup begin at the guest root, though the document has a plain cgroup mount.
@all_modes
def test_view(bundle: Bundle, mode: str) -> None:
    prepared(bundle, mode)
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
            **(fresh if mode != "nouserns" else {}),
            "gone": "echo done",
        }
    )
    assert memberships(answers.text("cgroup")) == {"/init"}
    assert memberships(answers.text("first")) == {"/init"}
    mounts = cgroup_mounts(answers.text("mountinfo"))
    assert {place for root, place in mounts if root == "/"} == {str(h.mountpoint) for h in hierarchies()}
    assert all(root.count("/") == 1 and root != "/init" for root, _ in mounts), mounts
    assert bundle.id not in "".join(f"{root} {place}" for root, place in mounts) + answers.text("cgroup")
    assert answers.text("groups").splitlines() == [f"{h.mountpoint} init/" for h in hierarchies()]
    for name in fresh if mode != "nouserns" else {}:
        assert answers.text(name) == "init/", name


WISHES = (
    ("memory", *MEMORY, str(8 << 30)),
    ("pids", "pids.max", "pids.max", "max"),
    ("cpuset", "cpuset.cpus", "cpuset.cpus", f"0-{max(1, len(CPUS) - 1)}"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max", "400000"),
)


def standing(bundle: Bundle) -> dict[str, str]:
    return {name: read(name, bundle.cgroup, v1, v2) for name, v1, v2, _ in WISHES}


def expected() -> dict[str, str]:
    quota = "60000" if has_v1("cpu") else "60000 100000"
    return {"memory": str(512 * MIB), "pids": "90", "cpuset": str(CPUS[0]), "cpu": quota}


# Laws 2 and 3, clamp and lock: the engine's limits stand above the view; the files in it show them and stay.
@all_modes
def test_clamp_and_lock(bundle: Bundle, mode: str) -> None:
    prepared(bundle, mode)
    bundle.up()
    assert standing(bundle) == expected()
    questions = {}
    for name, v1, v2, wish in WISHES:
        file = inside(name, "/", v1, v2)
        questions[f"shown {name}"] = f"cat {file}"
        questions[f"write {name}"] = f"echo {wish} > {file}"
    answers = bundle.ask_running(questions)
    for name, value in expected().items():
        assert answers.text(f"shown {name}") == value, name
        text = answers.refused(f"write {name}")
        assert "Permission denied" in text or "Read-only file system" in text, (name, text)
    # With a mount of its own root of the host can write the files of the guest root: the limit group stands above.
    if mode != "nouserns":
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


# Law 4, freedom: mkdir and echo below the root, at once, in every mode.
@all_modes
def test_freedom(bundle: Bundle, mode: str) -> None:
    prepared(bundle, mode)
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
    questions["move"] = (
        "".join(f"echo 0 > {h.mountpoint}/web/cgroup.procs && " for h in hierarchies())
        + "cut -d: -f3 /proc/self/cgroup | sort -u"
    )
    answers = bundle.ask(questions, "--keep")
    answers.text("mkdir")
    for name, _, _, value in rows:
        assert answers.text(name).split()[0] == value, name
    assert answers.text("cpus") == str(CPUS[0])
    assert answers.text("move") == "/web"
    # The first process has ended, its groups are as it left them until delete.
    assert read("pids", f"{bundle.cgroup}/guest/web", "pids.max", "pids.max") == "7"
    bundle.delete().ok()


# Law 5, subset: a child group asks for more than there is and gets what there is; devices too, on v1.
@all_modes
def test_subset(bundle: Bundle, mode: str) -> None:
    prepared(bundle, mode, {"memory": {"limit": 128 * MIB}, "pids": {"limit": 10}, "cpu": {"cpus": str(CPUS[0])}})
    web = {name: directory(name, "/web") for name in ("memory", "pids", "cpuset")}
    more = f"0-{max(CPUS)}"
    answers = bundle.ask(
        {
            "make": f"mkdir -p {' '.join(set(web.values()))}",
            "memory": f"echo {900 * MIB} > {inside('memory', '/web', *MEMORY)}; echo 0 > {web['memory']}/cgroup.procs; "
            "dd if=/dev/zero of=/dev/null bs=200M count=1",
            "pids": f"echo 900 > {web['pids']}/pids.max; echo 0 > {web['pids']}/cgroup.procs; "
            "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 20 & done; true",
            "cpus": f"echo {more} > {web['cpuset']}/cpuset.cpus; echo 0 > {web['cpuset']}/cgroup.procs; "
            "grep Cpus_allowed_list /proc/self/status",
        }
    )
    answers.text("make")
    assert answers["memory"].rc in (1, 9, 137), answers["memory"]
    assert "can't fork" in answers["pids"].text
    assert answers["cpus"].text.split()[-1] == str(CPUS[0])


DENIED = {
    "resources": {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        ]
    }
}


# Devices: the document's rules are those of the limit group; what is made below has no more.
@all_modes
def test_devices(bundle: Bundle, mode: str) -> None:
    bundle.config["linux"]["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]
    prepared(bundle, mode, DENIED["resources"])
    group = hierarchies()[0] if is_v2_only() else hierarchy_of("devices")
    require("devices", None if group else "no hierarchy has devices")
    assert group is not None
    place = f"{group.mountpoint}/web"
    answers = bundle.ask(
        {
            "null": "echo > /dev/null",
            "other": "head -c 1 /dev/kmsg",
            "below": f"mkdir {place}; echo 'c 1:11 rwm' > {place}/devices.allow; echo 0 > {place}/cgroup.procs; "
            "head -c 1 /dev/kmsg",
            "full": "head -c 3 /dev/zero | wc -c",
        }
    )
    answers.text("null")
    assert "not permitted" in answers.refused("other")
    assert "not permitted" in answers.refused("below")
    assert answers.text("full") == "3"  # every container has it: runtime-spec, "Default Devices"


# Law 6, sight: the container is a guest, by its id, with its limits and its processes.
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_sight(bundle: Bundle, mode: str) -> None:
    prepared(bundle, mode)
    bundle.up("sleep 600 & exec sleep 600")
    run = bundle.nestrt.run
    rows = [row for row in json.loads(run("ls", "--format", "json").ok().out) if row["name"] == bundle.id]
    assert len(rows) == 1
    row = rows[0]
    assert (row["level"], row["state"], row["pid"], row["path"]) == (1, "running", bundle.pid, bundle.cgroup)
    assert (row["memory"]["limit"], row["pids"]["limit"], row["cpus"]) == (512 * MIB, 90, str(CPUS[0]))
    assert row["claim"] is False
    assert bundle.id in run("tree").ok().out
    shown = run("show", bundle.id).ok().out
    assert bundle.cgroup in shown
    assert str(bundle.pid) in shown
    found = mark(bundle.cgroup)
    assert (found["name"], found["level"], found["state"]) == (bundle.id, 1, "running")
    bundle.kill().ok()
    bundle.await_status("stopped")
    bundle.delete().ok()
    assert bundle.id not in run("ls").ok().out


# What delete and gc of guests do to a container with a policy: gc leaves a running one alone.
def test_gc_leaves_containers_alone(bundle: Bundle) -> None:
    bundle.virtual().shell("exec sleep 600").create().ok()
    assert bundle.id not in bundle.nestrt.run("gc").ok().out
    assert bundle.status == "created"
    bundle.start().ok()
    assert bundle.id not in bundle.nestrt.run("gc").ok().out
    assert bundle.status == "running"
    assert bundle.exec("echo", "on").ok().out == "on\n"


# Law 7, opt-in: without an annotation the processes are in the engine's path itself, and nothing more is made.
@pytest.mark.parametrize("namespace", [True, False])
def test_without_a_policy(bundle: Bundle, namespace: bool) -> None:
    bundle.resources(**LIMITS)
    if namespace:
        bundle.namespace("cgroup")
    bundle.up()
    for place in bundle.groups():
        assert (place / "cgroup.procs").read_text() == f"{bundle.pid}\n"
        assert [entry for entry in os.listdir(place) if (place / entry).is_dir()] == []
        assert [name for name in os.listxattr(place) if "nestrt" in name] == []
    assert standing(bundle) == expected()
    assert bundle.id not in bundle.nestrt.run("ls").ok().out
    own = bundle.exec("cat", "/proc/self/cgroup").ok().out
    assert memberships(own) == ({"/"} if namespace else {bundle.cgroup})


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("value", ["false", "no", "TRUE"])
def test_annotations_that_do_not_virtualize(bundle: Bundle, value: str) -> None:
    bundle.annotate(level__virtualize=value)
    result = bundle.shell("cut -d: -f3 /proc/self/cgroup | sort -u").run()
    if value == "false":
        assert result.ok().out.strip() == bundle.cgroup
        return
    assert result.rc == 1
    assert "nestrt.level.virtualize" in result.err
    assert len(result.err.splitlines()) == 1
    assert bundle.leftovers() == []


# What other annotations say is done; what they say wrongly is said, and nothing is made.
@pytest.mark.slow_on_vm
def test_annotations(bundle: Bundle, new_bundle: NewBundle) -> None:
    bundle.virtual().annotate(view__mount="ro", partition__max_groups="5", partition__max_depth="3")
    place = hierarchies()[0].mountpoint
    answers = bundle.ask({"make": f"mkdir {place}/web", "see": f"ls -d {place}/init"}, "--keep")
    assert "Read-only file system" in answers.refused("make")
    answers.text("see")
    v2 = v2_hierarchy()
    if v2 is not None:
        assert (v2.group(bundle.cgroup) / "cgroup.max.descendants").read_text() == "5\n"
        assert (v2.group(bundle.cgroup) / "cgroup.max.depth").read_text() == "3\n"
    bundle.delete().ok()
    for values in ({"view__mount": "none"}, {"policy": "nested"}, {"view__controllers": "pids,cpu"}):
        one = new_bundle().virtual().annotate(**values)
        one.args("true").run().ok()
    for values in ({"view__nowhere": "x"}, {"level__max_level": "0"}, {"policy": "nosuch"}):
        one = new_bundle().virtual().annotate(**values)
        result = one.args("true").run()
        assert (result.rc, len(result.err.splitlines())) == (1, 1), result
        assert "nestrt." in result.err or "nosuch" in result.err, result
        assert one.leftovers() == []


# systemd as the first process's program would start in the guest root itself.
def test_starting_in_the_guest_root(bundle: Bundle) -> None:
    bundle.virtual().annotate(view__start_in=".")
    assert bundle.shell("cut -d: -f3 /proc/self/cgroup | sort -u").run().ok().out == "/\n"


INSIDE = {
    "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
    "memory": f"cat {inside('memory', '/', *MEMORY)}",
    "write": f"echo 900000000 > {inside('memory', '/', *MEMORY)}",
    "child": f"cd {hierarchies()[0].mountpoint} && mkdir web && echo 0 > web/cgroup.procs; ls -d web",
}


def seen(answers: Answers, memory: int) -> None:
    assert answers.text("cgroup") == "/init"
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


def bundle_inside(python: PythonRoot, name: str, memory: int, userns: bool, questions: dict[str, str]) -> str:
    """A shell command of a Python guest: run a bundle with a policy, in a group of the view, which answers."""
    config = document(["sh", "-c", script(questions)])
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
        f"{COMMAND} --root /tmp/{name}-state run --bundle /tmp/{name} {name}"
    )


# Levels: a guest of launch, or a container, runs a bundle with a policy, and that one again. Limits hold at each level.
@pytest.mark.slow_on_vm
@pytest.mark.parametrize("first", ["launch", "bundle"])
@pytest.mark.parametrize("mode", ["userns", "root"])
def test_levels(bundle: Bundle, guest_name: str, python: PythonRoot, tmp_path: Path, first: str, mode: str) -> None:
    policy = '[level]\nmax_level = 3\n[user]\ncapabilities = "all"\n[partition]\nmax_groups = 400\nmax_depth = 30\n'
    three = bundle_inside(python, "three", 128 * MIB, False, INSIDE)
    two = bundle_inside(python, "two", 256 * MIB, mode == "userns", {**INSIDE, "three": quoted(three)})
    questions = {**INSIDE, "two": quoted(two)}
    if first == "launch":
        file = tmp_path / "levels.toml"
        file.write_text(policy)
        words = (*python.options, "--mount", "type=tmpfs,target=/tmp", "--policy", str(file), "-m", "512M")
        users = () if mode == "userns" else ("--userns", "none")
        command = ("--name", guest_name, *users, "--", "sh", "-c", script(questions))
        result = bundle.nestrt.launch(*words, *command, timeout=60)
        at_one = parse(result.out)
        assert "two" in at_one, result
        top = f"/nestrt/{guest_name}"
    else:
        prepared(python_bundle(bundle, python), mode, {"memory": {"limit": 512 * MIB}})
        bundle.annotate(policy="nested")
        at_one = bundle.ask(questions, "--keep", timeout=60)
        top = bundle.cgroup
    seen(at_one, 512 * MIB)
    at_two = within(at_one, "two")
    seen(at_two, 256 * MIB)
    at_three = within(at_two, "three")
    seen(at_three, 128 * MIB)
    # run has taken its container's groups away again, at each level, and nothing else stays above the view.
    for hierarchy in hierarchies():
        below = [
            str(place.relative_to(hierarchy.group(top))) for place in hierarchy.group(top).rglob("*") if place.is_dir()
        ]
        assert not [name for name in below if "two" in name or "three" in name], below
        assert all(name.split("/")[0] == "guest" for name in below), below


# While they run the host sees them all: the groups lie in each other, whoever made them.
@pytest.mark.slow_on_vm
def test_the_host_sees_containers_of_containers(bundle: Bundle, python: PythonRoot) -> None:
    prepared(python_bundle(bundle, python), "root", {"memory": {"limit": 512 * MIB}})
    bundle.annotate(policy="nested")
    two = bundle_inside(python, "two", 256 * MIB, False, {"stay": "exec sleep 600"})
    bundle.up(two)
    place = f"{bundle.cgroup}/guest/inner/two"
    wait_for(lambda: any((d / "guest/init").is_dir() for d in groups(place)), "the inner container", 20)

    def names() -> set[str]:
        return {row["name"] for row in json.loads(bundle.nestrt.run("ls", "--format", "json").ok().out)}

    wait_for(lambda: {bundle.id, f"{bundle.id}/two"} <= names(), "both to be seen")
    assert read("memory", place, *MEMORY) == str(256 * MIB)
    found = mark(place)
    assert (found["name"], found["level"]) == ("two", 2)
    bundle.delete("--force", timeout=30).ok()
    assert bundle.leftovers() == []


# No source exceeds what the level has: a container's container asks for more than the container has.
@pytest.mark.slow_on_vm
def test_a_level_gives_no_more_than_it_has(bundle: Bundle, python: PythonRoot) -> None:
    prepared(python_bundle(bundle, python), "root", {"memory": {"limit": 256 * MIB}})
    bundle.annotate(policy="nested")
    result = bundle.ask({"two": bundle_inside(python, "two", 512 * MIB, False, {"x": "echo ran"})}, timeout=40)
    text = result.refused("two")
    assert "ran" not in text.splitlines()
    assert f"memory 512M: level 1 ({bundle.id}) has 256M" in text, text


# The kernel's own word on all of it: what the host's tools find by the engine's path is the whole container.
def test_the_engines_path_counts_all(bundle: Bundle) -> None:
    prepared(bundle, "nouserns")
    bundle.up("sleep 600 & sleep 600 & wait")
    wait_for(
        lambda: len(json.loads(bundle.verb("ps", "--format", "json", bundle.id).ok().out)) == 3, "ps to show three"
    )
    assert int(read("pids", bundle.cgroup, "pids.current", "pids.current")) == 3
    assert bundle.cgroup.startswith(PARENT)
    stats = json.loads(bundle.verb("events", "--stats", bundle.id).ok().out)
    assert stats["data"]["pids"]["current"] == 3
    assert "pids" in controllers()
    bundle.verb("update", "--pids-limit", "50", bundle.id).ok()
    assert read("pids", bundle.cgroup, "pids.max", "pids.max") == "50"
    shown = bundle.exec("cat", inside("pids", "/", "pids.max", "pids.max")).ok().out
    assert shown == "50\n"
    bundle.verb("pause", bundle.id).ok()
    assert bundle.status == "paused"
    bundle.verb("resume", bundle.id).ok()
