"""``nestrt wrap``'s command line, and what the runtime is started with: without a policy, and so without root.

::

    nestrt wrap [--runtime PATH] [--policy NAME] [--] GLOBAL… VERB FLAG… ID …
                └ ours                               └ the runtime's, which gets them as they are
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli import wrap
from nestrt.cli.wrap import Call, find_runtime
from nestrt.errors import InputError, NestrtError, NotFound

COMMAND = str(Path(__file__).resolve().parents[2] / "hooks" / "nestrt")


@pytest.mark.parametrize(
    ("line", "verb", "id", "bundle"),
    [
        # As recorded from engines.
        ("--root /r --log /l --log-format json create --bundle /b --pid-file /p/init.pid c1", "create", "c1", "/b"),
        ("--systemd-cgroup create --bundle /b --pid-file /p --no-pivot --preserve-fds 2 c1", "create", "c1", "/b"),
        ("--log-format=json --log F create --bundle /b --console-socket /s --pid-file /p c1", "create", "c1", "/b"),
        ("--cgroup-manager disabled create --bundle /b --no-new-keyring c1", "create", "c1", "/b"),
        ("restore --bundle /b --pid-file /p --detach --image-path /i --work-path /w c1", "restore", "c1", "/b"),
        ("--root /r/NS start c1", "start", "c1", None),
        ("--root /r delete --force c1", "delete", "c1", None),
        ("update --resources - c1", "update", "c1", None),
        ("update --memory 5 --pids-limit -1 --cpu-quota=-1 c1", "update", "c1", None),
        ("kill --all c1 9", "kill", "c1", None),
        ("exec --process /j --console-socket /s --detach --pid-file /p c1", "exec", "", None),
        # By hand.
        ("run c1", "run", "c1", "."),
        ("run -d -b /b c1", "run", "c1", "/b"),
        ("run --bundle=/b --keep c1", "run", "c1", "/b"),
        ("run -bundle /b -- c1", "run", "c1", "/b"),
        ("run --bundle /b -- -c1", "run", "-c1", "/b"),
        ("run -f /x.json --bundle /b c1", "run", "c1", "/b"),
        ("--debug --root=/r run --detach c1", "run", "c1", "."),
        # crun takes flags behind the operand.
        ("run c1 --bundle /b", "run", "c1", "/b"),
        ("create c1 -b /b --pid-file /p", "create", "c1", "/b"),
        # What is no whole command.
        ("", "", "", None),
        ("--root", "", "", None),
        ("--root /r", "", "", None),
        ("create", "create", "", None),
        ("create --bundle", "create", "", None),
        ("create --bundle /b", "create", "", None),
        ("--version", "", "", None),
        ("- create c1", "-", "create", None),
    ],
)
def test_command_lines(line: str, verb: str, id: str, bundle: str | None) -> None:
    call = Call(line.split())
    assert call.verb == verb
    if verb != "exec":
        assert call.id == id
    if bundle is not None:
        directory, file = call.config
        assert directory == os.path.abspath(bundle)
        assert file == ("/x.json" if "/x.json" in line else os.path.join(directory, "config.json"))
    assert call.words == line.split()


WORDS = "--root /r --root= --log - -- -b --bundle /b --bundle=/b create run start update delete c1 --force -d -f = --="
words_of_a_line = st.lists(st.sampled_from(WORDS.split()) | st.text(max_size=5))


@given(words_of_a_line)
def test_any_command_line(words: list[str]) -> None:
    """Never an exception, and the words are the runtime's as they came."""
    before = list(words)
    call = Call(words)
    assert call.words == before
    assert isinstance(call.key, str)
    if "\0" not in "".join(words):
        directory, file = call.config
        assert os.path.isabs(directory)
        assert os.path.isabs(file)


def test_whose_record_it_is() -> None:
    """One id under two roots are two containers; the same root in two spellings of the flag is one."""
    keys = [Call(line.split()).key for line in ("--root /r start c", "--root=/r delete c", "-root /r update c")]
    assert len(set(keys)) == 1
    others = [Call(line.split()).key for line in ("start c", "--root /s start c", "--root /r start d")]
    assert len({*keys, *others}) == 4
    # No id can pretend to be under another root.
    assert Call(["--root", "/r", "start", "a\0b"]).key != Call(["--root", "/r\0a", "start", "b"]).key or "\0" in "a\0b"


def test_our_own_options() -> None:
    own = wrap._own
    assert own(["--runtime", "runc", "create", "--runtime", "x"]) == ({"runtime": "runc"}, ["create", "--runtime", "x"])
    assert own(["--policy=p", "--runtime=/r", "--", "--root", "/x"]) == (
        {"policy": "p", "runtime": "/r"},
        ["--root", "/x"],
    )
    assert own(["--runtime", "runc", "--", "--", "x"]) == ({"runtime": "runc"}, ["--", "x"])
    assert own(["--runtime", "runc", "--root", "/x"]) == ({"runtime": "runc"}, ["--root", "/x"])
    for words in (["--runtime"], ["--runtime", "runc", "--policy"]):
        with pytest.raises(InputError, match="value is missing"):
            own(words)


def test_where_the_runtime_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "runc"
    program.write_text("#!/bin/sh\n")
    for name in ("nosuch-runtime", str(tmp_path), str(program), "", "/", f"{tmp_path}/none"):
        with pytest.raises(NotFound, match="executable file not found"):
            find_runtime(name)
    program.chmod(0o755)
    assert find_runtime(str(program)) == str(program)
    monkeypatch.chdir(tmp_path)
    assert find_runtime("./runc") == str(program)
    # The engine's own PATH is not asked.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NestrtError):
        find_runtime("nosuch-runtime")
    assert find_runtime("sh").endswith("/sh")
    link = tmp_path / "link"
    link.symlink_to(program)
    monkeypatch.setattr("sys.argv", [str(program)])
    with pytest.raises(InputError, match="nestrt itself"):
        find_runtime(str(link))


# --- the process that becomes the runtime ----------------------------------------------------------

# Writes what it has as JSON lines, without a program that would change it first.
STAND_IN = r"""#!/bin/sh
exec > "$OUT"
for word; do printf 'word %s\n' "$word"; done
pwd; umask; echo $PPID
for fd in /proc/$$/fd/*; do printf 'fd %s %s\n' "${fd##*/}" "$(readlink "$fd")"; done
grep -E '^(Sig|Shd)' /proc/$$/status | grep -v SigQ
tr '\0' '\n' < /proc/$$/environ | sort
wc -w < /proc/$$/task/$$/children
cat
exit 9
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    path = tmp_path / "runtime"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return str(path)


def started(out: Path, argv: list[str | bytes], **named: object) -> str:
    """What the stand-in wrote, numbers that differ by nature taken out."""
    env = {"OUT": str(out), "A": "b c", "_OCI_SYNCPIPE": "3", "NOTIFY_SOCKET": "/n"}
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **named
    )  # type: ignore[call-overload]
    said = process.communicate(b"given\n", timeout=60)
    assert (process.returncode, said) == (9, (b"", b"")), said
    text = out.read_text(errors="surrogateescape")
    for line in text.splitlines():
        if line.startswith("fd ") and " pipe:" in line:
            text = text.replace(line, " ".join(line.split()[:2]) + " pipe")
    return text.replace(str(out), "OUT")


def test_the_same_process(stand_in: str, tmp_path: Path) -> None:
    """Words, directory, umask, parent, descriptors, signals, environment, standard input: as without nestrt."""
    words: list[str | bytes] = ["--root", "/r\u00e9", "", "state", "a b", b"\xff\xfe", "--", "*"]
    extra = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    texts = []
    try:
        for fd in extra:
            os.set_inheritable(fd, True)
        for prefix in ([], [COMMAND, "wrap", "--runtime"], [COMMAND, "wrap", "--runtime", stand_in, "--"]):
            argv: list[str | bytes] = [*prefix, *([] if "--" in prefix else [stand_in]), *words]
            texts.append(started(tmp_path / f"{len(texts)}", argv, cwd=tmp_path, pass_fds=extra, umask=0o037))
    finally:
        for fd in extra:
            os.close(fd)
    first = texts[0].splitlines()
    assert "given" in first
    for text in texts[1:]:
        assert text.splitlines() == first


def test_signals_that_the_caller_ignores(stand_in: str, tmp_path: Path) -> None:
    """Ignored stays ignored, but for those that Python ignores by itself: their default is the runtime's to have."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    argv: list[str | bytes] = [COMMAND, "wrap", "--runtime", stand_in, "state", "x"]
    text = started(tmp_path / "out", argv, preexec_fn=ignore, restore_signals=True)
    found = {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines() if line.startswith("Sig")}
    for number in (signal.SIGHUP, signal.SIGINT):
        assert found["SigIgn"] >> number - 1 & 1, number
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM):
        assert not found["SigIgn"] >> number - 1 & 1, number
    assert found["SigBlk"] == 1 << signal.SIGUSR1 - 1


def test_no_policy_no_look(stand_in: str, tmp_path: Path) -> None:
    """Whatever the document is: without a word of ours in it the runtime gets it, and nobody has touched it."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for content in (b"{}", b"", b"\0\xff", b"[" * 100_000, b'{"annotations": {"x": "y"}}'):
        file = bundle / "config.json"
        file.write_bytes(content)
        before = file.stat()
        argv: list[str | bytes] = [COMMAND, "wrap", "--runtime", stand_in, "create", "--bundle", str(bundle), "c1"]
        assert "word create" in started(tmp_path / "out", argv)
        after = file.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
            before.st_ino,
            before.st_mtime_ns,
            before.st_ctime_ns,
        )
        assert os.listdir(bundle) == ["config.json"]


def test_what_is_no_program(tmp_path: Path) -> None:
    """One line, in the log too; the status of a runtime that failed."""
    program = tmp_path / "runc"
    program.write_bytes(b"\x7fELF no such thing")
    program.chmod(0o755)
    done = subprocess.run([COMMAND, "wrap", "--runtime", program, "state", "x"], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("nestrt: cannot ")
    assert done.stderr.count("\n") == 1
    assert "xec format error" in done.stderr
    log = tmp_path / "log.json"
    words = ["--log", str(log), "--log-format", "json", "create", "x"]
    done = subprocess.run([COMMAND, "wrap", "--runtime", "/nosuch", *words], capture_output=True, text=True)
    assert done.returncode == 1
    entry = json.loads(log.read_text())
    assert (entry["level"], done.stderr) == ("error", f"nestrt: {entry['msg']}\n")
    assert "executable file not found" in entry["msg"]
