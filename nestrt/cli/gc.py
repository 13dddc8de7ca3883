"""``nestrt gc``: remove what killed launches left, and ended guests that were launched with ``--rm``."""

from __future__ import annotations

import os
import sys

from nestrt import jsontext
from nestrt.act import containers, plugin, remove
from nestrt.act.containers import Container
from nestrt.act.destroy import destroy
from nestrt.cli._guests import disconnector, each
from nestrt.cli.engine import STATE_ROOT, hierarchies_of
from nestrt.cli.options import Option, parse, usage
from nestrt.errors import InputError, NestrtError, NotFound
from nestrt.plan.facts import Hierarchy
from nestrt.plan.request import PARENT, STATE_DIR, state_file
from nestrt.probe.facts import primary, read_hierarchies

HEAD = """usage: nestrt gc [--all]

Remove what is left of launches and creates that were killed, of guests of other runtimes
whose engine has gone, and of guests that have ended and were launched with --rm. Prints
each name. Running guests are left alone."""
OPTIONS = (
    Option("all", "", "also ended guests that were launched without --rm", "a"),
    Option("help", "", "this text", "h"),
)


def _state(name: str) -> dict[str, object]:
    try:
        with open(state_file(name), encoding="utf-8", errors="replace") as file:
            value = jsontext.loads(file.read(remove.STATE_LIMIT))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def candidates(hierarchies: tuple[Hierarchy, ...]) -> list[str]:
    """Every name that nestrt knows here: state files, and marked groups that have lost theirs (/run was emptied)."""
    found = set(remove.names())
    for hierarchy in hierarchies:
        try:
            entries = list(os.scandir(hierarchy.path(PARENT)))
        except OSError:
            continue
        for entry in entries:
            # One without a mark and without a state file is not of nestrt's making: the file comes first.
            if entry.is_dir(follow_symlinks=False) and remove.read_mark(hierarchy, f"{PARENT}/{entry.name}"):
                found.add(entry.name)
    return sorted(found)


def _is_over(
    name: str, hierarchies: tuple[Hierarchy, ...], mark: dict[str, object], known: bool, everything: bool
) -> bool:
    """Whether a guest that nobody launches is to be removed: broken, or ended and not to be kept.

    *known*: it has a state file. Without one nothing that lives is taken for a launch that was killed.
    """
    running = mark.get("state") == "running"
    if (running or not known) and remove.living(hierarchies, f"{PARENT}/{name}"):
        return False
    if not running:
        return True
    return everything or bool(mark.get("rm") or _state(name).get("rm"))


def collect(name: str, hierarchies: tuple[Hierarchy, ...], everything: bool) -> None:
    """Remove what is left of *name*, and print it, if it is over. Raises StateError and KernelError."""
    known = os.path.lexists(state_file(name))
    lock = remove.claim(name)
    if lock is None:
        return  # its launcher lives
    try:
        mark = remove.read_mark(primary(hierarchies), f"{PARENT}/{name}")
        if _is_over(name, hierarchies, mark, known, everything):
            remove.remove(name, hierarchies, disconnector(name, mark))  # type: ignore[arg-type]
            print(name)
        elif not known:
            os.unlink(state_file(name))
    finally:
        os.close(lock)


def stale_ids() -> None:
    """Give back ids whose guest has no state file: its launcher was killed between the two."""
    directory = f"{STATE_DIR}/ids"
    for link in os.listdir(directory) if os.path.isdir(directory) else ():
        try:
            if not os.path.lexists(state_file(os.readlink(f"{directory}/{link}"))):
                os.unlink(f"{directory}/{link}")
        except OSError:
            continue


def collect_container(container: Container) -> None:
    """Remove what a ``create`` or ``run`` that was killed left, and print its id. Engines own the rest."""
    try:
        lock = containers.lock(container.directory, 0)
    except (FileNotFoundError, BlockingIOError):
        return  # somebody makes or removes it
    try:
        found = containers.load(container.root, container.id)
        if not found.pid:
            destroy(found, hierarchies_of(found), lambda text: print(f"nestrt: warning: {text}", file=sys.stderr))
            print(found.id)
    except NotFound:
        return
    finally:
        os.close(lock)


def main(argv: list[str]) -> int:
    """Run the command: 0 also when there was nothing to remove, else the status of what could not be."""
    single, _, rest = parse(OPTIONS, argv, "gc")
    if "help" in single:
        sys.stdout.write(usage(HEAD, OPTIONS))
        return 0
    if rest:
        raise InputError("read", f"argument {rest[0]}", "gc takes no names", "to remove one guest: nestrt delete NAME")
    hierarchies = read_hierarchies(make=True)
    status = each(candidates(hierarchies), lambda name: collect(name, hierarchies, "all" in single))
    for container in containers.all_containers(STATE_ROOT):
        if not isinstance(container, NestrtError):
            collect_container(container)
    for group in plugin.sweep(hierarchies, most=1 << 20):
        print(group)
    stale_ids()
    remove.remove_parent(hierarchies)
    return status
