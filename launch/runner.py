"""Runs the launchers' commands, or only prints them: every command goes through here."""

import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO

from keel_jax import errors

Command = collections.abc.Sequence[str]

# The exit code of a command that exceeded its time limit, as timeout(1) has it.
TIMED_OUT = 124
# From SIGTERM to a command until SIGKILL.
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


class CommandFailed(OSError):
    """A command ended with a code other than 0."""

    def __init__(self, result: Result):
        super().__init__(
            f"`{shlex.join(result.command)}` ended with {result.code}:\n{result.output_tail}"
        )
        self.result = result


class Runner:
    """Runs commands, each with a bound on its time; or, with `dry_run`, prints them and runs none.

    What is printed can be pasted into a shell. The terminal's Ctrl-C does not reach the commands:
    the launcher gets it, and terminates them.
    """

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run

    def run(self, command: Command, *, seconds: float, stdin: str | None = None) -> Result:
        """Runs a command that has to succeed.

        Raises:
          CommandFailed: it ended with a code other than 0, or did not end within `seconds`.
        """
        result = self.try_run(command, seconds=seconds, stdin=stdin)
        if result.code != 0:
            raise CommandFailed(result)
        return result

    def run_all(
        self, commands: collections.abc.Iterable[Command], *, seconds: float
    ) -> list[Result]:
        """`run` for several commands at the same time; raises for the first that failed."""
        results = self.try_run_all(commands, seconds=seconds)
        for result in results:
            if result.code != 0:
                raise CommandFailed(result)
        return results

    def try_run(
        self,
        command: Command,
        *,
        seconds: float,
        stdin: str | None = None,
        dry_run_stdout: str = "",
    ) -> Result:
        """Runs a command that may fail. In a dry run it succeeds, with `dry_run_stdout`."""
        if self.dry_run:
            self.show(command, stdin)
            return Result(tuple(command), 0, dry_run_stdout)
        return _run_all([command], seconds, stdin, self.show)[0]

    def try_run_all(
        self, commands: collections.abc.Iterable[Command], *, seconds: float
    ) -> list[Result]:
        """`try_run` for several commands at the same time."""
        if self.dry_run:
            return [self.try_run(command, seconds=seconds) for command in commands]
        return _run_all(list(commands), seconds, None, self.show)

    def show(self, command: Command, stdin: str | None = None) -> None:
        """Prints a command so that it can be pasted."""
        line = shlex.join(command)
        if stdin is not None:
            line += f" <<'END'\n{stdin.rstrip()}\nEND"
        print(line, file=sys.stdout if self.dry_run else sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a message for the user; in a dry run as a comment between the commands."""
        prefix, file = ("# ", sys.stdout) if self.dry_run else ("launch: ", sys.stderr)
        print("\n".join(prefix + line for line in text.splitlines()), file=file, flush=True)

    def write(self, path: pathlib.Path, text: str) -> None:
        """Writes a file; in a dry run prints the command that would."""
        if self.dry_run:
            self.show(["mkdir", "-p", str(path.parent)])
            print(f"cat >{shlex.quote(str(path))} <<'END'\n{text.rstrip()}\nEND", flush=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def sleep(self, seconds: float) -> None:
        """Waits; a dry run does not."""
        if not self.dry_run:
            time.sleep(seconds)


# --- Processes ----------------------------------------------------------------------------------


def _run_all(
    commands: collections.abc.Sequence[Command],
    seconds: float,
    stdin: str | None,
    show: collections.abc.Callable[[Command, str | None], None],
) -> list[Result]:
    """Runs commands at the same time; none outlives this call, whatever ends it."""
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        children = []
        for command in commands:
            show(command, stdin)
            children.append(stack.enter_context(_child(command, stdin)))
        return [child.wait(deadline) for child in children]


class _Child:
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
def _child(command: Command, stdin: str | None) -> collections.abc.Iterator[_Child]:
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
            yield _Child(command, process, stdout, stderr)
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
