"""Start quickly: all modules from one file, as ``hooks/nestrt`` does.

The import system spends 0.2 ms on each module to find, check and read its
compiled file, 14 ms for the 70 of a launch. So their code is kept together in
one file beside the compiled modules, made again whenever a source has changed;
where it cannot be read or written, the ordinary import does the work.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    Stamp = tuple[tuple[str, int, int], ...]

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


def _stamp(files: Sequence[str]) -> Stamp:
    stats = [os.stat(f"{PACKAGE}/{file}") for file in files]
    return tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in zip(files, stats, strict=True))


def _name(file: str) -> str:
    return ".".join(["nestrt", *file[:-3].split("/")]).removesuffix(".__init__")


def pack() -> dict[str, bytes]:
    """Compile every module, without docstrings, into PACK. Raises OSError where it cannot be written."""
    files = _sources()
    stamp = _stamp(files)
    codes = {}
    for file in files:
        path = f"{PACKAGE}/{file}"
        with open(path, "rb") as source:
            codes[_name(file)] = marshal.dumps(compile(source.read(), path, "exec", dont_inherit=True, optimize=2))
    os.makedirs(os.path.dirname(PACK), exist_ok=True)
    temporary = f"{PACK}.{os.getpid()}"
    with open(temporary, "wb") as file_:
        file_.write(marshal.dumps((stamp, codes)))
    os.replace(temporary, PACK)
    return codes


def unpack() -> dict[str, bytes]:
    """The code of every module by name, {} where only the ordinary import can help."""
    try:
        with open(PACK, "rb") as file:
            stamp, codes = marshal.loads(file.read())
        if stamp == _stamp([row[0] for row in stamp]):
            return dict(codes)
    except (OSError, ValueError, EOFError, TypeError):
        pass
    try:
        return pack()
    except (OSError, SyntaxError):
        return {}


class Finder:
    """A meta path finder (importlib.abc) over the packed code."""

    def __init__(self, codes: dict[str, bytes]) -> None:
        self.codes = codes

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.codes:
            return None
        base = f"{PACKAGE}/{'/'.join(name.split('.')[1:])}"
        is_package = os.path.isdir(base)
        origin = f"{base}/__init__.py" if is_package else f"{base}.py"
        spec = ModuleSpec(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(base)
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(marshal.loads(self.codes[module.__name__]), module.__dict__)


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
