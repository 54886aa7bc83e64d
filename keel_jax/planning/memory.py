"""Where a compiled program's memory goes, from the compiler's true buffer assignment.

Only HBM counts against the chip; VMEM and the host's memory are reported apart from it. Arrays that
are not alive together share memory, so temporaries are divided into kinds by address: each byte
belongs to the largest array that ever lies there, which is what would have to shrink first.
"""

import dataclasses
import heapq
import math
import re
from collections.abc import Collection, Mapping, Sequence

from keel_jax.planning import buffers, hlo, hlo_text

GIB = 2**30
_REFUSAL = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One of the largest temporaries."""

    bytes: int
    kind: str
    # As in "f32[256,4,2048,1024]".
    shape: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    # The program's arguments; results that are written in their place are counted here too.
    arguments: int
    # Results with memory of their own.
    outputs: int
    constants: int
    # The program itself.
    code: int
    # What the step makes and drops.
    temporaries: int
    # Temporaries by kind: gradients, activations, other.
    by_kind: dict[str, int]
    largest: tuple[Buffer, ...]
    # Not in HBM.
    vmem: int
    host: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.constants + self.code + self.temporaries


def measure_memory(
    allocations: Sequence[buffers.Allocation],
    program: hlo.Program,
    param_shapes: Collection[tuple[int, ...]],
    code_bytes: int,
    num_largest: int = 8,
    *,
    has_vmem: bool = True,
) -> Memory:
    """Adds up the assignment of `program`.

    A temporary is a gradient if the backward pass made it, or a loop of the backward pass carries
    it, in the shape of a parameter's shard; an activation if the forward pass (or its repetition)
    made it otherwise; else it is other.

    Args:
      param_shapes: of the parameters' shards on one device.
      code_bytes: the program's own size.
      has_vmem: a TPU's; a GPU has everything but the host's memory in HBM.
    """
    instructions = {
        name: instruction
        for computation in program.computations.values()
        for name, instruction in computation.instructions.items()
    }
    # The sizes without ones, in any order: layouts and slices permute and drop dimensions.
    params = {_normal(shape) for shape in param_shapes}
    groups = ("arguments", "outputs", "constants", "temporaries", "vmem", "host")
    sums: dict[str, int] = dict.fromkeys(groups, 0)
    by_kind: dict[str, int] = dict.fromkeys(("gradients", "activations", "other"), 0)
    largest: dict[tuple[int, int, int], Buffer] = {}
    for number, allocation in enumerate(allocations):
        if allocation.is_thread_local:
            continue
        group = _group(allocation, has_vmem)
        if group:
            sums[group] += allocation.bytes
        if group != "temporaries":
            continue
        described = [_describe(piece, instructions, params) for piece in allocation.pieces]
        for piece, size in _largest_pieces(allocation):
            by_kind["other" if piece is None else described[piece].kind] += size
            if piece is not None:
                key = (number, allocation.pieces[piece].offset, allocation.pieces[piece].bytes)
                largest.setdefault(key, described[piece])
    ordered = sorted(largest.values(), key=lambda buffer: -buffer.bytes)
    return Memory(**sums, by_kind=by_kind, code=code_bytes, largest=tuple(ordered[:num_largest]))


def out_of_memory(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes of the chip) of a TPU compiler's refusal; None: it is another error."""
    match = _REFUSAL.search(message)
    if not match:
        return None
    needed, available = (round(float(match[i]) * 1024 ** _UNITS[match[i + 1]]) for i in (1, 3))
    return needed, available


def _group(allocation: buffers.Allocation, has_vmem: bool) -> str | None:
    """The field of `Memory` that an allocation counts for; None: memory of no interest."""
    if allocation.color != buffers.HBM and (has_vmem or allocation.color == buffers.HOST):
        return {buffers.VMEM: "vmem", buffers.HOST: "host"}.get(allocation.color)
    if allocation.parameter is not None:
        return "arguments"
    if allocation.is_constant:
        return "constants"
    return "outputs" if allocation.is_output else "temporaries"


def _describe(
    piece: buffers.Piece,
    instructions: Mapping[str, hlo_text.Instruction],
    params: Collection[tuple[int, ...]],
) -> Buffer:
    instruction = instructions.get(piece.instruction)
    if instruction is None:
        return Buffer(piece.bytes, "other", "", piece.instruction)
    shape = _leaf(instruction, piece)
    name = instruction.op_name or instruction.name
    is_backward = "transpose(" in name
    if is_backward and shape and not _stacked(shape.dims).isdisjoint(params):
        kind = "gradients"
    elif "jvp(" in name:
        kind = "activations"
    else:
        kind = "other"
    dims = f"{shape.dtype}[{','.join(map(str, shape.dims))}]" if shape else ""
    return Buffer(piece.bytes, kind, dims, name)


def _leaf(instruction: hlo_text.Instruction, piece: buffers.Piece) -> hlo_text.Shape | None:
    """The leaf of the result that lies in `piece`, by its index; None: it is in a nested tuple."""
    if not piece.index:
        return instruction.shapes[0] if len(instruction.shapes) == 1 else None
    if len(piece.index) == 1 and piece.index[0] < len(instruction.shapes):
        return instruction.shapes[piece.index[0]]
    return None


def _normal(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in dims if n > 1))


def _stacked(dims: tuple[int, ...]) -> set[tuple[int, ...]]:
    """`dims` with depth merged into one dimension N, as the parameters have it.

    Depth may be the first dimension, or the first two or three: segments (of segments) of blocks.
    """
    return {_normal((math.prod(dims[:levels]), *dims[levels:])) for levels in (1, 2, 3)}


def _largest_pieces(allocation: buffers.Allocation) -> list[tuple[int | None, int]]:
    """(number of the largest piece there, bytes), range by range; None: no piece lies there."""
    order = sorted(range(len(allocation.pieces)), key=lambda i: allocation.pieces[i].offset)
    edges = sorted(
        {0, allocation.bytes}
        | {p.offset for p in allocation.pieces}
        | {min(p.offset + p.bytes, allocation.bytes) for p in allocation.pieces}
    )
    ranges: list[tuple[int | None, int]] = []
    open_pieces: list[tuple[int, int, int]] = []  # (-bytes, end, number): a heap, largest first
    upcoming = 0
    for begin, end in zip(edges, edges[1:], strict=False):
        while upcoming < len(order) and allocation.pieces[order[upcoming]].offset <= begin:
            piece = allocation.pieces[order[upcoming]]
            heapq.heappush(open_pieces, (-piece.bytes, piece.offset + piece.bytes, order[upcoming]))
            upcoming += 1
        while open_pieces and open_pieces[0][1] <= begin:
            heapq.heappop(open_pieces)
        ranges.append((open_pieces[0][2] if open_pieces else None, end - begin))
    return ranges
