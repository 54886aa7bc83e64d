"""What a compiled program sends between devices: every collective, over which axes, how often.

program = hlo.parse(compiled.as_text())
for c in traffic.collectives(program, mesh):
    print(c.kind, c.axes, c.count, c.bytes, c.network, c.shapes)
"""

import dataclasses
import math
import re

import jax
import numpy as np

from keel_jax import errors
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import hlo

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
_MESH = re.compile(
    r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? \{([^}]*)\}"
)
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
    # "dcn" if a group has devices of several slices, else "ici".
    network: str
    # Times that it runs in one run of the program.
    count: int
    # Bytes that each device sends, over all runs (`sent_bytes`).
    bytes: float
    # What a device has afterwards.
    shapes: tuple[hlo.Shape, ...]
    op_name: str
    # Whether the compiler starts it ahead of its end, so that other work can hide it.
    is_async: bool
    # The instruction's name.
    name: str


def collectives(
    program: hlo.Program, mesh: jax.sharding.Mesh, num_slices: int | None = None
) -> list[Collective]:
    """Every collective that runs and has several devices in a group, in the program's order.

    Args:
      mesh: the mesh that the program was compiled for; its devices' order is the program's.
      num_slices: as in `mesh.make`: None: as the devices say; a number: simulated slices.
    """
    devices = sorted(mesh.devices.flat, key=lambda device: device.id)
    groups = mesh_lib.split_slices(devices, num_slices)
    slice_of = {device: index for index, group in enumerate(groups) for device in group}
    slices = np.array([slice_of[device] for device in mesh.devices.flat])
    found, chains = [], set()
    for computation, instruction, times in program.executed():
        if cross := _across_slices(computation, instruction, times, slices, mesh):
            found.append(cross)
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        # A TPU spreads an asynchronous collective over the fusions beside which it runs, each with
        # the instruction in it: one chain, one collective.
        chain = _CHAIN.search(instruction.attributes)
        if chain and chain[1] in chains:
            continue
        chains.add(chain and chain[1])
        members = _groups(instruction, slices.size)
        size = max(len(group) for group in members)
        if size == 1:
            continue
        operands = computation.operand_shapes(instruction)
        num_bytes = sum(shape.bytes for shape in operands)
        result = instruction.shapes
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):
            result = result[len(operands) : 2 * len(operands)]  # (operands, results, …)
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            # A TPU's fusion of it with the slice of each device.
            kind, result = "reduce-scatter", computation.instructions[computation.root].shapes
        crosses = any(len(set(slices[list(group)])) > 1 for group in members)
        found.append(
            Collective(
                kind=kind,
                axes=_axes(members, mesh),
                group_size=size,
                network="dcn" if crosses else "ici",
                count=times,
                bytes=times * sent_bytes(kind, num_bytes, size),
                shapes=tuple(result),
                op_name=_op_name(program, computation, instruction),
                is_async=bool(chain) or _is_async(instruction, computation),
                name=instruction.name,
            )
        )
    return found


def sent_bytes(kind: str, operand_bytes: float, group_size: int) -> float:
    """Bytes that one device of n sends over the links of a ring, whose operand has b bytes.

    all-gather (n - 1) b, reduce-scatter and all-to-all (n - 1)/n b, all-reduce 2 (n - 1)/n b,
    permute and broadcast b.
    """
    share = (group_size - 1) / group_size
    factor = {
        "all-gather": group_size - 1,
        "all-reduce": 2 * share,
        "reduce-scatter": share,
        "all-to-all": share,
        "ragged-all-to-all": share,
    }
    return operand_bytes * factor.get(kind, 1)


def _op_name(
    program: hlo.Program, computation: hlo.Computation, instruction: hlo.Instruction
) -> str:
    """The instruction's own, or that of the fusion it is in."""
    if not instruction.op_name and computation.name in program.callers:
        return program.callers[computation.name][1].op_name
    return instruction.op_name


def _across_slices(computation, instruction, times, slices, mesh) -> Collective | None:
    """A TPU's collective between slices: a transfer to the host, which sends it over DCN."""
    match = _MEGASCALE.search(instruction.attributes)
    if instruction.opcode != "send" or not match:
        return None
    kind = match[1].lower().replace("_", "-")
    shape = computation.instructions[instruction.operands[0]].shapes[0]
    count = len(set(slices.tolist()))
    numbers = slices.reshape(mesh.devices.shape)
    return Collective(
        kind=kind,
        axes=tuple(
            axis
            for place, axis in enumerate(mesh.axis_names)
            if (numbers != numbers.take([0], axis=place)).any()
        ),
        group_size=count,
        network="dcn",
        count=times,
        bytes=times * sent_bytes(kind, shape.bytes, count),
        shapes=(shape,),
        op_name=instruction.op_name,
        is_async=True,
        name=instruction.name,
    )


def _is_async(instruction: hlo.Instruction, computation: hlo.Computation) -> bool:
    return instruction.opcode.endswith("-start") or computation.name.startswith("async")


def _groups(instruction: hlo.Instruction, num_devices: int) -> list[tuple[int, ...]]:
    """The groups of positions in the mesh, of a collective; a permute's (source, target) pairs."""
    if instruction.opcode.startswith("collective-permute"):
        text = instruction.attribute("source_target_pairs")
        return [tuple(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", text)]
    text = instruction.attribute("replica_groups") or "{}"
    if match := re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source = (tuple(map(int, match[i].split(","))) for i in (1, 2))
        ids = np.arange(math.prod(source)).reshape(source)
        if match[3]:
            ids = ids.transpose([int(n) for n in match[3].split(",")])
        return [tuple(group) for group in ids.reshape(shape).tolist()]
    if text.startswith("mesh["):
        return _mesh_groups(instruction)
    if not re.fullmatch(r"[\d,{}\s]*", text):
        raise errors.UserError(f"{instruction.name}: replica groups {text!r} of an unknown form.")
    groups = [
        tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", text)
    ]
    return groups or [tuple(range(num_devices))]


def _mesh_groups(instruction: hlo.Instruction) -> list[tuple[int, ...]]:
    """Groups by the axes of a mesh of the compiler's own.

    mesh['a'=2,'b'=8] {'a','b':(2)4}: along a, and along the part of b that is the 4 in (2) 4.
    mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}: of devices in another order.
    """
    match = _MESH.search(instruction.attributes)
    if not match:
        raise errors.UserError(f"{instruction.name}: replica groups of an unknown form.")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    asked = {
        name: (int(pre or 1), int(size or sizes[name]))
        for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])
    }
    parts, used = [], []  # the mesh's dimensions, parts of axes apart; whether a group spans them
    for name, size in sizes.items():
        pre, inner = asked.get(name, (size, 1))
        parts += [pre, inner, size // (pre * inner)]
        used += [False, name in asked, False]
    ids = _device_ids(match[2], math.prod(parts)).reshape(parts)
    order = [i for i, u in enumerate(used) if not u] + [i for i, u in enumerate(used) if u]
    width = math.prod(part for part, is_used in zip(parts, used, strict=True) if is_used)
    return [tuple(group) for group in ids.transpose(order).reshape(-1, width).tolist()]


def _device_ids(text: str | None, count: int) -> np.ndarray:
    """The order of a mesh's devices: none given, "[2,4]T(1,0)", or "0,2,1,3"."""
    if not text:
        return np.arange(count)
    if not (match := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)):
        return np.array([int(n) for n in text.split(",")])
    ids = np.arange(count).reshape([int(n) for n in match[1].split(",")])
    return ids.transpose([int(n) for n in match[2].split(",")] if match[2] else None).reshape(-1)


def _axes(groups: list[tuple[int, ...]], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    differ = np.zeros(mesh.devices.ndim, bool)
    for group in groups:
        places = np.array(np.unravel_index(group, mesh.devices.shape))
        differ |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, is_used in zip(mesh.axis_names, differ, strict=True) if is_used)
