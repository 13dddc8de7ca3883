"""Where each engine looks, and what ``nestrt hooks`` writes there.

    podman       a directory of hooks of its own, and a drop-in that names it
    docker       a runtime in daemon.json, which is the wrapper
    containerd   a runtime in config.toml, which is the wrapper
    crio         a drop-in with a runtime, which is the wrapper

podman alone has the stage *precreate*, in which nestrt changes a container's config.json. CRI-O reads directories
of hooks too, but asks for no such stage (its lib.New calls hooks.New without extension stages), and neither does
buildah: both, and ``podman build``, fail at a file that has it. So podman's usual directory is not for ours.
"""

from __future__ import annotations

import glob
import os
import subprocess
from collections.abc import Callable

from nestrt.cli import _hooks_files as files
from nestrt.cli import _hooks_json as daemon_json
from nestrt.cli import _hooks_texts as texts
from nestrt.cli import _hooks_toml as toml
from nestrt.cli._command import PLACES, find
from nestrt.cli._hooks_json import NAME
from nestrt.cli._hooks_texts import STAGES, Settings
from nestrt.errors import InputError, StateError
from nestrt.record import record

HOOKS_D = "/usr/local/share/nestrt/hooks.d"
CONTAINERS_CONF = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
CONF_D = "/etc/containers/containers.conf.d"
DROP_IN = f"{CONF_D}/nestrt-hooks.conf"
DAEMON_JSON = "/etc/docker/daemon.json"
CONFIG_TOML = "/etc/containerd/config.toml"
CRIO_D = "/etc/crio/crio.conf.d"
CRIO_CONF = f"{CRIO_D}/10-{NAME}.conf"
LIBEXEC = "/usr/local/libexec/nestrt"
# Below these nothing is but what install writes.
OWN_DIRECTORIES = (
    HOOKS_D,
    "/usr/local/share/nestrt",
    *(f"{LIBEXEC}/{engine}" for engine in ("docker", "containerd", "crio")),
    LIBEXEC,
)


@record
class Engine:
    """*program* is what is looked for on the machine; *then* what to do once the files are written."""

    name: str
    program: str
    then: str


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("podman", "podman", "podman run --annotation nestrt.policy=nested IMAGE"),
        Engine(
            "docker",
            "dockerd",
            f"let dockerd read it: systemctl reload docker, or kill -HUP $(cat /run/docker.pid);"
            f" then docker run --runtime {NAME} IMAGE",
        ),
        Engine(
            "containerd",
            "containerd",
            f"let containerd read it: systemctl restart containerd (containers go on); then pods of a RuntimeClass"
            f" with handler: {NAME}",
        ),
        Engine(
            "crio",
            "crio",
            f"let CRI-O read it: systemctl restart crio (containers go on); then pods of a RuntimeClass"
            f" with handler: {NAME}",
        ),
    )
}


@record
class Target:
    """One file: *install* and *uninstall* say what is to become of its text, *present* whether ours is in it."""

    path: str
    mode: int
    install: Callable[[str | None], str]
    uninstall: Callable[[str | None], str | None]
    present: Callable[[str | None], bool]


@record
class Place:
    """Where the files are: below the directory *prefix*, "" for this machine itself."""

    prefix: str = ""

    def shown(self, path: str) -> str:
        """*path* as messages name it."""
        return f"{os.path.abspath(self.prefix).rstrip('/')}{path}" if self.prefix else path

    def path(self, path: str) -> str:
        """Where *path* lies. Raises HostError."""
        return files.resolve(self.prefix, path)

    def read(self, path: str) -> str | None:
        """The text of a file. Raises what resolve() and read() of the files do."""
        return files.read(self.path(path))

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none where it is not there."""
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def untrusted(self, path: str) -> str:
        """Why others may change the file *path*, "" where they cannot."""
        if self.prefix:
            return files.untrusted(self.path(path), os.path.abspath(self.prefix))
        return files.untrusted(path)


def wrapper(engine: str) -> str:
    """The program that is the runtime of *engine*: each has its own, for options may differ."""
    return f"{LIBEXEC}/{engine}/{NAME}"


def targets(engine: str, settings: Settings, place: Place) -> tuple[Target, ...]:
    """The files of *engine*, in the order in which they are written: what the engine reads comes last."""
    if engine == "podman":
        hooks = tuple(_hook(settings, stage) for stage in STAGES)
        return (*hooks, _whole(DROP_IN, lambda: texts.directories_text(_directories(place)), texts.is_written))
    program = wrapper(engine)
    runtime = _whole(program, lambda: texts.wrapper_text(settings), texts.is_written, 0o755)
    if engine == "crio":
        return (runtime, _whole(CRIO_CONF, lambda: texts.crio_text(program), texts.is_written))
    return (runtime, (_docker if engine == "docker" else _containerd)(program, place))


def settings_of(engine: str, place: Place) -> Settings | None:
    """What install has been told, from the files; None where they are not there, or not to be understood."""
    if engine == "podman":
        found = (texts.read_hook(place.read(f"{HOOKS_D}/{texts.hook_file(stage)}"), stage) for stage in STAGES)
        return next((settings for settings in found if settings is not None), None)
    return texts.read_wrapper(place.read(wrapper(engine)))


def _whole(path: str, content: Callable[[], str], ours: Callable[[str | None], bool], mode: int = 0o644) -> Target:
    """A file that is ours as a whole."""

    def install(text: str | None) -> str:
        if text is not None and not ours(text):
            raise StateError("write", path, "it is there, and not of nestrt's making", "move it away")
        return content()

    return Target(path, mode, install, lambda text: None if ours(text) else text, ours)


def _hook(settings: Settings, stage: str) -> Target:
    path = f"{HOOKS_D}/{texts.hook_file(stage)}"
    return _whole(path, lambda: texts.hook_text(settings, stage), lambda text: texts.read_hook(text, stage) is not None)


def _docker(program: str, place: Place) -> Target:
    where = place.shown(DAEMON_JSON)

    def present(text: str | None) -> bool:
        return _mentions(text) and daemon_json.is_ours(daemon_json.parse(text or "", where), program)

    return Target(
        DAEMON_JSON,
        0o644,
        lambda text: daemon_json.add(text, program, where),
        lambda text: daemon_json.remove(text, program, where) if _mentions(text) else text,
        present,
    )


def _mentions(text: str | None) -> bool:
    """Whether ours may be in *text* at all: a file without it need not even be right."""
    return text is not None and NAME in text


# --- containerd ---------------------------------------------------------------------------------


def _containerd(program: str, place: Place) -> Target:
    where = place.shown(CONFIG_TOML)

    def install(text: str | None) -> str:
        fresh = 2
        if text is None and containerd_version() >= 2:
            fresh = 3
        new = toml.add(text, program, where, fresh)
        document = toml.parse(new, where)
        name = toml.plugin(toml.version_of(document))
        for path in _imported(document, place):
            other = toml.parse(place.read(path) or "", path).get("plugins")
            if isinstance(other, dict) and name in other:
                # In containerd 1 the later table of a plugin takes the place of the earlier one, whole.
                raise toml.by_hand(
                    toml.parse(text or "", where),
                    program,
                    where,
                    f"{path}, which it imports, has the plugin",
                )
        return new

    return Target(
        CONFIG_TOML,
        0o644,
        install,
        lambda text: toml.remove(text, where) if _mentions(text) else text,
        toml.is_there,
    )


def _imported(document: dict[str, object], place: Place) -> list[str]:
    """The files that a config.toml imports; their own imports are left alone."""
    found: list[str] = []
    imports = document.get("imports")
    for pattern in imports if isinstance(imports, list) else ():
        if not isinstance(pattern, str):
            continue
        path = os.path.normpath(os.path.join(os.path.dirname(CONFIG_TOML), pattern))
        top = os.path.abspath(place.prefix) if place.prefix else ""
        matches = glob.glob(glob.escape(top) + path)
        found += sorted(match[len(top) :] for match in matches if match[len(top) :] != CONFIG_TOML)
    return found


def containerd_version() -> int:
    """The major version of the machine's containerd, 1 where there is none or it does not tell."""
    program = find("containerd")
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, env={"PATH": PLACES[1]}
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 1
    # containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
    words = said.stdout.split()
    number = words[2].lstrip("v").partition(".")[0] if len(words) > 2 else ""
    return int(number) if number.isdigit() else 1


# --- podman -------------------------------------------------------------------------------------


def _documents(place: Place) -> list[tuple[str, dict[str, object]]]:
    """(path, document) of podman's configuration, in the order in which it is read (containers.conf(5))."""
    names = [f"{CONF_D}/{name}" for name in place.names(CONF_D) if name.endswith(".conf")]
    found = []
    for path in (*CONTAINERS_CONF, *names):
        text = place.read(path)
        if text is not None:
            found.append((path, toml.parse(text, path)))
    return found


def _directories(place: Place) -> list[str]:
    """The directories of hooks as they are without us, and ours. Raises StateError where ours would not be read."""
    found = _documents(place)
    before = [document for path, document in found if path in CONTAINERS_CONF or path < DROP_IN]
    after = [(path, document) for path, document in found if path not in CONTAINERS_CONF and path > DROP_IN]
    names = [*(name for name in toml.hooks_dirs(before) if name != HOOKS_D), HOOKS_D]
    ours = {"engine": {"hooks_dir": names}}
    if HOOKS_D not in toml.hooks_dirs([*before, ours, *(document for _, document in after)]):
        last = [path for path, document in after if toml.has_hooks_dir(document)][-1]
        raise StateError("write", DROP_IN, f"{last} is read after it and sets hooks_dir", f"add {HOOKS_D} to that list")
    return names


# --- whether it is read -------------------------------------------------------------------------


def unread(engine: str, place: Place) -> str:
    """Why *engine* would not use what is installed, "" where it would. Raises what reading the files does."""
    if engine == "podman":
        try:
            _directories(place)
        except StateError as error:
            return f"{error.reason}; {error.remedy}"
    if engine == "containerd":
        text = place.read(CONFIG_TOML)
        disabled = toml.parse(text, CONFIG_TOML).get("disabled_plugins") if text is not None else None
        for name in disabled if isinstance(disabled, list) else ():
            if name in ("cri", toml.PLUGIN_V2, toml.PLUGIN_V3):
                return f"{CONFIG_TOML} has {name} among its disabled_plugins; take it out of the list"
    return ""


SYSTEMD = "/run/systemd/system"  # sd_booted(3)
# What each engine's file has to say, so that it makes the groups itself.
def driver_note(engine: str, place: Place) -> str:
    """What to change where *engine* lets systemd make the groups of containers, "" where that is well.

    Behind ``nestrt wrap`` nestrt asks systemd for the scope itself; podman's hooks cannot, and of the runtimes only
    crun makes a group below one, on cgroup v2. Raises what reading the files does.
    """
    if engine != "podman":
        return ""
    said = toml.last(_documents(place), "engine", "cgroup_manager")
    if said == "systemd" or (said is None and not place.prefix and os.path.isdir(SYSTEMD)):
        return (
            "containers that systemd places are guests only under crun on cgroup v2; for runc write "
            'cgroup_manager = "cgroupfs" in [engine] of containers.conf, or let nestrt wrap be the runtime'
        )
    return ""



def runtime_path(name: str, command: str, prefix: str = "") -> str:
    """The absolute path of the runtime *name*, "" for the first of runc and crun that is there.

    Raises InputError: not there, no absolute path, or nestrt itself, which would call itself for ever.
    """
    paths = (*PLACES[:2], *PLACES[4:])
    what = f"runtime {name or 'runc'}"
    if name.startswith("/"):
        found = name
    elif "/" in name:
        raise InputError("use", what, "it is no absolute path", "write --runtime /usr/sbin/runc")
    else:
        found = find(name, paths) if name else find("runc", paths) or find("crun", paths)
    if not found:
        raise InputError("find", what, f"it is in none of {':'.join(paths)}", "install it, or write --runtime PATH")
    real = os.path.realpath(found)
    if real == os.path.realpath(command) or os.path.basename(real) in ("nestrt", NAME):
        raise InputError("use", what, "it is nestrt itself", "name the runtime that it is to call: runc or crun")
    if not any(os.path.isfile(path) and os.access(path, os.X_OK) for path in (prefix + found, found)):
        raise InputError("use", what, "there is no such program", "install it first")
    return found
