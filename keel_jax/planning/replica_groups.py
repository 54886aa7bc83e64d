"""The groups of devices that a collective of a compiled program works in.

XLA writes them in several forms, each of which `parse` reads:

    {{0,1},{2,3}}                              one by one; {} is one group of all devices
    [2,2]<=[2,2]T(1,0)                         an iota of a shape, transposed, in rows
    mesh['a'=2,'b'=2] {'b'}                    axes of a mesh of the compiler's own
    source_target_pairs={{0,1},{1,0}}          of a permute: pairs (from, to)
"""

import math
import re

import numpy as np

from keel_jax import errors
from keel_jax.planning import hlo_text

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\(((?:[^()]|\([^()]*\))*)\))? \{([^}]*)\}"
)


def parse(instruction: hlo_text.Instruction, num_devices: int) -> list[tuple[int, ...]]:
    """The groups of positions in the mesh, of a collective; a permute's (source, target) pairs.

    Raises:
      UserError: the compiler writes them in a form that is not known here.
    """
    if instruction.opcode.startswith("collective-permute"):
        text = instruction.required_attribute("source_target_pairs")
        return [(int(source), int(target)) for source, target in re.findall(r"(\d+),(\d+)", text)]
    text = instruction.attribute("replica_groups") or "{}"
    if match := _IOTA.fullmatch(text):
        shape, source = _integers(match[1]), _integers(match[2])
        ids = np.arange(math.prod(source)).reshape(source)
        if match[3]:
            ids = ids.transpose(_integers(match[3]))
        return [tuple(group) for group in ids.reshape(shape).tolist()]
    if text.startswith("mesh["):
        return _mesh_groups(instruction)
    if not re.fullmatch(r"[\d,{}\s]*", text):
        raise errors.UserError(f"{instruction.name}: replica groups {text!r} of an unknown form.")
    groups = [_integers(group) for group in re.findall(r"\{([\d,]+)\}", text)]
    return groups or [tuple(range(num_devices))]


def _mesh_groups(instruction: hlo_text.Instruction) -> list[tuple[int, ...]]:
    """Groups by the axes of a mesh of the compiler's own.

    mesh['a'=2,'b'=8] {'a','b':(2)4}: along a, and along the part of b that is the 4 in (2) 4.
    mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}: of devices in another order.
    """
    match = _MESH.search(instruction.attributes)
    if not match:
        raise errors.UserError(f"{instruction.name}: replica groups of an unknown form.")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    # By axis: the size of the part outside of the one that a group spans, and of that one.
    spanned = {
        name: (int(outer or 1), int(size or sizes[name]))
        for name, outer, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])
    }
    # The mesh's dimensions, each axis in three parts, and which of them a group spans.
    parts: list[int] = []
    is_spanned: list[bool] = []
    for name, size in sizes.items():
        outer, width = spanned.get(name, (size, 1))
        parts += [outer, width, size // (outer * width)]
        is_spanned += [False, name in spanned, False]
    ids = _device_ids(match[2], math.prod(parts)).reshape(parts)
    order = sorted(range(len(parts)), key=lambda dim: is_spanned[dim])  # stable: spanned ones last
    group_size = math.prod(part for part, spans in zip(parts, is_spanned, strict=True) if spans)
    return [tuple(group) for group in ids.transpose(order).reshape(-1, group_size).tolist()]


def _device_ids(text: str | None, count: int) -> np.ndarray:
    """The order of a mesh's devices: none given, "[2,4]T(1,0)", or "0,2,1,3"."""
    if not text:
        return np.arange(count)
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not match:
        return np.array(_integers(text))
    ids = np.arange(count).reshape(_integers(match[1]))
    return ids.transpose(_integers(match[2]) if match[2] else None).reshape(-1)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
