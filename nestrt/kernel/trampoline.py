"""The last program before the guest's own: a sealed executable of a few hundred bytes in memory.

A program of the image may be a script, or a symlink, that leads to
/proc/self/exe: executed straight from this process, that would be the host's
Python interpreter, which the guest could then open for writing (CVE-2019-5736).
So the first process becomes this trampoline, which lives in a sealed memfd and
in turn becomes the program: all that /proc/self/exe can lead to is a file that
nobody can change.

It also loads the guest's seccomp filter, so that of all system calls before the
program's own the filter sees execve(2) alone: a profile need allow nothing for
the runtime's sake. Loading without no_new_privs needs CAP_SYS_ADMIN, which comes
along as an ambient capability and ends here: capset(2) takes it out of the
inheritable set, and thereby out of the ambient one, before the load, and
execve(2) out of the others after it.

It takes the program's path as its first argument and the program's own argument
list after that. A table behind the code has the rest: struct { int channel, board;
u32 flags, drop; struct sock_fprog filter; struct __user_cap_header_struct header;
struct __user_cap_data_struct data[2]; }. In C::

    fcntl(channel, F_SETFD, FD_CLOEXEC);        // end of file there: the program runs
    if (board >= 0) {
        page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, board, 0);
        close(board);
        if (drop)
            capset(header, data);
        listener = seccomp(SECCOMP_SET_MODE_FILTER, flags, &filter);
        if (flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) {
            page[0] = listener + 1;
            while (page[1] == 0)                // 15 to 50 s, then ETIMEDOUT
                pause;
        }
    }
    execve(argv[0], argv + 1, argv + argc + 1);
    // whatever failed, with the stage, an index into STAGES, in the upper half
    page ? page[2] = stage << 16 | errno : write(channel, &(stage << 16 | errno), 4);
    exit(127);

The board (kernel/seccomp.py) is a page shared with the launcher: once the filter
is there no system call is sure to work, and none is needed to write into memory.
The code is assembled from tests/unit/trampoline_*.s.
"""

from __future__ import annotations

import errno
import fcntl
import os
from struct import pack

# e_machine of elf(5), and the code.
_CODE = {
    "x86_64": (
        62,
        "488b1c244c8d642408488d2d180100004531f68b7d00be02000000ba01000000b8480000000f05448b45044585c00f88a4000000"
        "41bd0000010031ffbe00100000ba0300000041ba010000004531c9b8090000000f05483d00f0ffff0f878e0000004989c68b7d04"
        "b8030000000f05837d0c00741941bd00000200488d7d20488d7528b87e0000000f0585c0786241bd00000300bf010000008b7508"
        "488d5510b83d0100000f0585c07845f74508080000007424ffc041890641bd00000400b900000040f39041837e0400750bffc975"
        "f3b892ffffffeb184531ed498b3c24498d742408498d54dc08b83b0000000f05f7d84409e84d85f67515508b7d004889e6ba0400"
        "0000b8010000000f05eb0441894608bf7f000000b83c0000000f050f0b0f1f8000000000",
    ),
    "aarch64": (
        183,
        "f30340f9f423009155090010160080d2a00240b9410080d2220080d2280380d2010000d4a40680b98405f8b73700a052000080d2"
        "010082d2620080d2230080d2050080d2c81b80d2010000d41ffc3fb102050054f60300aaa00640b9280780d2010000d4a00e40b9"
        "e00000345700a052a0820091a1a20091680b80d2010000d48003f8377700a052200080d2a10a40b9a2420091a82280d2010000d4"
        "a002f837a10a40b9a101183600040011c0fe9f889700a052c11200914200c0d23f2003d520fcdf88a0000035420400d182ffffb5"
        "a00d80120700001417008052800240f981220091220c138ba81b80d2010000d4e003004b0000172a360100b5ff4300d1e00300b9"
        "a00240b9e1030091820080d2080880d2010000d402000014c00a00b9e00f80d2a80b80d2010000d4000020d4",
    ),
}
# Asked once: a personality (LINUX32) changes the answer.
_MACHINE = os.uname().machine
_BASE = 0x400000
_HEADERS = 64 + 56
_TABLE = 64

EXECUTE = "execute the program"
# What each stage of the failure word was about; without a filter there is only the first.
STAGES = (
    EXECUTE,
    "map the board",
    "give up CAP_SYS_ADMIN",
    "load the seccomp filter",
    "hand the seccomp listener to the launcher",
)

F_ADD_SEALS = 1033
F_SEAL_ALL = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


def supported() -> bool:
    """Whether there is code for this machine."""
    return _MACHINE in _CODE


def image(
    machine: str,
    channel: int,
    code: bytes = b"",
    flags: int = 0,
    board: int = -1,
    sets: tuple[int, int, int] | None = None,
) -> bytes:
    """The executable: an ELF header, one program header (read and execute), code, table, filter (elf(5)).

    The parameters are those of ``become``.
    """
    number, text = _CODE[machine]
    instructions = bytes.fromhex(text)
    low, high = [[mask >> shift & 0xFFFFFFFF for mask in sets or (0, 0, 0)] for shift in (0, 32)]
    table = pack("<iiIIH6xQ", channel, board, flags, sets is not None, len(code) // 8, _filter_address(instructions))
    table += pack("<8I", _LINUX_CAPABILITY_VERSION_3, 0, *low, *high)
    body = instructions + table + code
    size = _HEADERS + len(body)
    elf = pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    program = pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + program + body


def _filter_address(instructions: bytes) -> int:
    return _BASE + _HEADERS + len(instructions) + _TABLE


def become(
    path: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    channel: int,
    code: bytes = b"",
    flags: int = 0,
    board: int = -1,
    sets: tuple[int, int, int] | None = None,
) -> None:
    """Execute *path* by way of the trampoline. Returns only by OSError.

    The program gets every descriptor that is not close-on-exec; *channel*, whatever
    its number, is not among them. With a filter, *code* (struct sock_filter[]) and
    *flags* (seccomp(2)) are loaded just before the program, and *board* is that of
    kernel/seccomp.py. *sets*, as masks, are the effective, permitted and
    inheritable capabilities while that is done: where there is no no_new_privs,
    the first two hold CAP_SYS_ADMIN, and the third does not.

    memfd_create(2), fcntl(2) F_ADD_SEALS, execveat(2). Raises OSError: ENOSYS where
    there is no code for this machine.
    """
    machine = _MACHINE
    if machine not in _CODE:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), f"trampoline for {machine}")
    memory = os.memfd_create("nestrt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, image(machine, channel, code, flags, board if code else -1, sets))
    fcntl.fcntl(memory, F_ADD_SEALS, F_SEAL_ALL)
    os.set_inheritable(channel, True)
    if code:
        os.set_inheritable(board, True)
    os.execve(memory, [path, *arguments], environment)


def failure(word: int) -> tuple[str, int] | None:
    """What failed and its errno, from the word on the channel or on the board; None for 0."""
    stage = word >> 16
    return (STAGES[stage] if stage < len(STAGES) else STAGES[0], word & 0xFFFF) if word else None
