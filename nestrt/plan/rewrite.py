"""A bundle's config.json made to keep the laws under any runtime: a document in, a document out. Pure.

::

    as an engine writes it                  as the runtime gets it
    linux.cgroupsPath   /machine/x          /machine/x/guest           the limit group is now one above
    linux.namespaces                        + cgroup                   /machine/x/guest is the guest's "/"
    mounts              cgroup, ro          cgroup, rw; the v2 tree of a hybrid host; no bind of the host's
    linux.resources     what it asks        no more than the policy's [limits]
                                            + read-only binds over the limit files of the view, and what it may not see
    linux.seccomp                           - open_by_handle_at(2), where capabilities would open the limit group by it
    hooks                                   + createRuntime, poststop, for strict policies poststart: nestrt's
    annotations                             + io.nestrt.limit-group, io.nestrt.record

The limit group itself, with limits, device rules, caps and mark, is made before the runtime
is called (plan/plugin.py). Every field that is not named above stays as it is, and so does
the whole document where no policy holds. Done twice it is the same as done once.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import InputError
from nestrt.level.limits import Limits
from nestrt.oci.model import Spec
from nestrt.plan.broker import GUEST_SOCKET
from nestrt.plan.handles import opens_handles, without_handles
from nestrt.plan.request import GUEST_ROOT
from nestrt.plan.rewrite_view import View, view_mounts
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nestrt.level.policy import Policy
    from nestrt.plan.facts import Hierarchy

    Document = dict[str, Any]

# Not "nestrt.…": those are a bundle's own words, and unknown ones are refused.
NOTE, RECORD = "io.nestrt.limit-group", "io.nestrt.record"
HOOKS = ("createRuntime", "poststop")
# A hook without an environment is given the runtime's own (Go, os/exec), which may be an image's (CVE-2025-23266).
HOOK_ENV = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)
HOOK_TIMEOUT = 60  # seconds


@record
class Terms:
    """What a rewrite is made from besides the document.

    *policy* is what holds for the bundle, *limits* the host's own where the policy's have the document's in them;
    *group* is the limit group, absolute; *hierarchies* those that have it. *files* are the names of control files that
    the guest root will have, by a hierarchy's name. *hook* is the program that the hooks run, and its arguments up to
    the stage. *record* names the guest's record, *machine* is uname(2)'s. *socket* is the broker's, on the host, ""
    where the guest is to have none. *sources* are the sources of binds that lead elsewhere than they say, and where.
    """

    policy: Policy
    group: str
    hierarchies: tuple[Hierarchy, ...]
    files: dict[str, tuple[str, ...]]
    hook: tuple[str, ...]
    record: str = ""
    machine: str = "x86_64"
    socket: str = ""
    limits: Limits | None = None
    sources: dict[str, str] = {}


def noted_group(spec: Spec) -> str:
    """The limit group of a document that has been rewritten, "" where it has not.

    Raises InputError where somebody else has written the annotation.
    """
    noted = spec.annotation(NOTE)
    if noted is None:
        return ""
    if noted.startswith("/") and spec.cgroups_path == f"{noted}/{GUEST_ROOT}":
        return noted
    raise InputError(
        "honour",
        f"annotation {NOTE}",
        "it does not belong to linux.cgroupsPath, and only nestrt writes it",
        "leave it out",
    )


def private_ids(spec: Spec) -> bool:
    """Whether the container's root is another id than the owner of the limit files: plan.ids.Identity.private."""
    ranges = (spec.uid_mappings, spec.gid_mappings)
    return spec.namespace("user") is not None and all(
        bool(side) and all(outside != 0 for _, outside, _ in side) for side in ranges
    )


def rewrite(document: Document, spec: Spec, terms: Terms | None) -> Document:
    """*document*, of which *spec* is what oci.partial knows, by *terms*; itself where there are none.

    Raises InputError where it cannot be made to keep the laws, naming the place in it.
    """
    if terms is None:
        return document
    noted_group(spec)
    _possible(spec)
    linux = dict(document.get("linux") or {})
    root = f"{terms.group}/{GUEST_ROOT}"
    view = View(terms.policy, root, terms.hierarchies, terms.files, private_ids(spec), terms.sources, uncovers(spec))
    linux["cgroupsPath"] = root
    linux["namespaces"] = _namespaces(linux.get("namespaces") or [], spec)
    resources = within_limits(
        linux.get("resources") or {}, spec, terms.policy.limits if terms.limits is None else terms.limits
    )
    if resources:
        linux["resources"] = resources
    if opens_handles(spec):
        linux["seccomp"] = without_handles(linux.get("seccomp"), terms.machine)
    mounts = view_mounts(document.get("mounts") or [], spec.mounts, view)
    if terms.socket:
        mounts = _with_socket(mounts, terms.socket)
    return {
        **document,
        "annotations": {**(document.get("annotations") or {}), NOTE: terms.group, RECORD: terms.record},
        "mounts": mounts,
        "hooks": _hooks(document.get("hooks") or {}, terms.hook, HOOKS + ("poststart",) * terms.policy.strict),
        "linux": linux,
    }


def uncovers(spec: Spec) -> bool:
    """Whether the container's root, being the host's, could take a mount off again."""
    sets = spec.process.capabilities if spec.process else None
    held = {name.upper() for names in sets.__dict__.values() for name in names} if sets else set()
    return spec.namespace("user") is None and "CAP_SYS_ADMIN" in held


def text_of(document: Document) -> str:
    """*document* as JSON. Raises InputError where it is nested too deeply to be written."""
    try:
        return jsontext.dumps(document)
    except RecursionError:
        raise InputError(
            "rewrite", "config.json", "its objects and arrays are nested too deeply", "nest them less"
        ) from None


def _possible(spec: Spec) -> None:
    """Raises InputError for what no rewriting helps."""
    if spec.namespace("mount") is None:
        raise InputError(
            "give a policy to",
            "a container without a mount namespace",
            "a view is a mount of its own",
            "add a mount namespace to linux.namespaces, or leave the policy out",
        )
    entry = spec.namespace("cgroup")
    if entry is not None and entry.path:
        raise InputError(
            "give a policy to",
            f"a container that joins the cgroup namespace {entry.path}",
            "a policy gives it one of its own",
            "take the path out of linux.namespaces, or leave the policy out",
        )


def _namespaces(entries: list[Any], spec: Spec) -> list[Any]:
    return entries if spec.namespace("cgroup") is not None else [*entries, {"type": "cgroup"}]


def within_limits(raw: Document, spec: Spec, limits: Limits) -> Document:
    """linux.resources *raw* with nothing above *limits*; what does not change keeps its form. Raises InputError."""
    if limits == Limits():
        return raw
    from nestrt.plan.narrow import within  # not for a policy that limits nothing
    from nestrt.plan.update import as_json

    given = spec.resources
    found = within(limits, given)
    if found == given:
        return raw
    before, after = as_json(given), as_json(found)
    result = dict(raw)
    for key, value in after.items():
        if value == before.get(key):
            continue
        had = result.get(key)
        result[key] = {**had, **value} if isinstance(had, dict) and isinstance(value, dict) else value
    if given.devices and not found.devices:
        result["devices"] = [{"allow": False, "access": "rwm"}]
    return result


def _with_socket(mounts: list[Any], socket: str) -> list[Any]:
    """The broker's socket in the guest, where its client looks for it."""
    entry = {
        "destination": GUEST_SOCKET,
        "type": "bind",
        "source": socket,
        "options": ["bind", "nosuid", "nodev", "noexec", "rprivate"],
    }
    return [*(mount for mount in mounts if mount.get("destination") != GUEST_SOCKET), entry]


def _hooks(hooks: Document, program: tuple[str, ...], stages: tuple[str, ...]) -> Document:
    """*hooks* with ours, each once; createRuntime's last: others may prepare what it looks at."""
    found = dict(hooks)
    path, *arguments = program
    for stage in (*HOOKS, "poststart"):
        others = [hook for hook in found.get(stage) or [] if not _is_ours(hook, stage)]
        ours = [{"path": path, "args": [*arguments, stage], "env": list(HOOK_ENV), "timeout": HOOK_TIMEOUT}]
        if stage not in stages:
            ours = []  # one of a directory of hooks would only look again at what createRuntime has seen
        # Behind one that fails none is run (runc): what removes the guest is not behind others'.
        wanted = [*ours, *others] if stage == "poststop" else [*others, *ours]
        if wanted or found.get(stage):
            found[stage] = wanted
    return found


def _is_ours(hook: Document, stage: str) -> bool:
    """Whether an earlier rewrite has put *hook* there, or an engine's directory of hooks, maybe by another name."""
    args = hook.get("args") or []
    return args[:2] == ["nestrt", "hook"] and stage in args


def refusing(document: Document, program: tuple[str, ...], reason: str) -> Document:
    """*document* with hooks that say *reason* and fail, so that nothing of it runs and its user reads why."""
    hook = {"path": program[0], "args": ["nestrt", "hook", "refuse", reason], "env": list(HOOK_ENV)}
    return {**document, "hooks": {"prestart": [hook], "createRuntime": [hook]}}
