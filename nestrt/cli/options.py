"""Command lines of the start-up path: options as a table, help from the same table. argparse costs 12 ms."""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.record import record


@record
class Option:
    """One option. *metavar* "" makes it a switch; *repeat* collects a list; *short* is one letter or "".

    *choices* are its usual values, for completion; the command itself says which it takes.
    """

    name: str
    metavar: str
    text: str
    short: str = ""
    repeat: bool = False
    choices: tuple[str, ...] = ()


def _find(options: tuple[Option, ...], flag: str, command: str) -> Option:
    for option in options:
        if flag in (f"--{option.name}", f"-{option.short}" if option.short else ""):
            return option
    from difflib import get_close_matches  # on this way only

    near = get_close_matches(flag, [f"--{option.name}" for option in options], n=1)
    raise InputError(
        "read",
        f"option {flag}",
        f"nestrt {command} has none such",
        f"did you mean {near[0]}?" if near else f"see nestrt {command} --help",
    )


def parse(
    options: tuple[Option, ...], argv: list[str], command: str
) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """Split *argv* into (single values, repeated values, operands).

    Options end at ``--`` or at the first operand, which begins a guest's command.
    A switch has the value "". Raises InputError.
    """
    single: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            words.insert(0, word)
            break
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
        else:
            flag, value = word[:2], word[2:]
            equals = "=" if value else ""
        option = _find(options, flag, command)
        if not option.metavar:
            if equals and not word.startswith("--"):
                words.insert(0, "-" + value)  # -td is -t -d
            elif equals:
                raise InputError("read", f"option {flag}", "it takes no value", f"write {flag} alone")
            single[option.name] = ""
            continue
        if not equals:
            if not words:
                raise InputError("read", f"option {flag}", "its value is missing", f"write {flag} {option.metavar}")
            value = words.pop(0)
        if option.repeat:
            repeated.setdefault(option.name, []).append(value)
        elif option.name in single:
            raise InputError("read", f"option {flag}", "it is there twice", "give it once")
        else:
            single[option.name] = value
    return single, repeated, words


def parse_go(
    options: tuple[Option, ...], argv: list[str], command: str, permute: bool = True
) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """As parse(), in the form that callers of runc write: one dash or two before any name, ``--tty=false``, the last
    of several. With *permute* options may follow operands; without, the first operand ends them."""
    single: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    operands: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return single, repeated, operands + words
        if not word.startswith("-") or word == "-":
            operands.append(word)
            if permute:
                continue
            return single, repeated, operands + words
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-")
        option = next((o for o in options if name in (o.name, o.short)), None) or _find(options, flag, command)
        if option.metavar and not equals:
            if not words:
                raise InputError("read", f"option {flag}", "its value is missing", f"write {flag} {option.metavar}")
            value = words.pop(0)
        if not option.metavar and value not in ("", "true", "True", "TRUE", "1", "t", "T"):
            if value not in ("false", "False", "FALSE", "0", "f", "F"):
                raise InputError("read", f"option {flag}", f"{value!a} is not true or false", f"write {flag} alone")
            single.pop(option.name, None)
        elif option.repeat:
            repeated.setdefault(option.name, []).append(value)
        else:
            single[option.name] = value if option.metavar else ""
    return single, repeated, operands


def usage(head: str, options: tuple[Option, ...], tail: str = "") -> str:
    """The text of ``--help``."""
    rows = []
    for option in options:
        short = f"-{option.short}, " if option.short else "    "
        flag = f"{short}--{option.name} {option.metavar}".rstrip()
        gap = f"\n{'':30}" if len(flag) > 27 else " " * (28 - len(flag))
        rows.append(f"  {flag}{gap}{option.text}\n")
    return f"{head}\n\n{''.join(rows)}{tail}"
