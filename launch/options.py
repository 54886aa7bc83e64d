"""The command-line options that launchers share."""

import argparse
import collections.abc
import difflib
import math
import pathlib
import re
from typing import NoReturn

from keel_jax import errors
from keel_jax.runtime import exit_codes


class Parser(argparse.ArgumentParser):
    """Refuses unknown flags with the nearest name; `--dry-run` and `--dry_run` are the same flag.

    The config's options, `--config.…`, are not parsed: they become `args.overrides`.
    """

    def parse(self, argv: collections.abc.Sequence[str]) -> argparse.Namespace:
        """The parsed flags; prints a message and exits on a mistake."""
        overrides = [arg for arg in argv if arg.startswith("--config.")]
        flags = [_with_underscores(arg) for arg in argv if not arg.startswith("--config.")]
        args, unknown = self.parse_known_args(flags)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1, cutoff=0)
            self.error(f"unknown argument {unknown[0]!r}: did you mean {near[0]}?")
        args.overrides = overrides
        return args

    def error(self, message: str) -> NoReturn:
        self.exit(exit_codes.ERROR, f"error: {message}\nSee --help.\n")


def _with_underscores(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


# --- Groups of options --------------------------------------------------------------------------


def make_parser(description: str | None) -> Parser:
    """A parser with the options that all launchers have."""
    parser = Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_argument_group(
        "the run", "Any option of the config can be changed: --config.model.num_blocks=256."
    )
    run.add_argument("--config", required=True, help="config file, from the project's root")
    run.add_argument("--workdir", required=True, help="directory of the run")
    launch = parser.add_argument_group("the launch")
    launch.add_argument("--dry_run", action="store_true", help="print every command, run none")
    launch.add_argument("--no_plan", action="store_true", help="do not check first that it fits")
    return parser


def add_source_options(parser: Parser, extras: str) -> None:
    """Options of what is created and of its source; this platform installs setup.py's `extras`."""
    parser.add_argument(
        "--name", type=_name, help="name of what is created (default: from the config and the time)"
    )
    parser.add_argument(
        "--run_dir", type=pathlib.Path, help="what the launch writes here (runs/launch/NAME)"
    )
    group = parser.add_argument_group("the source", "Workers get the commit that is checked out.")
    group.add_argument(
        "--allow_dirty",
        action="store_true",
        help="include uncommitted changes of tracked files",
    )
    group.add_argument(
        "--constraints",
        type=pathlib.Path,
        help="versions of packages (default: those of this Python's environment)",
    )
    group.add_argument("--extras", default=extras, help=f"of setup.py (default: {extras})")


def add_slice_options(parser: Parser) -> None:
    """Options of TPU slices."""
    group = parser.add_argument_group("the machines")
    group.add_argument("--topology", required=True, help="of a slice, as in v5e:4x4")
    group.add_argument("--num_slices", type=positive_int, default=1, help="(default: 1)")
    group.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    group.add_argument(
        "--wait_minutes",
        type=positive_float,
        default=60.0,
        help="for the machines at most; then the request is deleted (default: 60)",
    )


def add_extra_flag_option(
    group: argparse._ArgumentGroup, name: str, command: str, example: str
) -> None:
    """An option that may be repeated; each value is one more flag for `command`."""
    group.add_argument(
        name,
        action="append",
        default=[],
        metavar="FLAG",
        help=f"one more flag for {command}, as in {name}={example}",
    )


# --- Types of values ----------------------------------------------------------------------------


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def non_negative_int(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive, finite number")
    return number


def _name(text: str) -> str:
    # The narrowest of gcloud's, Kubernetes' and xpk's rules; JobSet appends to it.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name consists of lower-case letters, digits and -, begins with a letter, "
            "does not end with -, and has at most 40 characters"
        )
    return text


# --- What the options mean ----------------------------------------------------------------------


def require_absolute_workdir(args: argparse.Namespace, reason: str) -> None:
    """Refuses a relative --workdir; `reason` completes the sentence that begins with the flag.

    Raises:
      UserError: --workdir is neither a gs:// directory nor an absolute path.
    """
    if not args.workdir.startswith(("gs://", "/")):
        raise errors.UserError(f"--workdir={args.workdir} {reason}")


def train_arguments(args: argparse.Namespace) -> list[str]:
    """Python's arguments on a worker: the driver's module and the run's options."""
    run = [f"--config={args.config}", f"--workdir={args.workdir}", *args.overrides]
    return ["-m", "keel_jax.train", *run]
