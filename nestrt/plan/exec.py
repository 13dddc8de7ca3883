"""The plan of one more process in a container. Pure.

::

    launcher                            the process
    clone into the namespaces --------> wait: grouped
    move it to its groups
    tell: grouped --------------------> terminal, attributes
    wait: prepared <------------------- tell: prepared
    tell: limited --------------------> take its user and rights
    wait: ready <---------------------- tell: ready
    tell: go -------------------------> become the program
    await: end of file
"""

from __future__ import annotations

from nestrt.errors import InputError
from nestrt.oci.model import Process, Seccomp, Spec
from nestrt.plan import container_steps as do
from nestrt.plan.facts import Hierarchy
from nestrt.plan.guest_steps import BecomeRoot, OpenTerminal, RedirectOutput
from nestrt.plan.host_steps import AwaitProgram
from nestrt.plan.process import (
    after_groups,
    attribute_steps,
    before_groups,
    keyring_steps,
    limit_steps,
    program_steps,
    required_steps,
    user_steps,
)
from nestrt.plan.process_steps import BecomeUser, LearnHome
from nestrt.plan.seccomp_steps import filter_agent, filter_first, filter_host, filter_started
from nestrt.plan.steps import Plan, Step, Tell, Wait
from nestrt.record import record, replace


@record
class Joining:
    """What ``exec`` is to do: *spec* is the container's with the new process in it; *first* and *start* are the
    container's first process; *places* (hierarchy, group) where the new one goes, *leaf* see AttachEach.

    *user* is whom it is to be instead of the document's, as the container's own files know him: root then has the
    document's capabilities, another none. *filters* are the first process's system call filters, oldest first, in
    the place of a profile. *silent*: it reads nothing, and what it writes goes nowhere. *patience* is how many
    seconds it may take for each word that it tells; 0: for ever, as in a paused container.
    """

    id: str
    spec: Spec
    first: int
    start: int
    places: tuple[tuple[Hierarchy, str], ...]
    leaf: str
    console: str = ""
    keyring: bool = True
    preserve_fds: int = 0
    user: str = ""
    filters: tuple[bytes, ...] = ()
    silent: bool = False
    patience: int = 0

    @property
    def process(self) -> Process:
        """The new process."""
        assert self.spec.process is not None
        return self.spec.process


def place(path: str, base: str, name: str) -> str:
    """The group that ``--cgroup`` means, below *base*, which holds the container's own. Raises InputError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError(
            "exec in",
            f"container {name}",
            f"{path if path.isprintable() else ascii(path)} is not a sub cgroup path",
            "name a child group of the container",
        )
    return "/".join([base.rstrip("/"), *parts])


def _user_steps(joining: Joining) -> list[Step]:
    """user_steps(), where *joining* names a user those of BecomeNamed."""
    steps = user_steps(joining.process, joins=True)
    if not joining.user:
        return steps
    found: list[Step] = []
    for step in steps:
        if isinstance(step, BecomeUser):
            none: tuple[str, ...] = ()
            plain = replace(step, groups=(), effective=none, permitted=none, inheritable=none, ambient=none)
            home = not any(variable.startswith("HOME=") for variable in joining.process.env)
            found.append(do.BecomeNamed(joining.user, replace(step, groups=()), plain, home))
        elif not isinstance(step, LearnHome):
            found.append(step)
    return found


def plan_exec(joining: Joining) -> Plan:
    """Raises InputError and HostError where the process asks for what this host or kernel cannot do."""
    spec, process = joining.spec, joining.process
    host: list[Step] = [
        *required_steps(process),
        *filter_host(spec.seccomp),
        *([do.UseFilters(joining.filters)] if joining.filters else []),
        do.CloneBeside(joining.first, joining.start),
        *before_groups(process, joins=True),
    ]
    if joining.places:
        host.append(do.AttachEach(joining.places, joining.leaf))
    host += [*after_groups(process, True, joining.id), Tell("grouped"), Wait("prepared")]
    host += [*limit_steps(process), Tell("limited"), Wait("ready")]
    if process.terminal:
        host.append(do.SendTerminal(joining.console, process.console_size))
    connect, send = filter_agent(spec.seccomp)
    host += [do.WritePid(), *connect, Tell("go"), *send, AwaitProgram(process.args[0])]
    guest: list[Step] = [Wait("grouped")]
    if spec.namespace("user") is not None:
        guest.append(BecomeRoot())
    guest += keyring_steps(process, joining.keyring)
    if process.terminal:
        guest.append(OpenTerminal())
    if joining.silent:
        guest.append(RedirectOutput())
    guest += [*attribute_steps(process, spec), Tell("prepared"), Wait("limited")]
    filtered = spec.seccomp or (Seccomp("SCMP_ACT_ALLOW") if joining.filters else None)
    guest += [*filter_first(filtered, process.no_new_privileges), *_user_steps(joining)]
    guest += [Tell("ready"), Wait("go")]
    if len(joining.filters) > 1:
        guest.append(do.LoadFilters(joining.filters[:-1]))
    guest += [*filter_started(filtered, False), *program_steps(process, joining.preserve_fds)]
    return Plan(joining.id, tuple(host), tuple(guest))
