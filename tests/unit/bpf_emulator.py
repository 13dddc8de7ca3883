"""An interpreter of the eBPF that device programs are made of, stricter than the kernel's verifier.

It follows Documentation/bpf/standardization/instruction-set.rst for the
opcodes below and refuses everything else: other opcodes and fields that should
be zero, jumps out of the program or backwards, registers read before they are
written, loads from anything but an aligned word of the context, shifts of 64
and more, the end of the program without an exit, answers other than 0 and 1.
"""

from __future__ import annotations

import struct

WORD, HALF = 0xFFFFFFFF, 0xFFFF
ARITHMETIC = {0xB7: "set", 0xBF: "set", 0x57: "and", 0x77: "shift", 0x7F: "shift"}
BY_REGISTER = {0xBF, 0x7F}
COMPARISONS = {
    0x25: lambda a, b: a > b,
    0x35: lambda a, b: a >= b,
    0xA5: lambda a, b: a < b,
}
CONTEXT = object()


class Rejected(Exception):
    """The program does what no device program may do."""


def run(code: bytes, access_type: int, major: int, minor: int) -> tuple[int, int]:
    """Run *code* on a struct bpf_cgroup_dev_ctx; return its answer and the number of instructions it took.

    Raises Rejected.
    """
    if len(code) % 8 or not code:
        raise Rejected(f"{len(code)} bytes are no instructions")
    program = list(struct.iter_unpack("<BBhi", code))
    context = (access_type, major, minor)
    registers: dict[int, object] = {1: CONTEXT, 10: CONTEXT}
    at = steps = 0
    while True:
        if not 0 <= at < len(program):
            raise Rejected(f"instruction {at} is outside the program")
        opcode, fields, offset, value = program[at]
        target, source = fields & 15, fields >> 4
        steps += 1
        at += 1
        if opcode == 0x95:
            require(at, not (fields or offset or value), "an exit has no operands")
            answer = number(registers, 0, at)
            require(at, answer in (0, 1), f"the answer is {answer}")
            return answer, steps
        if opcode == 0x61:
            require(at, registers.get(source) is CONTEXT and source == 1, "loads go to the context only")
            require(at, offset in (0, 4, 8) and value == 0 and target < 10, f"load at {offset}")
            registers[target] = context[offset // 4] & WORD
        elif opcode == 0x05:
            require(at, not fields and value == 0 and offset >= 0, "jump")
            at += offset
        elif opcode in COMPARISONS:
            require(at, source == 0 and offset >= 0 and value >= 0, "comparison")
            at += offset if COMPARISONS[opcode](number(registers, target, at), value) else 0
        elif opcode in ARITHMETIC:
            require(at, offset == 0 and target < 10, "arithmetic")
            require(at, value == 0 if opcode in BY_REGISTER else source == 0 and value >= 0, "operands")
            operand = number(registers, source, at) if opcode in BY_REGISTER else value
            registers[target] = arithmetic(ARITHMETIC[opcode], registers, target, operand, at)
        else:
            raise Rejected(f"instruction {at - 1}: opcode {opcode:#04x}")


def arithmetic(operation: str, registers: dict[int, object], target: int, operand: int, at: int) -> int:
    if operation == "set":
        return operand
    if operation == "and":
        return number(registers, target, at) & operand
    require(at, operand < 64, f"shift by {operand}")
    return number(registers, target, at) >> operand


def number(registers: dict[int, object], register: int, at: int) -> int:
    """The number in *register*."""
    value = registers.get(register)
    if not isinstance(value, int):
        raise Rejected(f"instruction {at - 1}: register {register} holds no number")
    return value


def require(at: int, condition: bool, what: str) -> None:
    if not condition:
        raise Rejected(f"instruction {at - 1}: {what}")


def reachable(code: bytes) -> bool:
    """Whether every instruction can be come to: verifiers before Linux 5.2 refuse dead ones."""
    program = list(struct.iter_unpack("<BBhi", code))
    seen, todo = set(), [0]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        opcode, _fields, offset, _value = program[at]
        if opcode in (0x05, *COMPARISONS):
            todo.append(at + 1 + offset)
        if opcode not in (0x05, 0x95):
            todo.append(at + 1)
    return len(seen) == len(program)
