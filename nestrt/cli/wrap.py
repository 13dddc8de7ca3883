"""``nestrt wrap``: registered as an engine's runtime, it prepares a guest and becomes the real runtime.

For engines without hooks (docker, containerd) and without a precreate stage (CRI-O)::

    create, run, restore    the limit group is made, the bundle's config.json rewritten, then exec
    start                   on v1 the first process goes from the limit group to its own, then exec
    update                  the limit group follows; the runtime gets the same resources, within the policy's
    delete                  the runtime, and then what it has left
    anything else           exec

The runtime has the same arguments, descriptors, environment and terminal. What it would say is said by it;
what nestrt has to say goes where the runtime would write it: standard error, and ``--log``.
"""

from __future__ import annotations

import os
import sys

from nestrt.cli._command import find
from nestrt.errors import InputError, NestrtError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn

    from nestrt.cli._plugin import Guest
    from nestrt.cli.engine import Globals

    Made = tuple[Guest, str, bytes]
else:
    import _signal  # signal.py imports enum

HEAD = """usage: nestrt wrap --runtime PATH [--policy NAME] [--] RUNTIME-ARGUMENT …

Prepare a guest and become the runtime PATH with the same arguments.

  --runtime PATH    the real runtime: a path, or runc or crun
  --policy NAME     for containers that no rule of the host matches (default: none)
"""
# Of runc and crun; all other flags are switches, or have their value after "=".
GLOBAL_VALUES = ("root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager")
VERB_VALUES = {
    "create": ("bundle", "b", "console-socket", "pid-file", "preserve-fds", "config", "f", "pidfd-socket"),
    "restore": (
        "bundle", "b", "console-socket", "pid-file", "image-path", "work-path", "manage-cgroups-mode", "empty-ns",
        "lsm-profile", "lsm-mount-context",
    ),
    "start": (),
    "delete": (),
    "update": (
        "resources", "r", "blkio-weight", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share", "cpu-rt-period",
        "cpu-rt-runtime", "cpu-idle", "cpuset-cpus", "cpuset-mems", "memory", "memory-reservation", "memory-swap",
        "pids-limit", "kernel-memory", "kernel-memory-tcp", "l3-cache-schema", "mem-bw-schema",
    ),
}  # fmt: skip
VERB_VALUES["run"] = VERB_VALUES["create"]
MAKING = ("create", "run", "restore")
FALSE = ("0", "f", "F", "false", "False", "FALSE")  # strconv.ParseBool


def scan(words: list[str], valued: tuple[str, ...], argp: bool) -> tuple[dict[str, str], list[str]]:
    """Flags as Go's parser takes them, or crun's *argp* (abbreviated names, letters in a row, ``-bDIR``), and the
    operands with what follows the first."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        if argp and not word.startswith("--"):
            _letters(word[1:], valued, found, rest)
            continue
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-")
        if argp and name not in valued:
            longer = [known for known in valued if len(known) > 1 and known.startswith(name)]
            name = longer[0] if len(longer) == 1 else name
        if not equals and name in valued:
            if not rest:
                break
            value = rest.pop(0)
        found[name] = value
    return found, rest


def _letters(letters: str, valued: tuple[str, ...], found: dict[str, str], rest: list[str]) -> None:
    """One word of single letters: the first that takes a value has the rest of the word, or the next one."""
    for index, letter in enumerate(letters, 1):
        found[letter] = ""
        if letter in valued:
            found[letter] = letters[index:] or (rest.pop(0) if rest else "")
            return


class Call:
    """The runtime's command line: its global flags, the verb, the verb's flags and operands; *policy* is ours."""

    def __init__(self, words: list[str], policy: str = "", argp: bool = False) -> None:
        self.words = words
        self.policy = policy
        self.globals, rest = scan(words, GLOBAL_VALUES, argp)
        self.verb = rest[0] if rest else ""
        self.flags: dict[str, str] = {}
        self.operands: list[str] = []
        rest = rest[1:]
        while rest:
            found, rest = scan(rest, VERB_VALUES.get(self.verb, ()), argp)
            self.flags.update(found)
            if rest[:1] == ["--"]:
                self.operands += rest[1:]
                break
            self.operands += rest[:1]
            rest = rest[1:]

    @property
    def id(self) -> str:
        return self.operands[0] if self.operands else ""

    @property
    def config(self) -> tuple[str, str]:
        """The bundle's directory and the document's path, both absolute."""
        bundle = os.path.abspath(self.flags.get("bundle") or self.flags.get("b") or ".")
        file = self.flags.get("config") or self.flags.get("f") or "config.json"
        return bundle, os.path.join(bundle, file)

    @property
    def key(self) -> str:
        """Whose record it is: runtimes keep their containers apart by --root."""
        return f"{self.globals.get('root', '')}\0{self.id}"

    @property
    def systemd(self) -> bool:
        """Whether groups are to be systemd's: runc's and crun's ``--systemd-cgroup``, crun's ``--cgroup-manager``."""
        flag = self.globals.get("systemd-cgroup")
        return (flag is not None and flag not in FALSE) or self.globals.get("cgroup-manager") == "systemd"

    def without_systemd(self) -> list[str]:
        """The words without those flags. Verbs that come later go by what the runtime has saved of the container."""
        words, kept = list(self.words), []
        while words and words[0].startswith("-") and words[0] not in ("-", "--"):
            name, equals, _ = words[0].lstrip("-").partition("=")
            count = 2 if name in GLOBAL_VALUES and not equals else 1
            if name not in ("systemd-cgroup", "cgroup-manager") or not self.systemd:
                kept += words[:count]
            del words[:count]
        return kept + words

    def engine_globals(self) -> Globals:
        from nestrt.cli.engine import Globals

        log = self.globals.get("log", "").removeprefix("file:")
        return Globals(log=log, log_format=self.globals.get("log-format", "text"))


def find_runtime(name: str) -> str:
    """The absolute path of the real runtime. Raises NotFound, InputError."""
    remedy = "name it with --runtime: /usr/sbin/runc"
    path = os.path.abspath(name) if "/" in name else find(name)
    if not path or not os.access(path, os.X_OK) or os.path.isdir(path):
        raise NotFound("find", f"runtime {name!a}", "executable file not found in $PATH", remedy)
    if os.path.realpath(path) == os.path.realpath(sys.argv[0]):
        raise InputError("wrap", f"runtime {path}", "it is nestrt itself", remedy)
    return path


def become(runtime: str, words: list[str]) -> NoReturn:
    """exec(2). Raises NotFound, OSError."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)  # Python ignores them, and the runtime would too
    if "LC_CTYPE" in os.environ:
        with open("/proc/self/environ", "rb") as file:
            if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
                del os.environ["LC_CTYPE"]  # Python's own, where the locale is C (PEP 538)
    os.execv(runtime, [runtime, *words])


def main(argv: list[str]) -> int:
    """*argv* are the words after ``wrap``. Returns only where the runtime cannot be had, or has been waited for."""
    own, words = _own(argv)
    if "help" in own or "h" in own:
        sys.stdout.write(HEAD)
        return 0
    if "runtime" not in own:
        raise InputError("wrap", "a runtime", "none is named", "write nestrt wrap --runtime /usr/sbin/runc …")
    call = Call(words, own.get("policy", ""), "crun" in os.path.basename(own["runtime"]))
    made: Made | None = None
    try:
        runtime = find_runtime(own["runtime"])
        if call.verb in MAKING and call.id and not ({"help", "h"} & call.flags.keys()):
            made = _make(call)
        elif call.verb in ("start", "update", "delete", "kill") and call.id:
            from nestrt.cli import _wrapped

            status = _wrapped.ACTIONS[call.verb](call, runtime)
            if status is not None:
                return status
        become(runtime, call.words)
    except (NestrtError, OSError) as error:
        from nestrt.cli import engine

        if made is not None:
            _unmake(call, made)
        engine.report(call.engine_globals(), error, call.verb or "wrap")
        return 1


def _own(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Our own flags, and the runtime's words from there on."""
    found: dict[str, str] = {}
    words = list(argv)
    while words and words[0].partition("=")[0] in ("--runtime", "--policy", "--help", "-h"):
        flag, equals, value = words.pop(0).partition("=")
        if flag in ("--runtime", "--policy") and not equals:
            if not words:
                raise InputError("read", f"option {flag}", "its value is missing", "see nestrt wrap --help")
            value = words.pop(0)
        found[flag.lstrip("-")] = value
    return found, words[1:] if words[:1] == ["--"] else words


def _make(call: Call) -> Made | None:
    """Make the guest's limit group and rewrite its document, where a policy holds. Raises NestrtError, OSError.

    Returns the guest, and the document's file with what stood in it.
    """
    from nestrt.cli.hook import CONFIG_LIMIT, concerns_nobody, read_file

    bundle, path = call.config
    path = os.path.realpath(path)
    if not os.path.exists(path) or os.path.isdir(path):
        return None  # the runtime says so in its own words
    content = read_file(path)
    if len(content) <= CONFIG_LIMIT and concerns_nobody(content, call.policy):
        return None
    from nestrt.cli import _plugin

    document, spec = _plugin.read(content, path)
    guest = _plugin.find(document, spec, bundle, call.policy, call.id, systemd=call.systemd)
    if guest is None:
        return None
    values = {**_plugin.maker(os.getpid()), "root": call.globals.get("root", ""), "container": call.id}
    values["config"] = path
    text, record = _plugin.make(guest, call.key, values, parked=call.verb == "create")
    try:
        replace_file(path, text)
        _plugin.sweep(guest, record)
    except BaseException:
        _plugin.undo(record, guest)
        raise
    record.close()
    call.words = call.without_systemd()
    return guest, path, content


def _unmake(call: Call, made: Made) -> None:
    """The runtime cannot be executed: take back what was made for it."""
    from nestrt.act import records
    from nestrt.cli import _plugin

    guest, path, content = made
    record = records.open_record(records.key(call.key))
    if record is not None:
        _plugin.undo(record, guest)
    replace_file(path, content.decode("utf-8", "surrogateescape"))


def replace_file(path: str, text: str) -> None:
    """Write a file whole, by rename, with the owner and mode that it had. Raises OSError."""
    status = os.stat(path, follow_symlinks=False)
    temporary = f"{path}.nestrt.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, status.st_mode & 0o7777)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
