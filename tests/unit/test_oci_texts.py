"""What nestrt itself writes: the example of ``spec``, the features, the state."""

from __future__ import annotations

import json

import pytest

from nestrt.kernel import caps
from nestrt.oci import document, example
from nestrt.oci.features import features
from nestrt.oci.parse_process import CAPABILITIES
from nestrt.oci.state import shown, state


@pytest.mark.parametrize("rootless", [False, True])
@pytest.mark.parametrize("unified", [False, True])
def test_the_example_is_a_document_without_mistakes(rootless: bool, unified: bool) -> None:
    spec = document.load(example.text(example.config(rootless, 1000, 1001, unified)), "config.json")
    types = [entry.type for entry in spec.namespaces]
    assert spec.warnings == ()
    assert document.require_process(spec, "config.json").args == ("sh",)
    assert ("cgroup" in types) is unified
    assert ("user" in types) is rootless
    assert ("network" in types) is not rootless
    assert spec.uid_mappings == (((0, 1000, 1),) if rootless else ())
    assert spec.gid_mappings == (((0, 1001, 1),) if rootless else ())
    assert len(spec.resources.devices) == (0 if rootless else 1)
    options = [option for mount in spec.mounts for option in mount.options]
    assert ("gid=5" in options) is not rootless
    assert ("rbind" in options) is rootless


def test_the_example_is_indented_by_tabs_and_begins_with_the_version() -> None:
    text = example.text(example.config(False, 0, 0))
    assert text.startswith('{\n\t"ociVersion": "1.0.2",\n\t"process": {\n\t\t"terminal": true,\n')
    assert text == json.dumps(json.loads(text), indent="\t") + "\n"


def test_two_examples_share_nothing() -> None:
    one = example.config(False, 0, 0)
    one["process"]["args"].append("x")
    one["linux"]["maskedPaths"].clear()
    assert example.config(False, 0, 0)["process"]["args"] == ["sh"]
    assert example.config(False, 0, 0)["linux"]["maskedPaths"]


def test_the_capabilities_are_the_kernels() -> None:
    assert tuple(CAPABILITIES) == tuple(caps.NAMES)


def test_features() -> None:
    found = features(
        mount_options=("ro", "bind", "ro"), seccomp_archs=("SCMP_ARCH_X86_64",), seccomp_flags=(), libseccomp="2.5.4"
    )
    assert found["ociVersionMin"] == "1.0.0"
    assert found["ociVersionMax"] == "1.2.1"
    assert found["hooks"] == [
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
    ]  # fmt: skip
    assert found["mountOptions"] == ["bind", "ro"]
    assert found["linux"]["namespaces"] == ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
    assert found["linux"]["seccomp"]["archs"] == ["SCMP_ARCH_X86_64"]
    assert found["linux"]["seccomp"]["supportedFlags"] == []
    assert "SCMP_ACT_NOTIFY" in found["linux"]["seccomp"]["actions"]
    assert found["annotations"] == {"io.github.seccomp.libseccomp.version": "2.5.4"}
    json.dumps(found)


def test_features_without_seccomp() -> None:
    found = features(mount_options=())
    assert found["linux"]["seccomp"] == {"enabled": False}
    assert "annotations" not in found


def test_each_version_of_the_features_is_accepted() -> None:
    found = features(mount_options=())
    for key in ("ociVersionMin", "ociVersionMax"):
        document.load(json.dumps({"ociVersion": found[key], "root": {"path": "rootfs"}}), "config.json")


def test_state() -> None:
    found = state("web", "running", 42, "/b", "1.2.1", {"b": "1", "a": "2"})
    assert list(found.items()) == [
        ("ociVersion", "1.2.1"), ("id", "web"), ("pid", 42), ("status", "running"), ("bundle", "/b"),
        ("annotations", {"b": "1", "a": "2"}),
    ]  # fmt: skip
    assert state("web", "stopped", 42, "/b", "1.2.1")["pid"] == 0
    assert "annotations" not in state("web", "stopped", 42, "/b", "1.2.1", {})


def test_state_as_shown_has_runcs_fields_in_its_order() -> None:
    found = shown(state("web", "created", 42, "/b", "1.2.1", {"a": "2"}), "/b/rootfs", "2024-01-01T00:00:00.5Z", "root")
    assert list(found) == [
        "ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner",
    ]  # fmt: skip
