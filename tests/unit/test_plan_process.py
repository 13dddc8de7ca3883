"""config.json's process as steps: which, in which order, with which numbers."""

from __future__ import annotations

from nestrt.oci.model import (
    Affinity,
    Capabilities,
    IntelRdt,
    IoPriority,
    Namespace,
    Personality,
    Process,
    Rlimit,
    Scheduler,
    Spec,
    User,
)
from nestrt.plan import process as plan
from nestrt.plan import process_steps as do
from nestrt.plan.guest_steps import SetHostname

SH = ("/bin/sh",)


def names(steps: object) -> list[str]:
    return [type(step).__name__ for step in steps]  # type: ignore[attr-defined]


def test_a_bare_process_needs_little() -> None:
    process = Process(args=SH, env=("HOME=/root",))
    spec = Spec("1.0.2", process=process)
    assert plan.required_steps(process) == []
    assert plan.before_groups(process, joins=False) == []
    assert plan.after_groups(process, joins=False, name="c") == [do.SetAffinity(None)]
    assert plan.limit_steps(process) == []
    assert plan.time_steps(spec) == []
    assert plan.system_steps(spec) == [do.MakeDirectory("/")]
    assert plan.attribute_steps(process, spec) == [do.NewSession()]
    assert names(plan.user_steps(process, joins=False)) == ["BecomeUser", "FindProgram"]
    assert plan.program_steps(process, 2) == [do.ExecuteArgs(SH, ("HOME=/root",), 2)]


def test_every_attribute_has_its_step() -> None:
    process = Process(
        args=SH,
        cwd="/work",
        user=User(1, 2, 0o77, (5, 6)),
        oom_score_adj=7,
        no_new_privileges=True,
        apparmor_profile="profile",
        selinux_label="a:b:c",
        rlimits=(Rlimit("RLIMIT_NOFILE", 10, 20), Rlimit("RLIMIT_CORE", 0, 2**64 - 1)),
        scheduler=Scheduler("SCHED_FIFO", priority=3, flags=("SCHED_FLAG_RESET_ON_FORK",)),
        io_priority=IoPriority("IOPRIO_CLASS_IDLE", 4),
        affinity=Affinity("0", "0-1"),
        capabilities=Capabilities(bounding=("CAP_KILL", "CAP_CHOWN"), permitted=("CAP_CHOWN",)),
    )
    spec = Spec(
        "1.2.0",
        process=process,
        hostname="h",
        domainname="d",
        sysctl=(("net.ipv4.conf.eth0/1.forwarding", "1"),),
        namespaces=(Namespace("time"), Namespace("uts"), Namespace("network")),
        time_offsets=(("boottime", 5, 0),),
        personality=Personality("LINUX32"),
    )
    assert names(plan.required_steps(process)) == ["RequireModule", "RequireModule"]
    assert plan.limit_steps(process) == [
        do.SetLimits(((0, "RLIMIT_NOFILE", 10, 20), (1, "RLIMIT_CORE", 0, 2**64 - 1)))
    ]
    assert plan.time_steps(spec) == [do.EnterTimeNamespace((("boottime", 5, 0),))]
    assert plan.keyring_steps(process, True) == [do.JoinKeyring("a:b:c")]
    assert plan.keyring_steps(process, False) == []
    # The separator of a name with a dot in it is told by which comes first: sysctl(8).
    assert plan.system_steps(spec) == [
        SetHostname("h"),
        do.SetDomainname("d"),
        do.WriteSysctls((("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding", "1"),)),
        do.MakeDirectory("/work"),
    ]
    assert plan.attribute_steps(process, spec) == [
        do.NewSession(),
        do.UseAppArmor("profile"),
        do.UseSelinux("a:b:c"),
        do.ForbidPrivileges(),
        do.SetScheduler("SCHED_FIFO", 1, 1, 0, 3),
        do.SetIoPriority("IOPRIO_CLASS_IDLE", 3, 4),
        do.SetPersonality("LINUX32", 8),
    ]
    home, become, find = plan.user_steps(process, joins=False)
    assert home == do.LearnHome(1)
    assert become == do.BecomeUser(
        1, 2, (5, 6), 0o77, "/work", permitted=("CAP_CHOWN",), bounding=("CAP_CHOWN", "CAP_KILL")
    )
    assert find == do.FindProgram(SH, ())


def test_affinity_is_for_exec_and_others_get_every_cpu() -> None:
    """create: all CPUs.  exec: initial before the groups, final after them; initial alone: as the kernel has it."""
    both = Process(args=SH, oom_score_adj=1, affinity=Affinity("1", "0,2-3"))
    initial, final = "process.execCPUAffinity.initial", "process.execCPUAffinity.final"
    assert plan.before_groups(both, joins=False) == [do.SetOomScore(1)]
    assert plan.after_groups(both, joins=False, name="c") == [do.SetAffinity(None)]
    assert plan.before_groups(both, joins=True) == [do.SetOomScore(1), do.SetAffinity((1,), initial)]
    assert plan.after_groups(both, joins=True, name="c") == [do.SetAffinity((0, 2, 3), final)]
    assert plan.after_groups(Process(args=SH, affinity=Affinity("1")), joins=True, name="c") == []
    assert plan.after_groups(Process(args=SH), joins=True, name="c") == [do.SetAffinity(None)]


def test_exec_takes_what_it_does_not_say_from_the_container() -> None:
    container = Process(
        args=("/init",),
        user=User(1, 1, 0o27, (9,)),
        capabilities=Capabilities(bounding=("CAP_KILL",)),
        rlimits=(Rlimit("RLIMIT_CORE", 0, 0),),
        no_new_privileges=True,
        oom_score_adj=300,
        env=("A=1",),
        cwd="/srv",
    )
    own = Process(args=SH, user=User(5, 6))
    taken = plan.exec_process(own, container)
    assert (taken.args, taken.cwd, taken.env) == (SH, "/", ())
    assert taken.user == User(5, 6, 0o27)
    assert taken.capabilities == container.capabilities
    assert taken.rlimits == container.rlimits
    assert taken.no_new_privileges
    assert taken.oom_score_adj == 300
    assert plan.exec_process(Process(args=SH, oom_score_adj=0), container).oom_score_adj == 0
    # Only a new container gets umask 022: a process in it keeps its caller's.
    become = plan.user_steps(Process(args=SH), joins=True)[1]
    assert isinstance(become, do.BecomeUser)
    assert become.umask is None


def test_without_capabilities_there_are_none_and_unknown_ones_are_left_out() -> None:
    become = plan.user_steps(Process(args=SH), joins=False)[1]
    assert become == do.BecomeUser(0, 0, (), 0o22, "/")
    process = Process(args=SH, capabilities=Capabilities(bounding=("CAP_WARP", "CAP_KILL"), ambient=("CAP_CHOWN",)))
    assert plan.ungranted(process, frozenset({"CAP_KILL"})) == ("CAP_CHOWN", "CAP_WARP")
    assert plan.ungranted(process, frozenset({"CAP_KILL", "CAP_CHOWN", "CAP_WARP"})) == ("CAP_WARP",)
    assert plan.ungranted(Process(args=SH), frozenset()) == ()


def test_the_last_of_two_variables_counts_and_an_empty_home_does_not() -> None:
    assert plan.environment(("A=1", "B=2", "A=3", "HOME=", "C=x=y")) == ("B=2", "A=3", "C=x=y")
    assert names(plan.user_steps(Process(args=SH, env=("HOME=",)), joins=False))[0] == "LearnHome"


def test_resctrl_follows_the_rules_of_closid() -> None:
    lines = {"l3_cache_schema": "L3:0=f", "mem_bw_schema": "MB:0=50"}
    assert plan.resctrl_step(IntelRdt(**lines), "c") == do.JoinResctrl("c", True, ("L3:0=f", "MB:0=50"))
    assert plan.resctrl_step(IntelRdt("shared", **lines), "c") == do.JoinResctrl(
        "shared", False, ("L3:0=f", "MB:0=50")
    )
    assert plan.resctrl_step(IntelRdt("shared"), "c") == do.JoinResctrl("shared", False, ())
    assert plan.resctrl_step(IntelRdt("shared", enable_mbm=True), "c") == do.JoinResctrl("shared", False, (), "c")


def test_a_joined_time_namespace_has_its_offsets() -> None:
    assert plan.time_steps(Spec("1.2.0", namespaces=(Namespace("time", "/proc/1/ns/time"),))) == []


def test_every_step_says_what_it_does() -> None:
    steps = [
        do.SetLimits(((0, "RLIMIT_NOFILE", 1, 2),)),
        do.SetOomScore(5),
        do.SetAffinity((0, 1)),
        do.SetAffinity(None),
        do.JoinResctrl("c", True, ("MB:0=50",)),
        do.RequireModule("apparmor", "process.apparmorProfile"),
        do.EnterTimeNamespace((("monotonic", -3, 0),)),
        do.NewSession(),
        do.JoinKeyring(),
        do.SetDomainname("d"),
        do.WriteSysctls((("net.x", "net/x", "1"),)),
        do.MakeDirectory("/w"),
        do.SetPersonality("LINUX", 0),
        do.SetScheduler("SCHED_IDLE", 5),
        do.SetIoPriority("IOPRIO_CLASS_BE", 2, 4),
        do.UseAppArmor("p"),
        do.UseSelinux("l"),
        do.ForbidPrivileges(),
        do.BecomeUser(1, 2, (), None, "/"),
        do.FindProgram(SH, ()),
        do.LearnHome(1),
        do.ExecuteArgs(SH, ()),
    ]
    lines = [step.describe() for step in steps]
    assert len(set(lines)) == len(lines)
    assert all(line[0].islower() and "\n" not in line for line in lines)
