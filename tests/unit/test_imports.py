"""The rooms' import rules, read from the source, and the start-up contract, in a fresh interpreter.

    errors, record  <-  oci, level  <-  controllers  <-  plan  <-  act
                                      kernel <- probe,   act  <-  host, guest, net, cli
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "nestrt").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]
each_module = pytest.mark.parametrize("path", SOURCES, ids=IDS)

FUNCTION_LINES = 90
MODULE_LINES = 400
# One file on purpose: it is what a guest without nestrt gets. So it can import no room, not even for mount(2). The
# other may lie beside it.
ALONE, BESIDE = "nestrt.guest.client", "nestrt.guest.remote"
LONGER = {ALONE: 1200, BESIDE: 750}
GUEST_PYTHON = (3, 9)

# At nestrt/ itself: what every room may use.
COMMON = {"errors", "record", "jsontext", "packages"}
ROOMS: dict[str, set[str]] = {
    "oci": set(),
    "level": {"oci"},
    "controllers": {"level", "oci"},
    "plan": {"level", "controllers", "oci"},
    "kernel": {"oci"},
    "probe": {"kernel", "plan", "level", "controllers", "oci"},
    "act": {"plan", "kernel", "oci"},
    "net": {"plan", "kernel", "level"},
    "host": {"plan", "kernel", "probe", "controllers", "level"},
    "guest": set(),
    "broker": {"act", "plan", "kernel", "probe", "controllers", "level", "net", "host", "guest", "oci"},
    "cli": {"act", "plan", "kernel", "probe", "controllers", "level", "net", "host", "guest", "oci", "broker"},
}
# What starts a command, top down.
TOP = {"nestrt.start": {"__main__", "act"}, "nestrt.__main__": {"cli", "kernel", "errors"}}
PURE = ("oci", "level", "controllers", "plan")
OPENING = {
    "open", "os.open", "os.fdopen", "os.listdir", "os.scandir", "os.walk", "os.stat", "os.lstat", "os.readlink",
    "os.access", "os.read", "os.write", "os.getxattr", "os.listxattr", "os.path.exists", "os.path.isfile",
    "os.path.isdir", "os.path.islink", "os.path.realpath", "os.makedirs", "os.mkdir", "os.environ", "os.getenv",
}  # fmt: skip
OPENING_MODULES = {"io", "pathlib", "shutil", "tempfile", "subprocess", "socket", "glob", "fcntl", "_io"}
SLOW = {
    "trio", "pyroute2", "rich", "argparse", "dataclasses", "logging", "subprocess", "pathlib", "asyncio", "typing",
    "json", "re", "enum", "contextlib", "collections", "functools", "inspect", "socket", "tempfile", "shutil",
}  # fmt: skip
# What an engine or a user runs per container; a module of cli/ not named here is for the admin.
HOT_ROOMS = ("kernel", "probe", "act", "plan", "controllers", "level", "oci")
HOT_COMMANDS = (
    "launch", "create", "start", "run", "state", "kill", "delete", "exec", "ps",
    "hook", "wrap", "_broker", "_command", "_lxc", "_nspawn", "_plugin", "_scope", "_settle", "_verdict", "_wrapped",
)  # fmt: skip
# A policy file is read only where one is given.
ON_DEMAND = {"nestrt.level.toml"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The room of a module: "level" of nestrt.level.units, "" of nestrt.errors."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "nestrt" / parts[1]).is_dir() else ""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The dotted name of each import, anywhere in a module, and its line; ``from a import b`` is a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def checked_for_types_only(path: Path) -> set[int]:
    """The lines below ``if TYPE_CHECKING:``, which never run."""
    lines: set[int] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def dotted(node: ast.expr) -> str:
    """``os.path.exists`` of such an expression, "" of any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


@each_module
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    module = module_name(path)
    own = room(module)
    below = TOP.get(module) or ROOMS.get(own, set()) | COMMON | {own}
    for name, line in imported(path):
        if name.partition(".")[0] == "nestrt":
            other = room(name) or name.split(".")[1]
            assert other in below, f"{path}:{line}: {module} may not import {name}"


@each_module
def test_only_kernel_uses_ctypes_and_only_net_pyroute2(path: Path) -> None:
    for name, line in imported(path):
        own = room(module_name(path))
        top = name.partition(".")[0]
        libc = own == "kernel" or module_name(path) == ALONE
        assert top not in ("ctypes", "_ctypes") or libc, f"{path}:{line}: ctypes outside kernel/"
        assert top != "pyroute2" or own == "net", f"{path}:{line}: pyroute2 outside net/"


@each_module
def test_the_guests_client_needs_the_standard_library_only(path: Path) -> None:
    if room(module_name(path)) != "guest":
        return
    for name, line in imported(path):
        beside = module_name(path) == BESIDE and name in (ALONE, "client")
        assert beside or name.partition(".")[0] in sys.stdlib_module_names, f"{path}:{line}: {name} is not in a guest"
    ast.parse(path.read_text(), str(path), feature_version=GUEST_PYTHON)


@each_module
def test_pure_rooms_open_nothing(path: Path) -> None:
    """They are given text and values; what would read a file, a directory or the environment is not called."""
    if room(module_name(path)) not in PURE:
        return
    for name, line in imported(path):
        assert name.partition(".")[0] not in OPENING_MODULES, f"{path}:{line}: imports {name}"
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Name, ast.Attribute)):
            assert dotted(node) not in OPENING, f"{path}:{node.lineno}: uses {dotted(node)}"


@pytest.mark.parametrize("path", sorted((ROOT / "nestrt").rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_package_files_are_empty(path: Path) -> None:
    assert path.read_text() == ""


@each_module
def test_modules_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGER.get(module_name(path), MODULE_LINES), f"{path}: {lines} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {size} lines"


def is_hot(path: Path) -> bool:
    name = module_name(path)
    if name in ON_DEMAND:
        return False
    return room(name) in HOT_ROOMS or name in {f"nestrt.cli.{command}" for command in HOT_COMMANDS}


def hot_modules() -> list[str]:
    return [module_name(path) for path in SOURCES if is_hot(path)]


@pytest.mark.parametrize("path", [path for path in SOURCES if is_hot(path)], ids=module_name)
def test_hot_modules_name_no_slow_import_at_their_top(path: Path) -> None:
    """An import inside a function is paid only by those who call it."""
    never = checked_for_types_only(path)
    for node in tree(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node.lineno not in never:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            for name in names:
                assert name.partition(".")[0] not in SLOW, f"{path}:{node.lineno}: imports {name}"


def fresh_interpreter(code: str) -> set[str]:
    """The modules that *code* leaves in sys.modules of an isolated Python without site-packages."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('\\n'.join(sys.modules))"
    argv = ["/usr/bin/python3", "-IS", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_start_up_path_stays_cheap() -> None:
    modules = ["nestrt.__main__", *hot_modules()]
    loaded = fresh_interpreter("".join(f"import {module}\n" for module in modules))
    assert set(modules) <= loaded
    assert not loaded & SLOW


def test_the_stub_stays_cheap_up_to_the_command_line() -> None:
    stub = str(ROOT / "hooks/nestrt")  # what has changed is packed by the first call
    subprocess.run([stub, "launch", "--help"], capture_output=True, timeout=60, check=True)
    argv = ["/usr/bin/python3", "-IS", "-X", "importtime", stub, "launch", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "nestrt.cli.launch" in loaded
    assert not loaded & SLOW


def test_the_contract_would_notice() -> None:
    assert "re" in fresh_interpreter("import json") & SLOW
