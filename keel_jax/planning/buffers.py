"""The compiler's buffer assignment: which arrays share which memory, read from its dump.

`memory_analysis()` overstates temporaries on a TPU (stacked residuals counted twice, VMEM
included), and carries no assignment there. XLA writes it to a file on request (`dump_options`):
an HloProto, of which the fields below are read straight from protobuf's wire format, as nothing
that we depend on ships its schema. Field numbers: xla/service/hlo.proto.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

# XLA's memory spaces ("colours").
HBM, HOST = 0, 5
_DUMPED = "*after_optimizations.hlo.pb"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One array's place in an allocation."""

    # Instruction that makes it, and which leaf of its result.
    instruction: str
    index: tuple[int, ...]
    offset: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One piece of memory, in which arrays that are not alive together may overlap."""

    bytes: int
    color: int
    # Of the program's flat list of arguments, or None.
    parameter: int | None
    is_thread_local: bool
    is_constant: bool
    # Holds (part of) the result.
    is_output: bool
    pieces: tuple[Piece, ...]


def dump_options(directory: str) -> dict[str, str | bool]:
    """Compiler options that make XLA write the assignment, and little else, to `directory`."""
    return {
        "xla_dump_to": directory,
        "xla_dump_hlo_as_proto": True,
        "xla_dump_hlo_as_text": False,
    }


def read_dump(directory: str) -> list[Allocation]:
    """The assignment of the largest program that was dumped to `directory`."""
    paths = sorted(pathlib.Path(directory).glob(_DUMPED), key=lambda path: path.stat().st_size)
    assert paths, f"the compiler wrote no {_DUMPED} to {directory}"
    module = dict(_fields(paths[-1].read_bytes()))  # HloProto: 1 the module, 3 the assignment
    return parse(module[3], _instruction_names(module[1]))


def parse(assignment: memoryview | bytes, names: dict[int, str]) -> list[Allocation]:
    """The allocations of a serialized BufferAssignmentProto; `names` of instructions by id."""
    arrays, allocations = {}, []
    for field, value in _fields(assignment):
        if field == 1:
            number, name, index = _logical_buffer(value, names)
            arrays[number] = (name, index)
        elif field == 3:
            allocations.append(value)
    return [_allocation(value, arrays) for value in allocations]


def _instruction_names(module: memoryview) -> dict[int, str]:
    """Names of the instructions of an HloModuleProto by their id."""
    names = {}
    for field, computation in _fields(module):
        if field == 3:
            for inner, instruction in _fields(computation):
                if inner == 2:
                    values = dict(_fields(instruction))
                    names[values.get(35, 0)] = bytes(values[1]).decode()
    return names


def _logical_buffer(message, names) -> tuple[int, str, tuple[int, ...]]:
    number, place = 0, b""
    for field, value in _fields(message):
        if field == 1:
            number = value
        elif field == 3:
            place = value
    name, index = "", []
    for field, value in _fields(place):
        if field == 2:
            name = bytes(value).decode()  # older XLA; newer ones give the id
        elif field == 3:
            index += _integers(value)
        elif field == 4:
            name = names.get(value, name)
    return number, name, tuple(index)


def _allocation(message, arrays) -> Allocation:
    values, pieces = {}, []
    for field, value in _fields(message):
        if field == 9:
            part = dict(_fields(value))
            name, index = arrays.get(part.get(1, 0), ("", ()))
            pieces.append(Piece(name, index, part.get(2, 0), part.get(3, 0)))
        elif field != 10:
            values[field] = value
    return Allocation(
        bytes=values.get(2, 0),
        color=values.get(8, HBM),
        parameter=values.get(6, 0) if values.get(5) else None,
        is_thread_local=bool(values.get(3)),
        is_constant=bool(values.get(12)),
        is_output=bool(values.get(7)),
        pieces=tuple(pieces),
    )


def _fields(message: memoryview | bytes) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in order: integers as they are, the rest as bytes."""
    message, at = memoryview(message), 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            if kind == 2:
                size, at = _varint(message, at)
            else:
                size = {1: 8, 5: 4}[kind]
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def _integers(value) -> list[int]:
    """A repeated integer field, packed or not."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
