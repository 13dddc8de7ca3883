"""What must be known of a config.json that another runtime will read: the document itself, and some of it parsed.

That runtime checks the rest. So only what is looked at here is checked, and the
document stays as it is: names that nobody knows, the order, and numbers as they
were written.

Source: runtime-spec, config.md, config-linux.md.
"""

from __future__ import annotations

from nestrt import jsontext
from nestrt.errors import InputError
from nestrt.oci import parse_linux, parse_resources
from nestrt.oci.getter import Wrong, list_of, pairs_of, read, record_of, text, texts
from nestrt.oci.model import Capabilities, Process, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LINUX = {
    key: parse_linux.LINUX[key]
    for key in (
        "namespaces",
        "uidMappings",
        "gidMappings",
        "devices",
        "cgroupsPath",
        "resources",
        "maskedPaths",
        "readonlyPaths",
    )
}


def load_known(content: str, where: str) -> tuple[dict[str, Any], Spec]:
    """The document in *content*, and what this module knows of it; *where* is its file, for errors.

    Floats keep their spelling. Raises InputError: it is no JSON, not an object, or what is
    looked at is not as the specification has it or is there in two spellings.
    """
    try:
        document = jsontext.parse(content, exact=True)
        return document, _known(document)
    except Wrong as error:
        place = f"{where}, {error.path}" if error.path else where
        raise InputError("read", place, error.reason, error.remedy) from None
    except ValueError as error:
        raise InputError("read", where, str(error), "give it one whole JSON document") from None


def _known(document: Any) -> Spec:
    found = read(DOCUMENT, document)
    one_spelling(document)
    found.update(found.pop("linux", {}))
    found["annotations"] = tuple(sorted(found.get("annotations", ())))
    return Spec(**{"version": "", **found})


def one_spelling(document: dict[str, Any]) -> None:
    """Go's encoding/json takes names in any case, and the last of two; crun only those that are spelled right.

    What is read and changed here must be what every runtime reads: no name of the specification in another case,
    anywhere but among annotations, whose names are anybody's. Raises Wrong.
    """
    left: list[tuple[str, Any]] = [("", {key: item for key, item in document.items() if key != "annotations"})]
    while left:
        where, value = left.pop()
        if type(value) is list:
            left += [(where, item) for item in value if type(item) in (dict, list)]
            continue
        for key, item in value.items():
            if key not in NAMES and key.casefold() in FOLDED:
                reason = "a name of the specification in another case"
                mistake = Wrong(reason, "write it as the specification does", key)
                if where:
                    mistake.at(where)
                raise mistake
            if type(item) in (dict, list):
                left.append((key, item))


def _process(value: Any) -> Process:
    return Process(**read(PROCESS, value))


def _linux(value: Any) -> dict[str, Any]:
    found = read({**LINUX, "seccomp": ("seccomp", lambda profile: read(SECCOMP, profile))}, value)
    found.pop("seccomp", None)  # that it has the form is all
    return found


def _root(value: Any) -> str:
    return str(read({"path": ("path", text)}, value).get("path", ""))


SETS = {key: (key, texts) for key in ("bounding", "effective", "inheritable", "permitted", "ambient")}
PROCESS = {"capabilities": ("capabilities", record_of(Capabilities, SETS)), "args": ("args", texts)}
DOCUMENT: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "process": ("process", _process),
    "root": ("root_path", _root),
    "mounts": ("mounts", parse_linux.parse_mounts),
    "hooks": ("hooks", parse_linux.parse_hooks),
    "annotations": ("annotations", pairs_of(text)),
    "linux": ("linux", _linux),
}
SYSCALLS = {"names": ("names", texts), "action": ("action", text)}
SECCOMP = {
    "defaultAction": ("action", text),
    "architectures": ("architectures", texts),
    "syscalls": ("syscalls", list_of(lambda entry: read(SYSCALLS, entry))),
}
NAMES = frozenset(
    name
    for table in (
        DOCUMENT, PROCESS, SETS, SECCOMP, SYSCALLS, parse_linux.LINUX, parse_linux.HOOKS, parse_linux.HOOK,
        parse_linux.MOUNT, parse_linux.NAMESPACE, parse_linux.RANGE, parse_linux.DEVICE, *parse_resources.TABLES,
    )
    for name in table
)  # fmt: skip
FOLDED = frozenset(name.casefold() for name in NAMES)
