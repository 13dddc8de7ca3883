"""Root filesystems for guests: one of busybox alone, one that has this machine's Python and nestrt.

    busybox_root     /bin/busybox and its applets: the small guest
    python_root      /usr of this machine, read-only, and the checkout at /opt/nestrt: a guest that
                     launches guests of its own; /mkroot DIR makes the next level's in it
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BUSYBOX = "/usr/bin/busybox"
DIRECTORIES = ("dev", "etc", "mnt", "opt", "proc", "root", "run", "sys", "tmp")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUP = "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"
# Where the checkout is in a Python guest, and the command there.
OPT = "/opt/nestrt"
COMMAND = f"{OPT}/hooks/nestrt"

MKROOT = """#!/bin/sh
# mkroot DIR: the root filesystem of a guest of this guest, to be completed by bind mounts
set -e
mkdir -p "$1"
for name in {directories} usr opt/nestrt; do mkdir -p "$1/$name"; done
for name in bin sbin lib lib32 lib64 libx32; do
  if [ -L "/$name" ]; then ln -sf "usr/$name" "$1/$name"; fi
done
cp /etc/passwd /etc/group "$1/etc/"
cp /mkroot "$1/mkroot"
chmod 1777 "$1/tmp"
"""


def _skeleton(root: Path) -> Path:
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


@cache
def _applets() -> tuple[str, ...]:
    done = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return tuple(name for name in done.stdout.split() if name != "busybox")


def busybox_root(root: Path) -> Path:
    """Fill the directory *root* with a root filesystem of busybox (static) alone; return it."""
    _skeleton(root)
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for name in _applets():
        (root / "bin" / name).symlink_to("busybox")
    return root


@dataclass(frozen=True)
class PythonRoot:
    """A root filesystem with Python and nestrt, and the options of launch that complete it.

    *mounts* serve the host, *inner_mounts* a guest with this root that launches
    one with a root made by ``/mkroot DIR``.
    """

    path: Path
    mounts: tuple[str, ...]
    inner_mounts: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """``--rootfs … --mount …`` for the host's launch."""
        return ("--rootfs", str(self.path), *self.mounts)

    def inner_options(self, root: str) -> tuple[str, ...]:
        """The same for a launch inside, of the root filesystem *root* there."""
        return ("--rootfs", root, *self.inner_mounts)


def python_root(root: Path) -> PythonRoot:
    """Fill the directory *root* with mount points for this machine's /usr and the checkout."""
    _skeleton(root)
    (root / OPT.strip("/")).mkdir(parents=True, exist_ok=True)
    binds = {"/usr": "/usr"}
    (root / "usr").mkdir(exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(f"usr/{name}")
        elif source.is_dir():  # a machine whose /usr is not merged
            (root / name).mkdir()
            binds[f"/{name}"] = f"/{name}"
    (root / "mkroot").write_text(MKROOT.format(directories=" ".join(DIRECTORIES)))
    (root / "mkroot").chmod(0o755)

    def options(checkout: str) -> tuple[str, ...]:
        pairs = {**binds, checkout: OPT}
        words: list[str] = []
        for source, target in pairs.items():
            words += ["--mount", f"type=bind,source={source},target={target},ro"]
        return tuple(words)

    return PythonRoot(root, options(os.fspath(CHECKOUT)), options(OPT))
