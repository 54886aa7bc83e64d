"""One exit code for a run of several processes.

    python -m launch.combined_exit_code DIRECTORY NUM_PROCESSES

prints the code that combines those in the files DIRECTORY/0, DIRECTORY/1, …

The codes are those of keel_jax/runtime/exit_codes.py. A process that dies takes its peers down with
it, so most codes of a failed run are consequences of one cause. The first of these that any process
ended with is the run's:

    an error (1, 6 and any code not named below)   starting again would fail again
    3                                           diverged: all processes see the same loss
    139 137 134                                 killed by a signal: the others lost this peer
    76                                          hung, or lost a peer; also a process without a code
    143                                         ended by SIGTERM before it could save
    75                                          stopped on request and saved
    0                                           only if all processes are done
"""

import collections.abc
import pathlib
import signal
import sys

from keel_jax import errors
from keel_jax.runtime import exit_codes

# Codes after which starting again can help, from the likeliest cause to the likeliest consequence.
# A shell reports death by signal n as 128 + n.
RETRYABLE = (
    128 + signal.SIGSEGV,
    128 + signal.SIGKILL,
    128 + signal.SIGABRT,
    exit_codes.HUNG,
    128 + signal.SIGTERM,
    exit_codes.PREEMPTED,
)


def combine_exit_codes(codes: collections.abc.Iterable[int | None]) -> int:
    """The exit code of the whole run; None stands for a process that left no code.

    Raises:
      UserError: there are no codes.
    """
    codes = [exit_codes.HUNG if code is None else code for code in codes]
    if not codes:
        raise errors.UserError("A run of no processes has no exit code.")
    known = (exit_codes.DONE, exit_codes.DIVERGED, *RETRYABLE)
    for code in codes:
        if code not in known:
            return code
    for code in (exit_codes.DIVERGED, *RETRYABLE):
        if code in codes:
            return code
    return exit_codes.DONE


def read_exit_codes(directory: pathlib.Path, num_processes: int) -> list[int | None]:
    """The codes in the files 0, 1, … of a directory; None for a file that has none.

    It may not exist, or be empty, as a full disk or a killed shell leaves it.
    """
    texts = [_text(directory / str(process)) for process in range(num_processes)]
    return [int(text) if text.isdecimal() else None for text in texts]


def _text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else ""


if __name__ == "__main__":
    print(combine_exit_codes(read_exit_codes(pathlib.Path(sys.argv[1]), int(sys.argv[2]))))
