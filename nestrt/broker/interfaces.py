"""The broker's Varlink interfaces, as text: what a client may ask, and in what form. varlink.org/Interface-Definition.

The text is the one source of truth: calls are checked by it (idl.py), ``org.varlink.service`` hands it out, and
a method that it does not name does not exist.
"""

from __future__ import annotations

VERSION = "1"
PRODUCT, VENDOR, URL = "nestrt broker", "nestrt", "https://github.com/nestrt/nestrt"

SERVICE = """\
# What every Varlink service tells about itself.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""

# The same for both interfaces. Each carries one line for a person: what failed, why, and what to do instead.
_ERRORS = """
# A parameter, a key or a value that cannot be meant.
error BadValue (message: string, remedy: string)
# No such group, process, file or guest.
error NotFound (message: string, remedy: string)
# It exists, it is in use, or processes are in the way.
error Busy (message: string, remedy: string)
# This guest, kernel or policy cannot.
error NotPossible (message: string, remedy: string)
# The guest is locked by the level above: nothing about its groups changes.
error Locked (message: string, remedy: string)
# Only the guest's root, or the owner of the group concerned, may.
error NotPermitted (message: string, remedy: string)
# More than this guest may have or ask at once.
error QuotaExceeded (message: string, remedy: string)
# The kernel refused; errno as in errno(3).
error Refused (message: string, remedy: string, errno: int)
"""

GUEST = (
    """\
# What a guest asks of the level above about its own groups. Groups are named from the guest's root, "/"; keys are
# cgroup v2's names on every host; users, processes and, where the guest counts so, CPUs have the numbers that the
# guest knows.
interface io.nestrt.Guest

type Limit (value: string, use: ?string)

# owner: the user, -1 for one that the guest has no number for.
type Group (
  name: string,
  owner: int,
  processes: int,
  populated: bool,
  frozen: bool,
  limits: [string]Limit
)

# group "" : it is in groups of several names.
type Process (pid: int, user: int, group: string, command: string)

type Quota (
  groups: int,
  groups_used: int,
  depth: int,
  requests_per_second: int,
  connections: int,
  connections_used: int,
  message_bytes: int
)

# kind: listening, oom, oom_kill, limit, high, pressure, empty, populated, frozen, thawed, created, removed, cpus,
# reaction, lost.
# key: the file that says so. count: how often it has happened so far. detail: for a person. A question is a reaction
# with id and seconds: an answer (Answer) is awaited so long.
type Event (
  time: float,
  kind: string,
  group: string,
  key: ?string,
  count: ?int,
  detail: ?string,
  id: ?int,
  seconds: ?float
)

# What happens to a child group. on: oom, or pressure with a threshold ("some 150000 1000000": µs of stall in a window
# of µs, as PSI takes them, after "cpu" or "io" of those; or low, medium, critical where there is no PSI). action:
# kill, freeze, raise (by step, up to most; fallback: where it cannot), or tell: wait seconds for an Answer (kill,
# freeze, raise by step and most, nothing), then do as fallback says (kill, freeze, nothing).
type Reaction (
  group: string,
  on: string,
  action: string,
  threshold: ?string,
  step: ?string,
  most: ?string,
  seconds: ?float,
  fallback: ?string
)

method Info() -> (
  name: string,
  level: int,
  max_level: int,
  user: int,
  root: bool,
  group: string,
  view: string,
  cpus: int,
  cpu_numbers: string,
  controllers: []string,
  may_divide: []string,
  limits: [string]Limit,
  quota: Quota
)

method List(group: ?string, recursive: ?bool) -> (groups: []Group)
method Processes(group: ?string, recursive: ?bool) -> (processes: []Process)
# devices: the rules of the new group, as Devices has them; owner: the user that may divide it further.
method Create(group: string, settings: ?[string]string, parents: ?bool, owner: ?int, devices: ?[]string) -> ()
method Remove(group: string, recursive: ?bool, kill: ?bool) -> ()
method Get(group: string, keys: ?[]string) -> (values: [string]string)
method Set(group: string, settings: [string]string) -> ()
# pid 0 is the caller.
method Attach(group: string, pids: []int) -> ()
method Freeze(group: string) -> ()
method Thaw(group: string) -> ()
method Kill(group: string, signal: ?int) -> (processes: int)

# The rules of a group, after allowing and denying. only: these and no others. inherit: none of its own any more.
# own is false where they are those of a group above.
method Devices(group: string, allow: ?[]string, deny: ?[]string, only: ?[]string, inherit: ?bool) -> (
  rules: []string,
  own: bool
)

# A stream (more): of the group and those below, of these kinds. The first is of kind listening: from then on.
method Events(group: ?string, kinds: ?[]string) -> (event: Event)
method React(reaction: Reaction) -> ()
method Forget(group: string, on: string) -> ()
method Reactions() -> (reactions: []Reaction)
method Answer(id: int, action: string) -> ()

# Lines as in cgrules.conf(5): user[:process] controllers destination. Without rules: what there is.
method Rules(rules: ?[]string) -> (rules: []string)
"""
    + _ERRORS
)

HOST = (
    """\
# What the host's root asks.
interface io.nestrt.Host

# What one guest may ask: the broker's options, or what the guest's policy says instead.
type Quota (requests_per_second: int, connections: int, message_bytes: int)

# rules: lines of the guest's own, host_rules: of the host's for it.
type Guest (
  name: string,
  level: int,
  cgroup: string,
  socket: string,
  pid: int,
  connections: int,
  requests: int,
  refused: int,
  quota: Quota,
  rules: int,
  host_rules: int,
  reactions: int
)

method Guests() -> (guests: []Guest)
method Describe(guest: string) -> (description: object)
method SetLimits(guest: string, settings: [string]string, devices: ?[]string) -> ()
# The last lines of the audit, oldest first; with more those to come follow, in replies of one or several.
method Audit(guest: ?string, lines: ?int) -> (entries: []object)
# Take no new connections, finish what was asked, and end.
method Drain() -> ()
# A listener for a guest that is about to start, or has; cgroup: its limit group.
method Serve(guest: string, cgroup: string) -> (socket: string)
method Release(guest: string) -> ()
# The host's own rules for the processes of a guest, before the guest's.
method Rules(guest: string, rules: ?[]string) -> (rules: []string)
"""
    + _ERRORS
)

TEXTS = {"org.varlink.service": SERVICE, "io.nestrt.Guest": GUEST, "io.nestrt.Host": HOST}
