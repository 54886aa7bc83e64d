"""How long a step may take: a roofline, which is an estimate and not a measurement.

    step = max(FLOPs / peak, HBM bytes / bandwidth) + exposed ICI + DCN
    exposed ICI = synchronous collectives + what the multiplications do not hide of the others

On GPUs NVLink takes the place of ICI, and the hosts' network that of DCN.

Peak and bandwidths are the chip table's, at 100 %: real kernels reach less, so the truth is slower.
HBM bytes are those that pass between instructions of the optimized program (a fusion reads its
operands and writes its result once; what stays in VMEM moves nothing). Each axis' ring uses both
directions of one link. DCN traffic is counted in full: it seldom has anything to run beside it.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from keel_jax.planning import chips, hlo, hlo_text, traffic

# Opcodes that move nothing by themselves: names, views, and instructions whose bytes are counted
# where they start or within the computations that they call.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id copy-done all-gather-done all-reduce-done collective-permute-done "
    "reduce-scatter-done all-to-all-done ragged-all-to-all-done collective-broadcast-done "
    "async-done async-update send-done recv-done opt-barrier".split()
)
# What of each rate kernels reach at the slow end of the band. A guess.
_REACHED = 0.7


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step, by what would take them."""

    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    # What of it nothing hides.
    exposed_ici_seconds: float
    dcn_seconds: float

    @property
    def step_seconds(self) -> float:
        inner = max(self.compute_seconds, self.hbm_seconds)
        return inner + self.exposed_ici_seconds + self.dcn_seconds

    @property
    def band_seconds(self) -> tuple[float, float]:
        """From all four at once and at 100 % to one after the other and at `_REACHED`."""
        parts = (self.compute_seconds, self.hbm_seconds, self.ici_seconds, self.dcn_seconds)
        return max(parts), sum(parts) / _REACHED


def roofline(
    chip: chips.Chip, flops: float, hbm_bytes: float, collectives: Iterable[traffic.Collective]
) -> Estimate:
    """The estimate of a program that executes `flops` and moves `hbm_bytes` on one device."""
    compute, hbm = flops / chip.flops_per_second, hbm_bytes / chip.hbm_bytes_per_second
    ring = chip.ring_bytes_per_second
    async_ici = sync_ici = dcn_bytes = 0.0
    for c in collectives:
        if c.network == chip.network:
            dcn_bytes += c.bytes
        elif c.is_async:
            async_ici += c.bytes / ring
        else:
            sync_ici += c.bytes / ring
    exposed = sync_ici + max(0.0, async_ici - max(compute, hbm))
    dcn = dcn_bytes / chip.dcn_bytes_per_second
    return Estimate(compute, hbm, async_ici + sync_ici, exposed, dcn)


def hbm_bytes(program: hlo.Program) -> float:
    """Bytes that the program's instructions read from and write to HBM, as often as they run.

    Of an array of which only a slice is read, or written in place, the slice counts.
    """
    fused = {
        name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode in ("fusion", "async-start")
        for name in instruction.called_computations
    }
    total = 0.0
    for computation, instruction, times in program.executed():
        if computation.name in fused or instruction.opcode in _FREE:
            continue
        moved = _written(program, computation, instruction)
        for number in range(len(instruction.operands)):
            moved += _read(program, computation, instruction, number)
        total += times * moved
    return total


def _read(
    program: hlo.Program,
    computation: hlo_text.Computation,
    instruction: hlo_text.Instruction,
    number: int,
) -> float:
    """Bytes that `instruction`, of `computation`, reads from HBM of its operand `number`."""
    operand = computation.instructions[instruction.operands[number]]
    whole = _in_hbm(operand.shapes)
    if not whole or instruction.opcode == "dynamic-update-slice" and number == 0:
        return 0.0
    if instruction.opcode in ("dynamic-slice", "gather") and number == 0:
        return min(whole, sum(shape.bytes for shape in instruction.shapes))
    if instruction.opcode != "fusion":
        return whole
    [name] = instruction.called_computations
    inner = program.computations[name]
    [parameter] = [
        i.name
        for i in inner.instructions.values()
        if i.opcode == "parameter" and i.literal == str(number)
    ]
    parts = [
        _read(program, inner, user, user_number)
        for user in inner.instructions.values()
        for user_number, name in enumerate(user.operands)
        if name == parameter
    ]
    return min(whole, sum(parts))


def _written(
    program: hlo.Program, computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
    """Bytes that `instruction`, of `computation`, writes to HBM."""
    whole = _in_hbm(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]]
        return min(whole, sum(shape.bytes for shape in update.shapes))
    if instruction.opcode == "fusion" and whole:
        inner = program.computations[instruction.called_computations[0]]
        root = inner.instructions[inner.root]
        outputs = root.operands if root.opcode == "tuple" else (root.name,)
        parts = 0.0
        for output, shape in zip(outputs, instruction.shapes, strict=False):
            producer = inner.instructions[output]
            in_place = producer.opcode == "dynamic-update-slice"
            part = _written(program, inner, producer) if in_place else shape.bytes
            parts += part if shape.memory_space == 0 else 0.0
        return min(whole, parts)
    return whole


def _in_hbm(shapes: Sequence[hlo_text.Shape]) -> float:
    """Bytes of the arrays that lie in HBM."""
    return sum(shape.bytes for shape in shapes if shape.memory_space == 0)
