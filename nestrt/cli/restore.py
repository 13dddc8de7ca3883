"""``nestrt restore``: make a container of the files that ``checkpoint`` wrote, and let it go on.

::

    groups and limits of the bundle       as create makes them
    helper ── moved to the guest root ──▶ cgroup namespace ── moved to the first process's group
    the groups that the guest had made    with their limits and owners
    helper becomes CRIU ─────────────────▶ all processes, each in its group; hooks at setup-namespaces
    state file, pid file
"""

from __future__ import annotations

import os
import time

from nestrt import jsontext
from nestrt.act import containers, criu, hooks, relay
from nestrt.act.container import FIRST, HOST
from nestrt.act.containers import Container
from nestrt.act.creator import Creator, of_stage, reach, tell_pid
from nestrt.act.groups import hold_parents
from nestrt.act.pipes import open_standard
from nestrt.act.remove import living
from nestrt.act.saved import Maker, key
from nestrt.cli._bundle import OPTIONS as BUNDLE
from nestrt.cli._bundle import Making
from nestrt.cli.checkpoint import SHARED, configured, shared_options
from nestrt.cli.engine import Globals, one_id, trace, words
from nestrt.cli.options import Option
from nestrt.errors import InputError, NestrtError, NotFound, StateError
from nestrt.kernel import cgroup, pidfd, signalfd, terminal
from nestrt.kernel.mountinfo import read_cgroups
from nestrt.oci.getter import load_text
from nestrt.plan import criu as rpc
from nestrt.plan.bundle import identity
from nestrt.plan.container_groups import container_groups
from nestrt.plan.groups import late_steps, mark
from nestrt.plan.host_steps import MarkRunning
from nestrt.plan.saved import CHECKPOINT, GROUPS, Checkpoint, Tree, parse_checkpoint, parse_trees
from nestrt.plan.steps import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nestrt.plan.bundle import Bundle
    from nestrt.plan.criu import Answer, Value
    from nestrt.plan.facts import Facts
    from nestrt.plan.steps import Step

TEXT = """usage: nestrt restore [OPTION …] ID

Make a container of image files that nestrt checkpoint wrote, from the same bundle or one like it. Limits are
those of the bundle; the groups that the guest had made are made again below them."""
TAKEN = ("bundle", "console-socket", "pid-file", "no-pivot", "pidfd-socket")
OPTIONS = (
    *(option for option in BUNDLE if option.name in TAKEN),
    *SHARED,
    Option("detach", "", "leave when it runs", "d"),
    Option("no-subreaper", "", "accepted and without effect: nestrt is no subreaper"),
    Option("lsm-profile", "TYPE:NAME", "another profile: apparmor:NAME or selinux:NAME"),
    Option("lsm-mount-context", "CONTEXT", "another SELinux context for mounts that have one"),
)
LOG = "restore.log"
FILE_LIMIT = 64 << 20


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb; returns 0 with --detach, else the program's exit status. Raises NestrtError."""
    found = words("restore", OPTIONS, argv, TEXT)
    if found is None:
        return 0
    single, repeated, operands = found
    restoring = Restoring(flags, single, repeated, one_id("restore", operands))
    open_standard()
    detach = "detach" in single
    creator = restoring.restore(relay.blocked() if detach else relay.hold())
    if detach:
        return 0
    status = relay.foreground(creator.pid, creator.pidfd, restoring.master)
    restoring.undo()
    return status


class Restoring(Making):
    """One container being made of an image."""

    def __init__(self, flags: Globals, single: dict[str, str], repeated: dict[str, list[str]], id: str) -> None:
        super().__init__(flags, "restore", single, id)
        if os.geteuid() != 0:
            raise InputError("restore", f"container {id}", "criu needs root", "run it as root")
        self.program = criu.find(flags.criu)
        self.options = shared_options(single, repeated) + configured(self.spec)
        image = self.image_path = os.path.abspath(single.get("image-path") or "checkpoint")
        self.work_path = os.path.abspath(single.get("work-path") or image)
        try:
            self.image = os.open(image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise NotFound("open", f"--image-path {image}", reason, "name what checkpoint wrote") from error
        self.work = criu.directory(self.work_path, "--work-path")
        self.saved: Checkpoint = load_text(self._read(CHECKPOINT), f"{image}/{CHECKPOINT}", parse_checkpoint)
        text = self._read(GROUPS, missing="")
        self.trees: tuple[Tree, ...] = load_text(text, f"{image}/{GROUPS}", parse_trees) if text else ()
        self.sources: dict[str, str] = {}
        self.master: int | None = None
        self.limited: frozenset[tuple[str, ...]] = frozenset()
        self.later: tuple[list[Step], list[Maker]] = ([], [])

    def _read(self, name: str, missing: str | None = None) -> str:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.image)
        except OSError as error:
            if missing is not None:
                return missing
            reason = f"{name}: {(error.strerror or '').lower()}"
            raise NotFound("read", "the image", reason, "name what nestrt checkpoint wrote") from error
        with open(fd, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
        if len(data) > FILE_LIMIT:
            raise InputError("read", name, f"it is longer than {FILE_LIMIT >> 20} MiB", "save it again")
        return data.decode("utf-8", "replace")

    def restore(self, signals: set[int]) -> Creator:
        """Carry it out; whatever fails, nothing stays behind. Raises NestrtError, OSError."""
        os.umask(0o022)
        self.owner = os.getuid()
        bundle, facts = self.plan()
        vacant(bundle, facts)
        self._alike(bundle)
        own = rpc.own_cgroups(bundle.spec, bundle.request is not None)
        groups = {} if own else rpc.cgroup_targets(self.spec, facts.hierarchies, bundle.cgroup)
        self.sources = rpc.sources(self.saved.external, self.spec, groups)
        self.limited = frozenset(map(key, facts.hierarchies))
        now = time.time()
        steps = container_groups(bundle, facts, generation := os.urandom(8).hex(), identity(bundle), int(now))
        self.lock = containers.reserve(self.flags.root, self.id)
        self.container = Container(self.flags.root, self.id, self.document(bundle, facts, now))
        pid_file = self.single.get("pid-file", "")
        creator = Creator(
            Plan(self.id, (), ()),
            bundle,
            self.container,
            signals,
            (HOST, FIRST),
            os.path.abspath(pid_file) if pid_file else "",
        )
        if "pidfd-socket" in self.single:
            creator.pidfd_socket = os.path.abspath(self.single["pidfd-socket"])
        trace(self.flags, creator)
        service = None
        try:
            containers.write_file(f"{self.container.directory}/{containers.CONFIG}", self.text)
            self.container.save()
            service, options = self._helper(bundle, signals)
            if bundle.driver == "systemd":
                from nestrt.act import scope

                scope.start(bundle.unit, bundle.properties, service.pid)
            hold_parents(creator)
            carry(creator, steps)
            creator.release_parents()
            self._place(creator, facts, service)
            service.tell("go")
            self._restore(service, [*options, *self._roots(bundle, facts)], creator)
            if bundle.request is not None:
                who = identity(bundle)
                whole = mark(bundle.request, facts, generation, who, int(now))
                text = jsontext.dumps(whole)
                carry(creator, [MarkRunning(facts.primary, bundle.request.limit_group, facts.mark, text)])
            tell_pid(creator)
        except BaseException:
            if service is not None:
                service.close(0)
            creator.abandon()
            self.undo()
            raise
        service.close()
        return creator

    def _alike(self, bundle: Bundle) -> None:
        """Raises InputError where the image's groups are rooted otherwise than the bundle's would be."""
        if self.saved.inside != (bundle.request is not None and bundle.spec.namespace("user") is None):
            reason = "it was saved with another policy or user namespace than config.json has"
            raise InputError("restore", f"container {self.id}", reason, "restore from a bundle like the one saved")

    def _helper(self, bundle: Bundle, signals: set[int]) -> tuple[criu.Service, list[tuple[str, Value]]]:
        """The process that becomes CRIU, and what it is asked for."""
        root = os.path.realpath(self.rootfs)
        options: list[tuple[str, Value]] = [
            ("images_dir_fd", criu.IMAGE),
            ("work_dir_fd", criu.WORK),
            ("log_file", LOG),
            ("root", root),
            ("rst_sibling", True),
            ("evasive_devices", True),
            *self.options,
        ]
        names = (("lsm_profile", "lsm-profile"), ("lsm_mount_context", "lsm-mount-context"))
        options += [(option, self.single[name]) for option, name in names if name in self.single]
        options += [("external", f"mnt[{target}]:{source}") for target, source in self.sources.items()]
        for number, name in rpc.inherited(dict(enumerate(self.saved.descriptors[:3]))):
            options.append(("inherit_fd", rpc.message(name, number)))
        keep: list[int] = []
        for entry in bundle.spec.namespaces:
            if not entry.path or entry.type == "cgroup":
                continue
            if entry.type in rpc.EXTERNAL_KEYS:
                inherited = rpc.message(rpc.EXTERNAL_KEYS[entry.type][1], criu.KEPT + len(keep))
                options.append(("inherit_fd", inherited))
                keep.append(os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC))
            elif entry.type in rpc.CLONE_NEW:
                word = {"mount": "mnt"}.get(entry.type, entry.type)
                options.append(("join_ns", rpc.message(word, entry.path)))
        unshares = self.saved.inside and rpc.own_cgroups(bundle.spec, bundle.request is not None)
        place = criu.take_place(unshares, root, root, tuple(self._targets()))

        def inside(sock: Any) -> None:
            signalfd.set_blocked(signals)
            place(sock)

        shown = self.spec.namespace("user") is not None
        service = criu.Service(self.program, inside, (self.image_path, self.work_path), keep, shown)
        for fd in keep:
            os.close(fd)
        return service, options

    def _targets(self) -> Iterable[tuple[str, bool]]:
        """Mountpoints that have to be in the root filesystem itself, and whether each is a file's."""
        places = {rpc.clean(entry.destination): entry for entry in self.spec.mounts}
        for target in places:
            if target == "/" or any(rpc.under(target, other) for other in places if other not in (target, "/")):
                continue
            yield target, target in self.sources and not os.path.isdir(self.sources[target])

    def _place(self, creator: Creator, facts: Facts, service: criu.Service) -> None:
        """Have the helper stand where the first process shall, and make all groups that the guest had."""
        bundle = creator.bundle
        request = bundle.request
        base = request.guest_root if request else bundle.cgroup
        if not base:
            service.tell("grouped")
            service.wait("rooted")
            return
        for hierarchy in facts.hierarchies:
            cgroup.write(hierarchy.path(base, "cgroup.procs"), str(service.pid))
        service.tell("grouped")
        service.wait("rooted")
        trees = {tree.key: tree for tree in self.trees}
        maps = ((self.saved.uids, self.saved.gids), (bundle.spec.uid_mappings, bundle.spec.gid_mappings))
        makers = []
        try:
            for hierarchy in facts.hierarchies:
                tree = trees.get(key(hierarchy))
                first = request.first_group if request else base
                if tree is not None:
                    makers.append(Maker(hierarchy, base, tree, maps))
                    makers[-1].make_first()
                    first = f"{base}/{tree.first}" if tree.first else base
                if first != base:
                    cgroup.write(hierarchy.path(first, "cgroup.procs"), str(service.pid))
            late = late_steps(request, facts, identity(bundle)) if request else []
            if self.saved.inside or not request:
                carry(creator, late)
                for maker in makers:
                    maker.make()
                return
            # CRIU moves the first process through the guest root, where no controllers may be enabled as long.
            for maker in makers:
                if maker.hierarchy.version == 1:
                    maker.make()
                else:
                    maker.make_groups()
            self.later = (late, makers)
            makers = []
        finally:
            for maker in makers:
                maker.close()

    def _divide(self, creator: Creator) -> None:
        """What had to wait until all processes stand in their groups; they do not run yet."""
        late, makers = self.later
        self.later = ([], [])
        try:
            carry(creator, late)
            for maker in makers:
                if maker.hierarchy.version == 2:
                    maker.make()
        finally:
            for maker in makers:
                maker.close()

    def _limited(self, creator: Creator, pid: int) -> None:
        """Raises StateError where CRIU has put the first process elsewhere than below the container's limits."""
        limit = creator.bundle.cgroup
        if not limit or creator.bundle.driver == "systemd":
            return
        for names, path in read_cgroups(str(pid)).items():
            if names in self.limited and not rpc.under(path, limit):
                reason = f"criu has put it into {path}, not below {limit}"
                raise StateError("restore", f"container {self.id}", reason, "restore from an image that nestrt wrote")

    def _roots(self, bundle: Bundle, facts: Facts) -> list[tuple[str, Value]]:
        """Where CRIU finds the container's groups, if it does not stand in its namespace."""
        if self.saved.inside or not bundle.cgroup:
            return []
        own = rpc.own_cgroups(bundle.spec, bundle.request is not None)
        base = bundle.request.guest_root if bundle.request else bundle.cgroup
        trees = {tree.key: tree for tree in self.trees}
        found: list[tuple[str, Value]] = []
        for hierarchy in facts.hierarchies:
            tree = trees.get(key(hierarchy))
            path = base if own or tree is None or not tree.first else f"{base}/{tree.first}"
            found.append(("cg_root", rpc.message(",".join(key(hierarchy)), path)))
        return found

    def _restore(self, service: criu.Service, options: list[tuple[str, Value]], creator: Creator) -> None:
        try:
            answer = service.ask(rpc.RESTORE, options, lambda said, fd: self.notified(creator, said, fd))
        except NestrtError as error:
            log = criu.read_log(self.work, LOG)
            if type(error) is NestrtError and (rpc.known_failure(log) or rpc.errors(log)):
                raise self._explained(log) from error
            raise
        if not answer.success:
            raise self._explained(criu.read_log(self.work, LOG), answer.text)
        self._known(creator, answer.pid)

    def _explained(self, log: str, given: str = "") -> NestrtError:
        return criu.explain("restore", self.id, log, f"{self.work_path}/{LOG}", given)

    def _known(self, creator: Creator, pid: int) -> None:
        """The first process is there: from now on it is the container's."""
        if creator.pid == pid or pid <= 0:
            return
        creator.pid, creator.pidfd = pid, os.pidfd_open(pid)
        creator.container.document.update(pid=pid, start=pidfd.start_time(pid) or 0)
        creator.container.save()

    def notified(self, creator: Creator, answer: Answer, descriptor: int) -> None:
        """What the runtime does between CRIU's steps. Raises NestrtError, on which CRIU gives up."""
        if answer.script == "setup-namespaces":
            creator.pid = answer.pid
            try:
                for stage in ("prestart", "createRuntime"):
                    hooks.run(of_stage(creator.bundle, stage), creator.state("creating"), stage)
            finally:
                creator.pid = 0
        elif answer.script == "post-restore":
            self._limited(creator, answer.pid)
            self._divide(creator)
            self._known(creator, answer.pid)
        elif answer.script == "orphan-pts-master" and descriptor >= 0:
            if not creator.bundle.console:
                self.master = os.dup(descriptor)
                return
            sock = reach(creator.bundle.console, "--console-socket")
            terminal.send_fd(sock.fileno(), descriptor, b"/dev/ptmx")
            sock.close()


def vacant(bundle: Bundle, facts: Facts) -> None:
    """Raises StateError where somebody lives in the groups that are to be this container's, and go with it."""
    if not bundle.cgroup or bundle.driver == "systemd":
        return
    if pids := living(facts.hierarchies, bundle.cgroup):
        raise StateError(
            "restore",
            f"container {bundle.id}",
            f"container's cgroup is not empty: {len(pids)} process(es) found in {bundle.cgroup}",
            "end the container that is there, or give this one another cgroupsPath",
        )


def carry(creator: Creator, steps: Iterable[Step]) -> None:
    """Carry out *steps* of the runtime's side. Raises NestrtError."""
    creator.plan = Plan(creator.plan.name, tuple(steps), ())
    creator.run()
