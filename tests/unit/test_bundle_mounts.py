"""The steps of a bundle's mounts: what the document says, in order, and what it cannot say."""

from __future__ import annotations

from typing import Any

import pytest

from nestrt.errors import HostError, InputError
from nestrt.oci.model import Device, Mount, Namespace, Spec
from nestrt.plan import mount_steps as do
from nestrt.plan.bundle_mounts import BundleMounts, Context, bundle_mounts
from nestrt.plan.facts import Hierarchy
from nestrt.plan.guest_steps import Bind, Link, MountNew
from nestrt.plan.host_steps import OpenBind
from nestrt.plan.mount_options import MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE

V2 = Hierarchy("", 2, ("cpu",), "", "/sys/fs/cgroup")
HYBRID = (
    Hierarchy("unified", 2, (), "", "/sys/fs/cgroup/unified"),
    Hierarchy("cpu,cpuacct", 1, ("cpu", "cpuacct"), "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
    Hierarchy("systemd", 1, (), "none,name=systemd", "/sys/fs/cgroup/systemd"),
    Hierarchy("", 1, ("pids",), "pids", "/proc/self/fd/9"),
)
CGROUP = Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid"))


def made(*mounts: Mount, kinds: tuple[str, ...] = ("mount",), context: Any = (), **fields: Any) -> BundleMounts:
    spec = Spec("1.2.0", mounts=mounts, namespaces=tuple(Namespace(kind) for kind in kinds), **fields)
    named = {"group": "/machine/x", "hierarchies": (V2,), "userns": "user" in kinds, **dict(context)}
    return bundle_mounts(spec, Context("/bundle/rootfs", "/bundle", **named))


def of(kind: type[Any], steps: tuple[Any, ...]) -> list[Any]:
    return [step for step in steps if isinstance(step, kind)]


# The order of the document is the order of the mounts; devices come after, and /dev is locked at the very end.
def test_order() -> None:
    steps = made(
        Mount("/proc", "proc", "proc"),
        Mount("/dev", "tmpfs", "tmpfs", ("ro", "mode=755")),
        Mount("/data", "", "data", ("bind", "ro")),
        masked=("/proc/keys",),
        readonly=("/proc/sys",),
        root_readonly=True,
    )
    targets = [step.target for step in steps.mounts if hasattr(step, "target")]
    assert targets == ["/proc", "/dev", "/data"]
    assert of(do.OpenSource, steps.before)[0].path == "/bundle/data"
    assert isinstance(steps.before[0], do.OpenBundleRoot)
    assert of(do.OpenNode, steps.before)[0].key == do.NULL
    dev = of(do.MountType, steps.mounts)[1]
    assert dev.late_read_only
    assert not dev.attributes & 1
    assert [type(step) for step in steps.finish] == [do.ReopenNull, do.LockMounts, do.HidePaths]
    assert steps.finish[2] == do.HidePaths(("/proc/sys",), ("/proc/keys",), ("/proc",))
    assert steps.leave == (do.LeaveBundle("/bundle/rootfs", "pivot"),)
    for group in (steps.before, steps.mapped, steps.enter, steps.mounts, steps.leave, steps.finish):
        assert all(step.describe() for step in group)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("/", "tmpfs"), "root filesystem itself"),
        (Mount("/proc", "tmpfs"), "not of type proc"),
        (Mount("/proc/../proc/sys", "tmpfs"), "inside /proc"),
        (Mount("/x"), "no type"),
        (Mount("/x", "tmpfs", "", ("idmap",)), "only bind"),
        (Mount("/x", "", "/y", ("bind",), ((0, 1, 1),)), "only one of"),
        (Mount("/x", "", "/y", ("bind", "idmap")), "no user namespace"),
    ],
)
def test_refused(mount: Mount, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        made(mount)
    assert "mounts[0]" in str(caught.value)


def test_refused_as_a_whole() -> None:
    with pytest.raises(InputError, match="mount namespace"):
        made(Mount("/x", "tmpfs"), kinds=())
    with pytest.raises(InputError, match="propagation"):
        made(rootfs_propagation="nonsense")
    with pytest.raises(InputError, match=r"linux\.devices\[0\]"):
        made(devices=(Device("/dev/x", "z"),))
    with pytest.raises(HostError, match="cgroup v2"):
        made(Mount("/cg", "cgroup2"), context={"hierarchies": HYBRID[1:]})


# What a detached copy of a host's mount becomes: the root's choice first, then the mount's own.
@pytest.mark.parametrize(
    ("root", "words", "bind", "tree"),
    [
        ("", (), (MS_SLAVE | MS_REC,), MS_SLAVE),
        ("", ("rprivate",), (MS_SLAVE | MS_REC, MS_PRIVATE | MS_REC), MS_SLAVE),
        ("", ("shared",), (MS_SLAVE | MS_REC, MS_SHARED), MS_SLAVE),
        ("rshared", ("rshared",), (MS_SHARED | MS_REC,), MS_PRIVATE),
        ("private", (), (MS_PRIVATE | MS_REC,), MS_PRIVATE),
    ],
)
def test_propagation(root: str, words: tuple[str, ...], bind: tuple[int, ...], tree: int) -> None:
    steps = made(Mount("/x", "", "/y", ("rbind", *words)), rootfs_propagation=root)
    assert of(do.OpenSource, steps.before)[0].propagation == bind
    assert of(do.OpenBundleRoot, steps.before)[0].propagation == tree | MS_REC
    assert len(of(do.SetRootPropagation, steps.leave)) == (root == "rshared")
    assert steps.enter[0].propagation & (MS_SLAVE | MS_PRIVATE)  # type: ignore[attr-defined]


# The standard devices, those of the document in their place; bound from the host in a user namespace.
def test_devices() -> None:
    steps = made(devices=(Device("/dev/null", "c", 1, 3, 0o600), Device("/dev/p", "p"), Device("/dev/ptmx", "c", 5, 2)))
    nodes = of(do.MakeNode, steps.mounts)
    assert [node.path for node in nodes].count("/dev/null") == 1
    assert len(nodes) == 7
    assert all(node.key is None for node in nodes)
    steps = made(devices=(Device("/dev/fuse", "c", 10, 229), Device("/dev/p", "p")), kinds=("mount", "user"))
    assert {node.path for node in of(do.OpenNode, steps.before)} >= {"/dev/fuse", "/dev/null", "/dev/tty"}
    assert [node.path for node in of(do.MakeNode, steps.mounts) if node.key is None] == ["/dev/p"]
    steps = made(Mount("/dev", "", "/dev", ("rbind",)))
    assert not of(do.MakeNode, steps.mounts)
    assert not steps.finish


# v1 and hybrid: a tmpfs, each named hierarchy of v1, links; in the namespace mounted, else the own group bound.
def test_cgroup_v1() -> None:
    steps = made(CGROUP, kinds=("mount", "cgroup"), context={"hierarchies": HYBRID})
    mounts = of(do.MountType, steps.mounts)
    assert [(step.fstype, step.target, step.words) for step in mounts] == [
        ("tmpfs", "/sys/fs/cgroup", ("mode=755",)),
        ("cgroup", "/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
        ("cgroup", "/sys/fs/cgroup/systemd", ("none", "name=systemd")),
    ]
    links = [(step.path, step.content) for step in of(do.MakeLink, steps.mounts) if "cgroup" in step.path]
    assert links == [("/sys/fs/cgroup/cpu", "cpu,cpuacct"), ("/sys/fs/cgroup/cpuacct", "cpu,cpuacct")]
    steps = made(CGROUP, context={"hierarchies": HYBRID})
    assert [step.source for step in of(do.AttachOld, steps.mounts)] == [
        "/sys/fs/cgroup/cpu,cpuacct/machine/x",
        "/sys/fs/cgroup/systemd/machine/x",
    ]


# v2: never a new mount from the initial cgroup namespace.
def test_cgroup_v2() -> None:
    (step,) = of(do.MountType, made(CGROUP, kinds=("mount", "cgroup")).mounts)
    assert (step.fstype, step.fallback) == ("cgroup2", "/sys/fs/cgroup/machine/x")
    steps = made(CGROUP)
    assert not of(do.MountType, steps.mounts)
    assert of(do.AttachOld, steps.mounts)[0].source == "/sys/fs/cgroup"


# With a policy the view takes the place of the cgroup mounts, once, of binds of the host's tree too.
def test_the_view() -> None:
    view = (MountNew("tmpfs", "/sys/fs/cgroup"), Bind("/a", "/b", 1), Link("/c", "d"))
    steps = made(
        Mount("/proc", "proc"),
        Mount("/sys", "", "/sys", ("rbind",)),
        CGROUP,
        Mount("/sys/fs/cgroup/x", "", "/sys/fs/cgroup/../cgroup/x", ("rbind",)),
        Mount("/after", "tmpfs"),
        context={"view": view, "hierarchies": HYBRID},
    )
    assert steps.mounts[2:5] == view
    assert steps.mounts[5].target == "/after"  # type: ignore[attr-defined]
    assert of(OpenBind, steps.before) == [OpenBind("/a", "/b", False, False)]
    (source,) = of(do.OpenSource, steps.before)
    assert (source.path, source.recursive) == ("/sys", False)


# Attributes of a bind: all others go without a user namespace, and none is taken from the host with one.
def test_attributes_of_binds() -> None:
    entry = Mount("/x", "", "/y", ("bind", "ro", "suid"))
    (plain,) = of(do.OpenSource, made(entry).before)
    (private,) = of(do.OpenSource, made(entry, kinds=("mount", "user")).before)
    assert (plain.attr_set, plain.attr_clear, plain.strict) == (1, 2, False)
    assert plain.resets
    assert (private.attr_set, private.attr_clear, private.resets, private.strict) == (1, 2, 0, True)
    (bare,) = of(do.OpenSource, made(Mount("/x", "", "/y", ("rbind", "rslave"))).before)
    assert (bare.attr_set, bare.attr_clear, bare.resets) == (0, 0, 0)


def test_labels_need_selinux() -> None:
    steps = made(Mount("/x", "tmpfs"), Mount("/dev/mqueue", "mqueue"), mount_label="a:b:c,d")
    assert of(do.CheckLabel, steps.before) == [do.CheckLabel("a:b:c,d")]
    assert [step.words for step in of(do.MountType, steps.mounts)] == [("context=a:b:c,d",), ()]


@pytest.mark.parametrize(
    ("mount", "kernel"),
    [
        (Mount("/sys", "sysfs"), ("/sys",)),
        (Mount("/sys", "bind", "/sys", ("rbind",)), ("/sys",)),
        (Mount("/sys", "bind", "/elsewhere", ("rbind",)), ()),
        (Mount("/sys", "tmpfs"), ()),
    ],
)
def test_where_masks_must_lie(mount: Mount, kernel: tuple[str, ...]) -> None:
    assert made(mount, masked=("/sys/firmware",)).finish[-1] == do.HidePaths((), ("/sys/firmware",), kernel)
