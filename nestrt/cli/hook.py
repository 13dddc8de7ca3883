"""``nestrt hook STAGE``: the plugin for other runtimes, called by an engine or a runtime for each container.

It runs as root with input that a container's author has a part in: it reads a bounded document from
standard input and one file of the engine's, opens nothing below the container's root filesystem, and
runs nothing.

    precreate       the config on standard input, the changed one on standard output (podman)
    createRuntime   the container's state on standard input: the groups are settled, the laws read back
    poststart       the laws read back once more, the locks among them
    poststop        all that is the guest's is removed
"""

from __future__ import annotations

import os
import sys

from nestrt.cli.options import Option, parse, usage
from nestrt.errors import InputError, NestrtError, NotFound, one_line

HEAD = """usage: nestrt hook [OPTION …] STAGE

What engines call for each container; nestrt hooks install binds it.

  precreate      reads a container's config.json, writes the changed one
  createRuntime  reads a container's state: settles its groups, checks the laws
  poststart      reads a container's state: checks the laws once more
  poststop       reads a container's state: removes what is nestrt's
  lxc            the hooks of LXC: nestrt hook lxc --help
  nspawn         what hooks/nspawn/nestrt.conf calls
"""
OPTIONS = (
    Option("policy", "NAME", "for containers that no rule of the host matches (default: none)"),
    Option("tell", "", "precreate: have the runtime say what is wrong, where the engine keeps a hook's words"),
    Option("help", "", "this text", "h"),
)
STAGES = ("createRuntime", "poststart", "poststop")
CONFIG_LIMIT = 16 << 20  # bytes
STATE_LIMIT = 32 << 20  # a container's annotations are in it
CHUNK = 1 << 20
ETC = "/etc/nestrt"


def read_input(limit: int, what: str) -> bytes:
    """Standard input, whole. Raises InputError where it is longer than *limit* bytes."""
    found: list[bytes] = []
    length = 0
    while chunk := os.read(0, CHUNK):
        found.append(chunk)
        length += len(chunk)
        if length > limit:
            raise InputError("read", what, f"it is longer than {limit >> 20} MiB", "shorten it")
    return b"".join(found)


def read_file(path: str) -> bytes:
    """A regular file of at most 16 MiB, and a byte; its last name is not followed. Raises NotFound, InputError."""
    from stat import S_ISREG

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise NotFound("read", path, (error.strerror or "").lower(), "let the state name the bundle") from error
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise InputError("read", path, "it is not a regular file", "let the state name the bundle")
        with open(fd, "rb", closefd=False) as file:
            return file.read(CONFIG_LIMIT + 1)
    finally:
        os.close(fd)


def concerns_nobody(content: bytes, policy: str) -> bool:
    """Whether nothing in a document, and nothing that the host says, can make a guest of its container.

    Most containers have no policy: they cost no more than this.
    """
    return not policy and b"nestrt." not in content and b"\\u" not in content and not os.path.lexists(ETC)


def precreate(single: dict[str, str]) -> int:
    """Write the config back as it came, or as a policy wants it."""
    where = "the container's config"
    policy = single.get("policy", "")
    content = read_input(CONFIG_LIMIT, where)
    if not concerns_nobody(content, policy):
        from nestrt.cli import _plugin

        try:
            document, spec = _plugin.read(content, where)
            guest = _plugin.find(document, spec, "", policy, made_later=True)
            if guest is not None:
                return _plugin.make_and_write(guest, write)
        except NestrtError as error:
            from nestrt.cli._verdict import log

            log(f"precreate: {error}")
            if "tell" not in single:
                raise
            write(_plugin.refusal(content, error))
            return 0
    write(content)
    return 0


def write(content: bytes) -> None:
    """Write all of *content* to standard output. Raises OSError."""
    while content:
        content = content[os.write(1, content) :]


def main(argv: list[str]) -> int:
    """*argv* are the words after ``hook``. Returns the exit status; what is wrong is one line on standard error."""
    os.chdir("/")
    os.umask(0o022)
    if argv[:1] == ["lxc"]:
        from nestrt.cli import _lxc

        return _lxc.main(argv[1:])
    if argv[:1] == ["nspawn"]:
        from nestrt.cli import _nspawn

        return _nspawn.main(argv[1:])
    single, rest = _words(argv)
    stage = rest[0] if rest else ""
    if "help" in single:
        sys.stdout.write(usage(HEAD, OPTIONS))
        return 0
    if stage == "precreate":
        return precreate(single)
    if stage == "refuse":
        raise Refused(rest[1] if len(rest) > 1 else "no reason is given")
    if stage not in STAGES:
        raise InputError("run", f"hook {stage!a}", "no such stage", f"known: precreate, {', '.join(STAGES)}")
    content = read_input(STATE_LIMIT, "the container's state")
    if concerns_nobody(content, single.get("policy", "")):
        return 0
    from nestrt.cli import _settle

    return _settle.STAGES[stage](_settle.State(content), single)


def _words(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options, before or after the stage, and the stage, for "refuse" with its reason. Raises InputError."""
    single, _, rest = parse(OPTIONS, argv, "hook")
    if rest[:1] == ["refuse"]:
        return single, rest
    more, _, extra = parse(OPTIONS, rest[1:], "hook")
    if extra:
        raise InputError("read", f"argument {extra[0]!a}", "hook takes one stage", "see nestrt hook --help")
    return {**single, **more}, rest[:1]


class Refused(NestrtError):
    """What precreate --tell had to say, word for word."""

    status = 2

    def __init__(self, text: str) -> None:
        super().__init__("start", "the container", text)
        self.text = text

    def __str__(self) -> str:
        return one_line(self.text)
