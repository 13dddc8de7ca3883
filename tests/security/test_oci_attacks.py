"""Containers that attack the runtime: its program, its descriptors, its processes, and the limits that it sets.

host:       nestrt exec ──▶ process that enters ──▶ trampoline ──▶ program
                              ▲
container:  processes that look, write, signal, fork and move at that very moment
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.attack import HANDLES, PRELUDE, open_directories
from support.attack_oci import CATCHER, Isolated, isolated
from support.bundles import ALL_CAPABILITIES, Bundle
from support.hostside import hierarchies, processes
from support.need import SLOW
from support.rootfs import PythonRoot
from support.runner import wait_for

# What depends on the host's kind is marked with False.
pytestmark = pytest.mark.slow_on_vm

NewBundle = Callable[..., Bundle]
MakeBusybox = Callable[[], Path]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Isolated]:
    """nestrt, with an interpreter that may be lost."""
    with isolated(tmp_path) as found:
        yield found
        found.stop()


def pod(first: Bundle, other: Bundle) -> None:
    """Have *other* share the processes of *first*, which runs."""
    other.namespace("pid", f"/proc/{first.pid}/ns/pid")


def caught(root: Path) -> list[str]:
    """What a CATCHER has found other processes running."""
    return (root / "found").read_text().split("\n")


# CVE-2019-5736. Whoever may look into all processes of its pid namespace waits for one that enters. Each way to
# come to that right is tried: by the document, by an earlier exec, and in a container that shares the processes.
@pytest.mark.parametrize("way", ["document", "exec", "privileged exec", "pod", "create in a pod"])
def test_the_interpreter_is_not_overwritten(
    host: Isolated, new_bundle: NewBundle, make_busybox: MakeBusybox, tmp_path: Path, way: str
) -> None:
    root = make_busybox()
    first, second, third = (new_bundle(rootfs=root) for _ in range(3))
    for bundle in (first, second, third):
        bundle.nestrt = host
    if way == "document":
        first.config["process"]["capabilities"]["bounding"].append("CAP_SYS_PTRACE")
        first.config["process"]["capabilities"]["effective"].append("CAP_SYS_PTRACE")
        first.config["process"]["capabilities"]["permitted"].append("CAP_SYS_PTRACE")
        first.up(CATCHER)
    else:
        first.up()
    if way == "exec":
        first.exec("sh", "-c", CATCHER, options=("--detach", "--cap", "CAP_SYS_PTRACE")).ok()
    elif way == "privileged exec":
        second.capabilities(ALL_CAPABILITIES).shell(CATCHER)
        file = tmp_path / "process.json"
        file.write_text(json.dumps(second.config["process"]))
        first.verb("exec", "--detach", "--process", str(file), first.id).ok()
    elif way.endswith("pod"):
        pod(first, second)
        second.capabilities("CAP_SYS_PTRACE").up(CATCHER)
    wait_for((root / "found").exists, "the attacker")
    for number in range(80):
        # It does catch the process that enters: by its own program, on a mount that cannot be written.
        if number >= 6 and "/" in caught(root):
            break
        if way.startswith("create"):
            pod(first, third)
            third.args("true").run().ok()
        else:
            first.exec("true").ok()
        assert host.intact
    time.sleep(0.2)
    assert host.intact
    assert "/" in caught(root), set(caught(root))


# The program leads to /proc/self/exe, by its name, by a link or by the first line of a script: that is the sealed
# trampoline, which is no interpreter and cannot be written to.
@pytest.mark.parametrize("kind", ["name", "link", "script"])
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_the_program_leads_to_the_runtimes_own(
    host: Isolated, new_bundle: NewBundle, make_busybox: MakeBusybox, kind: str, verb: str
) -> None:
    root = make_busybox()
    (root / "evil-link").symlink_to("/proc/self/exe")
    (root / "evil-script").write_text("#!/proc/self/exe\nimport os; os.mkdir('/tmp/python')\n")
    (root / "evil-script").chmod(0o755)
    name = {"name": "/proc/self/exe", "link": "/evil-link", "script": "/evil-script"}[kind]
    bundle, attacker = new_bundle(rootfs=root), new_bundle(rootfs=root)
    bundle.nestrt = attacker.nestrt = host
    if verb == "run":
        process = host.start(*bundle.args(name, "-c", "import os; os.mkdir('/tmp/python')").words("run"))
    else:
        bundle.up(CATCHER)
        words = (*bundle.globals, "exec", bundle.id, name, "-c", "import os; os.mkdir('/tmp/python')")
        process = host.start(*words)
    try:
        assert process.wait(3 if kind == "script" else 20 * SLOW) != 0
    except subprocess.TimeoutExpired:
        assert kind == "script"  # its own interpreter runs it, over and over: the container's time
        bundle.delete("--force").ok()
    assert host.intact
    assert not (root / "tmp/python").exists()


# CVE-2024-21626. A careless engine leaves descriptors of the host's directories open; whatever their number, and
# whichever descriptors the runtime itself has, they are no way out as a working directory.
INSIDE = "test -e ./../../../../../../../../../../inside && echo inside || echo OUTSIDE; ls -d * 2>/dev/null"


@pytest.mark.parametrize("verb", ["run", "exec", "process"])
@pytest.mark.parametrize(
    "text", ["/proc/self/fd/N", "/link-N", "/proc/self/fd/N/../..", "/proc/1/fd/N", "/proc/self/cwd/.."]
)
def test_no_working_directory_leads_out(
    new_bundle: NewBundle, make_busybox: MakeBusybox, tmp_path: Path, verb: str, text: str
) -> None:
    root = make_busybox()
    (root / "inside").mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "of-the-host").mkdir()
    bundle = new_bundle(rootfs=root)
    if verb != "run":
        bundle.up()
    file = tmp_path / "process.json"
    numbers = range(3, 13, 3) if "N" in text else [0]
    with open_directories(str(secret), "/", "/sys/fs/cgroup") as leaked:
        for number in [*numbers, *leaked] if "N" in text else numbers:
            (root / f"link-{number}").unlink(missing_ok=True)
            (root / f"link-{number}").symlink_to(f"/proc/self/fd/{number}")
            cwd = text.replace("N", str(number))
            bundle.shell(INSIDE).config["process"]["cwd"] = cwd
            if verb == "run":
                words = bundle.words("run")
            elif verb == "exec":
                words = [*bundle.globals, "exec", "--cwd", cwd, bundle.id, "sh", "-c", INSIDE]
            else:
                file.write_text(json.dumps(bundle.config["process"]))
                words = [*bundle.globals, "exec", "--process", str(file), bundle.id]
            done = subprocess.run(
                [bundle.nestrt.command, *words],
                pass_fds=leaked,
                cwd=secret,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30 * SLOW,
            )
            assert "OUTSIDE" not in done.stdout, (cwd, done)
            assert "of-the-host" not in done.stdout, (cwd, done)
            assert done.returncode or done.stdout.startswith("inside\n"), (cwd, done)
            assert len(done.stderr.splitlines()) <= 1, (cwd, done)


# Descriptors that a careless engine leaves open get into no hook, no program, and no process that exec adds.
@pytest.mark.parametrize("keep", [0, 1])
def test_no_descriptor_of_the_callers_is_handed_on(bundle: Bundle, tmp_path: Path, keep: int) -> None:
    script = tmp_path / "hook"
    script.write_text('#!/bin/sh\ncat > /dev/null\nexec > "$1"\nls -l /proc/self/fd\n')
    script.chmod(0o755)
    stages = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    for stage in stages:
        bundle.hook(stage, str(script), str(tmp_path / stage))
    bundle.shell("exec > /tmp/fds; ls -l /proc/$$/fd; exec sleep 600")
    options = ("--preserve-fds", str(keep)) if keep else ()
    for words in (
        bundle.words("create", *options),
        [*bundle.globals, "start", bundle.id],
        [*bundle.globals, "exec", *options, bundle.id, "sh", "-c", "ls -l /proc/$$/fd"],
    ):
        careless = f'exec 3<{tmp_path} 4<{tmp_path} 7<{tmp_path} 9</ >{tmp_path}/out 2>&1; "$@"'
        argv = ["bash", "-c", careless, "bash", bundle.nestrt.command, *words]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=30 * SLOW)
        assert done.returncode == 0, (tmp_path / "out").read_text()
    exec_fds = (tmp_path / "out").read_text()
    program_fds = bundle.exec("cat", "/tmp/fds").ok().out
    bundle.delete("--force").ok()
    for text in (exec_fds, program_fds):
        found = dict(line.split()[-3::2] for line in text.splitlines() if " -> " in line)
        assert sorted(found) == ["0", "1", "2", "3"][: 3 + keep], text
    for stage in stages:
        text = (tmp_path / stage).read_text()
        found = dict(line.split()[-3::2] for line in text.splitlines() if " -> " in line)
        assert {number for number, target in found.items() if "/proc/" not in target} == {"0", "1", "2"}, (stage, text)


# --- processes of the runtime that a container can see -------------------------------------------

PRIVATE = ("mem", "environ", "maps", "fd/0", "fd/3", "cwd/.", "root/.", "exe", "auxv", "task/PID/mem")


def looker() -> str:
    """A shell that opens what belongs to each process of nestrt, and tells what it got, until /stop is there."""
    names = " ".join(PRIVATE)
    return f"""
: > /seen
while [ ! -e /stop ]; do
  for p in /proc/[0-9]*; do
    case "$(cat $p/cmdline | tr '\\0' ' ')" in *hooks/[n]estrt*) ;; *) continue ;; esac
    pid=${{p#/proc/}}
    for name in {names}; do
      file=$p/$(echo $name | sed s/PID/$pid/)
      if [ -d "$file" ] || command exec 5<"$file"; then echo "$name" >> /seen; exec 5<&-; fi
    done
    kill -0 $pid && echo looked >> /seen
  done
done 2>/dev/null
sleep 600
"""


# A container that shares the processes of another, without CAP_SYS_PTRACE, looks at the other's first process while it
# waits to be started, and at those that exec brings in: not dumpable, they are closed to it. Neither leaves a core.
def test_the_runtimes_processes_are_closed(new_bundle: NewBundle, make_busybox: MakeBusybox) -> None:
    root = make_busybox()
    first, other, parked = (new_bundle(rootfs=root) for _ in range(3))
    first.up()
    pod(first, other)
    other.config["process"]["capabilities"] = {}
    other.up(looker())
    wait_for((root / "seen").exists, "the looker")
    pod(first, parked)
    unlimited = [{"type": "RLIMIT_CORE", "soft": 2**63, "hard": 2**63}]
    parked.config["process"]["rlimits"] = unlimited
    parked.args("sleep", "600").create().ok()
    for _ in range(5):
        first.exec("true").ok()
    wait_for(lambda: "looked" in (root / "seen").read_text(), "the looker to look")
    time.sleep(0.5)
    (root / "stop").write_text("")
    assert set((root / "seen").read_text().split()) == {"looked"}
    os.kill(parked.pid, signal.SIGSEGV)
    parked.await_status("stopped")
    assert [path.name for path in root.rglob("core*") if path.is_file()] == []
    assert not Path(f"/proc/{first.pid}/cwd/core").exists()


# The socket on which a created container waits: nobody else's to connect to, and whoever talks nonsense or nothing
# there keeps nobody from starting it.
def test_the_socket_for_start(bundle: Bundle) -> None:
    bundle.shell("echo started > /tmp/started; exec sleep 600").create().ok()
    place = bundle.state_root / bundle.id
    path = place / "start.sock"
    assert place.stat().st_mode & 0o077 == 0
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    # Also one who was let in by a careless administrator as far as the container's own directory.
    done = subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "/usr/bin/python3", "-ISc", connect, str(path)],
        capture_output=True,
        text=True,
    )
    assert "PermissionError" in done.stderr

    def reach() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))  # which waits for room in the queue
        return sock

    for nonsense in (b"", b"\0", b"stop\n", b"start", b"start\r", b"START\n", b"x" * 65536):
        with reach() as sock:
            try:
                sock.sendall(nonsense)
            except (BrokenPipeError, ConnectionResetError):
                pass
    for _ in range(1000 if SLOW == 1 else 100):
        reach().close()
    assert bundle.status == "created"
    with reach(), reach() as half:
        half.sendall(b"sta")
        bundle.start(timeout=20).ok()
    assert bundle.status == "running"
    wait_for(lambda: bundle.exec("cat", "/tmp/started").out == "started\n", "the program")


# --- limits --------------------------------------------------------------------------------------

LIFT = r"""
for round in 1 2 3; do
  mkdir -p /tmp/m$round && cd /tmp/m$round
  for kind in cgroup2 pids memory cpuset cpu devices freezer; do
    mkdir -p $kind
    if [ $kind = cgroup2 ]; then mount -t cgroup2 none $kind; else mount -t cgroup -o $kind none $kind; fi
    find $kind -name pids.max -exec sh -c 'echo max > "$1"; echo 900000 > "$1"' sh {} \;
    find $kind -name memory.max -exec sh -c 'echo max > "$1"' sh {} \;
    find $kind -name memory.limit_in_bytes -exec sh -c 'echo -1 > "$1"' sh {} \;
    find $kind -name devices.allow -exec sh -c 'echo a > "$1"' sh {} \;
    find $kind -name cgroup.max.descendants -exec sh -c 'echo max > "$1"' sh {} \;
    find $kind -name release_agent -exec sh -c 'echo "$1" >> /tmp/agents; echo /evil > "$1"' sh {} \;
    mkdir -p $kind/deeper && echo $$ > $kind/deeper/cgroup.procs
  done
  [ $round = 3 ] || cd /
done 2>/dev/null
"""


# Every capability there is, cgroup namespaces in cgroup namespaces, and a fresh mount in each: what a policy (and the
# document) has limited stays limited, and no release_agent is in sight (CVE-2022-0492).
@pytest.mark.parametrize("own_users", [pytest.param(False, marks=pytest.mark.slow_on_vm(False)), True])
def test_limits_are_not_lifted(bundle: Bundle, own_users: bool) -> None:
    bundle.virtual().capabilities(ALL_CAPABILITIES).resources(pids={"limit": 60}, memory={"limit": 256 << 20})
    if own_users:
        bundle.user_namespace()
    bundle.config["process"]["noNewPrivileges"] = False
    # busybox's unshare(1) has no cgroup namespaces: the machine's own comes along where its libraries can be found.
    attack = "sh /tmp/lift; $u sh /tmp/lift; $u sh -c '$u sh /tmp/lift'"
    binds = [path for path in ("/usr/bin/unshare", "/lib", "/lib64") if os.path.exists(path)]
    for path in binds:
        target = path.replace("/usr/bin", "/opt")
        # The root of a user namespace may make nothing in the root filesystem, which is not its own.
        place = bundle.rootfs / target[1:]
        place.mkdir(exist_ok=True) if os.path.isdir(path) else place.touch()
        bundle.mount(path, target, "ro")
    script = f"cat > /tmp/lift <<'END'\n{LIFT}\nEND\nexport u='/opt/unshare -C'; {attack}"
    bundle.up(f"{script}\n$u true && touch /tmp/nested; touch /tmp/done; exec sleep 600")
    wait_for(lambda: bundle.exec("test", "-e", "/tmp/done").rc == 0, "the attack", 30)
    found = {}
    for hierarchy in hierarchies():
        for file in ("pids.max", "memory.max", "memory.limit_in_bytes"):
            path = hierarchy.group(bundle.cgroup) / file
            if path.exists():
                found[file] = path.read_text().strip()
        agent = hierarchy.mountpoint / "release_agent"
        assert not agent.exists() or "evil" not in agent.read_text()
    assert found["pids.max"] == "60"
    assert found.get("memory.max", found.get("memory.limit_in_bytes")) == str(256 << 20)
    assert bundle.exec("test", "-e", "/tmp/nested").rc == 0
    # And they bind, from inside.
    assert bundle.exec("test", "-e", "/tmp/agents").rc == 1
    result = bundle.exec("sh", "-c", "for i in $(seq 200); do sleep 60 & done; wait", timeout=30)
    assert "fork" in result.err, result
    bundle.delete("--force").ok()


# --- storms --------------------------------------------------------------------------------------

BOMB = "(bomb() { bomb | bomb & }; bomb; while :; do (trap '' TERM HUP; sleep 1) & done) 2>/dev/null & exec sleep 600"
MOVER = r"""
cd /sys/fs/cgroup
tree=freezer; [ -d freezer ] || tree=.; [ -d unified ] && tree="$tree unified"
for t in $tree; do (cd $t; mkdir -p a b; while :; do
  for g in a b; do
    for p in $(cat cgroup.procs init/cgroup.procs a/cgroup.procs b/cgroup.procs); do echo $p > $g/cgroup.procs; done
    mkdir $g/x; rmdir $g/x; mv $g $g-; mv $g- $g
  done
done 2>/dev/null) & done
exec sleep 600
"""


@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize("storm", [BOMB, MOVER], ids=["fork bomb", "mover"])
@pytest.mark.parametrize("end", ["kill --all", "delete --force"])
def test_containers_in_uproar(bundle: Bundle, policy: bool, storm: str, end: str) -> None:
    bundle.capabilities(ALL_CAPABILITIES).resources(pids={"limit": 80})
    bundle.config["mounts"][-1]["options"].remove("ro")
    bundle.namespace("cgroup")
    if policy:
        bundle.virtual()
    bundle.up(storm)
    time.sleep(0.3)
    for words in (
        ("ps", "--format", "json", bundle.id),
        ("exec", bundle.id, "true"),
        ("events", "--stats", bundle.id),
        ("pause", bundle.id),
        ("resume", bundle.id),
        ("update", "--pids-limit", "70", bundle.id),
        ("kill", bundle.id, "CONT"),
    ):
        result = bundle.verb(*words, timeout=30)
        assert len(result.err.splitlines()) <= 1, result
        assert "this is a bug" not in result.err, result
        # In a container that is full no process can be added; the rest has to work.
        assert result.rc == 0 or words[0] in ("exec", "resume"), result
    if end == "kill --all":
        bundle.kill("KILL", "--all").ok()
        bundle.await_status("stopped")
        assert processes(bundle.cgroup) == set()
        bundle.delete().ok()
    bundle.delete("--force", timeout=30).ok()
    assert bundle.leftovers() == []


def lives(pid: int) -> bool:
    """Whether the process is there, and no zombie that waits for its parent."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# A guest freezes its children, and hides processes in groups that are nested deeper than a path can say, or makes
# thousands of groups: its end comes all the same.
HIDE = r"""
n=$(printf %0200d 1)
for t in /sys/fs/cgroup/freezer /sys/fs/cgroup/pids /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ -e $t/cgroup.procs ] || continue
  cd $t; i=0
  while [ $i -lt 24 ] && mkdir $n && cd -P $n; do i=$((i+1)); done
  sleep 600 & echo $! > cgroup.procs
done 2>/dev/null
touch /tmp/done; wait; sleep 600
"""
FREEZE = r"""
file=freezer.state word=FROZEN
cd /sys/fs/cgroup/freezer 2>/dev/null || { cd /sys/fs/cgroup; file=cgroup.freeze word=1; }
mkdir -p cold/colder; sleep 600 & echo $! > cold/colder/cgroup.procs; sleep 600 & echo $! > cold/cgroup.procs
echo $word > cold/colder/$file; echo $word > cold/$file; touch /tmp/done; sleep 600
"""
MANY = r"""
for t in /sys/fs/cgroup/pids /sys/fs/cgroup; do
  cd $t && i=0 && while [ $i -lt 3000 ]; do mkdir g$i || break; i=$((i+1)); done
done 2>/dev/null
touch /tmp/done; sleep 600
"""


@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize("what", [HIDE, FREEZE, MANY], ids=["hidden", "frozen", "many"])
@pytest.mark.parametrize("end", ["kill --all", "delete --force"])
def test_groups_that_are_hard_to_end(bundle: Bundle, policy: bool, what: str, end: str) -> None:
    bundle.capabilities(ALL_CAPABILITIES)
    bundle.config["mounts"][-1]["options"].remove("ro")
    bundle.namespace("cgroup")
    if policy:
        bundle.virtual()
    bundle.up(what)
    wait_for(lambda: bundle.exec("test", "-e", "/tmp/done").rc == 0, "the groups", 30)
    inside = json.loads(bundle.verb("ps", "--format", "json", bundle.id).ok().out)
    assert bundle.pid in inside
    if end == "kill --all":
        bundle.kill("KILL", "--all").ok()
        bundle.await_status("stopped")
        bundle.delete(timeout=30).ok()
    else:
        bundle.delete("--force", timeout=30).ok()
    assert [pid for pid in inside if lives(pid)] == []
    assert bundle.leftovers() == []


# What may be traced must not have what the host has: a container with CAP_SYS_PTRACE and no user namespace could write
# into the memory of a process that enters it.
#
#   watcher in the container ── /proc/PID/status of every process ──▶ no right beyond its own and those to change ids
def test_what_enters_has_given_up_the_hosts_rights(bundle: Bundle, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.write_text("")
    watch = "while :; do for p in /proc/[0-9]*; do grep -h CapEff $p/status >> /seen 2>/dev/null; done; done"
    bundle.mount(str(seen), "/seen")
    bundle.capabilities("CAP_SYS_PTRACE").up(watch)
    for _ in range(8):
        bundle.exec("true").ok()
    bundle.delete("--force").ok()
    masks = {int(line.split()[1], 16) for line in seen.read_text().splitlines()[:-1]}
    numbers = {number for mask in masks for number in range(64) if mask >> number & 1}
    # CHOWN, DAC_OVERRIDE, SETGID, SETUID, SETPCAP; SYS_PTRACE
    assert numbers <= {0, 1, 6, 7, 8, 19}, sorted(numbers)
    assert 19 in numbers


# A policy's container without a user namespace, whose capabilities open groups by file handle, under a document
# that has no system call filter, or one that allows it: neither its program nor one that exec adds opens any.
@pytest.mark.parametrize("profile", [None, {"names": ["open_by_handle_at", "getpid"], "action": "SCMP_ACT_ALLOW"}])
def test_no_group_above_the_view_is_opened_by_handle(
    new_bundle: NewBundle, python: PythonRoot, profile: dict[str, object] | None
) -> None:
    bundle = new_bundle(rootfs=python.path).virtual().capabilities("all")
    for option in python.mounts[1::2]:
        source, target = (part.partition("=")[2] for part in option.split(",")[1:3])
        entry = {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}
        bundle.config["mounts"].append(entry)
    bundle.config["linux"].pop("seccomp", None)
    if profile is not None:
        bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_LOG", "syscalls": [profile]}
    bundle.args("sleep", "600").run("--detach").ok()
    script = ("/usr/bin/python3", "-ISc", PRELUDE + HANDLES)
    places = {str(h.mountpoint): [] for h in hierarchies()}
    assert answer(bundle.exec(*script).ok().out) == places
    bundle.verb("delete", "--force", bundle.id).ok()
    assert answer(bundle.args(*script).run().ok().out) == places


def answer(output: str) -> object:
    """What a script gave done()."""
    (line,) = (line for line in output.splitlines() if line.startswith("@@"))
    return json.loads(line[2:])
