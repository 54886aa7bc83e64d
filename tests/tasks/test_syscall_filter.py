"""The filter as the kernel reads it, interpreted in Python for both architectures."""

import struct

import pytest

from keel_jax.tasks import syscall_filter

ALLOW, KILL, REFUSE, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
PID = 4711
X86, ARM = 0xC000003E, 0xC00000B7


def _result(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """What the filter returns: the classic BPF machine with the instructions that it uses."""
    data = struct.pack("=iIQ6Q", number, audit, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps, place, value = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        if code == 0x20:  # ld [operand]
            [value] = struct.unpack_from("=I", data, operand)
        elif code == 0x54:  # and
            value &= operand
        elif code == 0x15:  # jeq
            place += if_true if value == operand else if_false
        elif code == 0x45:  # jset
            place += if_true if value & operand else if_false
        else:
            assert code == 0x06, code  # ret
            return operand


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (0, (), ALLOW),  # read
        (59, (), ALLOW),  # execve
        (41, (2, 1), REFUSE),  # socket
        (57, (), REFUSE),  # fork
        (56, (0x3D0F00,), ALLOW),  # clone, of a thread
        (56, (17,), REFUSE),  # clone, of a process
        (435, (), UNKNOWN),  # clone3
        (62, (PID, 9), ALLOW),  # kill
        (62, (PID + 1, 9), REFUSE),
        (62, (0, 9), REFUSE),
        (62, (2**64 - 1, 9), REFUSE),
        (302, (0,), ALLOW),  # prlimit64
        (302, (PID,), ALLOW),
        (302, (1,), REFUSE),
        (2, (0, 0), ALLOW),  # open, for reading
        (2, (0, 0o1101), ALLOW),  # … for writing, which is Landlock's to refuse
        (2, (0, 0o1000), REFUSE),
        (257, (0, 0, 0o1000), REFUSE),  # openat
        (72, (1, 8), REFUSE),  # fcntl, F_SETOWN
        (72, (1, 3), ALLOW),
        (157, (1, 0), REFUSE),  # prctl, PR_SET_PDEATHSIG
        (157, (15, 0), ALLOW),
        (0x40000000 + 41, (), KILL),  # x32
    ],
)
def test_calls_on_x86(number, arguments, expected):
    program = syscall_filter.program("x86_64", PID)
    assert _result(program, number, *arguments, audit=X86) == expected


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (63, (), ALLOW),  # read
        (41, (), REFUSE),  # pivot_root, which is socket on x86
        (57, (), ALLOW),  # close, which is fork on x86
        (198, (2, 1), REFUSE),  # socket
        (220, (0x3D0F00,), ALLOW),  # clone
        (220, (17,), REFUSE),
        (129, (PID, 9), ALLOW),  # kill
        (129, (1, 9), REFUSE),
        (56, (0, 0, 0o1000), REFUSE),  # openat
    ],
)
def test_calls_on_arm(number, arguments, expected):
    program = syscall_filter.program("aarch64", PID)
    assert _result(program, number, *arguments, audit=ARM) == expected


def test_calls_of_another_architecture_end_the_process():
    for machine, other in (("x86_64", ARM), ("aarch64", X86), ("x86_64", 0x40000003)):
        program = syscall_filter.program(machine, PID)
        assert _result(program, 0, audit=other) == KILL
