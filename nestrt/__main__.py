"""``nestrt COMMAND``: argv[1] picks one command's module, and nothing else is imported."""

from __future__ import annotations

import sys

from nestrt.errors import NestrtError

# command: what it does
COMMANDS = {
    "launch": "start a guest from a root filesystem",
    "delete": "end a guest and remove all that belongs to it",
    "gc": "remove what killed launches and ended guests left",
    "tree": "every group of every guest at every level",
    "ls": "the guests of this level and below",
    "show": "one guest in full",
    "guest": "inside a guest: see and divide what it has",
    "policy": "check a CONTAINER_LEVEL policy file",
}


def usage() -> str:
    rows = "".join(f"  {name:8} {text}\n" for name, text in COMMANDS.items())
    return f"usage: nestrt COMMAND …\n\n{rows}\nnestrt COMMAND --help tells more.\n"


def main(argv: list[str]) -> int:
    """Run one command; returns its exit status (errors.py lists them)."""
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        out = sys.stdout if len(argv) > 1 else sys.stderr
        out.write(usage())
        return 0 if len(argv) > 1 else 2
    command = argv[1]
    if command in ("-v", "--version", "version"):
        from nestrt.cli.version import VERSION

        print(f"nestrt {VERSION}")
        return 0
    if command not in COMMANDS:
        sys.stderr.write(f"nestrt: unknown command {command!a}; it is one of: {', '.join(COMMANDS)}\n")
        return 2
    if command == "launch":
        import gc

        from nestrt.kernel import grace

        child = grace.begin()
        gc.disable()  # a launch is over before there is anything to collect
        try:
            return _run(command, argv[2:])
        finally:
            grace.end(child)
    return _run(command, argv[2:])


def _run(command: str, argv: list[str]) -> int:
    try:
        module = __import__(f"nestrt.cli.{command}", fromlist=["main"])
        status = module.main(argv)
        sys.stdout.flush()
    except NestrtError as error:
        sys.stderr.write(f"nestrt: {error}\n")
        return error.status
    except BrokenPipeError:
        # The reader has gone (nestrt ls | head): not an error, and nothing more to flush.
        import os

        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(f"nestrt: cannot {command}{where}: {error.strerror}\n")
        return 1
    return int(status)


def entry() -> int:
    """The console script's entry."""
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
