"""``nestrt completion bash|zsh|fish``: a script that makes the shell complete nestrt's command lines.

The scripts only ask: ``nestrt completion -- WORD…`` answers with what the last word could become, and is what
knows the commands. Names in the answer may be a guest's choice. No script evaluates any of it: a word becomes an
element of an array, quoted where it is put on the command line.

The answer is lines: ``words``, ``files`` or ``directories`` (the shell looks for these itself), the part of the
last word that stands before the value (``--output=``), and then for each word the word, a tab, and what it is.
"""

from __future__ import annotations

import argparse
import os
import signal

from nestrt.cli._discover import Command, Taken, discover
from nestrt.cli._view import write
from nestrt.cli.engine import OPTIONS as GLOBALS
from nestrt.cli.engine import STATE_ROOT
from nestrt.cli.options import Option
from nestrt.errors import NestrtError, one_line
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SHELLS = ("bash", "zsh", "fish")
MOST = 2000  # words of an answer
EPILOG = """
bash: source <(nestrt completion bash), or write it to /etc/bash_completion.d/nestrt or
      /usr/share/bash-completion/completions/nestrt
zsh:  nestrt completion zsh > DIR/_nestrt, where DIR is in $fpath; or source <(nestrt completion zsh) after compinit
fish: nestrt completion fish > ~/.config/fish/completions/nestrt.fish
"""

BASH = r"""# bash completion of nestrt
_nestrt() {
    local program=${COMP_WORDS[0]} line=${COMP_LINE:0:COMP_POINT} kind= before= cur= cut= word= quoted= i
    local -a words=() answer=()
    COMPREPLY=()
    # readline cuts words at = and : too. What stands together is put together again.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $line == [[:space:]]* ]]; then
            words+=("$word")
        else
            words[${#words[@]}-1]+=$word
        fi
        while [[ $line == [[:space:]]* ]]; do line=${line#?}; done
        line=${line:${#word}}
    done
    [[ $program == */* && -x $program ]] || program=nestrt
    cur=${words[${#words[@]}-1]}
    case $cur in
        *[\"\'\`\$\\]*) return ;;
    esac
    mapfile -t answer < <(command "$program" completion -- "${words[@]:1}" 2>/dev/null)
    kind=${answer[0]-} before=${answer[1]-}
    # readline puts a word in the place of what stands behind the last = or :.
    cut=${cur%"${cur##*[=:]}"}
    case $kind in
        files) mapfile -t COMPREPLY < <(compgen -f -- "${cur#"$before"}") ;;
        directories) mapfile -t COMPREPLY < <(compgen -d -- "${cur#"$before"}") ;;
        words)
            for word in "${answer[@]:2}"; do
                word=${word%%$'\t'*}
                [[ $word == "$cur"* ]] || continue
                word=${word#"$cut"}
                printf -v quoted %q "$word"
                COMPREPLY+=("$quoted")
                [[ $word == *= ]] && compopt -o nospace
            done
            return
            ;;
        *) return ;;
    esac
    compopt -o filenames
}
complete -F _nestrt nestrt
"""

ZSH = r"""#compdef nestrt
# zsh completion of nestrt
_nestrt() {
    local program=nestrt kind before line
    local -a given answer names shown suffix
    [[ ${words[1]} == */* && -x ${words[1]} ]] && program=${words[1]}
    given=("${(@)words[2,CURRENT-1]}" "$PREFIX")
    answer=("${(@f)$(command $program completion -- "${(@)given}" 2>/dev/null)}")
    kind=${answer[1]-} before=${answer[2]-}
    case $kind in
        files|directories)
            [[ -n $before ]] && compset -p ${#before}
            if [[ $kind == files ]]; then _files; else _files -/; fi
            ;;
        words)
            for line in "${(@)answer[3,-1]}"; do
                names+=("${line%%$'\t'*}")
                line=${line/$'\t'/  -- }
                shown+=("${line%  -- }")
            done
            [[ -n ${names[(r)*=]-} ]] && suffix=(-S '')
            (( $#names )) && compadd "${(@)suffix}" -l -d shown -a -- names
            ;;
    esac
}
if [[ ${funcstack[1]-} == _nestrt ]]; then
    _nestrt "$@"
else
    compdef _nestrt nestrt
fi
"""

FISH = r"""# fish completion of nestrt
function __nestrt_complete
    set -l given (commandline -opc)
    set -l current (commandline -ct)
    set -l program nestrt
    if string match -q -- '*/*' $given[1]; and test -x $given[1]
        set program $given[1]
    end
    set -l answer (command $program completion -- $given[2..-1] $current 2>/dev/null)
    set -l before $answer[2]
    switch "$answer[1]"
        case files directories
            set -l value (string sub -s (math (string length -- "$before") + 1) -- "$current")
            if test $answer[1] = files
                for path in (__fish_complete_path "$value")
                    printf '%s%s\n' "$before" $path
                end
            else
                for path in (__fish_complete_directories "$value" directory)
                    printf '%s%s\n' "$before" $path
                end
            end
        case words
            printf '%s\n' $answer[3..-1]
    end
end
complete -c nestrt -e
complete -c nestrt -f -a '(__nestrt_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


@record
class Answer:
    """What the last word could become. *kind*: words, files, directories."""

    kind: str = "words"
    before: str = ""
    words: tuple[tuple[str, str], ...] = ()


def main(argv: list[str]) -> int:
    """Carry out ``nestrt completion ARGV``."""
    if argv[:1] == ["--"]:
        return _tell(argv[1:])
    parser = argparse.ArgumentParser(
        prog="nestrt completion",
        description="Write a script that makes a shell complete the command lines of nestrt.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    options = parser.parse_args(argv)
    return write([SCRIPTS[options.shell].removesuffix("\n")])


def _tell(words: list[str]) -> int:
    """Write the answer; whatever is wrong with what has been typed, there is nothing to say."""
    try:
        answer = complete(words or [""])
    except (NestrtError, OSError):
        answer = Answer()
    last = words[-1] if words else ""
    fit = [(word, text) for word, text in answer.words if word.startswith(last)][:MOST]
    rows = [f"{one_line(word)}\t{one_line(text)}" for word, text in fit]
    return write([answer.kind, answer.before, *rows])


def complete(words: list[str]) -> Answer:
    """What the last of *words*, which follow ``nestrt``, could become."""
    entry = __import__("nestrt.__main__", fromlist=["COMMANDS"])
    commands: dict[str, str] = entry.COMMANDS
    verbs: dict[str, str] = entry.VERBS
    flags = Command("", tuple(Taken(*_global(option)) for option in GLOBALS))
    rest = list(words)
    root = STATE_ROOT
    while len(rest) > 1 and rest[0].startswith("-"):
        option = _option(flags, rest[0])
        if option and option.takes and "=" not in rest[0]:
            if len(rest) == 2:
                return _value(option, "", rest[1], root, False)
            root = rest[1] if "--root" in option.flags else root
            rest = rest[1:]
        rest = rest[1:]
    name, last = rest[0], words[-1]
    if len(rest) == 1:
        if name.startswith("-"):
            return _flag(flags, last, root, False)
        rows = verbs if len(words) > 1 else {**commands, **verbs, "version": "the version"}
        return Answer(words=tuple(rows.items()))
    guests = name in entry.WIDER or "guest" in verbs.get(name, "guest")
    found = _command(name, commands, verbs, entry.WIDER)
    return _within(found, rest[1:], root, guests) if found else Answer()


def _global(option: Option) -> tuple[tuple[str, ...], bool, str, tuple[str, ...], str]:
    from nestrt.cli._discover import _of_option

    taken = _of_option(option)
    return taken.flags, taken.takes, taken.kind, taken.choices, taken.text


def _command(name: str, commands: dict[str, str], verbs: dict[str, str], wider: dict[str, str]) -> Command | None:
    if name in commands:
        return discover(name, False, commands[name])
    if name not in verbs:
        return None
    found = discover(name, True, verbs[name])
    if name in wider:
        more = discover(f"_host_{name}", False, wider[name])
        known = {flag for option in found.options for flag in option.flags}
        found.options += tuple(option for option in more.options if not known.intersection(option.flags))
        found.operands = found.operands if len(found.operands) >= len(more.operands) else more.operands
    if any("--bundle" in option.flags for option in found.options):
        found.operands = ()  # the id of what is to be made: nobody knows it yet
    return found


def _option(command: Command, word: str) -> Taken | None:
    flag = word.partition("=")[0]
    return next((option for option in command.options if flag in option.flags), None)


def _within(command: Command, words: list[str], root: str, guests: bool) -> Answer:
    """What the last of *words*, which follow the command's name, could become."""
    *before, last = words
    operands = 0
    pending: Taken | None = None
    ended = False
    for number, word in enumerate(before):
        if pending:
            pending = None
        elif word == "--" and not ended:
            ended = True
        elif word.startswith("-") and len(word) > 1 and not ended:
            option = _option(command, word)
            pending = option if option and option.takes and "=" not in word else None
        elif command.commands:
            inner = command.commands.get(word)
            return _within(inner, words[number + 1 :], root, guests) if inner else Answer()
        else:
            operands += 1
    if pending:
        return _value(pending, "", last, root, guests)
    if last.startswith("-") and not ended:
        return _flag(command, last, root, guests)
    if command.commands:
        return Answer(words=tuple((name, inner.text) for name, inner in command.commands.items()))
    if not command.operands:
        return Answer()
    operand = command.operands[min(operands, len(command.operands) - 1)]
    if operands >= len(command.operands) and not operand.repeats:
        return Answer()
    return _value(operand, "", last, root, guests)


def _flag(command: Command, last: str, root: str, guests: bool) -> Answer:
    """Options, or the value behind ``--option=``."""
    flag, equals, _ = last.partition("=")
    if equals:
        option = _option(command, last)
        return _value(option, flag + equals, last, root, guests) if option and option.takes else Answer()
    rows = [(flag, option.text) for option in command.options for flag in option.flags if len(flag) > 2]
    if not last.startswith("--"):
        rows += [(flag, option.text) for option in command.options for flag in option.flags if len(flag) == 2]
    return Answer(words=tuple(rows))


def _value(taken: Taken, before: str, last: str, root: str, guests: bool) -> Answer:
    if taken.kind in ("files", "directories") and not taken.choices:
        return Answer(taken.kind, before)
    names: Iterable[str] = taken.choices
    if not names and taken.kind == "guests":
        names = _guests()
    elif not names and taken.kind == "containers":
        names = [*_containers(root), *(_guests() if guests else ())]
    elif not names and taken.kind == "signals":
        names = [found.name.removeprefix("SIG") for found in signal.Signals]
    elif not names and taken.kind == "policies":
        names = _policies()
    return Answer("words", before, tuple((before + name, "") for name in names))


def _guests() -> list[str]:
    from nestrt.host.walk import walk
    from nestrt.probe.facts import read_hierarchies

    return [guest.name for guest in walk(read_hierarchies()).everyone()]


def _containers(root: str) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except OSError:
        return []


def _policies() -> list[str]:
    from nestrt.probe.policies import ETC

    try:
        return sorted(name[:-5] for name in os.listdir(f"{ETC}/policies") if name.endswith(".toml"))
    except OSError:
        return []
