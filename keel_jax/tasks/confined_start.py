"""Confines its own process for good, and becomes the interpreter that runs the program.

A script of the standard library alone, started by `confinement`: it has one thread, so that it may
do what is unsafe between fork and exec in a process of many, and ctypes, which the interpreter
after it must not have in its memory. Everything it sets up outlives exec. It reads one JSON object
from standard input, with its length in four bytes before it; what follows is for its successor. An
error is written to standard output, and nothing is run.
"""

import base64
import ctypes
import json
import os
import resource
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER, _SIGKILL = 2, 9
# Landlock (linux/landlock.h); the numbers are the same on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _VERSION = 444, 445, 446, 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1, 2, 4, 8, 32, 256
_TRUNCATE = 1 << 14
# Rights of files by the version of Landlock that introduced the last of them.
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_LIBC.prctl(option, *values))


def _limit(limits: dict) -> None:
    """Limits that the kernel enforces; both the soft and the hard one."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _landlock(readable: list[str], writable: str) -> None:
    """Files: those of `readable` may be read and executed, those in `writable` written as well."""
    version = _checked(_LIBC.syscall(_CREATE_RULESET, None, 0, _VERSION))
    handled = _HANDLED[max(known for known in _HANDLED if known <= version)]
    attribute = struct.pack("=Q", handled)
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, attribute, len(attribute), 0))
    files = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
    read = _EXECUTE | _READ_FILE | _READ_DIR
    write = read & ~_EXECUTE | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _MAKE_REG
    for path, access in [(path, read) for path in readable] + [
        (writable, write),
        (os.devnull, _READ_FILE | _WRITE_FILE | _TRUNCATE),
    ]:
        if not os.path.exists(path):
            continue
        access &= handled if os.path.isdir(path) else handled & files
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access, place)
        _checked(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
        os.close(place)
    _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _filter(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

    whole = Program(len(program) // 8, program)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(whole))


def _start(order: dict) -> None:
    # Held open, so that the interpreter is found even where a user who is no longer root may not
    # walk: /root/.pyenv, for example. 3 is the lowest free descriptor.
    os.closerange(3, 1 << 16)
    home = os.open(order["interpreter_dir"], os.O_PATH)
    os.set_inheritable(home, True)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.chdir(order["scratch"])
    _landlock(order["readable"], order["scratch"])
    if order["user_id"] is not None:
        os.setgroups([])
        os.setresgid(*[order["user_id"]] * 3)
        os.setresuid(*[order["user_id"]] * 3)
    # After the change of user, which would undo it.
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != order["parent_id"]:
        sys.exit("the parent is gone")
    _limit(order["limits"])
    _filter(base64.b64decode(order["filter"]))
    python = f"/proc/self/fd/{home}/{order['interpreter']}"
    os.execve(python, ["python", *order["arguments"]], order["environment"])


if __name__ == "__main__":
    try:
        [size] = struct.unpack("=I", os.read(0, 4))
        text = b""
        while len(text) < size:
            text += os.read(0, size - len(text)) or sys.exit("no order")
        _start(json.loads(text))
    except Exception as error:
        os.write(1, f"{type(error).__name__}: {error}".encode())
        sys.exit(1)
