"""``nestrt COMMAND``: argv[1] picks one command's module, and nothing else is imported."""

from __future__ import annotations

import sys

from nestrt.errors import NestrtError, NotFound, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import NoReturn

# command: what it does
COMMANDS = {
    "launch": "start a guest from a root filesystem",
    "gc": "remove what killed launches and ended guests left",
    "tree": "every group of every guest at every level",
    "ls": "the guests of this level and below",
    "show": "one guest in full",
    "why": "what really limits a group or process: the chain up to the root, and who set what",
    "top": "what guests use, live",
    "graph": "a picture of the nest: SVG or HTML",
    "metrics": "OpenMetrics text for Prometheus",
    "freeze": "stop all processes of a guest of any runtime",
    "thaw": "let them go on",
    "lock": "keep a guest from changing its tree, until unlock",
    "unlock": "let it change its tree again",
    "host": "prepare the host: a share for the system, the rest for guests",
    "guest": "inside a guest: see and divide what it has",
    "check": "whether the laws hold for a running guest",
    "policy": "check policies and bindings, explain what a bundle gets",
    "broker": "the daemon: what the kernel does not delegate, done for guests that ask",
    "audit": "what guests have asked the broker to change, and root by commands",
    "hooks": "bind the plugin to engines that run other runtimes",
    "hook": "the plugin: what engines call for each container",
    "wrap": "the plugin: a runtime that prepares guests for another one",
    "completion": "completion for bash, zsh or fish",
    "schema": "JSON schemas of what --format json prints",
}
# The OCI command line, as runc has it: global flags may stand before the verb.
VERBS = {
    "create": "create a container from a bundle",
    "start": "run the program of a created container",
    "run": "create, start and stay with a container",
    "state": "print a container's state as JSON",
    "kill": "send a signal to a container",
    "delete": "remove a container, or a guest of launch",
    "exec": "run one more process in a container",
    "ps": "the processes of a container",
    "pause": "stop all processes of a container",
    "resume": "let them go on",
    "update": "change limits of a running container",
    "events": "statistics and out-of-memory events of a container",
    "checkpoint": "save a running container to image files, and end it",
    "restore": "make a container of image files, and let it go on",
    "list": "all containers",
    "spec": "write a config.json to begin with",
    "features": "what this runtime and host can do, as JSON",
}
# Verbs that have a wider form, for guests of any runtime: nestrt.cli._host_VERB. It is taken where an option is given
# that only it has, or where the operand names no container of this runtime.
WIDER = {
    "ps": "the processes of all guests, or of some",
    "events": "what happens to all guests, or to some",
    "update": "change limits of a guest of any runtime",
    "kill": "send a signal to all processes of a guest of any runtime",
    "exec": "run a process in a guest of any runtime",
}
# They clone: the wait that a process's first move between groups costs begins while modules are imported.
CLONING = ("launch", "create", "run", "exec")


def _rows(commands: dict[str, str]) -> str:
    return "".join(f"  {name:10} {text}\n" for name, text in commands.items())


def usage() -> str:
    rows, wider, verbs = _rows(COMMANDS), _rows(WIDER), _rows(VERBS)
    return (
        f"usage: nestrt COMMAND …\n\n{rows}\nFor guests of any runtime, and verbs of the OCI runtime too:\n\n{wider}\n"
        f"As an OCI runtime: nestrt [GLOBAL OPTION …] VERB …\n\n{verbs}\n"
        "nestrt COMMAND --help tells more; nestrt --root DIR --help the global options.\n"
    )


def main(argv: list[str]) -> int:
    """Run one command; returns its exit status (errors.py lists them)."""
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        import os

        while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
            os.set_inheritable(fd, True)
        os.close(fd)
        sys.stdout = sys.stdout or open(1, "w", closefd=False)
        sys.stderr = sys.stderr or open(2, "w", closefd=False)
    if (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8":
        _plainly()
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        out = sys.stdout if len(argv) > 1 else sys.stderr
        out.write(usage())
        return 0 if len(argv) > 1 else 2
    command = argv[1]
    if command in VERBS or command[0:1] == "-":
        return _engine(argv[1:])
    if command == "version":
        from nestrt.cli.version import text

        sys.stdout.write(text())
        return 0
    if command not in COMMANDS:
        sys.stderr.write(f"nestrt: unknown command {command!a}; it is one of: {', '.join((*COMMANDS, *VERBS))}\n")
        return 2
    return _timely(command, lambda: _run(command, argv[2:]))


def _plainly() -> None:
    """Have what this locale's characters are not enough for written in ASCII."""
    import codecs

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = error.object[error.start : error.end].replace("…", "...").replace("µ", "u")
        return text.encode("ascii", "backslashreplace").decode(), error.end

    codecs.register_error("nestrt", plain)
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="nestrt")


def _timely(command: str, action: Callable[[], int]) -> int:
    if command not in CLONING:
        return action()
    import gc

    from nestrt.kernel import grace

    child = grace.begin()
    gc.disable()  # it is over before there is anything to collect
    try:
        return action()
    finally:
        grace.end(child)


def _engine(words: list[str]) -> int:
    """The OCI command line."""
    from nestrt.cli import engine

    flags = engine.Globals()
    try:
        flags, given, words = engine.parse_globals(words)
    except NestrtError as error:
        engine.report(flags, error, "read the command line")
        return 1
    if "version" in given:
        from nestrt.cli.version import text

        sys.stdout.write(text())
        return 0
    if "help" in given or not words or words[0] not in VERBS:
        wrong = words and "help" not in given
        (sys.stderr if wrong else sys.stdout).write(
            f"nestrt: unknown verb {words[0]!a}\n" if wrong else engine.help_text(f"\n{_rows(VERBS)}")
        )
        return 1 if wrong else 0
    verb, words = words[0], words[1:]
    form = "runtime" if given or verb not in WIDER else _form(verb, flags.root, words)
    if form == "help":
        _run(verb, words, f"_host_{verb}")
        sys.stdout.write("\nAs a verb of the OCI runtime:\n\n")
        sys.stdout.flush()
    elif form == "foreign":
        from nestrt.cli._target import for_containers

        if refused := for_containers(verb, words):
            sys.stderr.write(f"nestrt: {refused}\n")
            return refused.status
    elif form != "runtime":
        try:
            return _timely(verb, lambda: _run(verb, words, f"_host_{verb}"))
        except NotFound as error:
            if form == "host":
                sys.stderr.write(f"nestrt: {error}\n")
                return engine.FAILED.get(verb, error.status)
            guest = error
            return _timely(verb, lambda: engine.run(verb, flags, words, guest))
    return _timely(verb, lambda: engine.run(verb, flags, words))


def _form(verb: str, root: str, words: list[str]) -> str:
    """Which form of *verb* is meant: the "runtime"'s for a container of *root*, the "host"'s where *words* make no
    sense to the runtime's, or "either", the host's if there is such a guest; "foreign": the runtime's, by options that
    the host's has not, where there is no such container; "help": that of both is wanted.

    Of a container's id the beginning will do: it becomes the whole one in *words*, and means the same."""
    from os.path import isdir

    from nestrt.cli.options import parse_go

    if words[:1] in (["--help"], ["-h"]):
        return "host" if verb in ("ps", "events") else "help"  # whose help tells of the runtime's form
    module = __import__(f"nestrt.cli.{verb}", fromlist=["OPTIONS"])
    permute = verb not in ("ps", "exec")
    try:
        single, repeated, operands = parse_go(module.OPTIONS, words, verb, permute)
    except NestrtError:
        return "host"
    if not operands:
        return "host" if verb in ("ps", "events") else "runtime"
    if "/" not in operands[0]:
        if isdir(f"{root}/{operands[0]}"):
            return "runtime"
        from nestrt.cli._target import whole_id

        if found := whole_id(root, operands[0]):
            for place in (at for at, word in enumerate(words) if word == operands[0]):
                named = [*words[:place], found, *words[place + 1 :]]
                if parse_go(module.OPTIONS, named, verb, permute)[2][0] == found:  # not an option's value
                    words[:] = named
                    return "runtime"
    wider = {option.name for option in getattr(__import__(f"nestrt.cli._host_{verb}", fromlist=["x"]), "OPTIONS", ())}
    return "foreign" if wider and (single.keys() | repeated.keys()) - wider else "either"


def _wrong(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """What argparse says of a bad command line, as all errors are: one line, of which a terminal obeys nothing."""
    text = f"nestrt: cannot read the command line of {parser.prog}: {message}; see {parser.prog} --help"
    sys.stderr.write(one_line(text) + "\n")
    sys.exit(2)


def _run(command: str, argv: list[str], name: str = "") -> int:
    """Carry out *command*, in the module of its name; in the module *name*, a verb's wider form: raises NotFound."""
    try:
        module = __import__(f"nestrt.cli.{name or command}", fromlist=["main"])
        if argparse := sys.modules.get("argparse"):
            argparse.ArgumentParser.error = _wrong
        status = module.main(argv)
        sys.stdout.flush()
    except NestrtError as error:
        if name and isinstance(error, NotFound):
            raise
        sys.stderr.write(f"nestrt: {error}\n")
        return error.status
    except BrokenPipeError:
        # The reader has gone (nestrt ls | head): not an error, and nothing more to flush.
        import os

        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return 1 if command == "hook" else 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(one_line(f"nestrt: cannot {command}{where}: {error.strerror}") + "\n")
        return 1
    except Exception as error:
        text = f"nestrt: cannot {command}: {type(error).__name__}: {error}; this is a bug of nestrt"
        sys.stderr.write(one_line(text) + "\n")
        return 1
    return int(status)


def entry() -> int:
    """The console script's entry."""
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
