"""Reads the text of optimized HLO, line by line: instructions, their shapes and attributes.

Format: https://openxla.org/xla/operation_semantics, and the text that `as_text` gives. What the
instructions amount to when the program runs is `hlo`'s.
"""

import dataclasses
import functools
import math
import re

from keel_jax import errors

# Bits of an element of types whose name does not end in them.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?|(token)\[\]")
_NAME = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{$")
# Attributes that name the computations an instruction runs once each time that it runs itself.
# `to_apply` of a reduction runs once an element, a scalar at a time: not followed.
_CALLS = re.compile(
    r"\b(?:calls|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dimensions, and the memory in which its layout puts it."""

    dtype: str
    dims: tuple[int, ...]
    # The layout's S(n): 0 is HBM (or a CPU's memory), 1 a TPU's VMEM, 5 the host's.
    memory_space: int = 0

    @property
    def bytes(self) -> float:
        return math.prod(self.dims) * bits_of(self.dtype) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO text."""

    name: str
    opcode: str
    # Leaves of the result, a tuple's in order.
    shapes: tuple[Shape, ...]
    # Names of the operands, instructions of the same computation.
    operands: tuple[str, ...]
    # Everything after the operands.
    attributes: str
    # What stands for the operands of a constant (its value) and of a parameter (its number).
    literal: str = ""

    @functools.cached_property
    def op_name(self) -> str:
        """Where in the traced program it comes from, or ""."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def attribute(self, name: str) -> str | None:
        """The value of `name=…`, a braced one with its braces; None: it has no such attribute."""
        match = re.search(rf"\b{name}=", self.attributes)
        if not match:
            return None
        rest = self.attributes[match.end() :]
        return rest[: _value_end(rest)]

    def required_attribute(self, name: str) -> str:
        """The value of an attribute that every instruction of this opcode has."""
        value = self.attribute(name)
        assert value is not None, f"{self.opcode} {self.name} has no attribute {name}"
        return value

    @property
    def called_computations(self) -> list[str]:
        """Names of the computations that the instruction runs."""
        if self.opcode == "while":
            return [self.required_attribute(name).lstrip("%") for name in ("body", "condition")]
        if self.opcode == "call":
            return [self.required_attribute("to_apply").lstrip("%")]
        if self.opcode.endswith(("-done", "-update")):
            return []  # the instruction that starts it has run it
        names = _CALLS.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions that run together, by name, in the text's order."""

    name: str
    instructions: dict[str, Instruction]
    # Name of the instruction whose value is the computation's.
    root: str

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Leaves of all operands."""
        return [shape for name in instruction.operands for shape in self.instructions[name].shapes]


def parse_computations(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of the one where it begins.

    Raises:
      UserError: the text is no HLO module.
    """
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] | None = None
    name, entry = "", None
    for line in text.splitlines():
        if line.endswith("{") and (match := _COMPUTATION.match(line)):
            instructions, name = {}, match[2]
            entry = name if match[1] else entry
        elif instructions is not None and (match := _NAME.match(line)):
            instructions[match[2]] = parse_instruction(match[2], line[match.end() :])
            if match[1]:
                computations[name] = Computation(name, instructions, match[2])
    if entry is None:
        raise errors.UserError("This is no HLO module: no ENTRY computation in it.")
    return computations, entry


def parse_instruction(name: str, definition: str) -> Instruction:
    """The instruction of a line "name = definition"."""
    end = _closing(definition) if definition[0] == "(" else definition.index(" ")
    shapes, rest = parse_shapes(definition[:end]), definition[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    inside, attributes = rest[: end - 1], rest[end:]
    if opcode in ("constant", "parameter"):
        return Instruction(name, opcode, shapes, (), attributes, inside[:32])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, shapes, operands, attributes)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The leaves of a shape, as in "(f32[8,16]{1,0:T(8,128)S(1)}, u32[])"."""
    shapes = []
    for dtype, dims, layout, token in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        shapes.append(Shape(dtype or token, sizes, int(space[1]) if space else 0))
    return tuple(shapes)


def bits_of(dtype: str) -> int:
    """Bits of one element: f32 32, bf16 16, f8e4m3fn 8, s4 4."""
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.search(r"\d+", dtype)
    assert match, f"element type {dtype!r} does not name its bits"
    return int(match[0])


def _value_end(text: str) -> int:
    """Where the attribute's value that `text` begins with ends."""
    depth = 0
    for index, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            return index
    return len(text)


def _closing(text: str) -> int:
    """The index after the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise errors.UserError(f"Unbalanced parentheses in {text[:80]!r}.")
