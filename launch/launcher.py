"""How a launcher starts and ends: its options, Ctrl-C, mistakes in one paragraph, an exit code.

Exit codes: the run's own (0 done, 3 diverged, …; keel_jax/runtime/exit_codes.py), 1 error, 4 the
plan does not fit, 5 a paid machine may have been left running (its name and the command that
deletes it are printed last), 130 stopped by Ctrl-C.
"""

import argparse
import collections.abc
import contextlib
import difflib
import pathlib
import re
import signal
import sys
import time

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import runner as runner_lib

LEFT_RUNNING = 5
INTERRUPTED = 130


class LeftRunning(Exception):
    """A paid machine could not be deleted."""


class _Parser(argparse.ArgumentParser):
    """Refuses unknown flags with the nearest name; `--dry-run` and `--dry_run` are one."""

    def parse(self, argv: collections.abc.Sequence[str]) -> argparse.Namespace:
        overrides = [arg for arg in argv if arg.startswith("--config.")]
        mine = [_underscored(arg) for arg in argv if not arg.startswith("--config.")]
        args, unknown = self.parse_known_args(mine)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1, cutoff=0)
            self.error(f"unknown argument {unknown[0]!r}: did you mean {near[0]}?")
        args.overrides = overrides
        return args

    def error(self, message):
        self.exit(exit_codes.ERROR, f"error: {message}\nSee --help.\n")


def _underscored(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def parser(description: str) -> _Parser:
    """A parser with the options that all launchers share."""
    made = _Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = made.add_argument_group(
        "the run", "Any option of the config can be changed: --config.model.num_blocks=256."
    )
    run.add_argument("--config", required=True, help="config file, from the project's root")
    run.add_argument("--workdir", required=True, help="directory of the run")
    how = made.add_argument_group("the launch")
    how.add_argument("--dry_run", action="store_true", help="print every command, run none")
    how.add_argument("--no_plan", action="store_true", help="do not check first that it fits")
    return made


def add_source(made: argparse.ArgumentParser, extras: str):
    """Options of what is created and of its source; this platform installs setup.py's `extras`."""
    made.add_argument("--name", type=_name, help="of what is created (default: config and time)")
    made.add_argument(
        "--run_dir", type=pathlib.Path, help="what the launch writes here (runs/launch/NAME)"
    )
    group = made.add_argument_group("the source", "Workers get the commit that is checked out.")
    group.add_argument(
        "--allow_dirty",
        action="store_true",
        help="take changes of tracked files along that are not committed",
    )
    group.add_argument(
        "--constraints",
        type=pathlib.Path,
        help="versions of packages (default: those of this Python's environment)",
    )
    group.add_argument("--extras", default=extras, help=f"of setup.py (default: {extras})")


def add_tpus(made: argparse.ArgumentParser):
    """Options of slices."""
    group = made.add_argument_group("the machines")
    group.add_argument("--topology", required=True, help="of a slice, as in v5e:4x4")
    group.add_argument("--num_slices", type=positive, default=1, help="(default: 1)")
    group.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    group.add_argument(
        "--wait_minutes",
        type=positive_float,
        default=60.0,
        help="for the machines at most; then the request is deleted (default: 60)",
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def not_negative(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive_float(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _name(text: str) -> str:
    # The narrowest of gcloud's, Kubernetes' and xpk's rules; JobSet appends to it.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name has lower-case letters, digits and -, begins with a letter, and is "
            "40 characters long at most"
        )
    return text


def main(
    made: argparse.ArgumentParser,
    launch: collections.abc.Callable[[runner_lib.Runner, argparse.Namespace], int],
):
    """Parses the command line, launches, exits."""
    args = made.parse(sys.argv[1:])
    if "name" in args:  # something is created
        stem = re.sub("[^a-z0-9]+", "-", pathlib.Path(args.config).stem.lower()).strip("-")
        args.name = args.name or f"keel-{stem[:20]}-{time.strftime('%m%d-%H%M%S')}"
        args.run_dir = args.run_dir or pathlib.Path("runs/launch") / args.name
    sys.exit(_guarded(launch, runner_lib.Runner(args.dry_run), args))


def _guarded(launch, runner, args) -> int:
    try:
        # All polite ways to be ended are Ctrl-C: what was created is deleted on the way out.
        with _handled(_interrupt):
            return launch(runner, args)
    except LeftRunning as error:
        line = "!" * 80
        print(f"{line}\n{error}\n{line}", file=sys.stderr)
        return LEFT_RUNNING
    except (errors.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number, frame):
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handler):
    """Gives the polite signals this handler; one that is ignored, as by nohup, stays ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.getsignal(number) for number in numbers}
    heard = {number: old for number, old in previous.items() if old is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in heard.items():
            signal.signal(number, old)


def ignore_interrupts(
    say: collections.abc.Callable[[], None],
) -> contextlib.AbstractContextManager[None]:
    """In here Ctrl-C is answered with words only: for what must not be left half-done."""
    return _handled(lambda number, frame: say())


def finish_despite_interrupts(end: collections.abc.Callable[[], None]):
    """Calls `end`, which ignores interrupts; again if Ctrl-C came just before it did."""
    while True:
        try:
            return end()
        except KeyboardInterrupt:
            continue
