"""Hooks, run by the real kernel: what they get, how they fail, and in which root they are.

    test --run()--> hook                       a shell script of the test's
    test --fork, unshare, chroot--> first process --run(chroot_fd)--> hook of the runtime's root
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nestrt.act import hooks
from nestrt.errors import NestrtError
from nestrt.kernel import caps, mount, namespaces
from nestrt.oci.model import Hook
from support.need import SLOW, require
from support.rootfs import busybox_root

# Nothing here depends on the host's kind.
pytestmark = pytest.mark.slow_on_vm

STATE = {"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 42, "bundle": "/b", "annotations": {"a": "é"}}
Script = Callable[[str], Hook]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A hook of that shell code, with no environment at all."""

    def made(code: str, **fields: object) -> Hook:
        path = tmp_path / f"hook{len(list(tmp_path.iterdir()))}"
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return Hook(os.fspath(path), **fields)  # type: ignore[arg-type]

    return made


def test_a_hook_gets_the_state_and_exactly_its_own(script: Script, tmp_path: Path) -> None:
    os.environ["NESTRT_TEST"] = "leaked"
    secret = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(secret, True)
    code = f"""
cd {tmp_path}
cat > state
/usr/bin/tr '\\0' '\\n' < /proc/self/environ > env
/usr/bin/tr '\\0' '\\n' < /proc/$$/cmdline > args
/bin/readlink /proc/$$/fd/* > fds
/bin/readlink /proc/$$/fd/0 > stdin
while read -r key value; do
  case $key in SigBlk: | SigIgn:) echo $key $value ;; esac
done < /proc/$$/status > signals # by the shell itself, which blocks all signals while it starts a program
"""
    hook = script(code)
    try:
        hooks.run((Hook(hook.path, ("name", "b c"), ("A=1", "B=x=y")),), STATE, "createRuntime")
    finally:
        del os.environ["NESTRT_TEST"]
        os.close(secret)
    assert json.loads((tmp_path / "state").read_text()) == STATE
    assert set((tmp_path / "env").read_text().split()) == {"A=1", "B=x=y"}
    # A script's argv[0] is its interpreter and then its path: the rest is the hook's own.
    assert (tmp_path / "args").read_text().split("\n")[2] == "b c"
    # The shell keeps its script open, and while it redirects the output that it had.
    open_files = (tmp_path / "fds").read_text().split()
    assert [name for name in open_files if not name.startswith("pipe:")] == [f"{tmp_path}/fds", hook.path]
    assert (tmp_path / "stdin").read_text().startswith("pipe:")
    masks = [line.split()[1] for line in (tmp_path / "signals").read_text().splitlines()]
    assert masks == ["0" * 16, "0" * 16]


def test_an_empty_environment_is_empty(tmp_path: Path) -> None:
    """No script: a shell would put PWD there."""
    out = tmp_path / "env"
    hooks.run((Hook("/bin/cp", ("cp", "/proc/self/environ", os.fspath(out))),), STATE, "prestart")
    assert out.read_bytes() == b""


def test_without_args_the_path_is_the_argument(script: Script, tmp_path: Path) -> None:
    hooks.run((Hook("/bin/true"), script(f"pwd > {tmp_path}/cwd")), STATE, "prestart")
    assert (tmp_path / "cwd").read_text() == "/\n"
    hooks.run((script(f"pwd > {tmp_path}/cwd"),), STATE, "prestart", cwd=os.fspath(tmp_path))
    assert (tmp_path / "cwd").read_text() == f"{tmp_path}\n"


def test_in_the_order_of_the_list_and_no_further_than_the_first_failure(script: Script, tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [script(f"echo {number} >> {log}; exit {status}") for number, status in enumerate((0, 3, 0))]
    with pytest.raises(NestrtError, match="error running createContainer hook #1: exit status 3, "):
        hooks.run(tuple(lines), STATE, "createContainer")
    assert log.read_text().split() == ["0", "1"]


def test_with_warn_all_of_them_run(script: Script, tmp_path: Path) -> None:
    """poststop: the lifecycle continues as if the hook had succeeded."""
    log, warnings = tmp_path / "log", []
    lines = [script(f"echo {number} >> {log}; exit {number}") for number in range(3)]
    hooks.run(tuple(lines), STATE, "poststop", warn=warnings.append)
    assert log.read_text().split() == ["0", "1", "2"]
    assert [f"poststop hook #{index}: exit status {index}" in warnings[index - 1] for index in (1, 2)] == [True, True]
    assert len(warnings) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("echo said; echo wrong >&2; exit 1", "exit status 1, stdout: said\\n, stderr: wrong"),
        ("kill -9 $$", "signal: killed, stdout: , stderr: "),
    ],
)
def test_a_failure_tells_status_and_outputs(script: Script, code: str, reason: str) -> None:
    with pytest.raises(NestrtError) as caught:
        hooks.run((script(code),), STATE, "prestart")
    assert f"error running prestart hook #0: {reason}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/no/such/hook", "fork/exec /no/such/hook: no such file or directory"),
        ("/etc", "fork/exec /etc: permission denied"),
    ],
)
def test_a_hook_that_cannot_be_executed(path: str, reason: str) -> None:
    with pytest.raises(NestrtError, match=f"error running prestart hook #0: {reason}"):
        hooks.run((Hook(path),), STATE, "prestart")


def test_outputs_are_kept_to_their_end(script: Script) -> None:
    code = "i=0; while [ $i -lt 3000 ]; do echo 01234567890123456789; i=$((i+1)); done; echo end; exit 1"
    with pytest.raises(NestrtError) as caught:
        hooks.run((script(code),), STATE, "prestart")
    assert "end\n, stderr" in caught.value.reason
    assert len(caught.value.reason) < 2 * hooks.KEPT


def test_a_hook_that_does_not_read_its_input(script: Script) -> None:
    """More than a pipe takes, closed at once or never read: neither breaks the runtime nor makes it wait."""
    state = {**STATE, "annotations": {"long": "x" * 1_000_000}}
    hooks.run((script("exec <&-; exit 0"), script("sleep 0.2"), script("exit 0")), state, "prestart")


def test_a_hook_that_reads_slowly_gets_all(script: Script, tmp_path: Path) -> None:
    state = {**STATE, "annotations": {"long": "x" * 1_000_000}}
    hooks.run((script(f"sleep 0.3; cat > {tmp_path}/state"),), state, "prestart")
    assert json.loads((tmp_path / "state").read_text()) == state


def test_a_timeout_ends_the_hook_and_what_it_started(script: Script, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(NestrtError, match=r"error running prestart hook #0: hook ran past specified timeout of 3.0s"):
        hooks.run((script(f"sleep 600 & echo $! > {tmp_path}/pid; sleep 600", timeout=3),), STATE, "prestart")
    assert 2.9 < time.monotonic() - begin < 10 * SLOW
    assert ended(int((tmp_path / "pid").read_text()))


def ended(pid: int) -> bool:
    end = time.monotonic() + 10 * SLOW
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_what_a_hook_leaves_in_the_background_holds_nothing_up(script: Script, tmp_path: Path) -> None:
    """It has the hook's outputs still open; the runtime goes on when the hook itself has ended."""
    begin = time.monotonic()
    hooks.run((script(f"sleep 600 & echo $! > {tmp_path}/pid; exit 0", timeout=int(30 * SLOW)),), STATE, "prestart")
    assert time.monotonic() - begin < 20 * SLOW
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_no_child_and_no_descriptor_is_left(script: Script) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for hook in (Hook("/bin/true"), Hook("/no/such"), script("exit 1"), script("sleep 9", timeout=1)):
        hooks.run((hook,), STATE, "poststop", warn=lambda text: None)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def in_container(root: Path, action: Callable[[int], None]) -> str:
    """What *action*, given the runtime's root, fails with in a first process, which can import nothing."""
    out, into = os.pipe()
    pid, pidfd = namespaces.clone(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWPID | namespaces.CLONE_NEWUTS)
    if pid == 0:
        text = ""
        try:
            mount.propagation("/", mount.MS_REC | mount.MS_PRIVATE)
            old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.chroot(root)
            os.chdir("/")
            sys.meta_path.clear()
            sys.path.clear()
            action(old)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(into, text.encode())
        os._exit(0)
    os.close(into)
    os.close(pidfd)
    with open(out, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def test_create_container_hooks_have_the_runtimes_root_and_the_containers_namespaces(
    script: Script, tmp_path: Path
) -> None:
    require("root", None if caps.current().effective >= caps.DEFAULT else "not all of the default capabilities")
    root = busybox_root(tmp_path / "root")
    # The host's program, and what it finds: /proc is the runtime's own mount of it.
    ask = "/bin/readlink /proc/self/ns/mnt /proc/self/ns/uts /proc/self/root"
    hook = script(f"cd {tmp_path}; {ask} > seen; cat > state")

    def action(old: int) -> None:
        hooks.run((hook,), STATE, "createContainer", old, os.fspath(tmp_path))

    assert in_container(root, action) == ""
    mnt, uts, at = (tmp_path / "seen").read_text().split()
    assert mnt != os.readlink("/proc/self/ns/mnt")
    assert uts != os.readlink("/proc/self/ns/uts")
    assert at == "/"
    assert json.loads((tmp_path / "state").read_text()) == STATE


def test_start_container_hooks_are_the_containers(tmp_path: Path) -> None:
    require("root", None if caps.current().effective >= caps.DEFAULT else "not all of the default capabilities")
    root = busybox_root(tmp_path / "root")
    good = Hook("/bin/busybox", ("sh", "-c", "echo $$ > /tmp/seen; cat > /tmp/state"))

    def action(old: int) -> None:
        hooks.run((good,), STATE, "startContainer")
        hooks.run((Hook(f"{root}/bin/busybox"),), STATE, "startContainer")

    assert "startContainer hook #0: fork/exec" in in_container(root, action)
    assert (root / "tmp/seen").read_text() == "2\n"
    assert json.loads((root / "tmp/state").read_text()) == STATE
