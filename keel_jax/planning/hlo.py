"""A compiled program: what of it runs, and how often.

XLA's own cost analysis counts a loop's body once; here every instruction counts as often as it
runs: the product of the trip counts of the loops around it. An instruction in a branch of a
conditional counts as if the branch were always taken, unless the branch is marked as one that is
never expected to be (`named_scopes.RARE_BRANCH`): then it counts as if it never were.

    program = hlo.read_program(compiled)
    for computation, instruction, times in program.executed():
        print(times, instruction.opcode, instruction.shapes)
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

import jax

from keel_jax.planning import hlo_text
from keel_jax.runtime import named_scopes

_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
# Opcodes that leave the value of an integer as it is.
_COPIES = ("copy", "bitcast", "reshape")


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: its computations, and how often each runs in one run of the program."""

    computations: dict[str, hlo_text.Computation]
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
        """Names of the loops whose trips are not known."""
        return [name for name, trips in self.trip_counts.items() if trips is None]

    @functools.cached_property
    def callers(self) -> dict[str, tuple[hlo_text.Computation, hlo_text.Instruction]]:
        """The instruction that runs a computation, the first if there are several."""
        callers: dict[str, tuple[hlo_text.Computation, hlo_text.Instruction]] = {}
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                for name in instruction.called_computations:
                    callers.setdefault(name, (computation, instruction))
        return callers

    @functools.cached_property
    def run_counts(self) -> dict[str, int]:
        """Times that each computation runs; those that never run are left out."""
        callees_first: list[str] = []
        visited: set[str] = set()

        def visit(name: str):
            if name not in visited:
                visited.add(name)
                for inner, _ in self._calls(name):
                    visit(inner)
                callees_first.append(name)

        visit(self.entry)
        counts = dict.fromkeys(reversed(callees_first), 0)
        counts[self.entry] = 1
        for name in counts:  # callers before what they call
            for inner, times in self._calls(name):
                counts[inner] += counts[name] * times
        return counts

    def executed(self) -> Iterator[tuple[hlo_text.Computation, hlo_text.Instruction, int]]:
        """Every instruction that runs, its computation, and how often."""
        for name, times in self.run_counts.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, times

    def _calls(self, name: str) -> list[tuple[str, int]]:
        """(called computation, times each time that `name` runs)."""
        calls = []
        for instruction in self.computations[name].instructions.values():
            inner = [n for n in instruction.called_computations if n in self.computations]
            times = 1
            if instruction.opcode == "while":
                # A condition runs once more than its body: it computes nothing that counts.
                times = self.trip_counts[instruction.name] or 1
            elif instruction.opcode == "conditional":
                inner = [n for n in inner if not self._is_rare(n)]
            calls += [(n, times) for n in inner]
        return calls

    def _is_rare(self, branch: str) -> bool:
        """Whether a branch of a conditional is marked as one that is never expected to be taken."""
        instructions = self.computations[branch].instructions.values()
        return any(named_scopes.RARE_BRANCH in instruction.op_name for instruction in instructions)


def read_program(compiled: jax.stages.Compiled) -> Program:
    """What the compiler made of a jitted function."""
    text = compiled.as_text()
    assert text is not None, "XLA's compilers for CPUs, GPUs and TPUs give the program's text"
    return parse(text)


def parse(text: str) -> Program:
    """The program of optimized HLO text.

    Raises:
      UserError: the text is no HLO module.
    """
    return Program(*hlo_text.parse_computations(text))


def _num_trips(
    program: Program, computation: hlo_text.Computation, loop: hlo_text.Instruction
) -> int | None:
    """Trips of `loop`, an instruction of `computation`, if they are known at all.

    They are where the condition compares a counter with a bound, and the body adds a constant to
    that counter.
    """
    if match := _TRIPS.search(loop.attributes):
        return int(match[1])
    body, condition = (program.computations[name] for name in loop.called_computations)
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
    first = _initial_value(program, computation, loop, counter)
    bound = _integer(program, condition, test.operands[1])
    increment = _integer(program, body, step.operands[1])
    if first is None or bound is None or not increment:
        return None
    return max(0, -((first - bound - (test.attribute("direction") == "LE")) // increment))


def _integer(program: Program, computation: hlo_text.Computation, name: str) -> int | None:
    """The value of an integer that is a constant, or that a loop passes on unchanged."""
    instruction = computation.instructions[name]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode in _COPIES:
        return _integer(program, computation, instruction.operands[0])
    index = _tuple_index(computation, name)
    if index is None or computation.name not in program.callers:
        return None
    outside, loop = program.callers[computation.name]
    return _initial_value(program, outside, loop, index) if loop.opcode == "while" else None


def _initial_value(
    program: Program, computation: hlo_text.Computation, loop: hlo_text.Instruction, index: int
) -> int | None:
    """Element `index` of what `loop` begins with, as by `_integer`."""
    start = computation.instructions[loop.operands[0]]
    if start.opcode != "tuple":
        return None
    return _integer(program, computation, start.operands[index])


def _tuple_index(computation: hlo_text.Computation, name: str) -> int | None:
    """i if the instruction is element i of the computation's parameter, a copy allowed."""
    instruction = computation.instructions[name]
    while instruction.opcode in _COPIES:
        instruction = computation.instructions[instruction.operands[0]]
    if instruction.opcode != "get-tuple-element":
        return None
    if computation.instructions[instruction.operands[0]].opcode != "parameter":
        return None
    return int(instruction.required_attribute("index"))
