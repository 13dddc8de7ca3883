"""Bad input: one line that names the object and the remedy, the documented status, and nothing left behind.

    125   the guest could not be started          126   the program cannot be executed
    127   the program is not there                      the same for "nestrt launch" as for a shell and docker
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from support.hostside import hierarchies, is_v2_only
from support.need import SLOW
from support.runner import Nestrt, Result, leftovers

FAILED, NOT_EXECUTABLE, NOT_THERE = 125, 126, 127
CPUS = sorted(os.sched_getaffinity(0))


def complaint(result: Result, name: str, status: int, words: Iterable[str]) -> str:
    """What is wrong with how nestrt refused, "" if nothing is: one line with each of *words*, and no debris."""
    lines = result.err.splitlines()
    problems = []
    if result.rc != status or result.out:
        problems.append(f"status {result.rc} for {status}, output {result.out!r}")
    if len(lines) != 1 or not lines[0].startswith("nestrt: cannot ") or not result.err.endswith("\n"):
        problems.append(f"not one line: {result.err!r}")
    # Operation and object, ": ", reason, "; ", remedy.
    elif ": " not in lines[0][8:] or "; " not in lines[0]:
        problems.append(f"no reason or no remedy: {result.err!r}")
    problems += [f"no {word!r} in {result.err!r}" for word in words if word not in result.err]
    problems += leftovers(name)
    return "".join(f"\n  {' '.join(result.args[1:])}: {problem}" for problem in problems)


# Options, before anything is made. Object and remedy stand beside each.
@pytest.mark.slow_on_vm
def test_options(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    many = "x" * 300
    cases: list[tuple[list[str], list[str]]] = [
        (["--memroy", "64M"], ["--memroy", "did you mean --memory?"]),
        (["-m", "--"], ['memory "--"', "512M"]),
        (["-m", "64M", "-m", "65M"], ["-m", "twice"]),
        (["--rm=yes"], ["--rm", "takes no value"]),
        (["-m", "64X"], ['memory "64X"', "512M"]),
        (["-m", "-1"], ['memory "-1"', "512M"]),
        (["-m", "100"], ["memory 100", "256K"]),
        (["--cpus", "1-"], ['CPU list "1-"', "0-1,3"]),
        (["--cpus", "3-1"], ['CPU list "3-1"', "write 1-3"]),
        (["--cpus", ""], ["CPU list", "0-1,3"]),
        (["--cpu-quota", "0"], ['"0"']),
        (["--cpu-quota", "fast"], ['"fast"', "1.5"]),
        (["--cpu-weight", "10001"], ['CPU weight "10001"', "1 to 10000"]),
        (["--pids", "many"], ['"many"', "max"]),
        (["--io", "8:0"], ['I/O limit "8:0"', "rbps"]),
        (["--io", "8:0 speed=1M"], ["speed=1M", "rbps"]),
        (["--io", "/dev/null rbps=1M"], ["/dev/null", "device node"]),
        (["--device", "x 1:3 rwm"], ['device rule "x 1:3 rwm"', "c 1:3 rwm"]),
        (["--device", "c 1:3 rwx"], ['"rwx"', "c 1:3 rwm"]),
        (["--device", "/dev/absent"], ["/dev/absent", "device node"]),
        (["--hostname", "a b"], ["hostname", "letters"]),
        (["--env", "=x"], ["environment", "NAME=VALUE"]),
        (["--mount", "type=nfs,target=/x"], ["type nfs", "type=tmpfs"]),
        (["--mount", "type=bind,target=/x"], ["source is missing", "source=DIR"]),
        (["--mount", "type=bind,source=/absent,target=/x"], ["/absent", "that is there"]),
        (["--mount", "type=tmpfs,target=/x/../.."], ["target", "without .."]),
        (["--mount", "type=tmpfs,target=x"], ["target", "/DIR"]),
        (["--mount", "type=tmpfs,target=/x,sise=1M"], ["'sise=1M'"]),
        (["--net", "bridge"], ["--net bridge", "veth"]),
        (["--userns", "0:1"], ['"0:1"', "inside:outside:count"]),
        (["--capabilities", "CAP_ROOT"], ["CAP_ROOT", "CAP_NET_ADMIN"]),
        (["--policy", "/absent.toml"], ["/absent.toml"]),
        (["--policy", "/etc"], ["/etc"]),
    ]
    name = new_guest()
    found = [
        complaint(nestrt.launch("--rootfs", busybox, "--name", name, *args, "--", "true"), name, FAILED, words)
        for args, words in cases
    ]
    for wrong in ("a/b", "..", ".", "", "new\nline", many, "-x", "\x1b[31m", "günter"):
        result = nestrt.launch("--rootfs", busybox, "--name", wrong, "--", "true")
        found.append(complaint(result, name, FAILED, ["guest name", "letters"]))
        assert "\x1b" not in result.err
    found.append(complaint(nestrt.launch("--rootfs", busybox, "--name", name), name, FAILED, ["command", "-- sh"]))
    found.append(complaint(nestrt.launch("--name", name, "--", "true"), name, FAILED, ["root filesystem", "--rootfs"]))
    assert "".join(found) == ""


# What the level has not got, and root filesystems that are none.
def test_what_is_not_there_to_give(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, tmp_path: Path) -> None:
    beyond, (file, loop) = CPUS[-1] + 1, (tmp_path / "file", tmp_path / "loop")
    file.touch()
    loop.symlink_to(loop)
    name = new_guest()
    cases: list[tuple[list[str], list[str]]] = [
        (["-m", "900T"], ["memory 900T", "ask for"]),
        (["--cpus", str(beyond)], [f"CPUs {beyond}", "choose from"]),
        (["--io", "4000:1 rbps=1M"], ["4000:1"]),
        (["--user", "absent"], ["user absent", "number"]),
        (["--user", "0:absent"], ["group absent", "number"]),
        (["--user", "5000000"], ["5000000"]),
        (["--workdir", "/absent"], ["workdir /absent", "--workdir"]),
        (["-d", "--log", "/absent/log"], ["/absent/log"]),
    ]
    found = [
        complaint(nestrt.launch("--rootfs", busybox, "--name", name, *args, "--", "true"), name, FAILED, words)
        for args, words in cases
    ]
    for root in (tmp_path / "absent", file, loop):
        result = nestrt.launch("--rootfs", root, "--name", name, "--", "true")
        found.append(complaint(result, name, FAILED, [str(root)]))
    if not is_v2_only():
        result = nestrt.launch("--rootfs", busybox, "--name", name, "--swap", "1M", "--", "true")
        found.append(complaint(result, name, FAILED, ["swap", "give a memory limit too"]))
    assert "".join(found) == ""


# Policies: file, key, reason.
@pytest.mark.slow_on_vm
def test_policies(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path, tmp_path: Path) -> None:
    cases = [
        ('[view]\nmont = "rw"', ["[view] mont", "did you mean mount?"]),
        ("[veiw]\n", ["veiw", "did you mean view?"]),
        ("[level]\nmax_level = true", ["[level] max_level"]),
        ("[level]\nmax_level = 0", ["[level] max_level"]),
        ('[view]\nmount = "rx"', ["[view] mount", '"rx"', "did you mean ro?"]),
        ('[limits]\nmemory = "lots"', ["[limits] memory", '"lots"']),
        ('[limits]\ncpus = "5-2"', ["[limits] cpus", '"5-2"']),
        ('[limits]\nmemory = "900T"', ["memory 900T", "ask for"]),
        ("[limits]\nnet_cls = 65537", ["net_cls", "controller"]),
        ('[limits]\ndevices = ["c 1:3"]', ["[limits] devices", '"c 1:3"']),
        ('[view]\ncontrollers = ["nosuch"]', ["controller nosuch", '"all"']),
        ("[partition]\nmax_groups = 1", ["[partition] max_groups"]),
        ('[user]\nnamespace = "map"', ["uid_map", "0:100000:65536"]),
        ('[user]\ncapabilities = ["CAP_X"]', ["[user] capabilities", "CAP_X"]),
        ("[level\n", ["TOML"]),
        ("\0", ["TOML"]),
    ]
    name, file = new_guest(), tmp_path / "bad.toml"
    found = []
    for text, words in cases:
        file.write_text(text)
        result = nestrt.launch("--rootfs", busybox, "--name", name, "--policy", file, "--", "true")
        own = [] if "ask for" in words or "controller" in " ".join(words) else [str(file)]
        found.append(complaint(result, name, FAILED, [*own, *words]))
    assert "".join(found) == ""


# 127 and 126, as a shell has them: the groups of such a guest are taken back too.
@pytest.mark.parametrize("mode", ["auto", "none"])
def test_programs(
    nestrt: Nestrt, new_guest: Callable[[], str], make_busybox: Callable[[], Path], mode: str
) -> None:
    root, name = make_busybox(), new_guest()
    files = {"plain": ("text\n", 0o644), "nothing": ("\0\0\0\0", 0o755), "lost": ("#!/absent/sh\n", 0o755)}
    for file, (text, permissions) in files.items():
        (root / "bin" / file).write_text(text)
        (root / "bin" / file).chmod(permissions)
    found = [
        complaint(nestrt.launch("--rootfs", root, "--name", name, "--userns", mode, "--", program), name, status, words)
        for program, status, words in (
            ("absent", NOT_THERE, ["execute absent", "PATH", "name a program"]),
            ("/bin/absent", NOT_THERE, ["/bin/absent", "name a program"]),
            ("../../usr/bin/id", NOT_THERE, ["../../usr/bin/id"]),
            ("lost", NOT_THERE, ["lost", "interpreter"]),
            ("plain", NOT_EXECUTABLE, ["plain", "chmod +x"]),
            ("/bin", NOT_EXECUTABLE, ["/bin", "directory"]),
            ("nothing", NOT_EXECUTABLE, ["nothing"]),
            ("", NOT_THERE, ["program"]),
        )
    ]
    assert "".join(found) == ""


# An image may not say where nestrt mounts: symbolic links in these places are refused.
def test_links_where_nestrt_mounts(
    nestrt: Nestrt, new_guest: Callable[[], str], make_busybox: Callable[[], Path]
) -> None:
    root, name, found = make_busybox(), new_guest(), []
    for place in ("proc", "sys", "dev"):
        (root / place).rmdir()
        (root / place).symlink_to("/tmp")
        result = nestrt.launch("--rootfs", root, "--name", name, "--", "true")
        found.append(complaint(result, name, FAILED, [f"/{place}", "symbolic link"]))
        (root / place).unlink()
        (root / place).mkdir()
    assert "".join(found) == ""


# A name in use, of a guest that has ended too; and a group that is there already.
def test_names_in_use(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    name = new_guest()
    nestrt.launch("--rootfs", busybox, "--name", name, "--", "true").ok()
    before = leftovers(name)
    result = nestrt.launch("--rootfs", busybox, "--name", name, "--", "true")
    assert result.rc == FAILED
    assert result.err == (
        f"nestrt: cannot launch guest {name}: the name is in use; choose another, or: nestrt delete {name}\n"
    )
    assert leftovers(name) == before
    nestrt.run("delete", name).ok()
    group = hierarchies()[-1].group(f"/nestrt/{name}")
    group.mkdir(parents=True)
    result = nestrt.launch("--rootfs", busybox, "--name", name, "--", "true")
    assert result.rc == FAILED
    assert f"{group} is there already" in result.err
    assert len(result.err.splitlines()) == 1


# A hierarchy that is mounted read-only where the launcher is: nothing is made in the others either.
def test_a_hierarchy_mounted_read_only(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    name, place = new_guest(), hierarchies()[0].mountpoint
    argv = (nestrt.command, "launch", "--rootfs", str(busybox), "--name", name, "--", "true")
    script = f'mount --bind {place} {place} && mount -o remount,bind,ro {place} && exec "$@"'
    shell = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv)
    done = subprocess.run(shell, capture_output=True, text=True, timeout=20 * SLOW, stdin=subprocess.DEVNULL)
    result = Result(argv, done.returncode, done.stdout, done.stderr)
    assert complaint(result, name, FAILED, [str(place), "read-only", "mount it read-write"]) == ""


# Not root: a clear word, and no traceback.
def test_without_root(nestrt: Nestrt, new_guest: Callable[[], str], busybox: Path) -> None:
    name = new_guest()
    argv = (nestrt.command, "launch", "--rootfs", str(busybox), "--name", name, "--", "true")
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=20 * SLOW,
        user=65534,
        group=65534,
        extra_groups=(),
        stdin=subprocess.DEVNULL,
    )
    result = Result(argv, done.returncode, done.stdout, done.stderr)
    assert complaint(result, name, FAILED, [f"guest {name}", "root"]) == ""


# Other commands: their own statuses, one line each.
def test_other_commands(nestrt: Nestrt) -> None:
    for args, status, words in (
        (("delete", "nestrt-t-absent"), 3, ["nestrt-t-absent: container does not exist", "nestrt list"]),
        (("ps", "nestrt-t-absent"), 3, ["container or guest nestrt-t-absent: container does not exist; "]),
        (("kill", "nestrt-t-absent", "KILL"), 1, ["container or guest nestrt-t-absent: container does not exist"]),
        (("delete", "../x"), 1, ["container ID", "letters"]),
        (("delete",), 1, ["no id is given"]),
        (("show", "nestrt-t-absent"), 3, ["nestrt-t-absent"]),
        (("gc", "x"), 2, ["argument x", "nestrt delete"]),
        (("ls", "--\x1b[31m"), 2, ["cannot read the command line of nestrt ls", r"--\x1b[31m; see nestrt ls --help"]),
        (("host", "initt"), 2, ["invalid choice: 'initt'", "see nestrt host --help"]),
    ):
        result = nestrt.run(*args)
        assert result.rc == status, result
        assert result.out == ""
        assert len(result.err.splitlines()) == 1, result
        assert all(word in result.err for word in words), result
    unknown = nestrt.run("lanch")
    assert (unknown.rc, unknown.out) == (2, "")
    assert unknown.err.startswith("nestrt: unknown command 'lanch'; it is one of: launch, ")
