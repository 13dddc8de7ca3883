"""A Slurm of one node from the distribution's packages, as ``examples/slurm/node`` starts it, for one test.

::

    the host              its control groups are Slurm's too: slurm_NODE (v1), system.slice/NODE_slurmstepd.scope (v2)
      └ node              namespaces: mounts (own /run/nestrt-slurm), network (a loopback), its own name
          ├ munged, slurmctld, slurmd        ended by node when its standard input ends
          └ srun, scancel, …                 brought in with nsenter(1)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.engines import PATH, command
from support.hostside import hierarchies
from support.need import SLOW
from support.rootfs import CHECKOUT
from support.runner import Result

EXAMPLES = CHECKOUT / "examples" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip")
_ASK = 'printf \'%s\\n\' "$SLURM_CONF" "$(sinfo --noheader --format=%N)"; exec cat'


def missing() -> str | None:
    """Which programs are not installed, for ``require``."""
    names = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    return f"not installed: {' '.join(names)}" if names else None


def below(top: Path) -> list[Path]:
    """The groups below *top*, those that stay while one looks."""
    return [Path(directory, name) for directory, names, _ in os.walk(top) for name in names]


class Slurm:
    """The node; *name* is what it is called, *configuration* its slurm.conf."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            (EXAMPLES / "node", *options, "sh", "-c", _ASK),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.configuration = self.process.stdout.readline().strip()
        self.name = self.process.stdout.readline().strip()
        if not self.name:
            raise AssertionError(f"Slurm does not start: {self.close()}")

    @property
    def env(self) -> dict[str, str]:
        """The environment of a command of Slurm's."""
        return {"PATH": PATH, "SLURM_CONF": self.configuration}

    def words(self, *argv: str) -> tuple[str, ...]:
        """*argv* as a command line that runs on the node."""
        pid = self.process.pid
        return ("nsenter", f"--target={pid}", "--mount", "--net", "--uts", "--", *argv)

    def run(self, *argv: str, timeout: float = 30.0) -> Result:
        """Run *argv* on the node."""
        return command(self.words(*argv), timeout=timeout, env=self.env)

    def srun(self, *argv: str, user: int = 0, timeout: float = 30.0) -> Result:
        """Run a job by srun(1) as the user *user*, of the group of that number."""
        identity = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else ()
        return self.run(*identity, "srun", "--quiet", *argv, timeout=timeout)

    def groups(self) -> list[Path]:
        """Every group of jobs of this node, in all hierarchies."""
        tops = [h.mountpoint / f"slurm_{self.name}" for h in hierarchies()]
        tops += [h.mountpoint / "system.slice" / f"{self.name}_slurmstepd.scope" for h in hierarchies()]
        return [path for top in tops for path in below(top) if path.name.startswith("job_")]

    def log(self) -> str:
        """What slurmd and its steps have told."""
        return (Path(self.configuration).parent / "log" / "slurmd").read_text(errors="replace")

    def close(self) -> str:
        """End it as its standard input ends; what it said on standard error."""
        _, said = self.process.communicate(timeout=20 * SLOW)
        assert not self.groups(), self.groups()
        assert not os.path.exists(self.configuration) or not self.configuration
        return said
