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

from keel_jax import errors

Command = collections.abc.Sequence[str]

# A command that was told to end gets this long before it is killed.
_END_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (124 if it ran out of time) and what it said."""

    command: tuple[str, ...]
    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def last_words(self) -> str:
        """The end of its output, for a message."""
        text = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return "\n".join(text[-8:]) or "(no output)"


class CommandFailed(OSError):
    """A command ended with another code than 0."""

    def __init__(self, result: Result):
        super().__init__(
            f"`{shlex.join(result.command)}` ended with {result.code}:\n{result.last_words}"
        )
        self.result = result


class Runner:
    """Runs commands, each with a bound on its time; or, with `dry_run`, prints them and runs none.

    What is printed can be pasted into a shell. Children do not see the terminal's Ctrl-C: the
    launcher does, and ends them.
    """

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run

    def run(self, command: Command, *, seconds: float, stdin: str | None = None) -> Result:
        """Runs a command to its good end.

        Raises:
          CommandFailed: it ended with another code than 0, or not within `seconds`.
        """
        result = self.ask(command, seconds=seconds, stdin=stdin)
        if result.code != 0:
            raise CommandFailed(result)
        return result

    def run_all(self, commands: collections.abc.Iterable[Command], *, seconds: float):
        """`run` for commands that run side by side; raises for the first that failed."""
        results = self.ask_all(commands, seconds=seconds)
        for result in results:
            if result.code != 0:
                raise CommandFailed(result)
        return results

    def ask(
        self,
        command: Command,
        *,
        seconds: float,
        stdin: str | None = None,
        dry_run_answer: str = "",
    ) -> Result:
        """Runs a command whose failure is an answer too. `dry_run_answer` is its output then."""
        if self.dry_run:
            self.show(command, stdin)
            return Result(tuple(command), 0, dry_run_answer)
        return self._run_all([command], seconds, stdin)[0]

    def ask_all(
        self,
        commands: collections.abc.Iterable[Command],
        *,
        seconds: float,
        dry_run_answer: str = "",
    ) -> list[Result]:
        """`ask` for commands that run side by side."""
        if self.dry_run:
            return [
                self.ask(command, seconds=seconds, dry_run_answer=dry_run_answer)
                for command in commands
            ]
        return self._run_all(list(commands), seconds)

    def show(self, command: Command, stdin: str | None = None):
        """Prints a command so that it can be pasted."""
        line = shlex.join(command)
        if stdin is not None:
            line += f" <<'END'\n{stdin.rstrip()}\nEND"
        print(line, file=sys.stdout if self.dry_run else sys.stderr, flush=True)

    def say(self, text: str):
        """Tells the user something; a comment in what a dry run prints."""
        prefix, file = ("# ", sys.stdout) if self.dry_run else ("launch: ", sys.stderr)
        print("\n".join(prefix + line for line in text.splitlines()), file=file, flush=True)

    def write(self, path: pathlib.Path, text: str):
        """Writes a file; in a dry run prints the command that would."""
        if self.dry_run:
            self.show(["mkdir", "-p", str(path.parent)])
            print(f"cat >{shlex.quote(str(path))} <<'END'\n{text.rstrip()}\nEND", flush=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def sleep(self, seconds: float):
        """Waits; a dry run does not."""
        if not self.dry_run:
            time.sleep(seconds)

    def _run_all(self, commands, seconds, stdin=None) -> list[Result]:
        deadline = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            children = []
            for command in commands:
                self.show(command, stdin)
                children.append(stack.enter_context(_child(command, stdin)))
            return [child.wait(deadline) for child in children]


class _Child:
    """A command that runs, its output in files: nothing fills a pipe that no one reads."""

    def __init__(self, command, process, stdout, stderr):
        self._command, self._process = command, process
        self._stdout, self._stderr = stdout, stderr

    def wait(self, deadline: float) -> Result:
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
            late = ""
        except subprocess.TimeoutExpired:
            end_group(self._process, _END_SECONDS)
            code, late = 124, "\nIt ran out of time and was ended."
        self._stdout.seek(0)
        self._stderr.seek(0)
        code = 128 - code if code < 0 else code
        return Result(tuple(self._command), code, self._stdout.read(), self._stderr.read() + late)


@contextlib.contextmanager
def _child(command, stdin):
    with contextlib.ExitStack() as files:
        stdout, stderr, given = (
            files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(3)
        )
        given.write(stdin or "")
        given.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=given, stdout=stdout, stderr=stderr, start_new_session=True
            )
        except FileNotFoundError:
            raise errors.UserError(
                f"There is no program {command[0]!r} here: install it, or see --dry_run."
            ) from None
        try:
            yield _Child(command, process, stdout, stderr)
        finally:
            end_group(process, _END_SECONDS)


def end_group(process: subprocess.Popen, seconds: float):
    """Ends a process that leads its group, and all in it: politely, after `seconds` by force."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    # Its children too, also if it has ended by itself.
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
