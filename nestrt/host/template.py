"""Templates in the language of Go's text/template, for ``--format '{{.Name}}'`` and ``'table {{.Name}}\\t{{.State}}'``.

A field is one of the JSON object, found without regard to case and underscores: ``.GuestPid`` is "guest_pid",
``.Memory.Usage`` and ``.MemoryUsage`` are "usage" in "memory". A field of null is null. The keys of an object
that vary (hierarchies, devices) are for ``index``. What a guest wrote comes out escaped; ``json`` has it as it is.

Execution is bounded (Budget). Whatever is wrong is an InputError that names the character.
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.host.template_functions import FUNCTIONS, LAZY, Budget, shown
from nestrt.host.template_parse import Block, Call, Literal, Path, Pipeline, Value, Variable, parse, wrong
from nestrt.level.values import suggestion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

TABLE = "table "


class _Break(Exception):
    """{{break}}."""


class _Continue(Exception):
    """{{continue}}."""


def is_template(text: str) -> bool:
    """Whether *text* is meant as a template and not as the name of a format."""
    return "{{" in text or text.startswith(TABLE)


def normal(name: str) -> str:
    """*name* as fields are compared."""
    return name.replace("_", "").lower()


def heading(name: str) -> str:
    """The heading of a field: ``GUEST PID`` of GuestPid and of guest_pid, ``PIDS`` of PIDs."""
    body = name[:-1] if name[-1:] == "s" and name[:-1].isupper() else name
    parts = [
        f" {c}" if c.isupper() and i and (name[i - 1].islower() or body[i + 1 : i + 2].islower()) else c
        for i, c in enumerate(name)
    ]
    return " ".join("".join(parts).replace("_", " ").upper().split())


class Template:
    """A template that has been read. *aliases*: other names of fields ("Names": "name", "MemUsage": "memory.usage").

    *table*: it began with ``table``; then blanks and tabs of its own text separate columns.
    *whole*: it begins with ``{{range .}}``, so it is for all rows together.
    """

    def __init__(self, text: str, aliases: dict[str, str] | None = None) -> None:
        self.table = text.startswith(TABLE)
        # As podman: a line for each row, unless {{.Name -}} trims it.
        self.nodes = parse(text if text.endswith(("\n", "\\n")) else text + "\n", len(TABLE) if self.table else 0)
        self.aliases = {normal(name): path.split(".") for name, path in (aliases or {}).items()}
        self.whole = self._is_whole()
        self.budget = Budget()
        self._check(self.nodes)
        if self.table:
            self.nodes = self._columns(self.nodes)

    def _is_whole(self) -> bool:
        first = self.nodes[0] if self.nodes else None
        if not isinstance(first, Block) or first.word != "range" or first.pipeline is None:
            return False
        command = first.pipeline.commands[0]
        return len(first.pipeline.commands) == 1 and isinstance(command, Path) and not (command.base or command.names)

    def _check(self, nodes: list[Any]) -> None:
        """Refuse functions that there are not, and wrong numbers of arguments, before anything is looked at."""
        for node in nodes:
            if isinstance(node, Block):
                self._check([node.pipeline] if node.pipeline else [])
                self._check(node.body)
                self._check(node.otherwise)
            elif isinstance(node, Pipeline):
                for number, command in enumerate(node.commands):
                    self._check_call(command, min(number, 1))
            elif isinstance(node, (Call, Path)):
                self._check_call(node, 0)

    def _check_call(self, node: Any, piped: int) -> None:
        if isinstance(node, Path) and node.base is not None:
            self._check([node.base])
        if not isinstance(node, Call):
            self._check([node] if isinstance(node, Pipeline) else [])
            return
        if node.name not in FUNCTIONS and node.name not in LAZY:
            remedy = suggestion(node.name, (*FUNCTIONS, *LAZY))
            raise wrong(node.place, node.name, "there is no such function", remedy)
        _, least, most = FUNCTIONS.get(node.name, (None, 1, 0))
        count = len(node.arguments) + piped
        if count < least or (count > most and most):
            many = f"{least}" if least == most else f"at least {least}" if not most else f"{least} to {most}"
            raise wrong(node.place, node.name, f"it has {count} arguments", f"it takes {many}")
        self._check(node.arguments)

    def _columns(self, nodes: list[Any]) -> list[Any]:
        found: list[Any] = []
        for node in nodes:
            if isinstance(node, Literal):
                lines = ["\t".join(line.split()) for line in node.split("\n")]
                text = "\n".join(lines)
                text = "\t" + text.lstrip("\t") if node[:1] in (" ", "\t") else text
                text = text.rstrip("\t") + "\t" if node[-1:] in (" ", "\t") and text != "\t" else text
                found.append(Literal(text))
            elif isinstance(node, Block):
                body, otherwise = self._columns(node.body), self._columns(node.otherwise)
                found.append(Block(node.word, node.pipeline, body, otherwise, node.place))
            else:
                found.append(node)
        return found

    def headings(self) -> str:
        """The line above a table: the same text, with the name of its first field for every action."""
        return "".join(node if isinstance(node, Literal) else self._heading(node) for node in self.nodes)

    def _heading(self, node: Any) -> str:
        for field in _fields(node):
            return heading(field)
        return ""

    def execute(self, value: Any) -> str:
        """The text for one row or document, or for the list of all rows. Raises InputError."""
        self.budget.refill()
        run = _Run(value, self.aliases, "-" if self.table else "<no value>", self.budget)
        try:
            run.nodes(self.nodes)
        except RecursionError:
            raise InputError("read", "the template", "what it is for is nested too deeply") from None
        return "".join(run.out)


def _fields(node: Any) -> Iterator[str]:
    """The last names of the fields in a part of a template, in order."""
    if isinstance(node, Block):
        for part in ([node.pipeline] if node.pipeline else []) + node.body + node.otherwise:
            yield from _fields(part)
    elif isinstance(node, Pipeline):
        for part in node.commands:
            yield from _fields(part)
    elif isinstance(node, Call):
        for part in node.arguments:
            yield from _fields(part)
        if node.name == "index":
            yield from (str(part.value) for part in node.arguments if isinstance(part, Value))
    elif isinstance(node, Path):
        if node.names:
            yield node.names[-1]
        elif node.base is not None:
            yield from _fields(node.base)


class _Run:
    """One execution."""

    def __init__(self, value: Any, aliases: dict[str, list[str]], null: str, budget: Budget) -> None:
        self.dot = value
        self.null = null
        self.variables: list[tuple[str, Any]] = [("", value)]
        self.aliases = aliases
        self.budget = budget
        self.out: list[str] = []

    def nodes(self, nodes: list[Any]) -> None:
        known = len(self.variables)
        for node in nodes:
            self.budget.step()
            if isinstance(node, Literal):
                self.out.append(self.budget.made(node))
            elif node.word == "":
                value = self.pipeline(node.pipeline)
                if not node.pipeline.names:
                    self.budget.place, self.budget.what = node.place, ""
                    self.out.append(self.budget.made(self.null if value is None else shown(value, self.budget)))
            else:
                self.block(node)
        del self.variables[known:]

    def block(self, node: Block) -> None:
        if node.word in ("break", "continue") or node.pipeline is None:
            raise _Break if node.word == "break" else _Continue
        known, dot = len(self.variables), self.dot
        value = self.pipeline(node.pipeline)
        if node.word == "range":
            items = self.items(value, node)
            if items:
                self.loop(node, items)
            else:
                self.nodes(node.otherwise)
        elif value:
            self.dot = value if node.word == "with" else dot
            self.nodes(node.body)
            self.dot = dot
        else:
            self.nodes(node.otherwise)
        del self.variables[known:]

    def items(self, value: Any, node: Block) -> list[tuple[Any, Any]]:
        if value is None:
            return []
        if isinstance(value, dict):
            found = sorted(value.items())
        elif isinstance(value, (list, tuple)):
            found = list(enumerate(value))
        else:
            raise wrong(node.place, "range", "its argument is neither a list nor an object")
        self.budget.step(len(found))
        return found

    def loop(self, node: Block, items: list[tuple[Any, Any]]) -> None:
        dot, known = self.dot, len(self.variables)
        names = node.pipeline.names if node.pipeline else ()
        for key, item in items:
            self.dot = item
            if names:
                self.set(names[-1], item)
            if len(names) == 2:
                self.set(names[0], key)
            inner = len(self.variables)
            try:
                self.nodes(node.body)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self.variables[inner:]
        self.dot = dot
        del self.variables[known:]

    def set(self, name: str, value: Any) -> None:
        for number in range(len(self.variables) - 1, -1, -1):
            if self.variables[number][0] == name:
                self.variables[number] = (name, value)
                return

    def pipeline(self, pipeline: Pipeline) -> Any:
        value = self.value(pipeline.commands[0])
        for command in pipeline.commands[1:]:
            value = self.call(command, [value])
        for name in pipeline.names:
            if pipeline.declares:
                self.variables.append((name, value))
            else:
                self.set(name, value)
        return value

    def value(self, node: Any) -> Any:
        self.budget.step()
        if isinstance(node, Value):
            return node.value
        if isinstance(node, Variable):
            return next(value for name, value in reversed(self.variables) if name == node.name)
        if isinstance(node, Call):
            return self.call(node, [])
        if isinstance(node, Pipeline):
            return self.pipeline(node)
        value = self.dot if node.base is None else self.value(node.base)
        for name in node.names:
            value = self.field(value, name, node.place)
        return value

    def call(self, node: Call, piped: list[Any]) -> Any:
        self.budget.step()
        if node.name in LAZY:
            value = None
            for argument in [*node.arguments, *(Value(value, node.place) for value in piped)]:
                value = self.value(argument)
                if bool(value) == (node.name == "or"):
                    break
            return value
        arguments = [*(self.value(argument) for argument in node.arguments), *piped]
        self.budget.place, self.budget.what = node.place, node.name
        return FUNCTIONS[node.name][0](self.budget, *arguments)

    def field(self, value: Any, name: str, place: int) -> Any:
        """The field *name* of *value*; null of null."""
        self.budget.step()
        if value is None:
            return None
        if not isinstance(value, dict):
            what = "a list" if isinstance(value, (list, tuple)) else "no object"
            remedy = "use range or index" if what == "a list" else ""
            raise wrong(place, "." + name, f"what it is asked of is {what}", remedy)
        found, item = _find(value, normal(name))
        if not found and (path := self.aliases.get(normal(name))):
            found, item = True, value
            for part in path:
                found, item = _find(item, normal(part)) if isinstance(item, dict) else (item is None, None)
                if not found:
                    break
        if not found:
            raise wrong(place, "." + name, "there is no such field", _near(name, value, self.aliases))
        return item


def _find(value: dict[str, Any], wanted: str) -> tuple[bool, Any]:
    """Whether there is such a field, and what it is. ``memoryusage``: "usage" in "memory", where that is an object."""
    if wanted in value:
        return True, value[wanted]
    inner: tuple[bool, Any] = False, None
    for key, item in value.items():
        name = normal(key)
        if name == wanted:
            return True, item
        if name and not inner[0] and wanted.startswith(name):
            if isinstance(item, dict):
                inner = _find(item, wanted[len(name) :])
            elif item is None:
                # An object in other rows perhaps: null has whatever fields are asked for.
                inner = True, None
    return inner


def _near(name: str, value: dict[str, Any], aliases: dict[str, list[str]]) -> str:
    known = ["".join(part.title() for part in key.split("_")) for key in value if key.replace("_", "").isalnum()]
    remedy = suggestion(name, known[:200])
    return remedy.replace("did you mean ", "did you mean .").replace("known: ", "known: .").replace(", ", ", .")
