"""Device rules as a program: what the v1 devices controller did, for a v2 group.

The kernel runs a BPF_PROG_TYPE_CGROUP_DEVICE program before a process of the
group opens or makes a device node, and takes 1 for yes and 0 for no
(Documentation/admin-guide/cgroup-v2.rst, "Device controller"). The program is
handed (include/uapi/linux/bpf.h)::

    struct bpf_cgroup_dev_ctx {
        __u32 access_type;   /* (BPF_DEVCG_ACC_* << 16) | BPF_DEVCG_DEV_* */
        __u32 major;
        __u32 minor;
    };

and is made of instructions of eight bytes::

    struct bpf_insn {
        __u8  code;
        __u8  dst_reg:4, src_reg:4;
        __s16 off;           /* of a jump: in instructions, from the next one */
        __s32 imm;
    };

An allow-list is a function of type, major and minor that is constant between a
few numbers. It becomes nested binary searches over type, major and minor; each
ends in a *verdict*: a byte whose bit *a* says whether the access *a* (a sum of
BPF_DEVCG_ACC_*) is allowed. Neighbours with equal answers are one, so duplicate
rules, rules within others and runs of minor numbers cost nothing, and a list of
n devices takes about 3n instructions of which a check runs about 2·log2(n).
"""

from __future__ import annotations

import sys
from struct import pack

from nestrt.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nestrt.level.devices import DeviceRule
    from nestrt.oci.resources import DeviceRule as OrderedRule

    # Of a rule: type, major, minor, rights.
    Box = tuple[int, int | None, int | None, int]
    # A verdict, or an axis and its pieces: (first number, decision from there up to the next piece).
    Pieces = tuple[tuple[int, "Decision"], ...]
    Decision = int | tuple[int, Pieces]

# BPF_MAXINSNS, include/uapi/linux/bpf_common.h. Since 5.2 a privileged program may have a million, but jumps
# reach 32767 and every kernel that has device programs takes this many.
MAX_INSTRUCTIONS = 4096

ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_MKNOD, _READ, _WRITE
TYPES = {"b": (1,), "c": (2,), "a": (1, 2)}  # BPF_DEVCG_DEV_BLOCK, _CHAR
_ALL = 7

# Registers. The kernel hands the context over in R1 and takes the answer from R0.
_R0, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)
# The axes of the search, outermost first: their registers, and the highest number that has a meaning
# (MAJOR and MINOR of include/linux/kdev_t.h have 12 and 20 bits).
_HIGHEST = {_TYPE: 0xFFFF, _MAJOR: (1 << 12) - 1, _MINOR: (1 << 20) - 1}
_COLUMN = {_TYPE: 0, _MAJOR: 1, _MINOR: 2}  # of a Box

# Opcodes, include/uapi/linux/bpf.h: class | size or operation | source.
_LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_SET = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
_COPY = 0xBF  # BPF_ALU64 | BPF_MOV | BPF_X
_AND = 0x57  # BPF_ALU64 | BPF_AND | BPF_K
_SHIFT_RIGHT = 0x77  # BPF_ALU64 | BPF_RSH | BPF_K
_SHIFT_RIGHT_BY = 0x7F  # BPF_ALU64 | BPF_RSH | BPF_X
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JUMP_ABOVE = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JUMP_FROM = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_BELOW = 0xA5  # BPF_JMP | BPF_JLT | BPF_K
_EXIT = 0x95  # BPF_JMP | BPF_EXIT


def build(rules: tuple[DeviceRule, ...]) -> bytes:
    """Return the eBPF instructions, in the machine's byte order, that allow what *rules* allow and nothing else.

    As in ``nestrt.level.devices``, an access is allowed if one rule has the
    device and every requested right. No rules allow nothing.

    Raises InputError for a number that no device can have, and for more rules
    than a program of MAX_INSTRUCTIONS can tell apart.
    """
    return _build(list({box for rule in rules for box in _boxes(rule)}), _any, len(rules))


def build_ordered(rules: tuple[OrderedRule, ...]) -> bytes:
    """Return the instructions for *rules* of linux.resources.devices, where the last that matches decides.

    As in ``oci_devices``, that holds for each right by itself; what no rule
    names is denied. Raises InputError as build() and oci_devices.effective() do.
    """
    from nestrt.controllers.oci_devices import effective

    return _build([box for cell in effective(rules) for box in _boxes(cell)], _narrowest, len(rules))


def _build(boxes: list[Box], answer: Callable[[list[Box]], int], rules: int) -> bytes:
    program = _Program()
    program.search(_decide(boxes, answer))
    program.close()
    if len(program.code) > MAX_INSTRUCTIONS:
        raise InputError(
            "make a device program of",
            f"{rules} device rules",
            f"it needs {len(program.code)} instructions and the kernel takes {MAX_INSTRUCTIONS}",
            "replace rules for single devices by one for all minor numbers, such as 'c 136:* rw'",
        )
    return program.assemble()


def _boxes(rule: DeviceRule) -> list[Box]:
    """Return *rule* in the kernel's numbers, once for each type of device that it is for."""
    for word, number, axis in (("major", rule.major, _MAJOR), ("minor", rule.minor, _MINOR)):
        if number is not None and not 0 <= number <= _HIGHEST[axis]:
            device = f"device {rule.type} {rule.major}:{rule.minor}"
            raise InputError("allow", device, f"{word} numbers are 0 to {_HIGHEST[axis]}", "correct the rule")
    rights = sum(ACCESS[letter] for letter in set(rule.access))
    return [(kind, rule.major, rule.minor, rights) for kind in TYPES[rule.type]]


def _any(boxes: list[Box]) -> int:
    """The verdict where each of *boxes* allows what it says."""
    return _verdict({box[3] for box in boxes})


def _narrowest(boxes: list[Box]) -> int:
    """The verdict where the box with the most numbers says all; of those that meet, one is the narrowest."""
    return _verdict({max(boxes, key=lambda box: (box[1] is not None) + (box[2] is not None))[3]})


def _decide(
    boxes: list[Box], answer: Callable[[list[Box]], int], axes: tuple[int, ...] = (_TYPE, _MAJOR, _MINOR)
) -> Decision:
    """Cut the first of *axes* where the answer can change, and decide about the others for each piece."""
    if not boxes:
        return 0
    if not axes:
        return answer(boxes)
    axis, rest = axes[0], axes[1:]
    column = _COLUMN[axis]
    anywhere = [box for box in boxes if box[column] is None]
    single: dict[int, list[Box]] = {}
    for box in boxes:
        value = box[column]
        if value is not None:
            single.setdefault(value, []).append(box)
    elsewhere = _decide(anywhere, answer, rest)
    pieces: list[tuple[int, Decision]] = []
    for start in sorted({0, *single, *(value + 1 for value in single)}):
        here = _decide(single[start] + anywhere, answer, rest) if start in single else elsewhere
        if start <= _HIGHEST[axis] and (not pieces or pieces[-1][1] != here):
            pieces.append((start, here))
    return pieces[0][1] if len(pieces) == 1 else (axis, tuple(pieces))


def _verdict(rights: set[int]) -> int:
    """Return the verdict where rules give *rights*: an access is allowed if it is within one of them."""
    return sum(1 << access for access in range(_ALL + 1) if any(access & ~each == 0 for each in rights))


class _Program:
    """Instructions under way: jumps go forward only, to a label or to the shared end of a verdict."""

    def __init__(self) -> None:
        # Of each: opcode, destination, source, where it jumps to (None: nowhere), immediate value.
        self.code: list[tuple[int, int, int, int | None, int]] = []
        self.places: list[int] = []  # where each label is, in instructions
        self.ends: dict[int, int] = {}  # verdict: label
        for register, offset in ((_ACCESS, 0), (_MAJOR, 4), (_MINOR, 8)):
            self.code.append((_LOAD_WORD, register, _CONTEXT, None, offset))
        self.emit(_COPY, _TYPE, source=_ACCESS)
        self.emit(_AND, _TYPE, 0xFFFF)
        self.emit(_SHIFT_RIGHT, _ACCESS, 16)
        # A right that a future kernel may add is nobody's; it would also shift a verdict out of its register.
        self.emit(_JUMP_ABOVE, _ACCESS, _ALL, to=self.end(0))

    def emit(self, opcode: int, register: int = 0, value: int = 0, *, source: int = 0, to: int | None = None) -> None:
        self.code.append((opcode, register, source, to, value))

    def label(self) -> int:
        self.places.append(-1)
        return len(self.places) - 1

    def end(self, verdict: int) -> int:
        """Return the label of the shared instructions that give *verdict*."""
        if verdict not in self.ends:
            self.ends[verdict] = self.label()
        return self.ends[verdict]

    def search(self, decision: Decision) -> None:
        """Emit the instructions for *decision*."""
        if isinstance(decision, int):
            self.emit(_JUMP, to=self.end(decision))
            return
        axis, pieces = decision
        if len(pieces) == 1:
            self.search(pieces[0][1])
            return
        middle = len(pieces) // 2
        start = pieces[middle][0]
        low, high = pieces[:middle], pieces[middle:]
        if len(high) == 1 and isinstance(high[0][1], int):
            self.emit(_JUMP_FROM, axis, start, to=self.end(high[0][1]))
            self.search((axis, low))
        elif len(low) == 1 and isinstance(low[0][1], int):
            self.emit(_JUMP_BELOW, axis, start, to=self.end(low[0][1]))
            self.search((axis, high))
        else:
            upper = self.label()
            self.emit(_JUMP_FROM, axis, start, to=upper)
            self.search((axis, low))
            self.places[upper] = len(self.code)
            self.search((axis, high))

    def close(self) -> None:
        """Append the verdicts."""
        for verdict, label in self.ends.items():
            self.places[label] = len(self.code)
            if verdict in (0, 0xFF):
                self.emit(_SET, _R0, verdict & 1)
            else:
                self.emit(_SET, _R0, verdict)
                self.emit(_SHIFT_RIGHT_BY, _R0, source=_ACCESS)
                self.emit(_AND, _R0, 1)
            self.emit(_EXIT)

    def assemble(self) -> bytes:
        """Fill in the jumps and return the bytes."""
        code = bytearray()
        for at, (opcode, register, source, target, value) in enumerate(self.code):
            offset = 0 if target is None else self.places[target] - at - 1
            if opcode == _LOAD_WORD:
                offset, value = value, 0
            registers = source << 4 | register if sys.byteorder == "little" else register << 4 | source
            code += pack("=BBhi", opcode, registers, offset, value)
        return bytes(code)
