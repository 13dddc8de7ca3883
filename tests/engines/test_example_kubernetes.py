"""examples/kubernetes: the class, the pod and the node's configuration belong together, and the pod runs.

::

    builder.yaml     RuntimeClass nestrt-runc ── handler ──▶  containerd.toml   runtimes.nestrt-runc
                     Pod builder, annotations nestrt.*  ──▶   pod_annotations, container_annotations
                     the pod by podman kube play        ──▶   limit group/guest/compile, test

A cluster is not in Debian 12. Its parts are: containerd with the plugin that the kubelet talks to, and podman, which
reads the same Pod.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from support.daemons import Daemon
from support.engines import CHECKOUT, PATH, Nest, remove_groups
from support.hostside import group_file, groups, mark
from support.need import require
from support.podman import IMAGE, Podman
from support.runner import Nestrt, wait_for

EXAMPLES = CHECKOUT / "examples" / "kubernetes"
CRI = "io.containerd.grpc.v1.cri"
HANDLER = "nestrt-runc"
# What keeps a containerd in its Nest.
_OWN = """
root = "STORE/root"
state = "STORE/state"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "STORE/c.sock"
"""


def documents() -> dict[str, str]:
    """The documents of builder.yaml by their kind."""
    parts = (EXAMPLES / "builder.yaml").read_text().split("---\n")
    return {re.findall(r"^kind: (.*)$", part, re.M)[0]: part for part in parts}


def annotations() -> dict[str, str]:
    """The pod's annotations for nestrt, as a YAML parser would have them."""
    rows = re.findall(r"^    (nestrt\.\S+): (.*)$", documents()["Pod"], re.M)
    return {key: value.strip('"') for key, value in rows}


def configuration() -> dict[str, Any]:
    """The runtimes of containerd.toml."""
    document = tomllib.loads((EXAMPLES / "containerd.toml").read_text())
    runtimes: dict[str, Any] = document["plugins"][CRI]["containerd"]["runtimes"]
    return runtimes


def test_names_belong_together() -> None:
    found = documents()
    assert set(found) == {"RuntimeClass", "Pod"}
    handler = re.findall(r"^handler: (.*)$", found["RuntimeClass"], re.M)
    name = re.findall(r"^  name: (.*)$", found["RuntimeClass"], re.M)
    assert (handler, name) == ([HANDLER], [HANDLER])
    assert re.findall(r"^  runtimeClassName: (.*)$", found["Pod"], re.M) == name
    assert HANDLER in configuration()


def test_annotations_reach_nestrt() -> None:
    """Each is let through by containerd for pods and for containers, and is one that nestrt takes."""
    from nestrt.level.annotations import KNOWN, PROFILES

    used = annotations()
    assert used
    assert set(used) <= set(KNOWN)
    assert used["nestrt.policy"] in PROFILES
    runtime = configuration()[HANDLER]
    for key in ("pod_annotations", "container_annotations"):
        assert [name for name in used if not any(fnmatch.fnmatch(name, glob) for glob in runtime[key])] == []
    words = [word for key, value in used.items() for word in ("--annotation", f"{key}={value}")]
    Nestrt().run("policy", "explain", *words).ok()


def test_it_is_what_install_writes(tmp_path: Path) -> None:
    Nestrt().run("hooks", "install", "--engine", "containerd", "--prefix", tmp_path, "--runtime", "/usr/sbin/runc").ok()
    written = tomllib.loads((tmp_path / "etc/containerd/config.toml").read_text())
    assert written == tomllib.loads((EXAMPLES / "containerd.toml").read_text())


def test_containerd_dumps_it() -> None:
    program = shutil.which("containerd", path=PATH)
    require("engines", None if program else "not installed: containerd")
    words = ("containerd", "--config", str(EXAMPLES / "containerd.toml"), "config", "dump")
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": PATH})
    assert done.returncode == 0, done.stderr
    found = tomllib.loads(done.stdout)["plugins"][CRI]["containerd"]["runtimes"]
    assert set(found) == {"runc", HANDLER}
    for key, value in configuration()[HANDLER].items():
        assert found[HANDLER][key] == value


class Node(Daemon):
    """containerd with the example's configuration, and the plugin that a kubelet talks to."""

    def __init__(self, nest: Nest) -> None:
        super().__init__(nest, "kubernetes")
        text = (EXAMPLES / "containerd.toml").read_text()
        own = _OWN.replace("STORE", self.store)
        path = nest.write("kubernetes/config.toml", text.replace("version = 2\n", f"version = 2\n{own}"))
        self.begin("containerd", "--config", path, "--log-level", "warn")

    def __call__(self, *argv: str) -> Any:
        return self.nest.run("ctr", "--address", f"{self.store}/c.sock", *argv)

    def answers(self) -> bool:
        return self("version").rc == 0


def test_containerd_starts_with_it(nest: Nest) -> None:
    """Its CRI plugin takes the configuration, and refuses one whose default runtime is not there."""
    require("engines", None if shutil.which("containerd", path=PATH) else "not installed: containerd")
    node = Node(nest)
    try:
        rows = node("plugins", "ls").ok().out.splitlines()
        assert [row.split()[-1] for row in rows if row.split()[:2] == ["io.containerd.grpc.v1", "cri"]] == ["ok"]
    finally:
        node.close()


def pod_groups() -> set[str]:
    """The parent of podman's pods where it is there, and theirs."""
    tops = groups("/libpod_parent")
    inner = {f"/libpod_parent/{path.name}" for top in tops for path in top.iterdir() if path.is_dir()}
    return inner | ({"/libpod_parent"} if tops else set())


def test_the_pod_runs(podman: Podman) -> None:
    """podman kube play: the container is a guest by the pod's annotations, and has divided the pod's memory."""
    require("engines", None if shutil.which("catatonit", path=PATH) else "not installed: catatonit")
    text = documents()["Pod"].replace("image: busybox", f"image: {IMAGE}")
    file = podman.nest.write("builder.yaml", text)
    # podman 4.3 takes a pod's default limits the wrong way round where the two are not the same.
    own = podman.nest.inside(podman.env["CONTAINERS_CONF"]).read_text()
    same = podman.nest.write("kube.conf", own.replace("1024:4096", "1024:1024"))
    before = pod_groups()
    words = ("podman", *podman.flags, "kube", "play", "--network", "none", file)
    podman.nest.run(*words, env={**podman.env, "CONTAINERS_CONF": same}).ok()
    try:
        inspected = podman.inspect("builder-build")
        group = inspected["State"]["CgroupPath"]
        assert annotations().items() <= inspected["Config"]["Annotations"].items()
        assert mark(group)["max_groups"] == int(annotations()["nestrt.partition.max_groups"])

        def limit(name: str) -> int:
            place = group_file("memory", f"{group}{name}", "memory.limit_in_bytes", "memory.max")
            return int(place.read_text()) if place.exists() else 0

        wait_for(lambda: limit("/guest/test") == 64 << 20, "the pod to divide its memory")
        assert (limit(""), limit("/guest/compile")) == (256 << 20, 128 << 20)
    finally:
        podman("kube", "down", file)
        # Of a pod's own group podman leaves what it takes for no controller's.
        for group in sorted(pod_groups() - before, reverse=True):
            remove_groups(group)
    assert json.loads(podman("ps", "-a", "--format", "json").ok().out) == []
