"""Where the TPU compiler says that a step's cycles go: its own estimate of each operation.

    cycles = sum over instructions of estimated_cycles x (times that it runs)

XLA:TPU writes `estimated_cycles` beside every fusion and copy of the optimized program. The
estimate leaves out Pallas kernels, waiting for memory or for other devices, and collectives: it
ranks programs of the same shape and says what in them is not matrix multiplication. It predicts no
step time. A CPU's compiler writes none.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable

from keel_jax.planning import hlo, hlo_text

SOURCE = "XLA's estimated_cycles, without Pallas kernels, waits and collectives"
# The kind of an operation is the first of these that describes it.
KINDS = (
    # Holds a matrix multiplication, and whatever was fused to it.
    "multiplication",
    # Only moves an array into another layout.
    "layout",
    # Only moves rows into or out of an array of all blocks.
    "stack",
    # Around the attention kernel: its inputs are prepared, its outputs are summed.
    "attention",
    # Everything else: norms, residuals, activations, rotation, reductions.
    "elementwise",
)
PASSES = ("forward", "recompute", "backward", "update")
REGIONS = ("blocks", "embedding and loss", "optimizer")

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
# A library's product on a CPU or GPU.
_PRODUCT = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul)', re.IGNORECASE)
_KERNEL = re.compile(r"splash|flash_attention")
# Opcodes that move nothing, or only name what another one moves.
_VIEWS = frozenset(
    "parameter constant tuple get-tuple-element bitcast reshape broadcast iota convert".split()
)
_LAYOUT = frozenset(("copy", "transpose"))
# Opcodes that may stand beside a slice of a stack: they compute and check its index.
_STACK = frozenset(
    "dynamic-slice dynamic-update-slice slice add select compare clamp maximum minimum".split()
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Cycles that one device spends on one kind of work in one run of the program."""

    # One of REGIONS.
    region: str
    # One of PASSES.
    pass_: str
    # One of KINDS.
    kind: str
    # Of another measure than the compiler's estimate (`sum_up`), its unit.
    cycles: float

    def to_json(self) -> dict[str, str | float]:
        """As in the contract of `plan --json`."""
        return {"region": self.region, "pass": self.pass_, "kind": self.kind, "cycles": self.cycles}


def parts(program: hlo.Program) -> list[Part]:
    """The compiler's estimates summed by region, pass and kind, in their order; [] without any."""
    return sum_up(program, _estimate)


def sum_up(program: hlo.Program, cost: Callable[[hlo_text.Instruction, int], float]) -> list[Part]:
    """`parts` of another measure than the compiler's estimate.

    Args:
      cost: (an instruction, how often it runs) -> what all its runs cost, 0 if it is not counted.
    """
    total: collections.defaultdict[tuple[str, str, str], float] = collections.defaultdict(int)
    for name, times in program.run_counts.items():
        computation = program.computations[name]
        costs = [(each, cost(each, times)) for each in computation.instructions.values()]
        costs = [(instruction, spent) for instruction, spent in costs if spent]
        most_common = _most_common_place(costs)
        for instruction, spent in costs:
            region, pass_ = _place(instruction.op_name) or most_common
            total[region, pass_, _kind(program, instruction)] += spent
    order = [(r, p, k) for r in REGIONS for p in PASSES for k in KINDS]
    return [Part(*key, total[key]) for key in order if total[key]]


def _estimate(instruction: hlo_text.Instruction, times: int) -> int:
    match = _ESTIMATE.search(instruction.attributes)
    return int(match[1]) * times if match else 0


def sum_of(parts: Iterable[Part], **wanted: str) -> float:
    """Cycles of the parts whose `region`, `pass_` and `kind` are the wanted ones, if given."""
    return sum(
        part.cycles
        for part in parts
        if all(getattr(part, name) == value for name, value in wanted.items())
    )


def _most_common_place(costs: Iterable[tuple[hlo_text.Instruction, float]]) -> tuple[str, str]:
    """Where most of a computation's cost goes: the place of what the compiler left unnamed."""
    places: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(int)
    for instruction, spent in costs:
        if place := _place(instruction.op_name):
            places[place] += spent
    return max(places, key=places.__getitem__) if places else ("optimizer", "update")


def _place(op_name: str) -> tuple[str, str] | None:
    """(region, pass) of what JAX traced under this name; None: the name does not say.

    JAX writes jvp(…) around what is differentiated, transpose(…) around its backward pass and
    rematted_computation where that computes the forward pass again.
    """
    if "/" not in op_name:
        return None
    in_blocks = "/depth/" in op_name or "block.body/" in op_name
    if "rematted_computation" in op_name:
        pass_ = "recompute"
    elif "transpose(jvp" in op_name:
        pass_ = "backward"
    elif "jvp(" in op_name or in_blocks:
        pass_ = "forward"
    elif op_name.startswith("jit("):
        return "optimizer", "update"
    else:
        return None
    return ("blocks" if in_blocks else "embedding and loss"), pass_


def _kind(program: hlo.Program, instruction: hlo_text.Instruction) -> str:
    opcodes = _opcodes(program, instruction)
    moving = opcodes - _VIEWS
    if moving & {"convolution", "dot"} or _PRODUCT.search(instruction.attributes):
        return "multiplication"
    if moving & _LAYOUT and moving <= _LAYOUT:
        return "layout"
    if moving & {"dynamic-slice", "dynamic-update-slice"} and moving <= _STACK | _LAYOUT:
        return "stack"
    return "attention" if _KERNEL.search(instruction.op_name) else "elementwise"


def _opcodes(program: hlo.Program, instruction: hlo_text.Instruction) -> set[str]:
    """The instruction's own opcode, or those of all that a fusion holds."""
    inner = [name for name in instruction.called_computations if name in program.computations]
    if not inner:
        return {instruction.opcode}
    return {
        opcode
        for name in inner
        for each in program.computations[name].instructions.values()
        for opcode in _opcodes(program, each)
    }
