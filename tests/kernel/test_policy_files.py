"""The host's policies and bindings as files: who may have written them, what is kept of them, what none cost.

DIR/bindings.toml          rules                 root's, writable by nobody else:
DIR/policies/NAME.toml     the policy NAME       else no container starts
CACHE                      both, parsed          root's; only for exactly these files
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from nestrt.errors import HostError, InputError
from nestrt.level.annotations import profile
from nestrt.level.binding import Bindings, Bundle, resolve
from nestrt.probe import policies
from nestrt.probe.policies import load, policy_of
from support.need import SLOW, require

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(ROOT / "hooks" / "nestrt")
WHOLE = """
[[rule]]
match  = { engine = ["podman", "docker"], cgroup = "/ci/*", user = [5, "10-20"], annotation = "a=*", bundle = "*" }
policy = "web"
bound  = "nested"
[[rule]]
match  = { cgroup = "/plain/*" }
annotations = false
[[rule]]
policy = "web"
"""
WEB = """
[level]
max_level = 2
[view]
controllers = ["cpu", "memory"]
[user]
namespace = "map"
uid_map = ["0:100000:1000"]
gid_map = ["0:100000:1000"]
capabilities = ["CAP_KILL"]
[limits]
memory = "64M"
cpus = "0-1"
io = ["8:0 rbps=1M wiops=max"]
devices = ["default"]
hugetlb = { 2MB = "4M" }
rdma = { m0 = "hca_handle=2" }
misc = { sev = 2 }
net_prio = { eth0 = 3 }
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A directory as /etc/nestrt is, with rules and the policy "web"."""
    directory = tmp_path / "etc"
    (directory / "policies").mkdir(parents=True, mode=0o755)
    (directory / "bindings.toml").write_text(WHOLE)
    (directory / "policies" / "web.toml").write_text(WEB)
    for path in (directory, directory / "policies", *directory.rglob("*.toml")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where parsed files are kept, those of this moment too."""
    monkeypatch.setattr(policies, "SETTLED", -(10**18))
    return tmp_path / "run" / "policies.json"


def fresh(code: str) -> set[str]:
    """The modules in a new interpreter after *code*."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", code], capture_output=True, text=True, timeout=60 * SLOW)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_rules_and_policies_are_read(etc: Path) -> None:
    bindings = load(str(etc))
    assert len(bindings.rules) == 3
    web = resolve([], bindings, Bundle())
    assert web is not None
    assert (web.max_level, web.limits.memory, web.source) == (2, 64 << 20, f"{etc}/policies/web.toml")
    assert (web.user_namespace, web.uid_map, web.capabilities) == ("auto", (), None)
    assert resolve([], bindings, Bundle("/plain/x")) is None
    with pytest.raises(InputError, match="takes no annotations"):
        resolve([("nestrt.view.mount", "ro")], bindings, Bundle("/plain/x"))


def test_where_there_is_nothing_there_is_nothing_to_pay() -> None:
    code = "from nestrt.probe.policies import policy_of\nassert policy_of([('a', 'b')], None, '/nonexistent/x') is None"
    loaded = fresh(code)
    assert not {name for name in loaded if name.startswith("nestrt.level")}
    assert not loaded & {"tomllib", "re", "enum", "typing", "collections", "functools"}
    # An annotation needs no file, and no TOML.
    code = code.replace("('a', 'b')", "('nestrt.policy', 'strict')").replace(" is None", "")
    assert not fresh(code) & {"tomllib", "re", "enum", "typing", "collections", "functools", "json", "dataclasses"}
    assert load("/nonexistent/x") == Bindings(source="/nonexistent/x/bindings.toml")


def test_a_directory_without_files_costs_no_toml(etc: Path) -> None:
    for path in etc.rglob("*.toml"):
        path.unlink()
    assert load(str(etc)) == Bindings(source=f"{etc}/bindings.toml")
    (etc / "policies").rmdir()
    code = f"from nestrt.probe.policies import policy_of\nassert policy_of([], None, {str(etc)!r}) is None"
    assert "tomllib" not in fresh(code)


def test_a_file_named_as_a_built_in_policy_is_the_hosts_word(etc: Path) -> None:
    (etc / "policies" / "strict.toml").write_text("[limits]\npids = 5\n")
    strict = load(str(etc)).find("strict")
    assert strict.limits.pids == 5
    built_in = profile("strict")
    assert built_in is not None
    assert strict.mount != built_in.mount


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("name", ["", "policies", "bindings.toml", "policies/web.toml"])
@pytest.mark.parametrize(("mode", "owner"), [(0o020, 0), (0o002, 0), (0, 12345)])
def test_what_others_can_write_is_not_trusted(etc: Path, cache: Path, name: str, mode: int, owner: int) -> None:
    load(str(etc), str(cache))  # and no cache makes it so
    path = etc / name
    path.chmod(path.stat().st_mode & 0o7777 | mode)
    os.chown(path, owner, -1)
    with pytest.raises(HostError, match="cannot trust") as caught:
        policy_of([], Bundle(), str(etc), str(cache))
    assert str(path) in str(caught.value)
    assert caught.value.status == 5


def test_links_are_followed_to_files_of_root(etc: Path, tmp_path: Path) -> None:
    """Configuration tools make /etc of links; what counts is the file at their end."""
    store = tmp_path / "store.toml"
    (etc / "policies" / "web.toml").rename(store)
    (etc / "policies" / "web.toml").symlink_to(store)
    assert load(str(etc)).find("web").max_level == 2
    os.chown(store, 12345, -1)
    with pytest.raises(HostError, match="uid 12345"):
        load(str(etc))
    store.unlink()
    with pytest.raises(HostError, match="link to nothing"):
        load(str(etc))


def test_what_is_no_file_is_refused_at_once(etc: Path) -> None:
    for name in ("bindings.toml", "policies/web.toml"):
        path = etc / name
        content = path.read_bytes()
        for make, words in (
            (lambda path=path: os.mkfifo(path, 0o600), "not a regular file"),
            (path.mkdir, "not a regular file"),
            (lambda path=path: path.write_bytes(b"#" * ((1 << 20) + 1)), "larger than 1 MiB"),
            (lambda path=path: path.write_bytes(b"\xff"), "byte 0 is not UTF-8"),
        ):
            path.unlink()
            make()
            with pytest.raises(HostError, match=words):
                load(str(etc))
            if path.is_dir():
                path.rmdir()
                path.touch()
        path.write_bytes(content)
    (etc / "bindings.toml").unlink()
    etc.rename(etc.with_name("other"))
    etc.write_text("a file where the directory should be")
    with pytest.raises(HostError, match="it is no directory"):
        policy_of([], Bundle(), str(etc), "")


def test_a_mistake_in_the_bindings_stops_every_container(etc: Path) -> None:
    for text, words in (
        ("[[rule]]\npolcy = 'x'", "did you mean policy"),
        ("[[", "not TOML"),
        ("[" * 90_000, "TOML|deep"),
    ):
        (etc / "bindings.toml").write_text(text)
        with pytest.raises(HostError, match=words):
            load(str(etc))


def test_a_mistake_in_a_policy_stops_those_that_use_it(etc: Path, cache: Path) -> None:
    (etc / "policies" / "draft.toml").write_text("[view]\nmont = 'x'")
    for _ in ("read", "from the cache"):
        assert policy_of([], Bundle(), str(etc), str(cache)) is not None
        with pytest.raises(HostError, match="did you mean mount"):
            policy_of([("nestrt.policy", "draft")], Bundle(), str(etc), str(cache))
    assert cache.exists()


def test_what_was_read_is_kept_and_the_same(etc: Path, cache: Path) -> None:
    first = load(str(etc), str(cache))
    assert (cache.stat().st_mode & 0o7777, cache.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    assert load(str(etc), str(cache)) == first == load(str(etc))
    assert os.listdir(cache.parent) == [cache.name]
    code = f"from nestrt.probe.policies import policy_of\nassert policy_of([], None, {str(etc)!r}, {str(cache)!r})"
    assert not fresh(code) & {"tomllib", "re", "enum", "typing", "collections", "functools", "json"}
    cache.unlink()
    assert "tomllib" in fresh(code)


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("change", ["same size", "replaced", "new", "gone", "rules gone"])
def test_what_is_kept_is_of_these_files_only(etc: Path, cache: Path, change: str) -> None:
    web = etc / "policies" / "web.toml"
    before = load(str(etc), str(cache))
    if change == "same size":
        stat = web.stat()
        web.write_text(WEB.replace("64M", "32M"))
        os.utime(web, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "replaced":
        (etc / "new").write_text(WEB.replace("64M", "32M"))
        (etc / "new").rename(web)
    elif change == "new":
        (etc / "policies" / "new.toml").write_text("")
    elif change == "gone":
        web.unlink()
    else:
        (etc / "bindings.toml").unlink()
    after = load(str(etc), str(cache))
    assert after != before
    assert after == load(str(etc))


def test_what_was_written_just_now_is_not_kept(etc: Path, tmp_path: Path) -> None:
    """Two writes in one tick of the clock look alike."""
    cache = tmp_path / "policies.json"
    load(str(etc), str(cache))
    assert not cache.exists()


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("harm", ["cut", "garbage", "owner", "mode", "link", "fifo", "directory", "types"])
def test_a_cache_that_is_not_ours_is_not_read(etc: Path, cache: Path, tmp_path: Path, harm: str) -> None:
    right = load(str(etc), str(cache))
    text = cache.read_text()
    forged = text.replace('"max_level":2', '"max_level":9')
    assert forged != text
    if harm == "cut":
        cache.write_text(text[: len(text) // 2])
    elif harm == "garbage":
        cache.write_bytes(b"\xff\xfe")
    elif harm == "types":
        cache.write_text(text.replace('"rules":[', '"rules":[7,'))
    elif harm == "owner":
        cache.write_text(forged)
        os.chown(cache, 12345, -1)
    elif harm == "mode":
        cache.write_text(forged)
        cache.chmod(0o666)
    else:
        cache.unlink()
        if harm == "link":
            (tmp_path / "forged").write_text(forged)
            cache.symlink_to(tmp_path / "forged")
        elif harm == "fifo":
            os.mkfifo(cache)
        else:
            cache.mkdir()
    assert load(str(etc), str(cache)) == right


@pytest.fixture
def open_etc() -> Iterator[Path]:
    """An etc and a copy of the code that an ordinary user can reach; pytest's own directories are root's alone."""
    directory = Path(mkdtemp(prefix="nestrt-policy-", dir="/tmp"))
    directory.chmod(0o755)
    subprocess.run(["cp", "-r", str(ROOT / "nestrt"), str(directory / "nestrt")], check=True)
    subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)
    etc = directory / "etc"
    etc.mkdir(mode=0o755)
    (etc / "bindings.toml").write_text("[[rule]]\nmatch = { user = 12345 }\npolicy = 'strict'\n")
    (etc / "bindings.toml").chmod(0o644)
    try:
        yield directory
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=True)


def as_user(directory: Path, namespace: bool) -> subprocess.CompletedProcess[str]:
    """The policy of a bundle that uid 12345 runs, in a user namespace as whose root it runs or in none."""
    code = (
        f"import sys; sys.path.insert(0, {str(directory)!r})\n"
        "from nestrt.errors import NestrtError\nfrom nestrt.probe.policies import policy_of\n"
        "import os\nbundle = ('', '', (os.getuid(),))\n"
        f"try: print(policy_of([], bundle, {str(directory / 'etc')!r}).source)\n"
        "except NestrtError as error: print(error)\n"
    )
    argv = [*(["unshare", "--user", "--map-root-user"] if namespace else []), "/usr/bin/python3", "-IS", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, user=12345, group=12345, extra_groups=[])


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("namespace", [False, True])
def test_an_ordinary_user_is_bound_too(open_etc: Path, namespace: bool) -> None:
    """As root of a namespace that does not map the host's root, too: root's files seem nobody's there, as / does."""
    done = as_user(open_etc, namespace)
    require("userns", done.stderr if namespace and "unshare" in done.stderr else None)
    assert (done.stdout, done.stderr) == ("strict\n", "")
    if not namespace:  # as whose root the user may own what it likes
        os.chown(open_etc / "etc", 12345, -1)
        assert "cannot trust" in as_user(open_etc, namespace).stdout
        os.chown(open_etc / "etc", 0, -1)
    (open_etc / "etc" / "bindings.toml").chmod(0o600)
    assert "Permission denied" in as_user(open_etc, namespace).stdout


@pytest.mark.slow_on_vm
def test_the_command_tells_the_same(etc: Path) -> None:
    argv = [COMMAND, "policy", "explain", "--directory", str(etc)]
    done = subprocess.run([*argv, "--cgroup", "ci:x:y", "-a", "nestrt.view.mount=ro"], capture_output=True, text=True)
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert rows["nestrt.view.mount"] == ["ro", "annotation nestrt.view.mount"]
    assert rows["nestrt.level.max_level"] == ["2", f"rule 3, policy {etc}/policies/web.toml"]
    assert rows["limits.memory"][0] == "64M"
    assert rows["user"][0] == "not"
    done = subprocess.run([*argv, "-a", "nestrt.level.max_level=3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "it asks for 3, and rule 3 of" in done.stderr
    check = [argv[0], "policy", "check", str(etc / "bindings.toml")]
    done = subprocess.run(check, capture_output=True, text=True)
    # Rule 1 binds "web" under "nested", and both fit; web's [user] does not hold for bundles, and that is said.
    assert done.returncode == 0, done.stderr
    assert "3 rules" in done.stdout
    assert "[user] is for launch" in done.stdout


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A container of busybox that shows where it stands and what memory it has; its group is /nestrt-policy."""
    directory = tmp_path / "bundle"
    (directory / "rootfs" / "bin").mkdir(parents=True)
    for name in ("dev", "proc", "sys", "tmp"):
        (directory / "rootfs" / name).mkdir()
    shutil.copy("/usr/bin/busybox", directory / "rootfs" / "bin" / "sh")
    subprocess.run([COMMAND, "spec", "--bundle", str(directory)], check=True, timeout=60 * SLOW)
    return directory


def run(etc: Path, bundle: Path, annotations: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``nestrt run`` where /etc/nestrt is *etc*, in a mount namespace of its own."""
    document = json.loads((bundle / "config.json").read_text())
    files = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
    script = f"cat /proc/self/cgroup; for f in {files}; do if [ -e $f ]; then echo memory=$(cat $f); fi; done"
    document["process"].update(terminal=False, args=["/bin/sh", "-c", script])
    document["annotations"] = annotations
    document["linux"].update(cgroupsPath="/nestrt-policy", resources={"memory": {"limit": 96 << 20}})
    (bundle / "config.json").write_text(json.dumps(document))
    root = bundle.parent / "root"
    fake = bundle.parent / "fake"
    fake.mkdir(exist_ok=True)
    if etc.exists():
        etc.rename(fake / "nestrt")
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount --bind "$0" /etc && exec "$@"',
        str(fake),
    ]
    argv += [COMMAND, "--root", str(root), "run", "--bundle", str(bundle), "nestrt-policy"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60 * SLOW, stdin=subprocess.DEVNULL)


def groups(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return {line.split(":", 2)[2] for line in done.stdout.splitlines() if line.count(":") >= 2}


def test_a_container_gets_what_the_host_has_bound(etc: Path, bundle: Path) -> None:
    """Rule 3 binds "web" to all: 64M of memory, where the document says 96M; rule 2 lets /plain be."""
    web = (etc / "policies" / "web.toml").read_text().partition("[limits]")[0]
    (etc / "policies" / "web.toml").write_text(f'{web}[limits]\nmemory = "64M"\n')
    done = run(etc, bundle, {"other": "x"})
    assert groups(done) == {"/init"}
    assert f"memory={64 << 20}" in done.stdout.split()
    done = run(etc, bundle, {"nestrt.level.max_level": "3"})
    assert (done.returncode != 0, "it asks for 3, and rule 3 of /etc/nestrt/bindings.toml" in done.stderr) == (
        True,
        True,
    )
    assert not (bundle.parent / "root" / "nestrt-policy").exists()


def test_without_bindings_only_an_annotation_makes_a_guest(tmp_path: Path, bundle: Path) -> None:
    nowhere = tmp_path / "nowhere"
    # In a cgroup namespace of its own, as the document of `nestrt spec` asks, its own group is "/"; without, the path.
    assert groups(run(nowhere, bundle, {"other": "x"})) <= {"/", "/nestrt-policy"}
    assert groups(run(nowhere, bundle, {"nestrt.level.virtualize": "false"})) <= {"/", "/nestrt-policy"}
    done = run(nowhere, bundle, {"nestrt.policy": "default"})
    assert groups(done) == {"/init"}
    assert f"memory={96 << 20}" in done.stdout.split()
