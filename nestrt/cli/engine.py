"""What all verbs of the OCI command line share: global flags, the log, and how an error reaches an engine.

Engines read errors from the log file (podman wants one JSON object in it,
containerd the last one of level "error") and from standard error; both get it.
"""

from __future__ import annotations

import os
import sys
import time

from nestrt import jsontext
from nestrt.cli.options import Option, parse_go, usage
from nestrt.errors import NO_CONTAINER, InputError, NestrtError, NotFound, one_line
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.act.containers import Container
    from nestrt.act.creator import Creator
    from nestrt.plan.facts import Hierarchy
    from nestrt.plan.steps import Step

STATE_ROOT = "/run/nestrt/oci"
MANAGERS = ("cgroupfs", "systemd", "disabled")

OPTIONS = (
    Option("root", "DIR", f"where the state of containers is kept (default: {STATE_ROOT})"),
    Option("log", "FILE", "write errors and warnings there too"),
    Option("log-format", "FORMAT", "text or json", choices=("text", "json")),
    Option("debug", "", "log the steps of what is done"),
    Option("systemd-cgroup", "", "make groups as systemd scopes (cgroupsPath is slice:prefix:name)"),
    Option("cgroup-manager", "NAME", "cgroupfs, systemd or disabled (no groups at all)", choices=MANAGERS),
    Option(
        "rootless",
        "BOOL",
        "true, false or auto: whether failing for want of rights is expected",
        choices=("true", "false", "auto"),
    ),
    Option("criu", "PATH", "which criu to use"),
    Option("version", "", "print the version", "v"),
    Option("help", "", "this text", "h"),
)


@record
class Globals:
    """The flags before the verb. *manager* is one of MANAGERS."""

    root: str = STATE_ROOT
    log: str = ""
    log_format: str = "text"
    debug: bool = False
    manager: str = "cgroupfs"
    rootless: str = "auto"
    criu: str = "criu"


def parse_globals(argv: list[str]) -> tuple[Globals, dict[str, str], list[str]]:
    """Split ``--root X … create …`` into the global flags, all that was given, and the words from the verb on."""
    single, _, words = parse_go(OPTIONS, argv, "…", permute=False)
    manager = single.get("cgroup-manager", "cgroupfs")
    if manager not in MANAGERS:
        raise InputError("use", f"--cgroup-manager {manager!a}", "no such manager", f"one of: {', '.join(MANAGERS)}")
    if "systemd-cgroup" in single:
        manager = "systemd"
    log_format = single.get("log-format", "text")
    if log_format not in ("text", "json"):
        raise InputError("use", f"--log-format {log_format!a}", "no such format", "text or json")
    rootless = single.get("rootless", "auto")
    if rootless not in ("auto", "true", "false"):
        raise InputError("use", f"--rootless {rootless!a}", "no such value", "true, false or auto")
    log = single.get("log", "")
    if log.startswith("file:"):
        log = log[len("file:") :]
    root = os.path.abspath(single.get("root") or _default_root())
    found = Globals(root, log, log_format, "debug" in single, manager, rootless, single.get("criu", "criu"))
    return found, single, words


def _default_root() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return STATE_ROOT if os.geteuid() == 0 or not runtime else f"{runtime}/nestrt"


def help_text(verbs: str) -> str:
    return usage(
        "usage: nestrt [GLOBAL OPTION …] VERB [OPTION …] ID …\n\nThe OCI runtime command line.", OPTIONS, verbs
    )


def _entry(flags: Globals, level: str, message: str) -> bytes:
    """One line of the log in the form that was asked for (logrus's, as runc's)."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if flags.log_format == "json":
        line = jsontext.dumps({"level": level, "msg": message, "time": now})
    else:
        line = f"time={jsontext.dumps(now)} level={level} msg={jsontext.dumps(message)}"
    return line.encode() + b"\n"


def _open_log(flags: Globals) -> int:
    """The log file's descriptor, -1 where it cannot be opened, which is said."""
    # A named pipe that nobody reads, or reads too slowly, must not hold up the verb.
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        return os.open(flags.log, mode, 0o644)
    except OSError as error:
        _no_log(flags, error)
        return -1


def _no_log(flags: Globals, error: OSError) -> None:
    sys.stderr.write(one_line(f"nestrt: cannot write log {flags.log}: {error.strerror}") + "\n")


def write_log(flags: Globals, level: str, message: str) -> None:
    """Add one entry to the log file, if there is one."""
    fd = _open_log(flags) if flags.log else -1
    if fd >= 0:
        try:
            os.write(fd, _entry(flags, level, message))
        except OSError as error:
            _no_log(flags, error)
        os.close(fd)


def trace(flags: Globals, creator: Creator) -> None:
    """With --debug: have each step told in the log, on standard error where there is none.

    It is opened here, for in the container's root its path would mean another file.
    """
    if not flags.debug:
        return
    creator.trace = _open_log(flags) if flags.log else os.dup(2)

    def observe(side: str, step: Step) -> None:
        if creator.trace >= 0:
            try:
                os.write(creator.trace, _entry(flags, "debug", f"{side}: {step.describe()}"))
            except OSError:
                pass  # a full disk, a pipe whose reader has gone: no reason for a step to fail

    creator.observe = observe


def warn(flags: Globals, message: str) -> None:
    """A warning: into the log, or to standard error where there is none."""
    message = one_line(message)
    if flags.log:
        write_log(flags, "warning", message)
    else:
        sys.stderr.write(f"nestrt: warning: {message}\n")


def report(flags: Globals, error: Exception, verb: str) -> None:
    """One line on standard error and one entry in the log."""
    if isinstance(error, NestrtError):
        message = str(error)
    elif isinstance(error, OSError):
        message = f"cannot {verb}{f' {error.filename}' if error.filename else ''}: {lower(error)}"
    else:
        message = f"cannot {verb}: {type(error).__name__}: {error}; this is a bug of nestrt"
    message = one_line(message)
    write_log(flags, "error", message)
    sys.stderr.write(f"nestrt: {message}\n")


def lower(error: OSError) -> str:
    """strerror(3) with a small first letter: "no such file or directory" and "permission denied" are what
    engines look for, and choose their own exit status by."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


# The exit status where a verb itself fails; the container's own is passed on as it is.
FAILED = {"exec": 255}
# Where a verb has a form for guests of any runtime, whose pages say so, and there is neither container nor guest.
MISSING = {"ps": NotFound.status, "events": NotFound.status}


def run(verb: str, flags: Globals, argv: list[str], guest: NotFound | None = None) -> int:
    """Carry out one verb; whatever goes wrong is reported here, once.

    *guest*: what was said where a guest of that name was looked for. Where there is no such container either, its
    remedy is the one to be told, in the words that engines look for.
    """
    try:
        module = __import__(f"nestrt.cli.{verb}", fromlist=["main"])
        main: Callable[[Globals, list[str]], int] = module.main
        return main(flags, argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return 0
    except Exception as error:
        status = FAILED.get(verb, 1)
        nobody = isinstance(error, NotFound) and error.reason == NO_CONTAINER
        if guest is not None and guest.obj.startswith("guest ") and nobody:
            error = NotFound("find", f"container or {guest.obj}", NO_CONTAINER, guest.remedy)
            status = MISSING.get(verb, status)
        report(flags, error, verb)
        return status


def words(
    verb: str, options: tuple[Option, ...], argv: list[str], text: str, permute: bool = True
) -> tuple[dict[str, str], dict[str, list[str]], list[str]] | None:
    """The verb's own flags and operands, or None if only help was wanted, which has been printed."""
    single, repeated, operands = parse_go((*options, HELP), argv, verb, permute)
    if "help" in single:
        sys.stdout.write(usage(text, (*options, HELP)))
        return None
    return single, repeated, operands


def hierarchies_of(container: Container) -> tuple[Hierarchy, ...]:
    """The hierarchies where *container* has groups: by detached mounts too where a policy made them."""
    if not container.cgroup:
        return ()
    from nestrt.probe.facts import read_hierarchies  # not for what has none

    return read_hierarchies(make=container.virtualized)


HELP = Option("help", "", "this text", "h")


def one_id(verb: str, operands: list[str]) -> str:
    """The container's id where a verb takes nothing else."""
    if len(operands) != 1:
        raise InputError(
            verb, "a container", f"{len(operands)} operands were given, not one", f"write nestrt {verb} ID"
        )
    return operands[0]
