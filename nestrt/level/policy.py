"""The CONTAINER_LEVEL policy: what a guest may see, divide and do, whatever source it came from."""

from __future__ import annotations

from nestrt.level.limits import Limits
from nestrt.record import record

LEVEL_LIMIT = 32  # user and pid namespaces nest no deeper: user_namespaces(7), pid_namespaces(7)
MOUNTS = ("rw", "ro", "none")
STARTS = ("init", ".")
CPU_NUMBERS = ("renumbered", "host")
NAMESPACES = ("auto", "map", "none")
BROKERS = ("none", "wanted", "required")
# What a guest may ask of its broker, lowest and highest: requests a second, connections, bytes of one call.
QUOTAS = {"broker_requests": (1, 1_000_000), "broker_connections": (1, 10_000), "broker_message": (1024, 1 << 22)}


@record
class Policy:
    """One policy. Defaults are the profile ``default``, which nothing needs to be read for.

    *max_level* is a level's own number, the host being 0: a guest at level n may
    launch one at n+1 where n+1 <= max_level. *override* lets the launching level
    give more than its parent has; never more levels. *strict*: a guest of another
    runtime for which a law is found not to hold is stopped, not only reported. *broker*: whether the guest
    gets a socket of the level's broker: ``none``, ``wanted`` (where there is a broker), or ``required`` (else
    it does not start). *broker_requests* (a second), *broker_connections* and *broker_message* (bytes of one call)
    take the place of what the broker's options say for every guest; None leaves it to them. Those of them that are
    named in *broker_most* hold only where they are less than the broker's: see bound.quotas(). *controllers* are
    canonical (v2) names, None being all that the kernel has. *start_in* is the first
    process's group below the guest root, "." the root itself. *max_groups* and
    *max_depth* count from the limit group, as cgroup.max.descendants and
    cgroup.max.depth do: guest root and first group are 2 of both.

    *user_namespace*: ``auto`` (a range of ids of its own), ``map`` (*uid_map*
    and *gid_map*, each (inside, outside, count)), or ``none``. *capabilities*
    None leaves it to the user namespace: all in one, the usual few without;
    ("all",) is all that the launching level has. *masked* covers the paths of
    /proc and /sys that tell of the host; a guest that has it can mount no whole
    /proc, so it launches no guests (mount_namespaces(7)).

    *source* names it in errors and marks: "default" or the file.
    """

    virtualize: bool = True
    max_level: int = 3
    override: bool = False
    strict: bool = False
    broker: str = "none"
    broker_requests: int | None = None
    broker_connections: int | None = None
    broker_message: int | None = None
    broker_most: tuple[str, ...] = ()
    mount: str = "rw"
    controllers: tuple[str, ...] | None = None
    start_in: str = "init"
    cpus: str = "renumbered"
    divide_cpu: bool = True
    divide_memory: bool = True
    divide_pids: bool = True
    divide_io: bool = True
    divide_devices: bool = True
    max_groups: int = 1000
    max_depth: int = 8
    user_namespace: str = "auto"
    uid_map: tuple[tuple[int, int, int], ...] = ()
    gid_map: tuple[tuple[int, int, int], ...] = ()
    capabilities: tuple[str, ...] | None = None
    no_new_privs: bool = True
    masked: bool = False
    limits: Limits = Limits()
    source: str = "default"
