"""Reads the optimized HLO of a compiled program: what runs, and how often.

XLA's own cost analysis counts a loop's body once; here every instruction counts as often as it
runs: the product of the trip counts of the loops around it. An instruction in a branch of a
conditional counts as if the branch were always taken, but for the fall-back of the plan
"reversible", which counts as if it never were.

    program = hlo.parse(compiled.as_text())
    for computation, instruction, times in program.executed():
        print(times, instruction.opcode, instruction.shapes)

Format: https://openxla.org/xla/operation_semantics, and the text that `as_text` gives.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from keel_jax import errors
from keel_jax.model import reversible

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
# What changes nothing about an integer's value.
_SAME = ("copy", "bitcast", "reshape")
_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


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
        """Where in the traced program it comes from, or "" """
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def attribute(self, name: str) -> str | None:
        """The value of `name=…`, a braced one with its braces."""
        match = re.search(rf"\b{name}=", self.attributes)
        if not match:
            return None
        rest = self.attributes[match.end() :]
        return rest[: _value_end(rest)]


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


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: its computations, and how often each runs in one run of the program."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def trip_counts(self) -> dict[str, int | None]:
        """Trips of every loop, by the instruction's name; None: not known, counted as one.

        XLA writes down what it knows; a TPU's optimized text does not have it, so there it is
        worked out from the loop's counter.
        """
        return {
            instruction.name: _num_trips(self, computation, instruction)
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode == "while"
        }

    @property
    def unknown_loops(self) -> list[str]:
        return [name for name, trips in self.trip_counts.items() if trips is None]

    @functools.cached_property
    def callers(self) -> dict[str, tuple[Computation, Instruction]]:
        """The instruction that runs a computation, the first if there are several."""
        callers = {}
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                for name in called(instruction):
                    callers.setdefault(name, (computation, instruction))
        return callers

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """Times that each computation runs; those that never run are left out."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(name):
            if name not in seen:
                seen.add(name)
                for inner, _ in self._calls(name):
                    visit(inner)
                order.append(name)

        visit(self.entry)
        runs = dict.fromkeys(reversed(order), 0)
        runs[self.entry] = 1
        for name in runs:  # callers before what they call
            for inner, times in self._calls(name):
                runs[inner] += runs[name] * times
        return runs

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that runs, its computation, and how often."""
        for name, times in self.runs.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, times

    def _calls(self, name: str) -> list[tuple[str, int]]:
        """(called computation, times each time that `name` runs)."""
        found = []
        for instruction in self.computations[name].instructions.values():
            times = 1
            if instruction.opcode == "while":
                # A condition runs once more than its body: it computes nothing that counts.
                times = self.trip_counts[instruction.name] or 1
            found += [(inner, times) for inner in called(instruction)]
            if instruction.opcode == "conditional":
                found = [(inner, n) for inner, n in found if not self._is_fallback(inner)]
        return [(inner, times) for inner, times in found if inner in self.computations]

    def _is_fallback(self, name: str) -> bool:
        """Whether a computation is what `reversible` does only where it failed."""
        instructions = self.computations[name].instructions.values()
        return any(reversible.FALLBACK in instruction.op_name for instruction in instructions)


def parse(text: str) -> Program:
    """The program of optimized HLO text (`jax.stages.Compiled.as_text()`).

    Raises:
      UserError: the text is no HLO module.
    """
    computations, entry, here = {}, None, None
    for line in text.splitlines():
        if line.endswith("{") and (match := _COMPUTATION.match(line)):
            here = {}
            name = match[2]
            entry = name if match[1] else entry
        elif here is not None and (match := _NAME.match(line)):
            here[match[2]] = _instruction(match[2], line[match.end() :])
            if match[1]:
                computations[name] = Computation(name, here, match[2])
    if entry is None:
        raise errors.UserError("This is no HLO module: no ENTRY computation in it.")
    return Program(computations, entry)


def bits_of(dtype: str) -> int:
    """Bits of one element: f32 32, bf16 16, f8e4m3fn 8, s4 4."""
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.search(r"\d+", dtype)[0])


def _instruction(name: str, rest: str) -> Instruction:
    """The instruction whose line goes on with `rest` after "name = "."""
    end = _balanced(rest) if rest[0] == "(" else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _balanced("(" + rest) - 1
    inside, attributes = rest[: end - 1], rest[end:]
    if opcode in ("constant", "parameter"):
        return Instruction(name, opcode, parse_shapes(shapes), (), attributes, inside[:32])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, parse_shapes(shapes), operands, attributes)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The leaves of a shape, as in "(f32[8,16]{1,0:T(8,128)S(1)}, u32[])"."""
    found = []
    for dtype, dims, layout, token in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        found.append(Shape(dtype or token, sizes, int(space[1]) if space else 0))
    return tuple(found)


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that the instruction runs."""
    if instruction.opcode == "while":
        return [instruction.attribute(name).lstrip("%") for name in ("body", "condition")]
    if instruction.opcode == "call":
        return [instruction.attribute("to_apply").lstrip("%")]
    if instruction.opcode.endswith(("-done", "-update")):
        return []  # its start has run it
    found = _CALLS.findall(instruction.attributes)
    for names in _BRANCHES.findall(instruction.attributes):
        found += [name.strip().lstrip("%") for name in names.split(",")]
    return found


def _num_trips(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Trips of `loop`, an instruction of `computation`, if they are known at all."""
    if match := _TRIPS.search(loop.attributes):
        return int(match[1])
    body, condition = (program.computations[name] for name in called(loop))
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or test.attribute("direction") not in ("LT", "LE"):
        return None
    counter = _tuple_index(condition, test.operands[0])
    root = body.instructions[body.root]
    if counter is None or root.opcode != "tuple":
        return None
    step = body.instructions[root.operands[counter]]
    if step.opcode != "add" or _tuple_index(body, step.operands[0]) != counter:
        return None
    first = _initial(program, computation, loop, counter)
    bound = _scalar(program, condition, test.operands[1])
    by = _scalar(program, body, step.operands[1])
    if first is None or bound is None or not by:
        return None
    return max(0, -((first - bound - (test.attribute("direction") == "LE")) // by))


def _scalar(program: Program, computation: Computation, name: str) -> int | None:
    """The value of an integer that is a constant, or that a loop passes on unchanged."""
    instruction = computation.instructions[name]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode in _SAME:
        return _scalar(program, computation, instruction.operands[0])
    index = _tuple_index(computation, name)
    if index is None or computation.name not in program.callers:
        return None
    outside, loop = program.callers[computation.name]
    return _initial(program, outside, loop, index) if loop.opcode == "while" else None


def _initial(program: Program, computation: Computation, loop: Instruction, index: int):
    """Element `index` of what `loop` begins with, as by `_scalar`."""
    start = computation.instructions[loop.operands[0]]
    return _scalar(program, computation, start.operands[index]) if start.opcode == "tuple" else None


def _tuple_index(computation: Computation, name: str) -> int | None:
    """i if the instruction is element i of the computation's parameter, a copy allowed."""
    instruction = computation.instructions[name]
    while instruction.opcode in _SAME:
        instruction = computation.instructions[instruction.operands[0]]
    if instruction.opcode != "get-tuple-element":
        return None
    if computation.instructions[instruction.operands[0]].opcode != "parameter":
        return None
    return int(instruction.attribute("index"))


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


def _balanced(text: str) -> int:
    """The index after the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise errors.UserError(f"Unbalanced parentheses in {text[:80]!r}.")
