"""The last program before the guest's own: a sealed 200-byte executable in memory.

A program of the image may be a script, or a symlink, that leads to
/proc/self/exe: executed straight from this process, that would be the host's
Python interpreter, which the guest could then open for writing (CVE-2019-5736).
So the first process becomes this trampoline, which lives in a sealed memfd and
in turn becomes the program: all that /proc/self/exe can lead to is a file that
nobody can change.

It takes the program's path as its first argument and the program's own argument
list after that. Descriptor 3 is the channel to the launcher: made close-on-exec
first, so that the launcher reads end of file when the program runs, and else
the errno of execve(2) as a 32-bit integer. The machine code, as GNU as spells it::

    mov (%rsp),%rbx            argc                     ldr x9,[sp]
    lea 8(%rsp),%r12           argv                     add x10,sp,#8
    fcntl(3, F_SETFD, FD_CLOEXEC)
    execve(argv[0], argv + 1, argv + argc + 1)
    write(3, &errno, 4)
    exit(127)
"""

from __future__ import annotations

import fcntl
import os
from struct import pack

CHANNEL = 3

# e_machine of elf(5), and the code.
_CODE = {
    "x86_64": (
        62,
        "488b1c244c8d642408b848000000bf03000000be02000000ba010000000f05498b3c24498d742408498d54dc08b83b0000000f05"
        "f7d850b801000000bf030000004889e6ba040000000f05bf7f000000b83c0000000f05",
    ),
    "aarch64": (
        183,
        "e90340f9ea230091600080d2410080d2220080d2280380d2010000d4400140f941210091420d098b42200091a81b80d2010000d4"
        "e003004be00f1fb8600080d2e1030091820080d2080880d2010000d4e00f80d2a80b80d2010000d4",
    ),
}
_BASE = 0x400000
_HEADERS = 64 + 56

F_ADD_SEALS = 1033
F_SEAL_ALL = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE


def supported() -> bool:
    """Whether there is code for this machine."""
    return os.uname().machine in _CODE


def image(machine: str) -> bytes:
    """The executable: an ELF header, one program header (read and execute), the code (elf(5))."""
    number, text = _CODE[machine]
    code = bytes.fromhex(text)
    size = _HEADERS + len(code)
    elf = pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    program = pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + program + code


def become(path: str, arguments: tuple[str, ...], environment: dict[str, str], channel: int) -> None:
    """Execute *path* by way of the trampoline; *channel* becomes descriptor 3. Returns only by OSError.

    memfd_create(2), fcntl(2) F_ADD_SEALS, execveat(2). ENOSYS where there is no code for this machine.
    """
    memory = os.memfd_create("nestrt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, image(os.uname().machine))
    fcntl.fcntl(memory, F_ADD_SEALS, F_SEAL_ALL)
    if memory == CHANNEL:
        memory = fcntl.fcntl(memory, fcntl.F_DUPFD_CLOEXEC, CHANNEL + 1)
    if channel == CHANNEL:
        os.set_inheritable(channel, True)
    else:
        os.dup2(channel, CHANNEL, inheritable=True)
    os.execve(memory, [path, *arguments], environment)
