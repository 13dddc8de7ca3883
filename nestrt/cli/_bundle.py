"""From a bundle's directory and the flags to a plan, for ``create`` and ``run``; and the way back where it fails."""

from __future__ import annotations

import errno
import os
import time

from nestrt.act import containers, destroy
from nestrt.act.container import FIRST, HOST
from nestrt.act.containers import Container
from nestrt.act.creator import Creator
from nestrt.act.groups import hold_parents
from nestrt.cli._descriptors import listening, preserved
from nestrt.cli.engine import Globals, hierarchies_of, lower, trace, warn
from nestrt.cli.options import Option
from nestrt.controllers.oci_devices import with_defaults
from nestrt.controllers.table import missing
from nestrt.errors import HostError, InputError, NestrtError, NotFound, StateError
from nestrt.kernel import caps, selfexe
from nestrt.level.policy import Policy
from nestrt.oci.document import load, require_process
from nestrt.plan.bundle import Bundle
from nestrt.plan.container import plan_container, waits_above
from nestrt.plan.process import ungranted
from nestrt.plan.request import Request
from nestrt.probe.bundle import (
    cgroup_path,
    elsewhere,
    gather_bundle,
    held_devices,
    joined_maps,
    joins_own_network,
    missing_parents,
)
from nestrt.probe.policies import policy_of
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.plan.facts import Facts, Hierarchy
    from nestrt.plan.systemd_text import Property

OPTIONS = (
    Option("bundle", "DIR", "the bundle (default: the current directory)", "b"),
    Option("config", "FILE", "the document, instead of config.json in the bundle", "f"),
    Option("console-socket", "PATH", "send the terminal's master to this Unix socket"),
    Option("pid-file", "FILE", "write the first process's pid there"),
    Option("no-pivot", "", "move the root instead of pivot_root(2), for a root on a ramdisk"),
    Option("no-new-keyring", "", "leave the container the caller's session keyring"),
    Option("preserve-fds", "N", "hand descriptors 3 to N+2 on to the container"),
    Option("pidfd-socket", "PATH", "send a pidfd of the first process to this Unix socket"),
)
HELD = frozenset(caps.NAMES)  # all, in a user namespace of its own
CONFIG_LIMIT = 16 << 20
NOTE = "io.nestrt.limit-group"  # as plan.rewrite writes it


def read_config(bundle: str, file: str) -> tuple[str, str]:
    """The document's text and path. Raises NotFound, InputError."""
    path = os.path.join(bundle, file)
    try:
        with open(path, "rb") as opened:
            data = opened.read(CONFIG_LIMIT + 1)
    except FileNotFoundError as error:
        reason = f"JSON specification file {file} not found: no such file or directory"
        raise NotFound("read", f"bundle {bundle}", reason, "name a bundle with --bundle") from error
    except OSError as error:
        raise NotFound("read", path, lower(error), "name a bundle with --bundle") from error
    if len(data) > CONFIG_LIMIT:
        raise InputError("read", path, f"it is longer than {CONFIG_LIMIT >> 20} MiB", "shorten it")
    return data.decode("utf-8", "replace"), path


def held_names() -> frozenset[str]:
    """The capabilities that this level can give away."""
    return frozenset(map(caps.to_name, caps.current().permitted))


def require_vacant(hierarchies: tuple[Hierarchy, ...], container: Container) -> None:
    """A group with processes is another's, and would be removed with them in the end; in a frozen one nothing starts.

    Raises StateError in runc's words.
    """
    if all(not os.path.isdir(h.path(container.cgroup)) for h in hierarchies):
        return
    from nestrt.act import freeze, remove  # mostly the group is not there yet

    pids = remove.living(hierarchies, container.cgroup)
    if pids:
        reason = f"container's cgroup is not empty: {len(pids)} process(es) found"
    elif freeze.frozen(container):
        reason = "container's cgroup unexpectedly frozen"
    else:
        return
    raise StateError(
        "create", f"container {container.id} in {container.cgroup}", reason, "name another group in linux.cgroupsPath"
    )


def hold_parents_if_allowed(creator: Creator) -> None:
    """As at a launch. Who may not use that lock, an ordinary user or a root of other ids, removes no shared groups."""
    try:
        hold_parents(creator)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def entry_files(bundle: Bundle, facts: Facts) -> list[str]:
    """Where ``start`` is to write the first process's pid: plan.container.waits_above()."""
    if bundle.request is None or not bundle.socket:
        return []
    return [h.path(bundle.request.first_group, "cgroup.procs") for h in waits_above(facts)]


class Making:
    """One container being made: from the flags to the running plan, and back."""

    def __init__(self, flags: Globals, verb: str, single: dict[str, str], id: str) -> None:
        """Read and check everything; nothing is made yet. Raises NestrtError."""
        self.flags = flags
        self.single = single
        self.id = containers.check_id(id)
        containers.require_free(flags.root, id)
        self.bundle_path = os.path.abspath(single.get("bundle") or ".")
        self.text, where = read_config(self.bundle_path, single.get("config", "config.json"))
        self.spec = load(self.text, where)
        for warning in self.spec.warnings:
            warn(flags, warning)
        process = require_process(self.spec, where)
        if count := listening():
            env = (*process.env, f"LISTEN_FDS={count}", "LISTEN_PID=1")
            self.spec = replace(self.spec, process=replace(process, env=env))
        for name in ungranted(process, HELD if self.spec.namespace("user") else held_names()):
            warn(flags, f"process.capabilities: {name} is not to be had here, and is left out")
        self.fds = preserved(single)
        # A mount cannot be attached at a symlink.
        self.rootfs = os.path.realpath(os.path.join(self.bundle_path, self.spec.root_path))
        if not os.path.isdir(self.rootfs):
            reason = "not a directory" if os.path.lexists(self.rootfs) else "no such file or directory"
            raise NotFound("open", f"root filesystem {self.rootfs}", reason, "correct root.path")
        self.verb = verb
        self.bound: dict[str, object] = {}
        self.container: Container
        self.lock = -1

    def policy(self, cgroup: str) -> Policy | None:
        if self.spec.annotation(NOTE) is not None and self.prepared():
            return None  # the plugin has made a guest of it, and its hooks do the rest
        root = next((outside for inside, outside, _ in self.spec.uid_mappings if inside == 0), 0)
        users = (os.getuid(), root)
        return policy_of(self.spec.annotations, (cgroup or self.spec.cgroups_path, self.bundle_path, users))

    def prepared(self) -> bool:
        """Whether a limit group of the plugin's stands above linux.cgroupsPath. Raises InputError for a forged note."""
        from nestrt.act import plugin
        from nestrt.plan.rewrite import RECORD, noted_group
        from nestrt.probe.facts import read_hierarchies

        group = noted_group(self.spec)
        return plugin.is_prepared(read_hierarchies(), group, self.spec.annotation(RECORD) or "")

    def plan(self) -> tuple[Bundle, Facts]:
        """What will be made, by facts that are read now. Raises NestrtError."""
        spec, flags, single = self.spec, self.flags, self.single
        systemd = flags.manager == "systemd"
        cgroup = spec.cgroups_path
        if not systemd:
            cgroup = "" if flags.manager == "disabled" else cgroup_path(spec.cgroups_path, self.id)
        policy = self.policy(cgroup)
        if policy is not None and flags.manager == "disabled":
            reason = "a policy is about its groups, and it is to have none"
            raise InputError("give a policy to", f"container {self.id}", reason, "leave --cgroup-manager out")
        rules = with_defaults(spec.resources.devices, spec.devices)
        if policy is not None:
            from nestrt.plan.handles import forbid_handles  # not for what runs as under runc
            from nestrt.plan.policy_limits import for_bundle

            self.bound = policy.limits.to_mark()
            given = policy, spec
            policy, spec, rules = for_bundle(*given)
            spec = forbid_handles(spec, os.uname().machine)
        unit = ""
        properties: tuple[Property, ...] = ()
        if systemd and policy is not None:
            from nestrt.plan.scope import require_plain

            require_plain(spec.annotations)
        if systemd:
            from nestrt.act.unit import scope_of  # D-Bus, by libsystemd

            scope = scope_of(spec, self.id, rules)
            unit, cgroup, properties, spec = scope.name, scope.cgroup, scope.properties, scope.spec
        request = None
        if policy is not None:
            args = spec.process.args if spec.process else ()
            from nestrt.level.binding import made_by

            directory = f"{flags.root}/{self.id}"
            origin = (*made_by("nestrt", spec.annotations, self.bundle_path), ("directory", directory))
            request = Request(self.id, self.rootfs, args, policy, cgroup=cgroup, net="bundle", origin=origin)
        facts = gather_bundle(cgroup, request)
        held = held_devices(facts)
        if request is not None:
            from nestrt.level.check import check
            from nestrt.level.limits import Limits

            if held is not None:
                policy, _, rules = for_bundle(*given, held)
                request = replace(request, policy=policy)
            # The host's own amounts bound nothing, as under runc: a limit beyond them is none.
            check(request.policy, request.policy.limits if facts.level.number else Limits(), facts.has)
            if request.served:
                from nestrt.cli._broker import with_socket

                spec = with_socket(spec, request)
        elif held is not None:
            rules = with_defaults(spec.resources.devices, spec.devices, held)
        if cgroup and not facts.hierarchies:
            cgroup = ""
            self.unlimited()
        bundle = Bundle(
            self.id,
            self.bundle_path,
            self.rootfs,
            spec,
            cgroup,
            flags.manager,
            unit,
            properties,
            rules,
            request,
            f"{flags.root}/{self.id}/{containers.SOCKET}" if self.verb == "create" else "",
            os.path.abspath(single["console-socket"]) if "console-socket" in single else "",
            "no-pivot" not in single,
            "no-new-keyring" not in single,
            self.fds,
            joined_maps(spec),
            joins_own_network(spec),
            elsewhere(facts) if facts.in_userns and request is None else (),
        )
        return bundle, facts

    def make(self, signals: set[int]) -> Creator:
        """Carry the plan out; whatever fails, nothing stays behind. Raises NestrtError, OSError."""
        os.umask(0o022)
        pid = self.spec.namespace("pid")
        host_root = os.geteuid() == 0 and self.spec.namespace("user") is None
        if host_root and self.spec.hooks.start_container:
            selfexe.protect()  # they run as the container's user, beside the first process
        if host_root and pid is not None and pid.path:
            selfexe.protect()  # others live in there already
            containers.expose_sharing(self.flags.root, pid.path)
        self.owner = os.getuid()
        if os.geteuid() != 0:
            self.become_root()
        bundle, facts = self.plan()
        if bundle.cgroup and bundle.driver == "cgroupfs":
            require_vacant(facts.hierarchies, Container(self.flags.root, self.id, {"cgroup": bundle.cgroup}))
        now = time.time()
        plan = plan_container(bundle, facts, os.urandom(8).hex(), int(now))
        self.lock = containers.reserve(self.flags.root, self.id)
        self.container = Container(self.flags.root, self.id, self.document(bundle, facts, now))
        pid_file = self.single.get("pid-file", "")
        pid_file = os.path.abspath(pid_file) if pid_file else ""
        creator = Creator(plan, bundle, self.container, signals, (HOST, FIRST), pid_file)
        try:
            containers.write_file(f"{self.container.directory}/{containers.CONFIG}", self.text)
            self.container.save()
            if bundle.cgroup:
                hold_parents_if_allowed(creator)
            if "pidfd-socket" in self.single:
                creator.pidfd_socket = os.path.abspath(self.single["pidfd-socket"])
            creator.warn = lambda text: warn(self.flags, text)
            trace(self.flags, creator)
            creator.run()
        except BaseException:
            creator.abandon()
            self.undo(entered=bool(creator.pid))
            raise
        return creator

    def document(self, bundle: Bundle, facts: Facts, now: float) -> dict[str, object]:
        """What the state file begins with: all that is needed to remove what is made from here on."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        return {
            "v": containers.VERSION,
            "id": self.id,
            "ociVersion": self.spec.version,
            "bundle": self.bundle_path,
            "rootfs": self.rootfs,
            "created": f"{stamp}.{int(now % 1 * 1e9):09d}Z",
            "owner": self.owner,
            "boot": containers.boot_id(),
            "cgroup": bundle.cgroup,
            "driver": bundle.driver,
            "unit": bundle.unit,
            "parents": missing_parents(facts.hierarchies, bundle.cgroup),
            "virtualized": bundle.request is not None,
            "bound": self.bound,
            "entry": entry_files(bundle, facts),
            "own_pids": any(entry.type == "pid" and not entry.path for entry in self.spec.namespaces),
            "annotations": dict(self.spec.annotations),
            "pivot": bundle.pivot,
        }

    def unlimited(self) -> None:
        """There is no group that may be made here: said, and an error if the document asks for limits."""
        asked = missing(self.spec.resources, (), None)
        if asked:
            raise HostError(
                "limit",
                f"container {self.id}",
                f"no cgroup hierarchy can be written here, for {', '.join(asked)}",
                "run it as root or in a delegated group, or take them out of linux.resources",
            )
        warn(self.flags, f"container {self.id} has no groups and no limits: no cgroup hierarchy can be written here")

    def become_root(self) -> None:
        """An ordinary user: from here on in the container's user namespace, which the plan then need not make."""
        from nestrt.act import rootless  # not for root

        spec = self.spec
        rootless.become_root(spec.uid_mappings, spec.gid_mappings)
        self.spec = replace(spec, namespaces=tuple(entry for entry in spec.namespaces if entry.type != "user"))

    def finish(self) -> None:
        """Remove the container that has ended, unless somebody has removed it, and maybe made another of that name."""
        container = self.container
        try:
            self.lock = containers.lock(container.directory)
            found = containers.load(container.root, container.id)
        except (FileNotFoundError, NotFound):
            return
        if (found.pid, found.start_time) == (container.pid, container.start_time):
            self.undo()

    def undo(self, entered: bool = True) -> None:
        """Remove all that was made; what cannot be removed is said, and does not hide why."""
        found = hierarchies_of(self.container)
        try:
            destroy.destroy(self.container, found, lambda text: warn(self.flags, text), entered)
        except (NestrtError, OSError) as error:
            warn(self.flags, str(error))
        finally:
            os.close(self.lock)
