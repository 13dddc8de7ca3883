"""The laws for guests that another runtime starts: what the plugin makes of runc's and crun's containers.

::

    host                          the container (nestrt.policy = nested, by nestrt wrap --runtime runc)
    /…/ID      512M, 90 pids      nowhere: the engine's path is the limit group
       guest/                     "/" of every hierarchy; runc's own group
         init/                    first process
         web/                     what it makes

The same for nestrt's own containers: test_oci_laws.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bundles import bound, document, every_capability, here, inner_document, python_bundle
from support.guests import Answers, directory, inside, parse, script
from support.hostside import groups, has_v1, hierarchies, hierarchy_of, is_v2_only, mark, read
from support.plugin import RUNC, RUNTIMES, Wrapped, memberships, wrapped_bundles
from support.rootfs import COMMAND, PythonRoot
from support.runner import Nestrt, wait_for

NewWrapped = Callable[..., Wrapped]
MIB = 1 << 20
CPUS = sorted(os.sched_getaffinity(0))
MEMORY = "memory.limit_in_bytes", "memory.max"
LIMITS = {
    "memory": {"limit": 512 * MIB},
    "pids": {"limit": 90},
    "cpu": {"quota": 60000, "period": 100000, "cpus": str(CPUS[0])},
}
WISHES = (
    ("memory", *MEMORY, str(8 << 30)),
    ("pids", "pids.max", "pids.max", "max"),
    ("cpuset", "cpuset.cpus", "cpuset.cpus", f"0-{max(1, len(CPUS) - 1)}"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max", "400000"),
)
slow = pytest.mark.slow_on_vm
# Root of a private range of ids; of one with the host's root in it; root with an engine's few capabilities; with all.
MODES = ["userns", pytest.param("hostroot", marks=slow), pytest.param("nouserns", marks=slow), "root"]
all_modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(params=RUNTIMES, ids=os.path.basename)
def each(nestrt: Nestrt, busybox: Path, request: pytest.FixtureRequest) -> Iterator[Wrapped]:
    """A bundle for each runtime of this host, with a policy."""
    for new in wrapped_bundles(nestrt, busybox, str(request.param)):
        yield new().guest()


@pytest.fixture
def new_wrapped(nestrt: Nestrt, busybox: Path) -> Iterator[NewWrapped]:
    yield from wrapped_bundles(nestrt, busybox)


@pytest.fixture
def wrapped(new_wrapped: NewWrapped) -> Wrapped:
    return new_wrapped().guest()


def prepared(bundle: Wrapped, mode: str, limits: dict[str, Any] | None = None) -> Wrapped:
    """*bundle* with limits, in one of MODES."""
    bundle.resources(**(LIMITS if limits is None else limits))
    if mode == "userns":
        bundle.user_namespace().capabilities("all")
    elif mode == "hostroot":
        bundle.user_namespace(0).capabilities("all")
    elif mode == "root":
        bundle.capabilities("all")
    return bundle


def paths(text: str) -> set[str]:
    return {line.split(":", 2)[2] for line in text.splitlines()}


def cgroup_mounts(text: str) -> list[tuple[str, str, str]]:
    """(root, place, options) of each cgroup mount in a mountinfo."""
    rows = [line.split(" - ") for line in text.splitlines()]
    return [
        (*row[0].split()[3:5], row[0].split()[5]) for row in rows if row[1].split()[0] in ("cgroup", "cgroup2")
    ]  # type: ignore[misc]


def options_of(number: int) -> str:
    hierarchy = hierarchies()[number]
    if hierarchy.version == 2:
        return "-t cgroup2"
    return f"-t cgroup -o {','.join(sorted(hierarchy.controllers) or ['none', f'name={hierarchy.name}'])}"


# Law 1, view: every mount and /proc/self/cgroup begin at the guest root, and what the guest mounts itself does, too.
@all_modes
def test_view(each: Wrapped, mode: str) -> None:
    prepared(each, mode)
    may_mount = mode != "nouserns"
    fresh = {
        f"mount {number}": f"mkdir -p /tmp/m; mount {how} none /tmp/m && (cd /tmp/m; echo */) && umount /tmp/m"
        for number, how in enumerate(map(options_of, range(len(hierarchies()))))
    }
    answers = each.ask(
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
    assert {place for root, place, _ in mounts if root == "/"} == {str(h.mountpoint) for h in hierarchies()}
    assert all(root.count("/") == 1 and root != "/init" for root, _, _ in mounts), mounts
    assert each.id not in "".join(map(" ".join, mounts)) + answers.text("cgroup")
    assert answers.text("groups").splitlines() == [f"{h.mountpoint} init/" for h in hierarchies()]
    for name in fresh if may_mount else {}:
        assert answers.text(name) == "init/", name
    each.gone()


def standing(bundle: Wrapped) -> dict[str, str]:
    return {name: read(name, bundle.cgroup, v1, v2) for name, v1, v2, _ in WISHES}


def expected() -> dict[str, str]:
    quota = "60000" if has_v1("cpu") else "60000 100000"
    return {"memory": str(512 * MIB), "pids": "90", "cpuset": str(CPUS[0]), "cpu": quota}


# Laws 2 and 3, clamp and lock: the engine's limits stand above the view; the files in it show them and stay.
@all_modes
def test_clamp_and_lock(each: Wrapped, mode: str) -> None:
    prepared(each, mode).up()
    assert standing(each) == expected()
    questions = {}
    for name, v1, v2, wish in WISHES:
        file = inside(name, "/", v1, v2)
        questions[f"shown {name}"] = f"cat {file}"
        questions[f"write {name}"] = f"echo {wish} > {file}"
        # Over the lock, under it, and the lock itself.
        questions[f"move {name}"] = f"mv {file} {file}.x || umount {file}"
    answers = each.ask_running(questions)
    for name, value in expected().items():
        assert answers.text(f"shown {name}") == value, name
        text = answers.refused(f"write {name}")
        assert "Permission denied" in text or "Read-only file system" in text, (name, text)
        if mode in ("userns", "nouserns"):  # the others may unmount what their runtime has mounted: clamp holds
            answers.refused(f"move {name}")
    # By a mount of its own the host's root can write the files of the guest root: the limit group stands above.
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
        each.ask_running(again)
    assert standing(each) == expected()
    # And what it makes below holds no more than that.
    make = f"mkdir {directory('memory', '/evil')}; echo {8 << 30} > {inside('memory', '/evil', *MEMORY)}; true"
    hog = f"echo 0 > {directory('memory', '/evil')}/cgroup.procs; dd if=/dev/zero of=/dev/null bs=700M count=1"
    answers = each.ask_running({"make": make, "hog": hog})
    assert answers["hog"].rc in (1, 9, 137), answers["hog"]


# Law 3: each file of the guest root that bounds something is locked, whatever controllers there are. busybox's test -w
# asks the mode alone.
@slow
def test_no_limit_file_is_left_open(wrapped: Wrapped) -> None:
    prepared(wrapped, "root")
    own = "cgroup.procs tasks cgroup.threads cgroup.subtree_control cgroup.freeze cgroup.kill cgroup.type"
    each_file = "for f in *; do [ -f $f ] && ( : >> $f ) 2>/dev/null && echo $f; done; true"
    questions = {str(h.mountpoint): f"cd {h.mountpoint}; {each_file}" for h in hierarchies()}
    answers = wrapped.ask(questions)
    for place in questions:
        names = [name for name in answers.text(place).split() if "effective" not in name]
        opened = [name for name in names if name not in own.split()]
        ends = ("max", "high", "limit_in_bytes", "_device", "_us", "weight", "shares", "cpus", "mems", "depth", "allow")
        assert not [name for name in opened if name.endswith((*ends, "descendants", "deny"))], place


OTHERS = [pytest.param(name, marks=slow) for name in ("userns", "hostroot", "nouserns")]


# Law 4, freedom: mkdir and echo below the root, at once.
@pytest.mark.parametrize("mode", [*OTHERS, "root"])
def test_freedom(each: Wrapped, mode: str) -> None:
    prepared(each, mode)
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
    more = " ".join(f"{h.mountpoint}/x" for h in hierarchies())
    questions["remove"] = f"mkdir {more} && rmdir {more}"
    answers = each.ask(questions)
    answers.text("mkdir")
    for name, _, _, value in rows:
        assert answers.text(name).split()[0] == value, name
    assert answers.text("cpus") == str(CPUS[0])
    assert answers.text("move") == "/web"
    answers.text("remove")
    each.gone()


# Law 5, subset: a child group asks for more than there is and gets what there is.
@slow
@all_modes
def test_subset(each: Wrapped, mode: str) -> None:
    prepared(each, mode, {"memory": {"limit": 128 * MIB}, "pids": {"limit": 10}, "cpu": {"cpus": str(CPUS[0])}})
    web = {name: directory(name, "/web") for name in ("memory", "pids", "cpuset")}
    answers = each.ask(
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


KMSG = {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}
RULES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
]


# Devices: the document's rules are the limit group's, what the runtime has by itself is not more; below is no more.
@pytest.mark.parametrize("mode", ["userns", pytest.param("root", marks=slow)])
def test_devices(each: Wrapped, mode: str) -> None:
    each.config["linux"]["devices"] = [KMSG]
    prepared(each, mode, {"devices": RULES})
    tree = hierarchies()[0] if is_v2_only() else hierarchy_of("devices")
    assert tree is not None
    place = f"{tree.mountpoint}/web"
    answers = each.ask(
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
    answers.refused("make")
    assert answers.text("full") == "3"  # every container has it: runtime-spec, "Default Devices"
    each.gone()


# Law 6, sight: the container is a guest, by its id, with its limits and its processes.
@slow
@pytest.mark.parametrize("mode", ["userns", "nouserns"])
def test_sight(each: Wrapped, mode: str) -> None:
    prepared(each, mode).up("sleep 600 & exec sleep 600")
    run = each.nestrt.run
    (row,) = (row for row in json.loads(run("ls", "--format", "json").ok().out) if row["name"] == each.id)
    assert (row["level"], row["state"], row["pid"], row["path"]) == (1, "running", each.pid, each.cgroup)
    assert (row["memory"]["limit"], row["pids"]["limit"], row["cpus"]) == (512 * MIB, 90, str(CPUS[0]))
    assert row["claim"] is False
    shown = run("show", each.id).ok().out
    assert each.cgroup in shown
    assert str(each.pid) in shown
    found = mark(each.cgroup)
    assert (found["name"], found["level"], found["state"]) == (each.id, 1, "running")
    # The engine's tools look at the engine's path: it counts all.
    assert int(read("pids", each.cgroup, "pids.current", "pids.current")) == 2
    each.delete("--force").ok()
    assert each.id not in run("ls").ok().out


# A policy with other views: each as it says, the first process where it says; the same limits.
VIEWS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    # annotations, questions and the words that their answers have, where the first process is
    "ro": ({"view__mount": "ro"}, {"make": "Read-only file system"}, "/init"),
    "none": ({"view__mount": "none"}, {"make": "", "see": ""}, "/init"),
    "root": ({"view__start_in": "."}, {"made": "web"}, "/"),
    "few": ({"view__controllers": "pids,cpu"}, {"made": "web", "memory": ""}, "/init"),
    "undivided": ({"partition__memory": "false"}, {"made": "web", "memory": ""}, "/init"),
    "strict": ({"policy": "strict"}, {"make": "Read-only file system"}, "/init"),
}


@slow
@pytest.mark.parametrize("mode", ["userns", "root"])
@pytest.mark.parametrize("name", VIEWS)
def test_views(wrapped: Wrapped, name: str, mode: str) -> None:
    values, wanted, first = VIEWS[name]
    prepared(wrapped, mode).annotate(**values)
    pids, memory = directory("pids", "/"), directory("memory", "/web")
    known = {
        "make": f"mkdir {pids}/web",
        "made": f"mkdir {pids}/web && cd {pids} && ls -d web",
        "see": f"ls {pids}/pids.max",
        "memory": f"mkdir -p {memory} && echo 4M > {inside('memory', '/web', *MEMORY)}",
    }
    answers = wrapped.ask({"where": "cut -d: -f3 /proc/self/cgroup | sort -u", **{key: known[key] for key in wanted}})
    assert answers.text("where") == first
    for key, text in wanted.items():
        if key == "made":
            assert answers.text(key) == text
        else:
            assert text in answers.refused(key)
    wrapped.gone()


# What a document binds of the host's own groups is not there, by whatever path they are reached.
BOUND = {
    "cgroup": ("/sys/fs/cgroup", "/mnt", ""),
    "one hierarchy": (str(hierarchies()[0].mountpoint), "/mnt", ""),
    "in its place": ("/sys/fs/cgroup", "/sys/fs/cgroup", ""),
    "sys": ("/sys", "/mnt", "/fs/cgroup"),
    "sys in its place": ("/sys", "/sys", "/fs/cgroup"),
    "everything": ("/", "/mnt", "/sys/fs/cgroup"),
}


@slow
@pytest.mark.parametrize("mode", ["userns", "root"])
@pytest.mark.parametrize("name", BOUND)
def test_binds_of_the_hosts_groups(wrapped: Wrapped, name: str, mode: str) -> None:
    source, target, below = BOUND[name]
    prepared(wrapped, mode)
    mounts = [m for m in wrapped.config["mounts"] if m["destination"] != target]
    wrapped.config["mounts"] = [*mounts, bound(source, target, "rslave")]
    memory = group_file_below(target + below)
    questions = {
        "find": f"find {target}{below} -maxdepth 4 -name {wrapped.id}",
        "raise": f"echo {8 << 30} > {memory}{wrapped.cgroup}/{MEMORY[0] if has_v1('memory') else MEMORY[1]}",
        "own": "cut -d: -f3 /proc/self/cgroup | sort -u",
    }
    wrapped.up()
    answers = wrapped.ask_running(questions)
    assert standing(wrapped) == expected()
    assert not answers["find"].text or "No such file" in answers["find"].text, answers["find"]
    answers.refused("raise")
    wrapped.gone_by_force()


def group_file_below(place: str) -> str:
    """Where *place*, a bind of what is at /sys/fs/cgroup or of a hierarchy, has that of memory."""
    memory = hierarchy_of("memory")
    assert memory is not None
    return place + str(memory.mountpoint).removeprefix("/sys/fs/cgroup")


# A strict policy: the laws are read back, and a container that keeps them runs.
@slow
@pytest.mark.parametrize("mode", ["userns", "nouserns", "root"])
def test_a_strict_policy(wrapped: Wrapped, mode: str) -> None:
    prepared(wrapped, mode).annotate(level__strict="true")
    assert wrapped.shell("cut -d: -f3 /proc/self/cgroup | sort -u").run().ok().out == "/init\n"
    assert "poststart" in wrapped.document["hooks"]
    wrapped.gone()


# --- levels -------------------------------------------------------------------------------------------

INSIDE = {
    "cgroup": "cut -d: -f3 /proc/self/cgroup | sort -u",
    "memory": f"cat {inside('memory', '/', *MEMORY)}",
    "write": f"echo 900000000 > {inside('memory', '/', *MEMORY)}",
    "child": f"cd {hierarchies()[0].mountpoint} && mkdir web && echo 0 > web/cgroup.procs; ls -d web",
}


def seen(answers: Answers, memory: int, kept: bool = False) -> None:
    """*kept*: on v1 the first process stays in the guest root: root of a user namespace may not move it."""
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
    python: PythonRoot, name: str, memory: int, userns: bool, questions: dict[str, str], runtime: str = RUNC
) -> str:
    """A shell command of a Python guest: run a bundle with a policy by the wrapped runtime, which answers."""
    config = document(["sh", "-c", script(questions)])
    config["annotations"] = {"nestrt.policy": "nested"}
    config["linux"].update(cgroupsPath=f"/inner/{name}", resources={"memory": {"limit": memory}})
    config["process"]["capabilities"] = {kind: every_capability() for kind in ("bounding", "effective", "permitted")}
    if userns:
        config["linux"]["namespaces"].append({"type": "user"})
        ids = [{"containerID": 0, "hostID": 20000, "size": 20000}]
        config["linux"].update(uidMappings=ids, gidMappings=ids)
    root = f"/tmp/{name}/rootfs"
    found = inner_document(config, python, root)
    wrap = f"{COMMAND} wrap --runtime {shlex.quote(runtime)} --root /tmp/{name}-state"
    return (
        f"mkdir -p /tmp/{name} && /mkroot {root} && {here(json.dumps(found), f'/tmp/{name}/config.json')} && "
        f"{wrap} run --bundle /tmp/{name} {name}"
    )


def top(bundle: Wrapped, python: PythonRoot, mode: str) -> Wrapped:
    prepared(python_bundle(bundle, python), mode, {"memory": {"limit": 512 * MIB}})
    options = ["nosuid", "nodev", "mode=755"]
    bundle.config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options})
    return bundle


# Root of level 1 calls nestrt wrap, and root of level 2 does: the laws hold at each, limits are met at each.
@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("userns", "same"),
        pytest.param("userns", "userns", marks=slow),
        pytest.param("root", "same", marks=slow),
        pytest.param("root", "userns", marks=slow),
    ],
)
def test_levels(each: Wrapped, python: PythonRoot, one: str, two: str) -> None:
    top(each, python, one)
    runtime = each.runtime
    three = bundle_inside(python, "three", 128 * MIB, False, INSIDE, runtime)
    inner = bundle_inside(python, "two", 256 * MIB, two == "userns", {**INSIDE, "three": quoted(three)}, runtime)
    at_one = each.ask({**INSIDE, "two": quoted(inner)}, timeout=60)
    seen(at_one, 512 * MIB)
    at_two = within(at_one, "two")
    seen(at_two, 256 * MIB, kept=one == two == "userns")
    seen(within(at_two, "three"), 128 * MIB)
    each.gone()


# While they run the host sees them all: the groups lie in each other, whoever made them.
@slow
def test_the_host_sees_guests_of_guests(wrapped: Wrapped, python: PythonRoot) -> None:
    top(wrapped, python, "userns").up(bundle_inside(python, "two", 256 * MIB, False, {"stay": "exec sleep 600"}))
    place = f"{wrapped.cgroup}/guest/inner/two"
    wait_for(lambda: any((d / "guest/init").is_dir() for d in groups(place)), "the inner container", 20)

    def names() -> set[str]:
        return {row["name"] for row in json.loads(wrapped.nestrt.run("ls", "--format", "json").ok().out)}

    wait_for(lambda: {wrapped.id, f"{wrapped.id}/two"} <= names(), "both to be seen")
    assert read("memory", place, *MEMORY) == str(256 * MIB)
    found = mark(place)
    assert (found["name"], found["level"]) == ("two", 2)
    pid = next(row["pid"] for row in json.loads(wrapped.nestrt.run("ls", "--format", "json").out) if row["level"] == 2)
    assert set(memberships(pid).values()) == {f"{place}/guest/init"}
    wrapped.delete("--force", timeout=30).ok()
    wrapped.gone()


# No source exceeds what the level has: a guest's guest asks for more than the guest has.
@slow
def test_a_level_gives_no_more_than_it_has(wrapped: Wrapped, python: PythonRoot) -> None:
    top(wrapped, python, "userns").resources(memory={"limit": 256 * MIB})
    answers = wrapped.ask({"two": bundle_inside(python, "two", 512 * MIB, False, {"x": "echo ran"})}, timeout=40)
    text = answers.refused("two")
    assert "ran" not in text.splitlines()
    assert f"memory 512M: level 1 ({wrapped.id}) has 256M" in text, text
