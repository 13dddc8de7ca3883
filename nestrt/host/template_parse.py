"""Reading a template in the language of Go's text/template, as engines' ``--format`` has it, into a tree.

    {{.Name}}\\t{{if eq .State "running"}}{{.Pid}}{{else}}-{{end}}

Text; actions between ``{{`` and ``}}``, with ``-`` and a blank to trim the text beside them; comments; pipelines of
fields, variables, functions and literals; if, with, range, else, end, break, continue. Not: define, template, block.

Source: https://pkg.go.dev/text/template. Whatever is wrong is an InputError that names the character.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 1 << 16  # characters of a template
DEEPEST = 40  # blocks in blocks, or parentheses in parentheses
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", '"': '"', "'": "'"}
CODES = {"x": 2, "u": 4, "U": 8}
BLOCKS = ("if", "with", "range")
WORDS = (*BLOCKS, "else", "end", "break", "continue")
ABSENT = ("define", "template", "block")
CONSTANTS = {"true": True, "false": False, "nil": None}


class Literal(str):
    """Text that the template's own writer wrote, or that a function has made fit to be shown: not to be escaped."""


@record
class Token:
    """*kind*: text, open, close, field, variable, word, value, or a sign. *glued*: no blank before it."""

    kind: str
    value: Any
    place: int
    glued: bool = True


@record
class Value:
    """A literal."""

    value: Any
    place: int


@record
class Variable:
    """``$name``; "" is what the template was given."""

    name: str
    place: int


@record
class Path:
    """Fields of *base*; of dot where that is None. No names: dot itself."""

    base: Any
    names: tuple[str, ...]
    place: int


@record
class Call:
    """A function and its arguments."""

    name: str
    arguments: list[Any]
    place: int


@record
class Pipeline:
    """Commands, each with the value of the one before as its last argument. *names* are the variables that
    it sets, new ones where it *declares*."""

    commands: list[Any]
    names: tuple[str, ...]
    declares: bool
    place: int


@record
class Block:
    """if, with or range, and what is done for it, or else. The action of a pipeline alone has the word ""."""

    word: str
    pipeline: Pipeline | None
    body: list[Any]
    otherwise: list[Any]
    place: int


def wrong(place: int, what: str, reason: str, remedy: str = "") -> InputError:
    """The error at character *place* (from 0) of a template."""
    what = what if len(what) <= 60 else what[:57] + "..."
    return InputError("read", f"the template, character {place + 1}{f', {what}' if what else ''}", reason, remedy)


def _is_name(char: str) -> bool:
    return char.isalnum() or char == "_"


class _Lexer:
    """Cuts a template into tokens."""

    def __init__(self, text: str, begin: int) -> None:
        self.text = text
        self.at = begin
        self.tokens: list[Token] = []

    def tokenize(self) -> list[Token]:
        trim = False
        while True:
            begin = self.text.find("{{", self.at)
            end = len(self.text) if begin < 0 else begin
            inside = begin + 2
            left = begin >= 0 and self.text[inside : inside + 1] == "-" and self.text[inside + 1 : inside + 2].isspace()
            # The command line's \t and \n, as podman has them; those in an action are its literals' own.
            text = self.text[self.at : end].replace("\\t", "\t").replace("\\n", "\n")
            text = text.lstrip() if trim else text
            text = text.rstrip() if left else text
            if text:
                self.tokens.append(Token("text", text, self.at))
            if begin < 0:
                return self.tokens
            self.at = inside + 2 * left
            trim = self._comment(begin) if self.text.startswith("/*", self.at) else self._action(begin)

    def _comment(self, begin: int) -> bool:
        end = self.text.find("*/", self.at)
        rest = self.text[end + 2 : end + 6]
        if end < 0 or not (rest.startswith("}}") or (rest[:1].isspace() and rest[1:4] == "-}}")):
            raise wrong(begin, "{{/*", "the comment does not end", "write {{/* text */}}")
        self.at = end + (4 if rest.startswith("}}") else 6)
        return not rest.startswith("}}")

    def _action(self, begin: int) -> bool:
        """One action's tokens; whether the text behind it is to be trimmed."""
        self.tokens.append(Token("open", "{{", begin))
        glued = False
        while True:
            rest = self.text[self.at : self.at + 3]
            if rest.startswith("}}") or (rest == "-}}" and not glued):
                self.tokens.append(Token("close", "}}", self.at))
                self.at += 2 if rest.startswith("}}") else 3
                return not rest.startswith("}}")
            if not rest:
                raise wrong(begin, "{{", "the action does not end", "write }} behind it")
            if rest[0].isspace():
                self.at += 1
                glued = False
                continue
            self._token(rest, glued)
            glued = True

    def _token(self, rest: str, glued: bool) -> None:
        begin, char = self.at, rest[0]
        kind = char
        value: Any = None
        if char in '"`':
            kind, value = "value", self._quoted(char)
        elif char.isdecimal() or (char in "+-." and rest[1:2].isdecimal()):
            kind, value = "value", self._number()
        elif char in ".$":
            kind, value = "field" if char == "." else "variable", self._name(1)
        elif _is_name(char):
            kind, value = "word", self._name(0)
        elif rest.startswith(":="):
            kind, self.at = ":=", self.at + 2
        elif char in "()|=,":
            self.at += 1
        else:
            raise wrong(begin, char, "nothing begins with it here")
        self.tokens.append(Token(kind, value, begin, glued))

    def _name(self, skip: int) -> str:
        begin = self.at + skip
        self.at = begin
        while _is_name(self.text[self.at : self.at + 1]):
            self.at += 1
        return self.text[begin : self.at]

    def _number(self) -> int | float:
        begin = self.at
        self.at += 1
        while (char := self.text[self.at : self.at + 1]) and (_is_name(char) or char in ".+-"):
            if char in "+-" and self.text[self.at - 1] not in "eE":
                break
            self.at += 1
        word = self.text[begin : self.at]
        try:
            return int(word, 0) if len(word) <= 40 else float(word)
        except ValueError:
            pass
        try:
            return float(word)
        except ValueError:
            raise wrong(begin, word, "it is not a number") from None

    def _quoted(self, quote: str) -> Literal:
        begin = self.at
        self.at += 1
        parts: list[str] = []
        while True:
            char = self.text[self.at : self.at + 1]
            self.at += 1
            if not char:
                raise wrong(begin, self.text[begin : begin + 20], "the text does not end", f"write {quote} behind it")
            if char == quote:
                return Literal("".join(parts))
            if char == "\\" and quote == '"':
                char = self._escape()
            parts.append(char)

    def _escape(self) -> str:
        letter = self.text[self.at : self.at + 1]
        self.at += 1
        if letter in ESCAPES:
            return ESCAPES[letter]
        if letter in CODES and letter:
            digits = self.text[self.at : self.at + CODES[letter]]
            self.at += CODES[letter]
            try:
                if len(digits) == CODES[letter] and digits.isalnum():
                    return chr(int(digits, 16))
            except (ValueError, OverflowError):
                pass
        raise wrong(self.at - 2, "\\" + letter, "there is no such escape", r"known: \n \t \\ \" \x1b \u00e4")


class _Parser:
    """Makes a tree of tokens. Depth is bounded, so that neither this nor what walks the tree runs out of stack."""

    def __init__(self, text: str, begin: int) -> None:
        self.tokens = _Lexer(text, begin).tokenize()
        self.end = Token("end of the template", "", len(text))
        self.at = 0
        self.known = [""]

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else self.end

    def take(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def nodes(self, depth: int, loop: bool) -> tuple[list[Any], Token]:
        """What stands up to an ``end`` or ``else`` of the block around, and that word; at depth 0 to the end."""
        found: list[Any] = []
        known = len(self.known)
        while True:
            token = self.take()
            if token is self.end:
                return found, token
            if token.kind == "text":
                found.append(Literal(token.value))
                continue
            word = self.peek()
            if word.kind != "word" or word.value not in (*WORDS, *ABSENT):
                found.append(Block("", self.pipeline(depth), [], [], token.place))
                self.close()
                continue
            self.at += 1
            if word.value in BLOCKS:
                found.append(self.block(word, depth + 1, loop))
            elif word.value in ("break", "continue") and loop:
                found.append(Block(word.value, None, [], [], word.place))
                self.close()
            elif word.value in ("end", "else") and depth:
                del self.known[known:]
                return found, word
            else:
                reason = "there is no such action here" if word.value in ABSENT else "it stands in no block"
                raise wrong(word.place, word.value, reason, "write {{range …}} or {{if …}} before it")

    def block(self, word: Token, depth: int, loop: bool) -> Block:
        if depth > DEEPEST:
            raise wrong(word.place, word.value, f"more than {DEEPEST} blocks in each other")
        known = len(self.known)
        pipeline = self.pipeline(depth, word.value == "range")
        self.close()
        body, last = self.nodes(depth, loop or word.value == "range")
        otherwise: list[Any] = []
        if last.value == "else":
            following = self.peek()
            if following.kind == "word" and following.value in ("if", "with"):
                self.at += 1
                otherwise = [self.block(following, depth + 1, loop)]
                del self.known[known:]
                return Block(word.value, pipeline, body, otherwise, word.place)
            self.close()
            otherwise, last = self.nodes(depth, loop)
        if last.value != "end":
            what = "a second else" if last.value == "else" else "the block does not end"
            raise wrong(word.place, word.value, what, "write {{end}} behind it")
        self.close()
        del self.known[known:]
        return Block(word.value, pipeline, body, otherwise, word.place)

    def close(self) -> None:
        token = self.take()
        if token.kind != "close":
            raise self.unexpected(token)

    def unexpected(self, token: Token) -> InputError:
        what = token.kind if token.value is None else str(token.value) or token.kind
        return wrong(token.place, what, "it cannot stand here")

    def pipeline(self, depth: int, two: bool = False) -> Pipeline:
        place, names, declares = self.peek().place, [], False
        if self.peek().kind == "variable":
            length = 1
            while two and length < 3 and self.peek(length).kind == "," and self.peek(length + 1).kind == "variable":
                length += 2
            if self.peek(length).kind in (":=", "="):
                names = [self.peek(number).value for number in range(0, length, 2)]
                declares = self.peek(length).kind == ":="
                self.at += length + 1
        commands = [self.command(depth)]
        while self.peek().kind == "|":
            self.at += 1
            token = self.peek()
            commands.append(self.command(depth))
            if not isinstance(commands[-1], Call):
                raise wrong(token.place, "", "behind | there has to be a function")
        if not declares and any(name not in self.known for name in names):
            raise wrong(place, "$" + names[0], "there is no such variable", "write := to make it")
        self.known += names if declares else []
        return Pipeline(commands, tuple(names), declares, place)

    def command(self, depth: int) -> Any:
        first = self.peek()
        found = self.operand(depth)
        if first.kind == "word" and first.value not in CONSTANTS:
            while self.peek().kind in ("value", "field", "variable", "word", "("):
                found.arguments.append(self.operand(depth))
        elif self.peek().kind in ("value", "field", "variable", "word", "("):
            raise wrong(self.peek().place, str(self.peek().value or ""), "what stands before it is not a function")
        return found

    def operand(self, depth: int) -> Any:
        token = self.take()
        found: Any
        if token.kind == "value":
            return Value(token.value, token.place)
        if token.kind == "word":
            if token.value in CONSTANTS:
                return Value(CONSTANTS[token.value], token.place)
            return Call(token.value, [], token.place)
        if token.kind == "variable":
            if token.value not in self.known:
                raise wrong(token.place, "$" + token.value, "there is no such variable", "write {{$x := .Name}} before")
            found = Variable(token.value, token.place)
        elif token.kind == "field":
            found = Path(None, (token.value,) if token.value else (), token.place)
        elif token.kind == "(" and depth < DEEPEST:
            found = self.pipeline(depth + 1)
            closing = self.take()
            if closing.kind != ")":
                raise self.unexpected(closing)
        else:
            raise self.unexpected(token)
        names = []
        while self.peek().kind == "field" and self.peek().glued and self.peek().value:
            names.append(self.take().value)
        return Path(found, tuple(names), token.place) if names else found


def parse(text: str, begin: int = 0) -> list[Any]:
    """The nodes of the template *text* from character *begin* on: Literal and Block. Raises InputError."""
    if len(text) > LONGEST:
        raise InputError("read", "the template", f"{len(text)} characters", f"at most {LONGEST}")
    return _Parser(text, begin).nodes(0, False)[0]
