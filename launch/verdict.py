"""One exit code for a run of several processes.

    python -m launch.verdict DIRECTORY NUM_PROCESSES     prints it, from DIRECTORY/0, 1, …

The codes are those of keel_jax/runtime/exit_codes.py. A process that dies takes its peers down with
it, so most codes of a failed run are consequences; the cause is the one that says most:

    an error (1 and any code not named below)   of any process: starting again would fail again
    3                                           diverged: all processes see the same loss
    139 137 134                                 killed by a signal: the others lost this peer
    76                                          hung, or lost a peer; also a process without a code
    143                                         ended by SIGTERM, before it could save
    75                                          stopped on request and saved
    0                                           only if all are done
"""

import collections.abc
import pathlib
import sys

from keel_jax import errors
from keel_jax.runtime import exit_codes

# Starting again can help; from the likeliest cause to the likeliest consequence.
RETRYABLE = (139, 137, 134, exit_codes.HUNG, 143, exit_codes.PREEMPTED)


def combine_exit_codes(codes: collections.abc.Iterable[int | None]) -> int:
    """The exit code of the whole; None stands for a process that left no code.

    Raises:
      UserError: there are no codes.
    """
    found = [exit_codes.HUNG if code is None else code for code in codes]
    if not found:
        raise errors.UserError("A run of no processes has no exit code.")
    known = (exit_codes.DONE, exit_codes.DIVERGED, *RETRYABLE)
    for code in found:
        if code not in known:
            return code
    for code in (exit_codes.DIVERGED, *RETRYABLE):
        if code in found:
            return code
    return exit_codes.DONE


def of_returncode(returncode: int) -> int:
    """A shell's exit code from Python's: death by signal n is -n there, 128 + n here."""
    return 128 - returncode if returncode < 0 else returncode


def read(directory: pathlib.Path, num_processes: int) -> list[int | None]:
    """The codes in files 0, 1, … of a directory, None for each one that is not there."""
    paths = [directory / str(process) for process in range(num_processes)]
    return [int(path.read_text()) if path.exists() else None for path in paths]


if __name__ == "__main__":
    print(combine_exit_codes(read(pathlib.Path(sys.argv[1]), int(sys.argv[2]))))
