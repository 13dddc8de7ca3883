"""Start quickly: all modules from one file, as ``hooks/nestrt`` does.

The import system spends 0.2 ms on each module to find, check and read its
compiled file, 14 ms for the 70 of a launch. So their code is kept together in
one file beside the compiled modules, made again whenever a source has changed;
where it cannot be read or written, the ordinary import does the work.

What is kept has less in it: no docstrings, no annotations but those of classes
(record.py reads them), nothing that stands below ``if TYPE_CHECKING`` and no
line numbers, which is a third of the bytes to read.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from types import CodeType, ModuleType
    from typing import Any

    Stamp = tuple[int, int]  # st_mtime_ns, st_size
    Codes = dict[str, tuple[int, int, bytes]]

PACKAGE = os.path.dirname(os.path.abspath(__file__))
PACK = f"{PACKAGE}/__pycache__/pack.{sys.implementation.cache_tag}"


def _sources() -> list[str]:
    """Every module's file, relative to the package."""
    found = []
    for directory, directories, files in os.walk(PACKAGE):
        # guest/ is one file that stands alone, and shows its docstrings as help.
        directories[:] = [name for name in directories if name not in ("__pycache__", "guest")]
        found += [f"{directory}/{name}"[len(PACKAGE) + 1 :] for name in files if name.endswith(".py")]
    return sorted(found)


def _stamp(path: str) -> Stamp:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


def _name(file: str) -> str:
    return ".".join(["nestrt", *file[:-3].split("/")]).removesuffix(".__init__")


def _plain(tree: ast.Module) -> Any:
    """*tree* without what only type checkers read."""
    import ast

    class Bare(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> Any:
            self.generic_visit(node)
            return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

        def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
            node.returns = None
            arguments = node.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                argument.annotation = None
            for rest in (arguments.vararg, arguments.kwarg):
                if rest is not None:
                    rest.annotation = None
            self.generic_visit(node)
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
            self.generic_visit(node)
            if node.value is None:
                return ast.Pass()
            return ast.Assign([node.target], node.value)

        def visit_ClassDef(self, node: ast.ClassDef) -> Any:
            # Its own annotations are its fields.
            node.body = [part if isinstance(part, ast.AnnAssign) else self.visit(part) for part in node.body]
            return node

    return ast.fix_missing_locations(Bare().visit(tree))


def _bare(code: CodeType) -> CodeType:
    """*code* and all that is in it without line numbers."""
    constants = tuple(_bare(item) if hasattr(item, "co_code") else item for item in code.co_consts)
    return code.replace(co_consts=constants, co_linetable=b"")


def _compiled(path: str) -> bytes:
    import ast

    with open(path, "rb") as source:
        tree = _plain(ast.parse(source.read(), path))
    return marshal.dumps(_bare(compile(tree, path, "exec", dont_inherit=True, optimize=2)))


def pack() -> Codes:
    """Compile every module into PACK. Raises OSError where it cannot be written."""
    codes: Codes = {}
    for file in _sources():
        path = f"{PACKAGE}/{file}"
        codes[_name(file)] = (*_stamp(path), _compiled(path))
    os.makedirs(os.path.dirname(PACK), exist_ok=True)
    temporary = f"{PACK}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file_:
            file_.write(marshal.dumps(codes))
        os.replace(temporary, PACK)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return codes


def unpack() -> Codes:
    """The code of every module by name, {} where only the ordinary import can help."""
    try:
        with open(PACK, "rb") as file:
            codes = marshal.loads(file.read())
        if isinstance(codes, dict):
            return codes
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return _packed()


def _packed() -> Codes:
    try:
        return pack()
    except (OSError, SyntaxError):
        return {}


class Finder:
    """A meta path finder (importlib.abc) over the packed code; what has changed since is packed again, once."""

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        self.fresh = False

    def code(self, name: str, origin: str) -> bytes | None:
        """The code of module *name*, whose file is *origin*; None: the ordinary import is to look."""
        try:
            stamp = _stamp(origin)
        except OSError:
            return None
        found = self.codes.get(name)
        if (found is None or found[:2] != stamp) and not self.fresh:
            self.fresh = True
            self.codes = _packed()
            found = self.codes.get(name)
        return found[2] if found is not None and found[:2] == stamp else None

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith("nestrt."):
            return None
        base = f"{PACKAGE}/{'/'.join(name.split('.')[1:])}"
        is_package = os.path.isdir(base)
        origin = f"{base}/__init__.py" if is_package else f"{base}.py"
        if self.code(name, origin) is None:
            return None
        spec = ModuleSpec(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(base)
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(marshal.loads(self.codes[module.__name__][2]), module.__dict__)


def run(argv: list[str]) -> None:
    """Run a command and leave without the interpreter's own clean-up, which frees what the kernel frees anyway."""
    codes = unpack()
    if codes:
        sys.meta_path.insert(0, Finder(codes))
    from nestrt.__main__ import main

    status = main(argv)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1  # what was to be printed is lost
    os._exit(status)
