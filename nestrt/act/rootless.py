"""An ordinary user's container: the launcher itself becomes root of the container's user namespace first.

What a launcher does before the clone (take mounts apart, make groups) needs
rights that its user has in that namespace only. So it makes the namespace, is
given its ids, and the rest goes as for root at a level that is in one::

    launcher, uid 1000 ── fork ─▶ helper, uid 1000 outside
        unshare(user, mount) ──▶  newuidmap, newgidmap LAUNCHER …   (where one id is not enough)
        root, inside      ◀────

Sources: user_namespaces(7), newuidmap(1), subuid(5).
"""

from __future__ import annotations

import os

from nestrt.errors import HostError, InputError
from nestrt.kernel import id_maps, mount, namespaces
from nestrt.plan.ids import Ranges

PROGRAMS = {"uid_map": "newuidmap", "gid_map": "newgidmap"}
DIRECTORIES = ("/usr/bin", "/bin", "/usr/local/bin")


def _own_only(ranges: Ranges, own: int) -> bool:
    """Whether the kernel lets the process itself write the map: one id, its own."""
    return len(ranges) == 1 and ranges[0][1:] == (own, 1)


def _find(program: str) -> str:
    for directory in DIRECTORIES:
        if os.access(f"{directory}/{program}", os.X_OK):
            return f"{directory}/{program}"
    raise HostError(
        "map", "linux.uidMappings", f"more than the user's own id takes {program}, which is not here", "install uidmap"
    )


def become_root(uids: Ranges, gids: Ranges) -> None:
    """Make a user namespace with these maps, and a mount namespace in it, and be root there.

    Raises InputError (no maps), HostError (no newuidmap, or it refuses: /etc/subuid), OSError (no user namespaces).
    """
    if not uids or not gids:
        raise InputError(
            "run as an ordinary user",
            "a bundle without linux.uidMappings",
            "rootless container requires user namespaces",
            "begin with: nestrt spec --rootless",
        )
    launcher = os.getpid()
    maps = {"uid_map": uids, "gid_map": gids}
    owners = {"uid_map": os.getuid(), "gid_map": os.getgid()}
    helped = [kind for kind in maps if not _own_only(maps[kind], owners[kind])]
    programs = {kind: _find(PROGRAMS[kind]) for kind in helped}
    ready, tell = os.pipe2(os.O_CLOEXEC)
    helper = os.fork() if helped else 0
    if helped and helper == 0:
        _map(launcher, {programs[kind]: maps[kind] for kind in helped}, ready, tell)
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
    except OSError:
        if helper:
            os.kill(helper, 9)
            os.waitpid(helper, 0)
        raise
    os.close(tell)
    os.close(ready)
    if helped:
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
        if status:
            raise HostError(
                "map",
                "linux.uidMappings and gidMappings",
                f"{' or '.join(PROGRAMS[kind] for kind in helped)} refused them",
                "use ids that /etc/subuid and /etc/subgid give this user",
            )
    if "gid_map" not in helped:
        with open("/proc/self/setgroups", "w", encoding="ascii") as file:
            file.write("deny")
    for kind in maps:
        if kind not in helped:
            id_maps.write_id_map(launcher, kind, maps[kind])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    mount.propagation("/", mount.MS_REC | mount.MS_SLAVE)


def _map(launcher: int, programs: dict[str, Ranges], ready: int, tell: int) -> None:
    """In the helper: once the launcher has made its namespace, have its ids mapped by those who may."""
    status = 1
    try:
        os.close(tell)
        os.read(ready, 1)  # the end of it: the launcher has closed its side
        for program, ranges in programs.items():
            words = [str(number) for entry in ranges for number in entry]
            child = os.posix_spawn(program, [program, str(launcher), *words], {})
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:
                break
    finally:
        os._exit(status)
