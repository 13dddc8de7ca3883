"""An interpreter of the classic BPF that seccomp filters are made of, as strict as the kernel's checks.

Documentation/networking/filter.rst, seccomp_check_filter() of kernel/seccomp.c: aligned
words of struct seccomp_data only, jumps forward and within the program, a return at the end.
"""

from __future__ import annotations

import struct

X86_64, X86, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
ALLOW, LOG, NOTIFY, KILL, KILL_PROCESS, TRAP = 0x7FFF0000, 0x7FFC0000, 0x7FC00000, 0, 0x80000000, 0x30000


def errno_of(number: int) -> int:
    return 0x50000 | number


def run(code: bytes, number: int, *args: int, arch: int = X86_64) -> int:
    """The action for a system call."""
    assert code
    assert len(code) % 8 == 0
    program = list(struct.iter_unpack("=HBBI", code))
    assert len(program) <= 4096
    whole = [arg & (1 << 64) - 1 for arg in (*args, *[0] * 6)[:6]]
    data = struct.unpack("=16I", struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *whole))
    accumulator, at = 0, 0
    while True:
        assert at < len(program), f"instruction {at} is outside the program"
        opcode, if_true, if_false, value = program[at]
        at += 1
        if opcode == 0x20:
            assert value in range(0, 64, 4), f"load at {value}"
            accumulator = data[value // 4]
        elif opcode == 0x54:
            accumulator &= value
        elif opcode == 0x05:
            at += value
        elif opcode == 0x06:
            return value
        else:
            test = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: accumulator & value != 0,
            }[opcode]
            at += if_true if test else if_false
