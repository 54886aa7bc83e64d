"""Child processes of a launcher: started, waited for a bounded time, ended with their children."""

import collections.abc
import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
import time
from typing import IO

from keel_jax import errors

Command = collections.abc.Sequence[str]

# The exit code of a command that exceeded its time limit, the same as timeout(1)'s.
TIMED_OUT = 124
# Between SIGTERM and SIGKILL.
_TERMINATION_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (`TIMED_OUT` if it took too long) and its output."""

    command: tuple[str, ...]
    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def output_tail(self) -> str:
        """The end of its output, for a message."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return "\n".join(lines[-8:]) or "(no output)"


class Child:
    """A running command, its output in files: a pipe that nobody reads would fill up."""

    def __init__(
        self,
        command: Command,
        process: subprocess.Popen[bytes],
        stdout: IO[str],
        stderr: IO[str],
    ):
        self._command, self._process = command, process
        self._stdout, self._stderr = stdout, stderr

    def wait(self, deadline: float) -> Result:
        """Waits for its end; terminates it at `deadline`, in time.monotonic's seconds."""
        note = ""
        try:
            code = shell_exit_code(self._process.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            end_process_group(self._process, _TERMINATION_SECONDS)
            code, note = TIMED_OUT, "\nIt exceeded its time limit and was terminated."
        self._stdout.seek(0)
        self._stderr.seek(0)
        return Result(tuple(self._command), code, self._stdout.read(), self._stderr.read() + note)


@contextlib.contextmanager
def start(command: Command, stdin: str | None) -> collections.abc.Iterator[Child]:
    """Starts a command, which does not outlive the `with` block.

    Raises:
      UserError: there is no such program.
    """
    with contextlib.ExitStack() as files:
        stdout, stderr, input_file = (
            files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(3)
        )
        input_file.write(stdin or "")
        input_file.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=input_file, stdout=stdout, stderr=stderr, start_new_session=True
            )
        except FileNotFoundError:
            raise errors.UserError(
                f"There is no program {command[0]!r} on this machine: install it, or use --dry_run "
                "to see the commands."
            ) from None
        try:
            yield Child(command, process, stdout, stderr)
        finally:
            end_process_group(process, _TERMINATION_SECONDS)


def shell_exit_code(returncode: int) -> int:
    """A shell's exit code from Python's: death by signal n is -n in Python, 128 + n in a shell."""
    return 128 - returncode if returncode < 0 else returncode


def end_process_group(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends a process that leads its group, and the group: SIGTERM, after `seconds` SIGKILL."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    # Its children too, even if it has ended by itself.
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
