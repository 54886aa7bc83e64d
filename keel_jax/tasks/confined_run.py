"""Runs one program to its end in a process that `confined_start` has confined.

A script of the standard library alone. It reads the program from standard input, with its length in
four bytes before it, and then a secret, which it writes to what was standard output when the
program has run to its end: not exit code 0 says so, which a program can have at any time, but what
only this script knows. The program can look at everything that this script has: frames, their
variables and globals, and all that the collector lists. So the secret is never in a variable, a
file, an argument or the environment. It is read right before the program begins, and waits on the
interpreter's stack, as part of an expression of which the program's run is the rest. If the program
does not reach its end, that expression is given up and the secret with it. Nothing that the program
could replace is called once it has begun, but to say why it failed.

An audit hook, as these cannot be removed, refuses what could undo that: trace functions, which make
a frame jump over the tests; other code in an existing function; ctypes, and extension modules that
are not Python's own, which read the raw memory. (/proc/self/mem cannot be opened.) What is left is
a fault of the interpreter itself that gives a program its memory; and a program whose objects
merely claim to be right (`__eq__` that is always true), which passes, as in any harness that runs
tests and answer in one interpreter.
"""

import os
import struct
import sys
import types


def _read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _secret():
    secret = _read(32)
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    return secret


def _refuse(event, arguments):
    if event in ("sys.settrace", "sys.setprofile"):
        raise RuntimeError(event + " is not available here.")
    if event == "object.__setattr__" and arguments[1] == "__code__":
        raise RuntimeError("Functions keep their code here.")
    if event == "import" and (
        arguments[0].rpartition(".")[2].startswith("_ctypes")
        or (arguments[1] and not arguments[1].startswith("<standard library>"))
    ):
        raise ImportError(arguments[0] + " is not available here.")


def _install_hook():
    # As a constant: the program could change a variable or a default.
    old, base = "<standard library>", os.path.dirname(os.__file__) + os.sep
    constants = tuple(base if value == old else value for value in _refuse.__code__.co_consts)
    _refuse.__code__ = _refuse.__code__.replace(co_consts=constants)
    sys.addaudithook(_refuse)


def _reason(error, source):
    """The error, the line of the program, and of an assertion without a message the assertion."""
    try:
        line, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<program>":
                line = trace.tb_lineno
            trace = trace.tb_next
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        if line and isinstance(error, AssertionError) and not str(error):
            text += ": " + source.splitlines()[line - 1].strip()
        return text + (f" (line {line})" if line else "")
    except BaseException:
        return "an error that cannot be printed"


def _main():
    own = sys.modules["__main__"]  # kept, as the program's takes its place
    report, write, leave = os.dup(1), os.write, os._exit
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    os.dup2(1, 2)
    [size] = struct.unpack("=I", _read(4))
    source = _read(size).decode(errors="surrogatepass")
    # Where dataclasses and pickle look for the program's names.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    write(report, b"ready\n")
    _install_hook()
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
        write(report, (_secret(), exec(code, main.__dict__))[0])
    except BaseException as error:
        write(report, b"failed " + _reason(error, source).encode(errors="replace")[:500])
    # Threads that still run do not count, nor what is to be done at exit.
    leave(0)
    del own


_main()
