"""A bundle's ``linux.seccomp`` as a program for the kernel, by libseccomp.

The filter behaves as runc's for the same section: a rule whose action is the
default is left out, so is a system call that this libseccomp does not know; two
conditions on one argument are two rules; and where the default action refuses,
numbers above the largest that the section names, as an architecture counts,
fail with ENOSYS: C libraries try new system calls and fall back on that errno alone.

libseccomp takes 10 to 30 ms for an engine's default profile of 400 names and
three architectures, so what it made is kept (seccomp_cache.py).

Sources: seccomp_init(3), seccomp_rule_add(3), seccomp_arch_add(3),
seccomp_export_bpf(3), include/seccomp.h of libseccomp 2.5; runtime-spec
config-linux.md, "Seccomp"; seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import pack

from nestrt.errors import HostError, InputError, NestrtError
from nestrt.kernel import seccomp as kernel
from nestrt.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.oci.model import Seccomp, SyscallArg, Syscalls

ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
}
_NOTIFY = ACTIONS["SCMP_ACT_NOTIFY"]
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
# A tracer knows for itself what to do with a new system call.
_LETS_NEW_CALLS_PASS = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_ERRNO_ENOSYS = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS

# enum scmp_compare
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

# As the kernel's AUDIT_ARCH_*, but for x32, which is an x86_64 whose numbers have bit 30.
ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
}
_X86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"]
_X32 = ARCHITECTURES["SCMP_ARCH_X32"]
_X32_BIT = 0x40000000
_S390 = (ARCHITECTURES["SCMP_ARCH_S390"], ARCHITECTURES["SCMP_ARCH_S390X"])

# The first is known and does nothing: the filter is loaded by a process of one thread.
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": kernel.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}

_UNKNOWN = -1  # __NR_SCMP_ERROR
_CTL_OPTIMIZE = 8  # enum scmp_filter_attr
_BINARY_TREE = 2
_MANY = 32  # names from which on the tree pays; libseccomp 2.5 builds a wrong one of none
_NOTIFY_API = 6  # seccomp_api_get(3): libseccomp 2.5 and Linux 5.0
MAX_CODE = 4096 * 8  # BPF_MAXINSNS

_library: ctypes.CDLL | None = None


@record
class Filter:
    """*code* is struct sock_filter[], *flags* are for seccomp(2); *notify*: it has a listener."""

    code: bytes
    flags: int
    notify: bool


def library() -> ctypes.CDLL:
    """libseccomp, loaded once. Raises HostError where it is not installed."""
    global _library
    if _library is None:
        try:
            found = ctypes.CDLL("libseccomp.so.2")
        except OSError as error:
            raise HostError("honour", "linux.seccomp", "libseccomp.so.2 is not there", "install libseccomp2") from error
        found.seccomp_init.restype = ctypes.c_void_p
        found.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
        found.seccomp_arch_native.restype = ctypes.c_uint32
        _library = found
    return _library


def version() -> tuple[int, int, int]:
    """Major, minor and micro of the libseccomp that is there: seccomp_version(3). Raises HostError."""
    major, minor, micro = library().seccomp_version().contents
    return major, minor, micro


def supported_flags() -> tuple[str, ...]:
    """Those of FLAGS that this kernel knows."""
    return tuple(name for name, flag in FLAGS.items() if _supported(flag))


def _supported(flag: int) -> bool:
    listener = kernel.SECCOMP_FILTER_FLAG_NEW_LISTENER
    together = flag | listener if flag == kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV else flag
    return flag == 0 or kernel.flags_supported(together)


def build(seccomp: Seccomp) -> Filter | None:
    """Return the program for the section; None for one that says neither a default action nor a rule.

    Raises InputError for what no runtime can do with it, HostError for what this
    libseccomp or this kernel cannot, NestrtError for what libseccomp refuses.
    """
    if not seccomp.default_action and not seccomp.syscalls:
        return None
    default = _action(seccomp.default_action, seccomp.default_errno_ret)
    if default == _NOTIFY:
        raise _bad("SCMP_ACT_NOTIFY", "SCMP_ACT_NOTIFY cannot be used as default action", "use it for single calls")
    notify = any(entry.action == "SCMP_ACT_NOTIFY" and entry.names for entry in seccomp.syscalls)
    flags = _flags(seccomp.flags, notify)
    lib = library()
    if notify:
        _check_notify(lib, seccomp)
    architectures = [_architecture(name) for name in seccomp.architectures]
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise HostError("build", "linux.seccomp", f"libseccomp does not know {seccomp.default_action} here")
    try:
        for architecture, name in zip(architectures, seccomp.architectures, strict=True):
            result = lib.seccomp_arch_add(context, ctypes.c_uint32(architecture))
            if result not in (0, -errno.EEXIST):
                raise HostError(
                    "use", f"seccomp architecture {name}", f"libseccomp does not have it here: {os.strerror(-result)}"
                )
        if sum(len(entry.names) for entry in seccomp.syscalls) > _MANY:
            lib.seccomp_attr_set(context, _CTL_OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
        for entry in seccomp.syscalls:
            _add(lib, context, entry, default)
        code = _export(lib, context)
    finally:
        lib.seccomp_release(context)
    if seccomp.default_action not in _LETS_NEW_CALLS_PASS and default != _ERRNO_ENOSYS:
        code = new_calls_fail(_largest(lib, seccomp, architectures)) + code
    if len(code) > MAX_CODE:
        raise _bad("linux.seccomp", f"the filter has {len(code) // 8} instructions, the kernel takes 4096", "")
    return Filter(code, flags, notify)


def _bad(what: str, reason: str, remedy: str) -> InputError:
    return InputError("use", what, reason, remedy)


def _action(name: str, number: int | None) -> int:
    """The value of an action, with its errno where it takes one: EPERM if none is said."""
    value = ACTIONS.get(name)
    if value is None:
        raise _bad(
            f"seccomp action {name!r}",
            f"string {name} is not a valid action for seccomp",
            f"use one of {' '.join(sorted(ACTIONS))}",
        )
    if name in _WITH_ERRNO:
        return value | (errno.EPERM if number is None else number & 0xFFFF)
    if number is not None:
        raise _bad(f"errnoRet {number} with {name}", "this action has no errno", "leave errnoRet out")
    return value


def _architecture(name: str) -> int:
    value = ARCHITECTURES.get(name)
    if value is None:
        raise _bad(
            f"seccomp architecture {name!r}", f"string {name} is not a valid arch for seccomp", "see libseccomp's list"
        )
    return value


def _flags(names: tuple[str, ...] | None, notify: bool) -> int:
    """The flags for the load. SPEC_ALLOW where the section says nothing about flags, as under runc."""
    listener = kernel.SECCOMP_FILTER_FLAG_NEW_LISTENER if notify else 0
    if names is None:
        default = kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW
        return listener | (default if _supported(default) else 0)
    flags = listener
    for name in names:
        if name not in FLAGS:
            raise _bad(f"seccomp flag {name!r}", f"seccomp flag {name} is not known", f"use {' '.join(sorted(FLAGS))}")
        if not _supported(FLAGS[name]):
            raise HostError("use", f"seccomp flag {name}", "this kernel does not know it", "leave it out")
        flags |= FLAGS[name]
    if flags & kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV and not notify:
        raise _bad(
            "seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
            "invalid argument: no rule notifies",
            "leave it out, or use SCMP_ACT_NOTIFY",
        )
    return flags


def _check_notify(lib: ctypes.CDLL, seccomp: Seccomp) -> None:
    level = lib.seccomp_api_get()
    if level < _NOTIFY_API:
        raise HostError(
            "use",
            "SCMP_ACT_NOTIFY",
            f"seccomp notify unsupported: API level: got {level}, want at least {_NOTIFY_API}",
            "use libseccomp 2.5 or newer, and Linux 5.7",
        )
    if not seccomp.listener_path:
        raise _bad("SCMP_ACT_NOTIFY", "seccomp listenerPath is not set", "set linux.seccomp.listenerPath")
    # The trampoline could do with it; runc cannot, so profiles that engines share do without, and a
    # bundle must not work here and fail there.
    if any("write" in entry.names for entry in seccomp.syscalls if entry.action == "SCMP_ACT_NOTIFY"):
        raise _bad("SCMP_ACT_NOTIFY", "SCMP_ACT_NOTIFY cannot be used for the write syscall", "leave write out of it")


def _add(lib: ctypes.CDLL, context: ctypes.c_void_p, entry: Syscalls, default: int) -> None:
    """Add the rules of one entry of ``syscalls``."""
    value = _action(entry.action, entry.errno_ret)
    rules = _rules(entry.args)
    if value == default:
        return
    action = ctypes.c_uint32(value)
    for name in entry.names:
        if not name:
            raise _bad("linux.seccomp.syscalls", "empty string is not a valid syscall", "take the empty name out")
        number = lib.seccomp_syscall_resolve_name(name.encode("utf-8", "surrogateescape"))
        if number == _UNKNOWN:
            continue
        for count, conditions in rules:
            result = lib.seccomp_rule_add_array(context, action, number, count, conditions)
            if result:
                raise NestrtError(
                    "build",
                    "linux.seccomp",
                    f"error adding seccomp filter rule for syscall {name}: {os.strerror(-result).lower()}",
                    "give each system call one action for the same arguments",
                )


def _rules(args: tuple[SyscallArg, ...]) -> list[tuple[int, bytes | None]]:
    """The conditions of one entry as rules: how many, and struct scmp_arg_cmp[]."""
    packed = []
    for arg in args:
        operator = OPERATORS.get(arg.op)
        if operator is None:
            raise _bad(
                f"seccomp operator {arg.op!r}",
                f"string {arg.op} is not a valid operator for seccomp",
                f"use one of {' '.join(OPERATORS)}",
            )
        if not 0 <= arg.index < 6:
            raise _bad(f"seccomp argument index {arg.index}", "system calls have the arguments 0 to 5", "")
        # struct scmp_arg_cmp { unsigned int arg; enum scmp_compare op; u64 datum_a, datum_b; }
        packed.append(pack("@IiQQ", arg.index, operator, arg.value & (1 << 64) - 1, arg.value_two & (1 << 64) - 1))
    if not packed:
        return [(0, None)]
    # libseccomp takes one condition an argument; runc makes a rule of each of them then: alternatives.
    if len({arg.index for arg in args}) < len(args):
        return [(1, each) for each in packed]
    return [(len(packed), b"".join(packed))]


def _export(lib: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    memory = os.memfd_create("nestrt-filter", os.MFD_CLOEXEC)
    try:
        result = lib.seccomp_export_bpf(context, memory)
        if result:
            raise NestrtError("build", "linux.seccomp", f"libseccomp: {os.strerror(-result)}")
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)


def _largest(lib: ctypes.CDLL, seccomp: Seccomp, architectures: list[int]) -> dict[int, int]:
    """The largest number that the section names, by architecture; none where it names nothing that is known there."""
    names = {name.encode("utf-8", "surrogateescape") for entry in seccomp.syscalls for name in entry.names}
    resolve = lib.seccomp_syscall_resolve_name_arch
    found = {}
    for architecture in dict.fromkeys([*architectures, lib.seccomp_arch_native()]):
        token = ctypes.c_uint32(architecture)
        number = max([resolve(token, name) for name in names], default=0)
        if number > 0:
            found[architecture] = number
    return found


def new_calls_fail(largest: dict[int, int]) -> bytes:
    """Instructions in front of a filter: numbers above *largest* (SCMP_ARCH_* → number) fail with ENOSYS.

    Everything else goes on to the filter, also an architecture that is not among them.
    """
    blocks = []
    for audit in dict.fromkeys(_X86_64 if architecture == _X32 else architecture for architecture in largest):
        tests: list[tuple[int, int, int, int]] = [(0x20, 0, 0, 0)]  # load the number
        if audit == _X86_64:
            # Offsets: 1 bit 30, 2 and 3 either kind, 4 on to the filter, 5 ENOSYS.
            plain, wide = largest.get(_X86_64), largest.get(_X32)
            tests += [
                (0x45, 1, 0, _X32_BIT),
                (0x25, 2, 1, plain) if plain is not None else (0x05, 0, 0, 1),
                (0x25, 1, 0, wide) if wide is not None else (0x05, 0, 0, 0),
            ]
        else:
            if audit in _S390:
                # Large numbers that the kernel does not know come as 0, once setup(2).
                tests.append((0x15, 2, 0, 0))
            tests.append((0x25, 1, 0, largest[audit]))
        blocks.append((audit, tests))
    total = 1 + sum(1 + len(tests) + 2 for _, tests in blocks)
    code = [(0x20, 0, 0, 4)]  # load the architecture
    for audit, tests in blocks:
        code.append((0x15, 0, len(tests) + 2, audit))
        code += tests
        code.append((0x05, 0, 0, total - len(code) - 1))
        code.append((0x06, 0, 0, _ERRNO_ENOSYS))
    return b"".join(pack("=HBBI", *each) for each in code) if blocks else b""
