"""How a launcher begins and ends: options in, an exit code out, Ctrl-C, mistakes in one paragraph.

Exit codes (keel_jax/runtime/exit_codes.py): the run's own, or ERROR; DOES_NOT_FIT if the plan says
so; LEFT_RUNNING if a paid machine may still be running (its name and the command that deletes it
are printed last); INTERRUPTED if Ctrl-C stopped the launcher.
"""

import argparse
import collections.abc
import contextlib
import pathlib
import re
import signal
import sys
import time
import types
from typing import NoReturn

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import options
from launch import runner as runner_lib

Launch = collections.abc.Callable[[runner_lib.Runner, argparse.Namespace], int]
_Handler = collections.abc.Callable[[int, types.FrameType | None], object]


class LeftRunning(Exception):
    """A paid machine could not be deleted."""


def main(parser: options.Parser, launch: Launch) -> NoReturn:
    """Parses the command line, launches, exits."""
    args = parser.parse(sys.argv[1:])
    if "name" in args:  # options.add_source_options: the launcher creates something
        stem = re.sub("[^a-z0-9]+", "-", pathlib.Path(args.config).stem.lower()).strip("-")
        args.name = args.name or f"keel-{stem[:20]}-{time.strftime('%m%d-%H%M%S')}"
        args.run_dir = args.run_dir or pathlib.Path("runs/launch") / args.name
    sys.exit(_exit_code(launch, runner_lib.Runner(args.dry_run), args))


def _exit_code(launch: Launch, runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    try:
        # SIGTERM and SIGHUP are handled like Ctrl-C: what was created is deleted on the way out.
        with _signals_handled_by(_raise_keyboard_interrupt):
            return launch(runner, args)
    except LeftRunning as error:
        line = "!" * 80
        print(f"{line}\n{error}\n{line}", file=sys.stderr)
        return exit_codes.LEFT_RUNNING
    except (errors.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return exit_codes.INTERRUPTED


def _raise_keyboard_interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_handled_by(handler: _Handler) -> collections.abc.Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP get this handler; one that is ignored, as by nohup, stays so."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.getsignal(number) for number in numbers}
    replaced = {number: old for number, old in previous.items() if old is not signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in replaced.items():
            signal.signal(number, old)


def ignore_interrupts(
    on_interrupt: collections.abc.Callable[[], None],
) -> contextlib.AbstractContextManager[None]:
    """A scope in which Ctrl-C only calls `on_interrupt`: for what must not be left half-done."""
    return _signals_handled_by(lambda number, frame: on_interrupt())


def finish_despite_interrupts(end: collections.abc.Callable[[], None]) -> None:
    """Calls `end`, which ignores interrupts itself, again if Ctrl-C came just before it did so."""
    while True:
        try:
            return end()
        except KeyboardInterrupt:
            continue
