"""``nestrt hooks``: what is written for each engine, that all else stays as it was, and what is refused.

::

    PREFIX/usr/local/share/nestrt/hooks.d/nestrt-STAGE.json       podman: four hooks
    PREFIX/etc/containers/containers.conf.d/nestrt-hooks.conf     podman: where they are
    PREFIX/usr/local/libexec/nestrt/ENGINE/nestrt-runc            the others: the wrapper
    PREFIX/etc/{docker/daemon.json, containerd/config.toml, crio/crio.conf.d/10-nestrt-runc.conf}
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt.cli import _hooks_engines as engines
from nestrt.cli import _hooks_files as files
from nestrt.cli import _hooks_json as daemon_json
from nestrt.cli import _hooks_texts as texts
from nestrt.cli import _hooks_toml as toml
from nestrt.cli import hooks
from nestrt.errors import HostError, InputError, KernelError, NestrtError, NotFound, StateError

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = f"{CHECKOUT}/hooks/nestrt"
ALL = ("podman", "docker", "containerd", "crio")
DAEMON = "etc/docker/daemon.json"
CONFIG = "etc/containerd/config.toml"
DROP_IN = engines.DROP_IN.strip("/")
HOOKS_D = engines.HOOKS_D.strip("/")
PROGRAM = engines.wrapper("docker")
DEBIAN = """version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
RUNC = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
"""


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose the checkout is, and where pytest's directories are, is not what most of these tests are about."""
    monkeypatch.setattr(hooks, "_fault", lambda command: "")
    monkeypatch.setattr(files, "OTHERS", 0)


def install(prefix: Path, *words: str, names: tuple[str, ...] = ALL) -> int:
    """``nestrt hooks install --prefix PREFIX``, for the engines *names*, with /bin/true as their runtime."""
    return hooks.main(["install", *_common(prefix, names), "--runtime", "/bin/true", *words])


def uninstall(prefix: Path, names: tuple[str, ...] = ALL) -> int:
    return hooks.main(["uninstall", *_common(prefix, names)])


def status(prefix: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...] = ALL) -> tuple[int, Any]:
    capsys.readouterr()
    code = hooks.main(["status", *_common(prefix, names), "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def _common(prefix: Path, names: tuple[str, ...]) -> list[str]:
    return ["--prefix", str(prefix), *(word for name in names for word in ("--engine", name))]


def put(prefix: Path, name: str, text: str | bytes) -> Path:
    path = prefix / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def tree(top: Path) -> dict[str, Any]:
    """Every file below *top*: its mode, and its content or what it links to."""
    found: dict[str, Any] = {}
    for path in top.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[str(path.relative_to(top))] = (mode, path.read_bytes())
        elif not stat.S_ISDIR(mode):
            found[str(path.relative_to(top))] = (mode, os.readlink(path) if path.is_symlink() else "")
    return found


# --- what is written ----------------------------------------------------------------------------


def test_podman_gets_a_hook_for_each_stage_and_one_directory_more(tmp_path: Path) -> None:
    assert install(tmp_path, names=("podman",)) == 0
    assert sorted(path.name for path in (tmp_path / HOOKS_D).iterdir()) == [
        "nestrt-createruntime.json", "nestrt-poststart.json", "nestrt-poststop.json", "nestrt-precreate.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / HOOKS_D / "nestrt-precreate.json").read_text()) == {
        "version": "1.0.0",
        "hook": {
            "path": COMMAND,
            "args": ["nestrt", "hook", "precreate", "--tell"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "timeout": 60,
        },
        "when": {"annotations": {r"^nestrt\.": ".*"}},
        "stages": ["precreate"],
    }
    drop_in = tomllib.loads((tmp_path / DROP_IN).read_text())
    # Not podman's own directory: buildah reads that one, and fails at a stage that it does not know.
    assert drop_in == {"engine": {"hooks_dir": ["/usr/share/containers/oci/hooks.d", f"/{HOOKS_D}"]}}
    assert sorted(tree(tmp_path)) == sorted([DROP_IN, *(f"{HOOKS_D}/{texts.hook_file(s)}" for s in texts.STAGES)])


@pytest.mark.parametrize("stage", texts.STAGES)
def test_the_ready_made_files_are_what_install_writes(stage: str) -> None:
    file = CHECKOUT / "hooks" / "hooks.d" / texts.hook_file(stage)
    assert file.read_text() == texts.hook_text(texts.Settings("/usr/local/bin/nestrt"), stage)


@pytest.mark.parametrize(
    ("words", "when"),
    [
        (("--always",), {"always": True}),
        (("--command", "^/usr/bin/systemd$"), {"commands": ["^/usr/bin/systemd$"]}),
        (("--annotation", r"^org\.x=a=b|c"), {"annotations": {r"^org\.x": "a=b|c"}}),
    ],
)
def test_podman_s_conditions_and_policy(tmp_path: Path, words: tuple[str, ...], when: dict[str, Any]) -> None:
    install(tmp_path, *words, "--policy", "nested", names=("podman",))
    for stage in texts.STAGES:
        value = json.loads((tmp_path / HOOKS_D / texts.hook_file(stage)).read_text())
        assert value["when"] == when
        told = ["--tell"] if stage == "precreate" else []
        assert value["hook"]["args"] == ["nestrt", "hook", stage, "--policy", "nested", *told]


def test_the_wrapper_is_one_program_that_hands_every_argument_on(tmp_path: Path) -> None:
    """Each of the three has its own; what stands in it is what the shell makes of it."""
    install(tmp_path, "--policy", "strict")
    for name in ("docker", "containerd", "crio"):
        path = tmp_path / engines.wrapper(name).strip("/")
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    # echo in place of exec: what the program would be called with
    shown = path.read_text().replace("exec ", "printf '%s\\n' ")
    said = subprocess.run(["sh", "-c", shown, "sh", "a b", "", "$x"], capture_output=True, text=True, check=True)
    expected = [COMMAND, "wrap", "--runtime", "/bin/true", "--policy", "strict", "--", "a b", "", "$x"]
    assert said.stdout.split("\n")[:-1] == expected


def test_a_checkout_with_blanks_and_quotes_in_its_path() -> None:
    settings = texts.Settings("/opt/it's a $HOME/nestrt", "a b", "/usr/bin/run c")
    text = texts.wrapper_text(settings)
    words = ["wrap", "--runtime", settings.runtime, "--policy", "a b"]
    assert shlex.split(text.splitlines()[2])[1:-2] == [settings.command, *words]
    assert texts.read_wrapper(text) == settings
    hook = texts.hook_text(settings, "poststop")
    found = texts.read_hook(hook, "poststop")
    assert found is not None
    assert (found.command, found.policy) == (settings.command, "a b")


def test_crio_gets_a_runtime_since_it_has_no_precreate_stage(tmp_path: Path) -> None:
    install(tmp_path, names=("crio",))
    document = tomllib.loads((tmp_path / engines.CRIO_CONF.strip("/")).read_text())
    assert document == {
        "crio": {
            "runtime": {
                "runtimes": {
                    "nestrt-runc": {
                        "runtime_path": engines.wrapper("crio"),
                        "runtime_type": "oci",
                        "runtime_root": "/run/nestrt-runc",
                    }
                }
            }
        }
    }


def test_files_that_are_not_there_are_made_and_removed(tmp_path: Path) -> None:
    install(tmp_path)
    assert json.loads((tmp_path / DAEMON).read_text()) == {"runtimes": {"nestrt-runc": {"path": PROGRAM}}}
    assert tomllib.loads((tmp_path / CONFIG).read_text())["version"] == 2
    uninstall(tmp_path)
    assert tree(tmp_path) == {}
    assert not (tmp_path / "usr/local/libexec/nestrt").exists()
    assert not (tmp_path / "usr/local/share/nestrt").exists()


def test_the_umask_does_not_hide_what_engines_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        install(tmp_path)
    finally:
        os.umask(before)
    for path in (tmp_path / "usr/local").rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path
        assert path.is_file() or path.stat().st_mode & 0o011 == 0o011, path


def test_twice_is_once_and_uninstall_leaves_all_as_it_was(tmp_path: Path) -> None:
    put(tmp_path, DAEMON, '{"debug": true}\n').chmod(0o600)
    put(tmp_path, CONFIG, DEBIAN)
    put(tmp_path, "etc/containers/containers.conf", '[engine]\nruntime = "crun"\n')
    before = tree(tmp_path)
    install(tmp_path)
    once = tree(tmp_path)
    install(tmp_path)
    assert tree(tmp_path) == once
    assert once[DAEMON][0] == before[DAEMON][0]
    uninstall(tmp_path)
    assert tree(tmp_path) == before
    assert uninstall(tmp_path) == 0
    assert tree(tmp_path) == before


def test_another_installation_takes_the_place_of_the_first(tmp_path: Path) -> None:
    install(tmp_path, "--always", "--policy", "nested", names=("podman", "docker"))
    install(tmp_path, "--policy", "strict", names=("docker",))
    assert "--policy strict" in (tmp_path / PROGRAM.strip("/")).read_text()
    install(tmp_path, names=("podman",))
    value = json.loads((tmp_path / HOOKS_D / "nestrt-poststart.json").read_text())
    assert value["hook"]["args"] == ["nestrt", "hook", "poststart"]
    uninstall(tmp_path, ("podman",))
    assert sorted(tree(tmp_path)) == sorted([DAEMON, PROGRAM.strip("/")])


def test_print_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, DAEMON, '{"debug": true}')
    before = tree(tmp_path)
    install(tmp_path, "--print")
    said = capsys.readouterr().out
    assert tree(tmp_path) == before
    install(tmp_path)
    for path, (_, content) in tree(tmp_path).items():
        assert f"# {tmp_path / path}\n{content.decode()}" in said


def test_without_a_name_it_is_the_engines_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "find", lambda program, *_: "/usr/sbin/dockerd" if program == "dockerd" else "")
    install(tmp_path, names=())
    assert sorted(tree(tmp_path)) == sorted([DAEMON, PROGRAM.strip("/")])
    monkeypatch.setattr(hooks, "find", lambda *_: "")
    with pytest.raises(NotFound, match="name one: --engine NAME"):
        install(tmp_path, names=())
    # What is there is found again when the engine is gone.
    uninstall(tmp_path, ())
    assert tree(tmp_path) == {}


# --- daemon.json --------------------------------------------------------------------------------

SHAPES = [
    None,
    "{}",
    "{ }",
    " {\n} \n",
    '{"a":1}',
    '{ "a": 1 }',
    '{\n  "a": 1\n}\n',
    '{\n\t"a": [{"b": "}"}],\n\t"runtimes": {\n\t\t"x": {\n\t\t\t"path": "/x"\n\t\t}\n\t},\n\t"c": "\\"runtimes\\""\n}',
    '{"runtimes": {}}',
    '{"runtimes":{ }, "b": 2}',
    '{"runtimes":{"k":{"path":"/k"}}, "b": 2}',
    '{"runtimes": {"nestrt-runc2": {"path": "q"}, "z": {}}}',
    '{\r\n  "a": 1,\r\n  "b": {"c": [1,2]}\r\n}\r\n',
    '\n\n{\n\n\n    "a": 1 ,\n "b":2 }  ',
    '{"ä": "ö \\ud83d"}',
]


@pytest.mark.parametrize("text", SHAPES)
def test_daemon_json_keeps_every_key_its_order_and_its_bytes(text: str | None) -> None:
    new = daemon_json.add(text, PROGRAM, "f")
    expected = json.loads(text or "{}")
    expected.setdefault("runtimes", {})["nestrt-runc"] = {"path": PROGRAM}
    assert json.loads(new) == expected
    assert list(json.loads(new)) == list(expected)
    assert daemon_json.add(new, PROGRAM, "f") == new
    assert daemon_json.remove(new, PROGRAM, "f") == text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    document=st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    runtimes=st.none() | st.dictionaries(st.text(min_size=1, max_size=5), VALUES, max_size=3),
    indent=st.sampled_from([None, 0, 2, 4, "\t"]),
    separators=st.sampled_from([None, (",", ":")]),
    place=st.integers(0, 4),
)
def test_any_daemon_json_comes_back_byte_for_byte(
    document: dict[str, Any], runtimes: dict[str, Any] | None, indent: Any, separators: Any, place: int
) -> None:
    pairs = list(document.items())
    if runtimes is not None:
        pairs.insert(place, ("runtimes", runtimes))
    text = json.dumps(dict(pairs), indent=indent, separators=separators)
    new = daemon_json.add(text, PROGRAM, "f")
    expected = dict(pairs)
    expected["runtimes"] = {**(runtimes or {}), "nestrt-runc": {"path": PROGRAM}}
    assert json.loads(new) == expected
    assert daemon_json.remove(new, PROGRAM, "f") == text


def test_what_came_later_stays(tmp_path: Path) -> None:
    """An administrator adds a key and a runtime between install and uninstall, and formats the file anew."""
    put(tmp_path, DAEMON, '{"debug": true}')
    install(tmp_path, names=("docker",))
    value = json.loads((tmp_path / DAEMON).read_text())
    value["runtimes"] = {"other": {"path": "/o"}, **value["runtimes"]}
    value["iptables"] = False
    put(tmp_path, DAEMON, json.dumps(value, indent=4))
    uninstall(tmp_path, ("docker",))
    del value["runtimes"]["nestrt-runc"]
    assert json.loads((tmp_path / DAEMON).read_text()) == value


HOSTILE_JSON = [
    (b"", "not JSON"),
    (b"\n", "not JSON"),
    (b"{", "not JSON: line 1, column 2"),
    (b'{"a": 1,}', "not JSON"),
    (b'{"a": 1} x', "not JSON"),
    (b'{"a": NaN}', "not JSON"),
    (b'{"a": "\n"}', "not JSON"),
    (b'// comment\n{"a": 1}', "not JSON: line 1, column 1"),
    (b'{"a": 1 /* comment */}', "not JSON"),
    (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    (b"[]", "no object"),
    (b'"runtimes"', "no object"),
    (b'{"a": 1, "a": 2}', "'a' is there twice"),
    (b'{"a": 1, "runtimes": {}, "runtimes": {}}', "'runtimes' is there twice"),
    (b'{"runtimes": {"x": {"path": "/x", "path": "/y"}}}', "'path' is there twice"),
    (b'{"runtimes": []}', "runtimes are no object"),
    (b'{"runtimes": null}', "runtimes are no object"),
    (b'{"runtimes": {"nestrt-runc": {"path": "/x"}}}', "another runtime nestrt-runc"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": "' + b"x" * (1 << 20) + b'"}', "larger than 1 MiB"),
]


@pytest.mark.parametrize(("content", "told"), HOSTILE_JSON, ids=[told for _, told in HOSTILE_JSON])
def test_a_daemon_json_that_is_not_edited_stops_all(tmp_path: Path, content: bytes, told: str) -> None:
    """One line that says why, and nothing written for the other engines either."""
    put(tmp_path, DAEMON, content)
    before = tree(tmp_path)
    with pytest.raises(NestrtError) as found:
        install(tmp_path)
    assert told in str(found.value)
    assert str(tmp_path / DAEMON) in str(found.value)
    assert "\n" not in str(found.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [DAEMON, CONFIG, DROP_IN, f"{HOOKS_D}/nestrt-precreate.json", PROGRAM.strip("/")])
@pytest.mark.parametrize("kind", ["directory", "symlink", "dangling", "FIFO", "socket", "not ours", "in a file"])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    aside = put(tmp_path, "aside", "{}" if name == DAEMON else "")
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to(aside)
    elif kind == "dangling":
        path.symlink_to("/nowhere/at/all")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "in a file":
        path.parent.rmdir()
        path.parent.write_text("")
    elif name in (DAEMON, CONFIG):
        path.write_text("mine\n")
    else:
        path.write_text("{}\n")
    before = tree(tmp_path)
    with pytest.raises(NestrtError) as found:
        install(tmp_path)
    assert "\n" not in str(found.value)
    assert tree(tmp_path) == before


def test_a_link_on_the_way_below_a_prefix_is_not_followed(tmp_path: Path) -> None:
    """PREFIX may be an image's root: its /etc -> /etc would be this machine's."""
    outside = tmp_path / "outside"
    outside.mkdir()
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    (prefix / "etc").symlink_to(outside)
    with pytest.raises(HostError, match="below --prefix none is followed"):
        install(prefix, names=("docker",))
    assert list(outside.iterdir()) == []
    assert tree(prefix) == {"etc": (stat.S_IFLNK | 0o777, str(outside))}


def test_on_the_machine_itself_a_link_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    target = put(tmp_path, "managed/daemon.json", "{}")
    link = tmp_path / "daemon.json"
    link.symlink_to("managed/daemon.json")
    path = files.resolve("", str(link))
    files.apply([files.Change(path, "{}", "[]")])
    assert link.is_symlink()
    assert target.read_text() == "[]"
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(HostError, match="a symbolic link to nothing"):
        files.resolve("", str(link))


@pytest.mark.parametrize("mode", [0o400, 0o444, 0o600, 0o640, 0o644])
def test_mode_owner_and_attributes_are_kept(tmp_path: Path, mode: int) -> None:
    """A file without write permission is still root's to replace."""
    path = put(tmp_path, DAEMON, "{}")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 0, 34)
    attributes = True
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:  # tmpfs before Linux 6.6 has no user.* ones
        attributes = False
    before = path.stat()
    install(tmp_path, names=("docker",))
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    if attributes:
        assert os.getxattr(path, "user.note") == b"kept"


# --- config.toml --------------------------------------------------------------------------------

TOMLS = [
    None,
    "",
    DEBIAN,
    DEBIAN.rstrip("\n"),
    DEBIAN.replace("\n", "\r\n"),
    DEBIAN.replace("\n", "\r\n").rstrip("\r\n"),
    DEBIAN + RUNC,
    "version = 3\n",
    "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'crun'\n",
    '[plugins.cri.containerd]\nsnapshotter = "overlayfs"\n',
    "version = 2 # ours\n\n\n",
    DEBIAN + '\n[x]\ntext = """\n# BEGIN\n"""\n',
]


def plugin_of(document: dict[str, Any]) -> str:
    return {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}[document.get("version", 1)]


@pytest.mark.parametrize("text", TOMLS)
def test_config_toml_gets_one_table_and_keeps_every_byte(text: str | None) -> None:
    new = toml.add(text, PROGRAM, "f", 2)
    assert new.startswith((text or "").rstrip("\r\n") if text is not None else "version = 2\n")
    document = tomllib.loads(new)
    expected = tomllib.loads(text) if text is not None else {"version": 2}
    table = expected
    for name in ("plugins", plugin_of(expected), "containerd", "runtimes"):
        table = table.setdefault(name, {})
    systemd = "runc" in table
    if not table:
        # containerd 1 takes the file's runtimes in place of its own, and does not start without runc.
        table["runc"] = {"runtime_type": "io.containerd.runc.v2"}
    table["nestrt-runc"] = {
        "runtime_type": "io.containerd.runc.v2",
        "pod_annotations": ["nestrt.*"],
        "container_annotations": ["nestrt.*"],
        "options": {"BinaryName": PROGRAM, "SystemdCgroup": systemd},
    }
    assert document == expected
    assert toml.add(new, PROGRAM, "f", 2) == new
    assert toml.remove(new, "f") == text
    assert toml.remove(toml.add(new, "/other", "f", 2), "f") == text
    if text and "\r\n" in text:
        assert new.count("\n") == new.count("\r\n")


def test_what_came_after_the_block_stays() -> None:
    later = '[debug]\nlevel = "info"\n'
    new = toml.add(DEBIAN, PROGRAM, "f", 2) + later
    assert toml.remove(new, "f") == DEBIAN + later
    again = toml.add(new, "/other", "f", 2)
    assert again.endswith(toml.END + "\n" + later)
    assert toml.remove(again, "f") == DEBIAN + later
    # A file that install has made, and somebody has used since.
    assert toml.remove(toml.add(None, PROGRAM, "f", 3) + later, "f") == "version = 3\n\n" + later


HOSTILE_TOML = [
    ("version = \n", "not TOML"),
    ("version = 2\nversion = 2\n", "not TOML"),
    (f"version = 2\n{RUNC}\n{RUNC}", "not TOML"),
    ("x = [" * 100_000, "TOML"),
    (DEBIAN + RUNC.replace("runc]", "nestrt-runc]").replace("runc.options", "nestrt-runc.options"), "another runtime"),
    ("plugins = {}\n", "no table can be added"),
    ("plugins = 1\n", "no table can be added"),
    ('version = 2\n[plugins]\n"io.containerd.grpc.v1.cri" = {containerd = {}}\n', "no table can be added"),
    ('version = 2\n[plugins."io.containerd.grpc.v1.cri"]\ncontainerd = {runtimes = {}}\n', "no table can be added"),
    ('version = 2\n[[plugins."io.containerd.grpc.v1.cri"]]\n', "no table can be added"),
    (f'x = """\n{toml.BEGIN}\n{toml.END}\n"""\n', "no table can be added"),
]


@pytest.mark.parametrize(("content", "told"), HOSTILE_TOML)
def test_a_config_toml_that_is_not_edited_stops_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, told: str
) -> None:
    """Nothing is written; where only a person can add the table, it is printed."""
    put(tmp_path, CONFIG, content)
    before = tree(tmp_path)
    with pytest.raises(NestrtError) as found:
        install(tmp_path)
    assert told in str(found.value)
    assert "\n" not in str(found.value)
    assert tree(tmp_path) == before
    said = capsys.readouterr().out
    if told == "no table can be added":
        assert "nestrt-runc" in str(tomllib.loads(said))
    else:
        assert said == ""
    uninstall(tmp_path)
    assert tree(tmp_path) == before


def test_marks_in_a_text_of_many_lines_are_no_block_of_ours() -> None:
    text = f'version = 2\nx = """\n{toml.BEGIN}\nmore\n{toml.END}\n"""\n'
    assert toml.remove(text, "f") == text
    assert not toml.is_there(text)


def test_an_import_that_has_the_plugin_would_hide_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, CONFIG, 'version = 2\nimports = ["conf.d/*.toml", "/etc/other.toml", "/nowhere.toml"]\n')
    put(tmp_path, "etc/other.toml", "version = 2\n[debug]\n")
    install(tmp_path, names=("containerd",))
    uninstall(tmp_path, ("containerd",))
    put(tmp_path, "etc/containerd/conf.d/a.toml", 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n')
    before = tree(tmp_path)
    with pytest.raises(StateError, match=r"/etc/containerd/conf\.d/a\.toml, which it imports, has the plugin"):
        install(tmp_path, names=("containerd",))
    assert "nestrt-runc" in capsys.readouterr().out
    assert tree(tmp_path) == before


def test_a_new_file_has_the_version_of_the_machine_s_containerd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "containerd_version", lambda: 2)
    install(tmp_path, names=("containerd",))
    document = tomllib.loads((tmp_path / CONFIG).read_text())
    assert document["version"] == 3
    assert "nestrt-runc" in document["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    monkeypatch.setattr(engines, "containerd_version", lambda: 1)
    install(tmp_path, names=("containerd",))
    assert tomllib.loads((tmp_path / CONFIG).read_text()) == document
    uninstall(tmp_path)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", 1),
        ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4", 2),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", 1),
        ("", 1),
        ("one two x.y", 1),
    ],
)
def test_the_version_of_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, version: int) -> None:
    program = put(tmp_path, "containerd", f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(engines, "find", lambda *_: str(program))
    assert engines.containerd_version() == version


# --- containers.conf ----------------------------------------------------------------------------

OWN = "/usr/share/containers/oci/hooks.d"


@pytest.mark.parametrize(
    ("configurations", "expected"),
    [
        ({}, [OWN]),
        ({"etc/containers/containers.conf": "[engine]\nhooks_dir = ['/a']\n"}, ["/a"]),
        (
            {
                "usr/share/containers/containers.conf": "[engine]\nhooks_dir = ['/a']\n",
                "etc/containers/containers.conf": "[engine]\nhooks_dir = ['/b', '/c']\n",
            },
            ["/b", "/c"],
        ),
        ({"etc/containers/containers.conf.d/a.conf": "[engine]\nhooks_dir = ['/a', {append = true}]\n"}, [OWN, "/a"]),
        ({"etc/containers/containers.conf.d/a.txt": "[engine]\nhooks_dir = ['/a']\n"}, [OWN]),
        ({"etc/containers/containers.conf": "[engine]\nruntime = 'runc'\n[containers]\nhooks_dir = ['/x']\n"}, [OWN]),
        ({"etc/containers/containers.conf": f"[engine]\nhooks_dir = ['/{HOOKS_D}', '/a']\n"}, ["/a"]),
    ],
)
def test_the_drop_in_keeps_the_directories_that_podman_has(
    tmp_path: Path, configurations: dict[str, str], expected: list[str]
) -> None:
    for name, text in configurations.items():
        put(tmp_path, name, text)
    install(tmp_path, names=("podman",))
    found = tomllib.loads((tmp_path / DROP_IN).read_text())
    assert found["engine"]["hooks_dir"] == [*expected, f"/{HOOKS_D}"]


def test_a_list_that_podman_reads_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path, names=("podman",))
    later = put(tmp_path, "etc/containers/containers.conf.d/zz.conf", "[engine]\nhooks_dir = ['/a']\n")
    code, said = status(tmp_path, capsys, ("podman",))
    assert code == 1
    assert f"zz.conf is read after it and sets hooks_dir; add /{HOOKS_D} to that list" in said["podman"]["problems"][0]
    before = tree(tmp_path)
    with pytest.raises(StateError, match=r"zz\.conf is read after it"):
        install(tmp_path, names=("podman",))
    assert tree(tmp_path) == before
    later.write_text(f"[engine]\nhooks_dir = ['/a', '/{HOOKS_D}']\n")
    assert status(tmp_path, capsys, ("podman",))[0] == 0


# --- in between ---------------------------------------------------------------------------------


def _killed_after(count: int, action: Any, prefix: Path) -> bool:
    """Run *action* in a process that is killed at its *count*-th call that touches *prefix*; whether it was."""
    pid = os.fork()
    if pid:
        _, result = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(result) or os.WEXITSTATUS(result) == 0
        return os.WIFSIGNALED(result)
    try:
        sys.stdout = open(os.devnull, "w")
        left = count

        def at(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.chmod", "os.rmdir") and any(
                isinstance(word, str) and (word.startswith(str(prefix)) or "/proc/self/fd/" in word)
                for word in arguments
            ):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(at)
        action()
    finally:
        os._exit(0)


def test_killed_at_any_point_each_file_is_old_or_new(tmp_path: Path) -> None:
    """Killed between any two calls, install and uninstall leave no file in part, and the next run is whole."""
    put(tmp_path, DAEMON, '{\n  "debug": true\n}\n')
    put(tmp_path, CONFIG, DEBIAN)
    old = tree(tmp_path)
    install(tmp_path)
    new = tree(tmp_path)
    for action, end in ((uninstall, old), (install, new)):
        begin = tree(tmp_path)
        count = 0
        while _killed_after(count, lambda run=action: run(tmp_path), tmp_path):
            for path, found in tree(tmp_path).items():
                if path in begin or path in end:
                    assert found in (begin.get(path), end.get(path)), (count, path)
                else:
                    # Whole all the same: CRI-O reads every file of its directory.
                    assert Path(path).name.endswith(".nestrt"), (count, path)
                    assert found[1] in [content for _, content in end.values()], (count, path)
            (install if action is uninstall else uninstall)(tmp_path)
            assert tree(tmp_path) == begin, count
            count += 1
        assert count > 20
        assert tree(tmp_path) == end


def test_what_fails_halfway_is_undone(tmp_path: Path) -> None:
    """The last file's place is taken by a directory: those that were written before are as they were."""
    put(tmp_path, DAEMON, "{}")
    (tmp_path / "etc/containerd/.config.toml.nestrt").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(KernelError):
        install(tmp_path, names=("docker", "containerd"))
    assert tree(tmp_path) == before


def test_a_file_that_changes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = put(tmp_path, DAEMON, '{"a": 1}')
    with pytest.raises(StateError, match="changed since it was read"):
        files.apply([files.Change(str(path), "{}", "[]")])
    assert path.read_text() == '{"a": 1}'


# --- command line -------------------------------------------------------------------------------

REFUSED = [
    (("--runtime", "bin/true"), InputError, "no absolute path"),
    (("--runtime", "/nowhere/runc"), InputError, "no such program"),
    (("--runtime", "nosuchruntime"), InputError, "in none of"),
    (("--runtime", COMMAND), InputError, "nestrt itself"),
    (("--policy", "nosuchpolicy"), InputError, "has none of that name"),
    (("--annotation", "key"), InputError, "has no value"),
    (("--annotation", "=x"), InputError, "has no value"),
    (("--annotation", "(=x"), InputError, "regular expression"),
    (("--command", "(?=x)"), InputError, "plain regular expression"),
]


@pytest.mark.parametrize(("words", "kind", "told"), REFUSED)
def test_wrong_words(tmp_path: Path, words: tuple[str, ...], kind: type[NestrtError], told: str) -> None:
    with pytest.raises(kind) as found:
        hooks.main(["install", *_common(tmp_path, ("podman",)), *words])
    assert told in str(found.value)
    assert tree(tmp_path) == {}


def test_a_condition_is_podman_s_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only podman has conditions"):
        install(tmp_path, "--always", names=("docker",))
    with pytest.raises(NotFound, match="no such directory"):
        install(tmp_path / "nowhere")


def test_a_link_to_nestrt_is_no_runtime(tmp_path: Path) -> None:
    (tmp_path / "runc").symlink_to(COMMAND)
    with pytest.raises(InputError, match="nestrt itself"):
        engines.runtime_path(str(tmp_path / "runc"), COMMAND)


GOOD = [r"^nestrt\.", ".*", "a{2,3}?", r"^/usr/bin/(foo|bar)$", "[a-z0-9_.-]+", "", "(?:x)+", "ä+", r"a\++", "[^/]*"]
BAD = ["(?=a)", "a++", "a**", r"(a)\1", r"\Z", "(", ")", "a{2000}", "((a{100}){100})", "[a", "(?P<n>a)", "(?i)a"]
BAD += ["[[:alpha:]]", "a{", "\\", "[z-a]", r"\ä", "|*", "*", "[", "{1}{2}", "(" * 5000]


@pytest.mark.parametrize("text", GOOD)
def test_a_regular_expression_that_go_and_python_read_alike(text: str) -> None:
    assert texts.go_regex(text, "x") == text


@pytest.mark.parametrize("text", BAD)
def test_a_regular_expression_that_could_stop_every_container(text: str) -> None:
    with pytest.raises(InputError) as found:
        texts.go_regex(text, "x")
    assert "\n" not in str(found.value)


# --- status -------------------------------------------------------------------------------------


def states(said: Any, engine: str) -> dict[str, str]:
    return {Path(file["path"]).name: file["state"] for file in said[engine]["files"]}


def test_status_of_nothing_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = status(tmp_path, capsys, ())
    assert code == 0
    assert list(said) == list(ALL)
    assert all(not found["installed"] and found["right"] for found in said.values())


def test_status_reads_back_what_install_was_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path, "--always", "--policy", "nested")
    code, said = status(tmp_path, capsys)
    assert code == 0, said
    assert said["podman"]["settings"] == {"command": COMMAND, "policy": "nested", "when": {"always": True}}
    assert said["crio"]["settings"] == {"command": COMMAND, "policy": "nested", "runtime": "/bin/true"}
    assert set(states(said, "podman").values()) == {"ok"}
    assert hooks.main(["status", *_common(tmp_path, ())]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" ok ") >= len(ALL)
    assert "WRONG" not in shown


def test_status_finds_what_is_not_as_install_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    hook = tmp_path / HOOKS_D / "nestrt-poststop.json"
    hook.write_text(hook.read_text().replace("PATH=/usr/sbin:", "PATH=/tmp:"))
    (tmp_path / HOOKS_D / "nestrt-poststart.json").unlink()
    (tmp_path / PROGRAM.strip("/")).chmod(0o644)
    put(tmp_path, CONFIG, "version = 2\n")
    put(tmp_path, engines.CRIO_CONF.strip("/"), "x = 1\n")
    code, said = status(tmp_path, capsys)
    assert code == 1
    assert states(said, "podman") == {
        "nestrt-precreate.json": "ok",
        "nestrt-createruntime.json": "ok",
        "nestrt-poststart.json": "missing",
        "nestrt-poststop.json": "changed",
        "nestrt-hooks.conf": "ok",
    }
    assert states(said, "docker") == {"nestrt-runc": "unsafe", "daemon.json": "ok"}
    assert states(said, "containerd") == {"nestrt-runc": "ok", "config.toml": "missing"}
    assert states(said, "crio") == {"nestrt-runc": "ok", "10-nestrt-runc.conf": "missing"}
    assert not any(found["right"] for found in said.values())
    hooks.main(["status", *_common(tmp_path, ())])
    assert capsys.readouterr().out.count("WRONG") == len(ALL)


def test_status_of_files_that_nobody_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    put(tmp_path, DAEMON, b"{nestrt-runc")
    put(tmp_path, CONFIG, b"\xff")
    (tmp_path / DROP_IN).unlink()
    os.mkfifo(tmp_path / DROP_IN)
    code, said = status(tmp_path, capsys)
    assert code == 1
    assert states(said, "docker")["daemon.json"] == "unreadable"
    assert states(said, "containerd")["config.toml"] == "unreadable"
    assert states(said, "podman")["nestrt-hooks.conf"] == "unreadable"
    # One that cannot be undone does not keep the others.
    with pytest.raises(NestrtError):
        uninstall(tmp_path)
    assert not (tmp_path / engines.CRIO_CONF.strip("/")).exists()


def test_status_of_a_plugin_that_is_disabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, CONFIG, 'version = 2\ndisabled_plugins = ["cri"]\n')
    install(tmp_path, names=("containerd",))
    assert "does not use it" in capsys.readouterr().err
    code, said = status(tmp_path, capsys, ("containerd",))
    assert code == 1
    assert "disabled_plugins" in said["containerd"]["problems"][0]


def test_groups_that_systemd_makes_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is installed is right, and yet containers of runc would be refused."""
    engine, name, text = "podman", "etc/containers/containers.conf", '[engine]\ncgroup_manager = "{}"\n'
    put(tmp_path, name, text.format("cgroupfs"))
    install(tmp_path, names=(engine,))
    assert "warning" not in capsys.readouterr().err
    uninstall(tmp_path)
    put(tmp_path, name, text.format("systemd"))
    install(tmp_path, names=(engine,))
    assert f"warning: {engine}: containers that systemd places are guests only" in capsys.readouterr().err
    code, said = status(tmp_path, capsys, (engine,))
    assert code == 0
    assert "cgroupfs" in said[engine]["note"]


def test_status_of_a_runtime_and_a_policy_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "etc/nestrt/policies/mine.toml", "").chmod(0o644)
    runtime = put(tmp_path, "opt/run", "#!/bin/sh\n")
    runtime.chmod(0o755)
    if os.geteuid() == 0:  # a policy has to be root's
        hooks.main(["install", *_common(tmp_path, ("crio",)), "--runtime", "/opt/run", "--policy", "mine"])
        assert status(tmp_path, capsys, ("crio",))[0] == 0
        (tmp_path / "etc/nestrt/policies/mine.toml").unlink()
        code, said = status(tmp_path, capsys, ("crio",))
        assert code == 1
        assert "mine" in said["crio"]["problems"][0]
    hooks.main(["install", *_common(tmp_path, ("crio",)), "--runtime", "/opt/run"])
    runtime.unlink()
    code, said = status(tmp_path, capsys, ("crio",))
    assert code == 1
    assert "/opt/run" in said["crio"]["problems"][0]


# --- trust --------------------------------------------------------------------------------------


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of which the whole way is trusted, as root's would be: what is in it can be made otherwise.

    ::

        top/                 0755
          ├ command          0755   "#!/bin/sh"
          └ package/ code.py 0644
    """
    monkeypatch.setattr(files, "OTHERS", 0o022)
    owners = {0, os.geteuid(), *(path.stat().st_uid for path in tmp_path.parents)}
    monkeypatch.setattr(files, "OWNERS", frozenset(owners))
    fault = files._fault
    monkeypatch.setattr(
        files, "_fault", lambda path, found, own=files.OWNERS: fault(path, found, own) if str(tmp_path) in path else ""
    )
    tmp_path.chmod(0o755)
    put(tmp_path, "command", "#!/bin/sh\n").chmod(0o755)
    put(tmp_path, "package/code.py", "").chmod(0o644)
    (tmp_path / "package").chmod(0o755)
    return tmp_path


def test_what_only_root_can_change_is_trusted(top: Path) -> None:
    assert files.unusable(str(top / "command")) == ""
    assert files.untrusted_tree(str(top / "package")) == ""
    (top / "link").symlink_to("package/../command")
    assert files.unusable(str(top / "link")) == ""


@pytest.mark.parametrize("name", ["command", "package/code.py", "package", "."])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_not(top: Path, name: str, mode: int) -> None:
    path = top / name
    path.chmod(path.stat().st_mode | mode)
    fault = files.unusable(str(top / "command")) or files.untrusted_tree(str(top / "package"))
    assert fault.startswith(f"others than its owner may write {path}")


def test_in_a_sticky_directory_nobody_replaces_what_is_anothers(top: Path) -> None:
    top.chmod(0o1777)
    assert files.unusable(str(top / "command")) == ""


def test_the_way_of_a_link_is_looked_at_too(top: Path) -> None:
    """top/link -> open/../command: who may write ``open`` does not decide, who may write what it leads through does."""
    (top / "open").mkdir()
    (top / "open").chmod(0o777)
    (top / "open" / "inner").symlink_to(top / "command")
    (top / "link").symlink_to("open/inner")
    assert "open" in files.unusable(str(top / "link"))
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    with pytest.raises(HostError, match="too many symbolic links"):
        files.untrusted(str(top / "a"))


def test_a_script_s_interpreter_is_looked_at_too(top: Path) -> None:
    put(top, "python", "").chmod(0o757)
    put(top, "script", f"#!{top}/python -I\n").chmod(0o755)
    assert f"{top}/python" in files.unusable(str(top / "script"))


@pytest.mark.parametrize("name", ["nowhere", "package", "package/code.py"])
def test_what_is_no_program(top: Path, name: str) -> None:
    assert files.unusable(str(top / name)) != ""


def test_install_refuses_a_command_that_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_fault", lambda command: f"others than its owner may write {command} (mode 0777)")
    with pytest.raises(HostError) as found:
        install(tmp_path)
    assert "engines run them as root, and others than its owner may write" in str(found.value)
    assert "let root own it" in str(found.value)
    assert tree(tmp_path) == {}
    assert install(tmp_path, "--print") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away, which only root can")
def test_install_refuses_directories_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    os.chown(tmp_path / "etc", 1000, 1000)
    with pytest.raises(HostError, match=f"{tmp_path}/etc belongs to uid 1000"):
        install(tmp_path, names=("docker",))
    monkeypatch.setattr(files, "OTHERS", 0o022)
    os.chown(tmp_path / "etc", 0, 0)
    (tmp_path / "etc/docker").chmod(0o775)
    with pytest.raises(HostError, match="others than its owner may write"):
        install(tmp_path, names=("docker",))
    assert tree(tmp_path) == {}
