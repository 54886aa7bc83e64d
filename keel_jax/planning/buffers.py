"""The compiler's buffer assignment: which arrays share which memory, read from its dump.

`memory_analysis()` overstates temporaries on a TPU (stacked residuals counted twice, VMEM
included), and carries no assignment there. XLA writes it to a file on request (`dump_options`):
an HloProto, of which the fields below are read straight from protobuf's wire format, as no
dependency of ours ships its schema. Field numbers: xla/service/hlo.proto.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

# XLA's memory spaces ("colours"), as a TPU has them. A GPU has no VMEM: its colours but the host's
# are parts of HBM (xla/service/gpu/gpu_memory_space_assignment.h).
HBM, VMEM, HOST = 0, 1, 5
_DUMPED = "*after_optimizations.hlo.pb"
# What a field of a protobuf message holds on the wire: an integer, or bytes of any other type.
_Value: TypeAlias = "int | memoryview"
# An array of the program: the instruction that makes it, and which leaf of its result it is.
_Array: TypeAlias = "tuple[str, tuple[int, ...]]"


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
    # Its place in the program's flat list of arguments; None: it holds no argument.
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
    message = memoryview(paths[-1].read_bytes())
    proto = dict(_fields(message))  # HloProto: 1 the module, 3 the assignment
    return _allocations(_bytes(proto[3]), _instruction_names(_bytes(proto[1])))


def _allocations(assignment: memoryview, names: Mapping[int, str]) -> list[Allocation]:
    """The allocations of a BufferAssignmentProto; `names` of instructions by id."""
    arrays: dict[int, _Array] = {}
    allocations = []
    for field, value in _fields(assignment):
        if field == 1:
            number, array = _logical_buffer(_bytes(value), names)
            arrays[number] = array
        elif field == 3:
            allocations.append(_bytes(value))
    return [_allocation(message, arrays) for message in allocations]


def _instruction_names(module: memoryview) -> dict[int, str]:
    """Names of the instructions of an HloModuleProto by their id."""
    names = {}
    for field, computation in _fields(module):
        if field == 3:
            for inner, instruction in _fields(_bytes(computation)):
                if inner == 2:
                    values = dict(_fields(_bytes(instruction)))
                    names[_integer(values.get(35, 0))] = bytes(_bytes(values[1])).decode()
    return names


def _logical_buffer(message: memoryview, names: Mapping[int, str]) -> tuple[int, _Array]:
    """The number of a LogicalBufferProto, and the array that it stands for."""
    number, defined_at = 0, memoryview(b"")
    for field, value in _fields(message):
        if field == 1:
            number = _integer(value)
        elif field == 3:
            defined_at = _bytes(value)
    name, index = "", []
    for field, value in _fields(defined_at):
        if field == 2:
            name = bytes(_bytes(value)).decode()  # older XLA; newer ones give the id
        elif field == 3:
            index += _integers(value)
        elif field == 4:
            name = names.get(_integer(value), name)
    return number, (name, tuple(index))


def _allocation(message: memoryview, arrays: Mapping[int, _Array]) -> Allocation:
    """A BufferAllocationProto, in which `arrays` have places."""
    values: dict[int, int] = {}
    pieces = []
    for field, value in _fields(message):
        if field == 9:
            part = {number: n for number, n in _fields(_bytes(value)) if isinstance(n, int)}
            name, index = arrays.get(part.get(1, 0), ("", ()))
            pieces.append(Piece(name, index, part.get(2, 0), part.get(3, 0)))
        elif isinstance(value, int):
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


# --- Protobuf's wire format (protobuf.dev/programming-guides/encoding) ---------------------------


def _fields(message: memoryview) -> Iterator[tuple[int, _Value]]:
    """(field number, value) in order: integers as they are, the rest as bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
        else:
            if wire_type == 2:
                size, position = _varint(message, position)
            else:
                size = {1: 8, 5: 4}[wire_type]
            value, position = message[position : position + size], position + size
        yield key >> 3, value


def _bytes(value: _Value) -> memoryview:
    assert isinstance(value, memoryview), f"an integer, {value}, where the schema has bytes"
    return value


def _integer(value: _Value) -> int:
    assert isinstance(value, int), "bytes where the schema has an integer"
    return value


def _integers(value: _Value) -> list[int]:
    """A repeated integer field, packed or not."""
    if isinstance(value, int):
        return [value]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(number)
    return numbers


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The integer at `position`, seven bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
