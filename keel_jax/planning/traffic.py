"""What a compiled program sends between devices: every collective, over which axes, how often.

program = hlo.read_program(compiled)
for c in traffic.collectives(program, mesh):
    print(c.kind, c.axes, c.count, c.bytes, c.network, c.shapes)
"""

import dataclasses
import re

import jax
import numpy as np

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import hlo, hlo_text, replica_groups

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
# A GPU's compiler writes a collective with nothing beside it as started and ended at once.
_IS_SYNC = re.compile(r'"is_sync":\s*true')
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective instruction of the program, over all its runs."""

    # One of KINDS; an all-reduce of which each device keeps its part only is a reduce-scatter.
    kind: str
    # The mesh axes over which it goes, in the mesh's order.
    axes: tuple[str, ...]
    # Devices of one group.
    group_size: int
    # What it goes over: the network (TPUs: "dcn") if a group has devices of several slices, else
    # the links within a slice (TPUs: "ici").
    network: str
    # Times that it runs in one run of the program.
    count: int
    # Bytes that each device sends, over all runs (`sent_bytes`).
    bytes: float
    # What a device has afterwards.
    shapes: tuple[hlo_text.Shape, ...]
    op_name: str
    # Whether the compiler starts it ahead of its end, so that other work can hide it.
    is_async: bool
    # The instruction's name.
    name: str


def collectives(
    program: hlo.Program,
    mesh: jax.sharding.Mesh,
    simulated_slices: int | None = None,
    networks: tuple[str, str] = ("ici", "dcn"),
) -> list[Collective]:
    """Every collective that runs and has several devices in a group, in the program's order.

    Args:
      mesh: the mesh that the program was compiled for; its devices' order is the program's.
      simulated_slices: as in `mesh.make`.
      networks: what links within a slice, and the network between slices, are called.
    """
    slice_ids = _slice_ids(mesh, simulated_slices)
    result: list[Collective] = []
    chains: set[str] = set()
    for computation, instruction, times in program.executed():
        if transfer := _transfer_between_slices(computation, instruction, times, slice_ids, mesh):
            result.append(transfer)
        if instruction.opcode.removesuffix("-start") not in KINDS:
            continue
        # A TPU spreads an asynchronous collective over the fusions beside which it runs, each with
        # the instruction in it: one chain, one collective.
        chain = _CHAIN.search(instruction.attributes)
        if chain and chain[1] in chains:
            continue
        if chain:
            chains.add(chain[1])
        groups = replica_groups.parse(instruction, slice_ids.size)
        group_size = max(len(group) for group in groups)
        if group_size == 1:
            continue
        kind, shapes = _kind_and_shapes(computation, instruction)
        operand_bytes = sum(shape.bytes for shape in computation.operand_shapes(instruction))
        crosses = any(len(set(slice_ids[list(group)])) > 1 for group in groups)
        result.append(
            Collective(
                kind=kind,
                axes=_axes(groups, mesh),
                group_size=group_size,
                network=networks[crosses],
                count=times,
                bytes=times * sent_bytes(kind, operand_bytes, group_size),
                shapes=shapes,
                op_name=_op_name(program, computation, instruction),
                is_async=bool(chain) or _is_async(instruction, computation),
                name=instruction.name,
            )
        )
    return result


def sent_bytes(kind: str, operand_bytes: float, group_size: int) -> float:
    """Bytes that one device of n sends over the links of a ring, whose operand has b bytes.

    all-gather (n - 1) b, reduce-scatter and all-to-all (n - 1)/n b, all-reduce 2 (n - 1)/n b,
    permute and broadcast b.
    """
    part = (group_size - 1) / group_size
    factor = {
        "all-gather": group_size - 1,
        "all-reduce": 2 * part,
        "reduce-scatter": part,
        "all-to-all": part,
        "ragged-all-to-all": part,
    }
    return operand_bytes * factor.get(kind, 1)


def _slice_ids(mesh: jax.sharding.Mesh, simulated_slices: int | None) -> np.ndarray:
    """The number of the slice in which each of the mesh's devices lies, in the mesh's order."""
    devices = sorted(mesh.devices.flat, key=lambda device: device.id)
    slices = mesh_lib.split_slices(devices, simulated_slices)
    slice_of = {device: number for number, group in enumerate(slices) for device in group}
    return np.array([slice_of[device] for device in mesh.devices.flat])


def _kind_and_shapes(
    computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> tuple[str, tuple[hlo_text.Shape, ...]]:
    """What a collective does, and what a device has afterwards."""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        # A TPU's fusion of it with the slice of each device.
        return "reduce-scatter", computation.instructions[computation.root].shapes
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        count = len(computation.operand_shapes(instruction))
        return kind, instruction.shapes[count : 2 * count]  # (operands, results, …)
    return kind, instruction.shapes


def _op_name(
    program: hlo.Program, computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> str:
    """The instruction's own, or that of the fusion it is in."""
    if not instruction.op_name and computation.name in program.callers:
        return program.callers[computation.name][1].op_name
    return instruction.op_name


def _transfer_between_slices(
    computation: hlo_text.Computation,
    instruction: hlo_text.Instruction,
    times: int,
    slice_ids: np.ndarray,
    mesh: jax.sharding.Mesh,
) -> Collective | None:
    """A TPU's collective between slices: a transfer to the host, which sends it over DCN."""
    match = _MEGASCALE.search(instruction.attributes)
    if instruction.opcode != "send" or not match:
        return None
    kind = match[1].lower().replace("_", "-")
    shape = computation.instructions[instruction.operands[0]].shapes[0]
    num_slices = len(set(slice_ids.tolist()))
    ids = slice_ids.reshape(mesh.devices.shape)
    return Collective(
        kind=kind,
        axes=tuple(
            axis
            for dim, axis in enumerate(mesh.axis_names)
            if (ids != ids.take([0], axis=dim)).any()
        ),
        group_size=num_slices,
        network="dcn",
        count=times,
        bytes=times * sent_bytes(kind, shape.bytes, num_slices),
        shapes=(shape,),
        op_name=instruction.op_name,
        is_async=True,
        name=instruction.name,
    )


def _is_async(instruction: hlo_text.Instruction, computation: hlo_text.Computation) -> bool:
    if _IS_SYNC.search(instruction.attributes):
        return False
    return instruction.opcode.endswith("-start") or computation.name.startswith("async")


def _axes(groups: list[tuple[int, ...]], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    differ = np.zeros(mesh.devices.ndim, bool)
    for group in groups:
        coordinates = np.array(np.unravel_index(group, mesh.devices.shape))
        differ |= (coordinates != coordinates[:, :1]).any(axis=1)
    return tuple(axis for axis, differs in zip(mesh.axis_names, differ, strict=True) if differs)
