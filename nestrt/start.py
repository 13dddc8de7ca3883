"""Start quickly: all modules from one file, as ``hooks/nestrt`` does.

The import system spends 0.2 ms on each module to find, check and read its
compiled file, 14 ms for the 70 of a launch. So their code is kept together in
one file beside the compiled modules, made again whenever a source has changed;
where it cannot be read or written, the ordinary import does the work.

The file begins with an index, which alone is read at the start; a module's code is read when it is imported. The
index knows what each module imports, so that those are there before it asks: importlib spends 0.1 ms on each.

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
    from typing import Any, BinaryIO

    Stamp = tuple[int, int]  # st_mtime_ns, st_size
    # A Stamp; where in the pack the module is (offset, length); its file; what it imports of ours at its top.
    Index = dict[str, tuple[int, int, int, int, str, tuple[str, ...]]]

PACKAGE = os.path.dirname(os.path.abspath(__file__))
PACK = f"{PACKAGE}/__pycache__/pack.{sys.implementation.cache_tag}"

# guest/ stands alone, and shows its docstrings as help; broker/ is a daemon's, which starts once.
LEFT_OUT = ("guest", "broker")


def _sources() -> list[str]:
    """Every module's file, relative to the package."""
    found = []
    for directory, directories, files in os.walk(PACKAGE):
        directories[:] = [name for name in directories if name not in ("__pycache__", *LEFT_OUT)]
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


def _tree(path: str) -> ast.Module:
    import ast

    with open(path, "rb") as source:
        tree: ast.Module = _plain(ast.parse(source.read(), path))
    return tree


def _compiled(tree: ast.Module, path: str) -> bytes:
    return marshal.dumps(_bare(compile(tree, path, "exec", dont_inherit=True, optimize=2)))


ROW = 6  # what the index has of a module
LENGTH = 8  # bytes of the index's own length, which is the first thing in the pack


def _sealed(stamp: Stamp) -> bytes:
    """What stands before a module's code: another process may have written another pack since the index was read."""
    return b"".join(number.to_bytes(8, "little") for number in stamp)


def _imports(tree: ast.Module, known: frozenset[str]) -> tuple[str, ...]:
    """The modules of *known* that a module imports at its top, in order, the packages that they are in first."""
    import ast

    found: dict[str, None] = {}
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            found.update(dict.fromkeys(".".join(parts[:end]) for end in range(2, len(parts) + 1)))
    return tuple(name for name in found if name in known)


def pack() -> Index:
    """Compile every module into PACK. Raises OSError where it cannot be written."""
    os.makedirs(os.path.dirname(PACK), exist_ok=True)
    temporary = f"{PACK}.{os.getpid()}"
    # First of all: where it cannot be written, no start shall spend seconds to find that out at the end.
    file_ = open(temporary, "wb")
    try:
        with file_:
            index, begin = _write(file_)
        os.replace(temporary, PACK)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return _placed(index, begin)


def _write(out: BinaryIO) -> tuple[Index, int]:
    """Write index and code; the index, and where the code begins."""
    parts: list[bytes] = []
    index: Index = {}
    end = 0
    sources = _sources()
    known = frozenset(map(_name, sources)) - {"nestrt"}
    for file in sources:
        path = f"{PACKAGE}/{file}"
        stamp = _stamp(path)
        tree = _tree(path)
        parts.append(_sealed(stamp) + _compiled(tree, path))
        index[_name(file)] = (*stamp, end, len(parts[-1]), file, _imports(tree, known))
        end += len(parts[-1])
    # Offsets count from the end of the index, whose length depends on them.
    head = marshal.dumps(index)
    out.writelines((len(head).to_bytes(LENGTH, "little"), head, *parts))
    return index, LENGTH + len(head)


def _placed(index: Index, begin: int) -> Index:
    return {name: (*row[:2], row[2] + begin, *row[3:]) for name, row in index.items()}


def unpack() -> Index:
    """Where the code of every module is, {} where only the ordinary import can help."""
    try:
        fd = os.open(PACK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _packed()
    try:
        content = os.read(fd, 65536)
        length = int.from_bytes(content[:LENGTH], "little")
        if length > len(content) - LENGTH:
            content += os.pread(fd, min(length, 1 << 24), len(content))
        index = marshal.loads(content[LENGTH : LENGTH + length])
        if isinstance(index, dict) and all(len(row) == ROW for row in index.values()):
            return _placed(index, LENGTH + length)
    except (OSError, ValueError, EOFError, TypeError):
        pass
    finally:
        os.close(fd)
    return _packed()


def _packed() -> Index:
    try:
        return pack()
    except (OSError, SyntaxError):
        return {}


class Finder:
    """A meta path finder (importlib.abc) over the packed code; what has changed since is packed again, once."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.fresh = False
        self.found: dict[str, bytes] = {}  # between find_spec and exec_module

    def code(self, name: str, origin: str) -> bytes | None:
        """The code of module *name*, whose file is *origin*; None: the ordinary import is to look."""
        try:
            stamp = _stamp(origin)
        except OSError:
            return None
        code = self._read(name, stamp)
        if code is None and not self.fresh:
            self.fresh = True
            self.index = _packed()
            code = self._read(name, stamp)
        return code

    def _read(self, name: str, stamp: Stamp) -> bytes | None:
        place = self.index.get(name)
        if place is None or place[:2] != stamp:
            return None
        try:
            fd = os.open(PACK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            content = os.pread(fd, place[3], place[2])
        except OSError:
            return None
        finally:
            os.close(fd)
        seal = _sealed(stamp)
        return content[len(seal) :] if len(content) == place[3] and content.startswith(seal) else None

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith("nestrt.") or name.split(".")[1] in LEFT_OUT:
            return None
        base = f"{PACKAGE}/{'/'.join(name.split('.')[1:])}"
        is_package = os.path.isdir(base)
        origin = f"{base}/__init__.py" if is_package else f"{base}.py"
        code = self.code(name, origin)
        if code is None:
            return None
        self.found[name] = code
        spec = ModuleSpec(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(base)
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        code = self.found.pop(module.__name__)
        for name in self.index[module.__name__][5]:
            self._bring(name)
        exec(marshal.loads(code), module.__dict__)

    def _bring(self, name: str) -> None:
        """Import the module *name* as importlib would, where it is as it was packed; else the import itself does it."""
        if name in sys.modules or name not in self.index:
            return
        file = self.index[name][4]
        origin = f"{PACKAGE}/{file}"
        code = self.code(name, origin)
        if code is None:
            return
        parent, _, last = name.rpartition(".")
        module = type(sys)(name)
        module.__file__ = origin
        module.__package__ = parent
        if file.endswith("__init__.py"):
            module.__package__, module.__path__ = name, [os.path.dirname(origin)]
        sys.modules[name] = module
        try:
            for other in self.index[name][5]:
                self._bring(other)
            exec(marshal.loads(code), module.__dict__)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        setattr(sys.modules[parent], last, module)


def run(argv: list[str]) -> None:
    """Run a command and leave without the interpreter's own clean-up, which frees what the kernel frees anyway."""
    index = unpack()
    if index:
        sys.meta_path.insert(0, Finder(index))
    from nestrt.__main__ import main

    status = main(argv)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1  # what was to be printed is lost
    os._exit(status)
