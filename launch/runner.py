"""Runs the launchers' commands, or only prints them: every command goes through here."""

import collections.abc
import contextlib
import pathlib
import shlex
import sys
import time

from launch import child_processes


class CommandFailed(OSError):
    """A command ended with a code other than 0."""

    def __init__(self, result: child_processes.Result):
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

    def run(
        self, command: child_processes.Command, *, seconds: float, stdin: str | None = None
    ) -> child_processes.Result:
        """Runs a command that has to succeed.

        Raises:
          CommandFailed: it ended with a code other than 0, or did not end within `seconds`.
        """
        result = self.try_run(command, seconds=seconds, stdin=stdin)
        if result.code != 0:
            raise CommandFailed(result)
        return result

    def run_all(
        self, commands: collections.abc.Iterable[child_processes.Command], *, seconds: float
    ) -> list[child_processes.Result]:
        """`run` for several commands at the same time; raises for the first that failed."""
        results = self.try_run_all(commands, seconds=seconds)
        for result in results:
            if result.code != 0:
                raise CommandFailed(result)
        return results

    def try_run(
        self,
        command: child_processes.Command,
        *,
        seconds: float,
        stdin: str | None = None,
        dry_run_stdout: str = "",
    ) -> child_processes.Result:
        """Runs a command that may fail. In a dry run it succeeds, with `dry_run_stdout`."""
        if self.dry_run:
            self.show(command, stdin)
            return child_processes.Result(tuple(command), 0, dry_run_stdout)
        return self._run_all([command], seconds, stdin)[0]

    def try_run_all(
        self, commands: collections.abc.Iterable[child_processes.Command], *, seconds: float
    ) -> list[child_processes.Result]:
        """`try_run` for several commands at the same time."""
        if self.dry_run:
            return [self.try_run(command, seconds=seconds) for command in commands]
        return self._run_all(commands, seconds)

    def show(self, command: child_processes.Command, stdin: str | None = None) -> None:
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

    def _run_all(
        self,
        commands: collections.abc.Iterable[child_processes.Command],
        seconds: float,
        stdin: str | None = None,
    ) -> list[child_processes.Result]:
        """Runs commands at the same time; none outlives this call, whatever ends it."""
        deadline = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            children = []
            for command in commands:
                self.show(command, stdin)
                children.append(stack.enter_context(child_processes.start(command, stdin)))
            return [child.wait(deadline) for child in children]
