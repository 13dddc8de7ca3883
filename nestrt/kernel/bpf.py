"""Device programs of the v2 tree, by bpf(2).

A program stays attached to its group until it is detached or the group is
removed, with no process behind it. A group's programs and all its ancestors'
must allow an access, so a child can only be given less. All of it needs
CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, of the initial user namespace.

Groups are named by path, or by a descriptor of their directory.
"""

from __future__ import annotations

import ctypes
import errno
import os

from nestrt.kernel.libc import SYS_bpf, syscall

# enum bpf_cmd, include/uapi/linux/bpf.h
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6  # enum bpf_attach_type
BPF_F_ALLOW_MULTI = 1 << 1
BPF_F_REPLACE = 1 << 2  # Linux 5.6
BPF_F_QUERY_EFFECTIVE = 1 << 0

_LICENSE = b"Apache-2.0"
_LOG_SIZE = 1 << 16


class _Load(ctypes.Structure):
    """The part of union bpf_attr for BPF_PROG_LOAD; what is left out is zero for the kernel."""

    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    ]


class _Attach(ctypes.Structure):
    """The part of union bpf_attr for BPF_PROG_ATTACH and BPF_PROG_DETACH."""

    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("replace_bpf_fd", ctypes.c_uint32),
    ]


class _Query(ctypes.Structure):
    """The part of union bpf_attr for BPF_PROG_QUERY."""

    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
    ]


class _ById(ctypes.Structure):
    """The part of union bpf_attr for BPF_PROG_GET_FD_BY_ID."""

    _fields_ = [("prog_id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32)]


def _bpf(command: int, attributes: ctypes.Structure, obj: str) -> int:
    return syscall(SYS_bpf, command, ctypes.byref(attributes), ctypes.sizeof(attributes), obj=obj)


def load_device_program(code: bytes) -> int:
    """Load eBPF instructions as a BPF_PROG_TYPE_CGROUP_DEVICE program; return its descriptor, close-on-exec.

    bpf(2), BPF_PROG_LOAD. Raises OSError: EPERM without the capabilities (before
    5.11 also for want of RLIMIT_MEMLOCK), E2BIG for too many instructions, EINVAL
    or EACCES from the verifier, whose last words are then in the message.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    license_name = ctypes.create_string_buffer(_LICENSE)
    attributes = _Load(
        prog_type=BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_name),
        prog_name=b"nestrt",
    )
    try:
        return _bpf(BPF_PROG_LOAD, attributes, "device program")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        refused = error
    # The verifier writes what it found only if asked to, at a cost: so a second time, to learn why.
    log = ctypes.create_string_buffer(_LOG_SIZE)
    attributes.log_level, attributes.log_size, attributes.log_buf = 1, _LOG_SIZE, ctypes.addressof(log)
    try:
        return _bpf(BPF_PROG_LOAD, attributes, "device program")
    except OSError:
        lines = log.value.decode(errors="replace").strip().splitlines()
        words = [line for line in lines if not line.startswith(("processed ", "verification time"))][-1:]
        raise OSError(refused.errno, ": ".join([str(refused.strerror), *words]), "device program") from None


def program_by_id(identity: int) -> int:
    """Return a descriptor, close-on-exec, of the loaded program with this id.

    bpf(2), BPF_PROG_GET_FD_BY_ID. Raises OSError: ENOENT (gone), EPERM (needs CAP_SYS_ADMIN).
    """
    return _bpf(BPF_PROG_GET_FD_BY_ID, _ById(prog_id=identity), f"device program {identity}")


def program_id(program: int) -> int:
    """Return the kernel's id of a loaded *program*: proc_pid_fdinfo(5). Raises OSError."""
    with open(f"/proc/self/fdinfo/{program}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("prog_id:"))


def attach(group: str | int, program: int) -> None:
    """Attach the *program* to *group*, beside those that it may have.

    bpf(2), BPF_PROG_ATTACH with BPF_F_ALLOW_MULTI. Raises OSError: EBADF (no v2
    group), EINVAL (attached already), EPERM (also where an ancestor's program
    was attached in the exclusive mode), E2BIG (64 programs).
    """
    _at(group, BPF_PROG_ATTACH, program, BPF_F_ALLOW_MULTI)


def replace(group: str | int, new: int, old: int) -> None:
    """Put program *new* where *old* was, so that at no moment neither or only others are asked.

    bpf(2), BPF_PROG_ATTACH with BPF_F_REPLACE, Linux 5.6. Raises OSError: ENOENT
    (*old* is not attached to *group*), EINVAL (*new* is already, or an older kernel).
    """
    _at(group, BPF_PROG_ATTACH, new, BPF_F_ALLOW_MULTI | BPF_F_REPLACE, old)


def detach(group: str | int, program: int) -> None:
    """Take the *program* off *group*: bpf(2), BPF_PROG_DETACH. Raises OSError: ENOENT if it is not attached there."""
    _at(group, BPF_PROG_DETACH, program, 0)


def query(group: str | int, effective: bool = False) -> tuple[int, ...]:
    """Return the ids of the device programs of *group*, with *effective* also of its ancestors'.

    bpf(2), BPF_PROG_QUERY. Raises OSError: EPERM (needs CAP_NET_ADMIN).
    """
    flags = BPF_F_QUERY_EFFECTIVE if effective else 0
    room = 64  # BPF_CGROUP_MAX_PROGS; with ancestors there may be more
    with _Directory(group) as directory:
        while True:
            ids = (ctypes.c_uint32 * room)()
            attributes = _Query(
                target_fd=directory,
                attach_type=BPF_CGROUP_DEVICE,
                query_flags=flags,
                prog_ids=ctypes.addressof(ids),
                prog_cnt=room,
            )
            try:
                _bpf(BPF_PROG_QUERY, attributes, str(group))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                room *= 2
                continue
            return tuple(ids[: attributes.prog_cnt])


def _at(group: str | int, command: int, program: int, flags: int, old: int = 0) -> None:
    with _Directory(group) as directory:
        attributes = _Attach(
            target_fd=directory,
            attach_bpf_fd=program,
            attach_type=BPF_CGROUP_DEVICE,
            attach_flags=flags,
            replace_bpf_fd=old,
        )
        _bpf(command, attributes, str(group))


class _Directory:
    """A descriptor of a group's directory: the one given, or one opened for as long as it is needed."""

    def __init__(self, group: str | int) -> None:
        self.group = group

    def __enter__(self) -> int:
        if isinstance(self.group, int):
            return self.group
        self.descriptor = os.open(self.group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self.descriptor

    def __exit__(self, *_error: object) -> None:
        if not isinstance(self.group, int):
            os.close(self.descriptor)
