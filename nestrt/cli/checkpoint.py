"""``nestrt checkpoint``: save a container's processes and groups by CRIU."""

from __future__ import annotations

import fcntl
import os

from nestrt import jsontext
from nestrt.act import containers, criu
from nestrt.act.containers import Container
from nestrt.act.saved import read_trees
from nestrt.cli.engine import Globals, hierarchies_of, one_id, warn, words
from nestrt.cli.options import Option
from nestrt.errors import InputError, NestrtError, StateError
from nestrt.kernel import cgroup
from nestrt.oci.document import load
from nestrt.plan import criu as rpc
from nestrt.plan.request import GUEST_ROOT
from nestrt.plan.saved import CHECKPOINT, GROUPS, Checkpoint, checkpoint_document, trees_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Spec
    from nestrt.plan.criu import Answer, Value

TEXT = """usage: nestrt checkpoint [OPTION …] ID

Save a running container to image files by CRIU, with the groups that the guest made, and end it."""
SHARED = (
    Option("image-path", "DIR", "the image files (default: ./checkpoint)"),
    Option("work-path", "DIR", "CRIU's log and scratch files (default: the image path)"),
    Option("tcp-established", "", "with established TCP connections"),
    Option("ext-unix-sk", "", "with Unix sockets that are connected to outside"),
    Option("shell-job", "", "with a terminal that is the caller's"),
    Option("file-locks", "", "with file locks"),
    Option("lazy-pages", "", "leave memory to be fetched on demand"),
    Option(
        "manage-cgroups-mode", "MODE", "soft, full, strict or ignore (default: soft)", choices=tuple(rpc.CGROUP_MODES)
    ),
    Option("empty-ns", "TYPE", "namespaces to make without what is in them: network", repeat=True),
    Option("auto-dedup", "", "drop memory from parent images that a newer one has"),
)
OPTIONS = (
    *SHARED,
    Option("parent-path", "DIR", "the image of an earlier --pre-dump, relative to this one"),
    Option("leave-running", "", "let the container go on"),
    Option("pre-dump", "", "save only memory, and let the container go on"),
    Option("page-server", "ADDRESS:PORT", "send memory there"),
    Option("status-fd", "FD", "with --lazy-pages: write a zero byte there when pages can be fetched"),
    Option("tcp-skip-in-flight", "", "leave out TCP connections that are being made"),
    Option("link-remap", "", "link deleted files that are in use to a name for as long as it takes"),
)
LOG = "dump.log"


def main(flags: Globals, argv: list[str]) -> int:
    """Run the verb. Raises NestrtError; the container then runs as before."""
    found = words("checkpoint", OPTIONS, argv, TEXT)
    if found is None:
        return 0
    single, repeated, operands = found
    container = containers.load(flags.root, one_id("checkpoint", operands))
    status = container.status()
    if status not in ("running", "paused"):
        raise StateError(
            "checkpoint",
            f"container {container.id}",
            f"Container cannot be checkpointed in {status} state",
            "start it first" if status == "created" else "create it again",
        )
    if container.text("owner") not in ("", "0") or os.geteuid() != 0:
        raise InputError("checkpoint", f"container {container.id}", "criu needs root", "run it as root")
    program = criu.find(flags.criu)
    dumping = Dumping(flags, container, single, repeated)
    dumping.run(program)
    if "leave-running" not in single and "pre-dump" not in single:
        end(flags, container)
    return 0


def mode(single: dict[str, str]) -> int:
    """--manage-cgroups-mode as CRIU takes it. Raises InputError."""
    word = single.get("manage-cgroups-mode", "soft")
    if word not in rpc.CGROUP_MODES:
        known = ", ".join(rpc.CGROUP_MODES)
        raise InputError("use", f"--manage-cgroups-mode {word!a}", "no such mode", f"one of: {known}")
    return rpc.CGROUP_MODES[word]


def shared_options(single: dict[str, str], repeated: dict[str, list[str]]) -> list[tuple[str, Value]]:
    """What a dump and a restore have in common. Raises InputError."""
    empty = 0
    for word in repeated.get("empty-ns", ()):
        if word != "network":
            raise InputError("use", f"--empty-ns {word!a}", "only network is possible", "--empty-ns network")
        empty |= rpc.CLONE_NEW[word]
    found: list[tuple[str, Value]] = [
        ("log_level", 4),
        ("notify_scripts", True),
        ("orphan_pts_master", True),
        ("manage_cgroups", True),
        ("manage_cgroups_mode", mode(single)),
    ]
    switches = ("shell-job", "tcp-established", "ext-unix-sk", "file-locks", "auto-dedup", "lazy-pages")
    found += [(name.replace("-", "_"), True) for name in switches if name in single]
    return [*found, ("empty_ns", empty)] if empty else found


def configured(spec: Spec) -> list[tuple[str, Value]]:
    """CRIU's own configuration file that the document's annotation names, as under runc; none without."""
    name = spec.annotation("org.criu.config")
    return [("config_file", name)] if name else []


def inside(container: Container, spec: Spec) -> bool:
    """Whether CRIU has to stand in the container's cgroup namespace: there its view's covers are what they are.

    Not where the namespace is a user namespace's, which only CRIU can make, nor where it begins at the limit
    group: who is in there may not freeze that (cgroup-v2.rst, nsdelegate).
    """
    return container.virtualized and spec.namespace("user") is None


def base_group(container: Container) -> str:
    """The group below which the guest makes its own."""
    return f"{container.cgroup}/{GUEST_ROOT}" if container.virtualized else container.cgroup


class Dumping:
    """One dump of *container*."""

    def __init__(
        self, flags: Globals, container: Container, single: dict[str, str], repeated: dict[str, list[str]]
    ) -> None:
        self.flags = flags
        self.container = container
        self.single = single
        self.spec = load(container.config(), f"{container.directory}/{containers.CONFIG}")
        self.pre = "pre-dump" in single
        self.inside = inside(container, self.spec)
        self.hierarchies = hierarchies_of(container)
        self.options = shared_options(single, repeated) + configured(self.spec)
        self.status_fd = self._status_fd()
        self.page_server = self._page_server()
        parent = single.get("parent-path", "")
        if parent.startswith("/"):
            raise InputError("use", f"--parent-path {parent}", "it is absolute", "write it relative to --image-path")
        self.image_path = os.path.abspath(single.get("image-path") or "checkpoint")
        # By its text: the image directory itself may not be there yet.
        if parent and not os.path.isdir(os.path.normpath(os.path.join(self.image_path, parent))):
            raise InputError("use", f"--parent-path {parent}", "no such file or directory", "name an image directory")
        if parent:
            self.options += [("parent_img", parent), ("track_mem", True)]
        elif self.pre:
            self.options.append(("track_mem", True))
        self.work_path = os.path.abspath(single.get("work-path") or self.image_path)
        self.image = criu.directory(self.image_path, "--image-path")
        self.work = criu.directory(self.work_path, "--work-path")

    def _status_fd(self) -> int:
        text = self.single.get("status-fd", "")
        if not text:
            return -1
        try:
            fd = int(text)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(0, "it is not open for writing")
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", "") or "not a descriptor"
            raise InputError("use", f"--status-fd {text!a}", reason.lower(), "name an open descriptor") from error
        return fd

    def _page_server(self) -> bytes | None:
        text = self.single.get("page-server", "")
        if not text:
            return None
        address, colon, port = text.rpartition(":")
        if not colon or not address or not port.isdigit() or not 0 < int(port) < 65536:
            reason = "Use --page-server ADDRESS:PORT to specify page server"
            raise InputError("use", f"--page-server {text!a}", reason, "--page-server 10.0.0.2:27000")
        return rpc.message(address, int(port))

    def reachable(self) -> None:
        """Raises StateError for a group that the guest has frozen: CRIU has processes run code of its own, and these
        would not (v1 cannot even be traced there)."""
        base = base_group(self.container)
        for hierarchy in self.hierarchies if base else ():
            for group in cgroup.below(hierarchy.path(base)):
                if frozen(group, hierarchy.version):
                    thaw = "echo 0 > cgroup.freeze" if hierarchy.version == 2 else "echo THAWED > freezer.state"
                    raise StateError(
                        "checkpoint",
                        f"container {self.container.id}",
                        f"the guest has frozen {group}, and criu cannot save what stands still there",
                        f"{thaw} in that group",
                    )

    def run(self, program: str) -> None:
        """Carry it out. Raises NestrtError."""
        container = self.container
        self.reachable()
        pid = container.pid
        options: list[tuple[str, Value]] = [
            ("images_dir_fd", criu.IMAGE),
            ("work_dir_fd", criu.WORK),
            ("log_file", LOG),
            ("pid", pid),
            ("root", container.text("rootfs")),
            *self.options,
        ]
        if "leave-running" in self.single or self.pre:
            options.append(("leave_running", True))
        more = ("tcp-skip-in-flight", "link-remap")
        options += [(name.replace("-", "_"), True) for name in more if name in self.single]
        if self.page_server is not None:
            options.append(("ps", self.page_server))
        if freezer := self._freezer():
            options.append(("freeze_cgroup", freezer))
        options += [("external", text) for text in self._namespaces()]
        if not self.pre:
            options += self._saved(pid)
        enter = criu.enter_cgroup_namespace(pid) if self.inside else (lambda sock: None)
        service = criu.Service(program, enter, (self.image_path, self.work_path))
        try:
            kind = rpc.PRE_DUMP if self.pre else rpc.DUMP
            answer = service.ask(kind, options, self.notified)
        except NestrtError as error:
            log = criu.read_log(self.work, LOG)
            if rpc.known_failure(log) or rpc.errors(log):
                raise self._explained(log) from error
            raise
        finally:
            # After a pre-dump it would wait for the next one.
            service.close(0 if self.pre else 10)
        if not answer.success:
            raise self._explained(criu.read_log(self.work, LOG), answer.text)

    def _explained(self, log: str, given: str = "") -> NestrtError:
        return criu.explain("checkpoint", self.container.id, log, f"{self.work_path}/{LOG}", given)

    def notified(self, answer: Answer, descriptor: int) -> None:
        """All processes stand still at ``post-dump``: only then the groups are what the image says."""
        if answer.script == "post-dump" and not self.pre and self.container.cgroup:
            trees = read_trees(self.hierarchies, base_group(self.container), self.container.pid)
            self._write(GROUPS, jsontext.dumps(trees_document(trees)))
        elif answer.script == "status-ready" and self.status_fd >= 0:
            os.write(self.status_fd, b"\0")
            os.close(self.status_fd)
            self.status_fd = -1

    def _freezer(self) -> str:
        """The limit group's directory where CRIU freezes; "" where it stops processes one by one."""
        if not self.container.cgroup:
            return ""
        for hierarchy in sorted(self.hierarchies, key=lambda h: h.version):
            path = hierarchy.path(self.container.cgroup)
            name = "cgroup.freeze" if hierarchy.version == 2 else "freezer.state"
            if os.path.exists(f"{path}/{name}") and not path.startswith("/proc/"):
                return path
        return ""

    def _namespaces(self) -> list[str]:
        """Namespaces that the document joins stay outside: the image only names them."""
        found = []
        for kind, (word, key) in rpc.EXTERNAL_KEYS.items():
            entry = self.spec.namespace(kind)
            if entry is not None and entry.path:
                found.append(f"{word}[{os.stat(f'/proc/{self.container.pid}/ns/{word}').st_ino}]:{key}")
        return found

    def _saved(self, pid: int) -> list[tuple[str, Value]]:
        """What only the runtime knows, written beside the image; and what CRIU is told of it."""
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            own = rpc.placed(file.read())
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            host = rpc.placed(file.read())
        groups: dict[str, str] = {}
        if not rpc.own_cgroups(self.spec, self.container.virtualized):
            groups = rpc.cgroup_targets(self.spec, self.hierarchies, self.container.cgroup)
        targets = rpc.external(own, host, self.spec, groups)
        names, files = criu.descriptors(pid)
        document = checkpoint_document(
            Checkpoint(names, targets, self.inside, self.spec.uid_mappings, self.spec.gid_mappings)
        )
        self._write(CHECKPOINT, jsontext.dumps(document))
        found: list[tuple[str, Value]] = [("external", f"mnt[{target}]:{target}") for target in targets]
        return [*found, *(("external", name) for name in files)]

    def _write(self, name: str, text: str) -> None:
        containers.write_file(f"/proc/self/fd/{self.image}/{name}", text)


def frozen(group: str, version: int) -> bool:
    """Whether it is that group itself that was frozen, and not one above it."""
    try:
        return cgroup.read(f"{group}/{'cgroup.freeze' if version == 2 else 'freezer.self_freezing'}") == "1"
    except OSError:
        return False  # gone by now, or not that hierarchy


def end(flags: Globals, container: Container) -> None:
    """The processes are saved and gone: remove the rest, unless another, a ``run`` in the foreground, does."""
    fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        from nestrt.act.destroy import destroy

        destroy(container, hierarchies_of(container), lambda text: warn(flags, text))
    finally:
        os.close(fd)
