"""How an entry point starts and ends: parses flags, reports errors, returns an exit code."""

import ast
import collections.abc
import io
import logging as standard_logging
import math
import pathlib
import re
import signal
import sys
import threading
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from keel_jax import errors
from keel_jax.config import renamed
from keel_jax.runtime import exit_codes, platforms, watchdog


def run(main: collections.abc.Callable[[list[str]], int | None]) -> None:
    """Parses the flags, runs `main`, and exits with its code.

    A `UserError` or an OSError (a full disk, a missing file) is for the user to correct: one
    message, no traceback. Any other exception, including a ValueError raised by a library, is a bug
    and keeps its traceback. Both exit with `ERROR`. A `CorruptionError` is one message, too, and
    exits with `CORRUPTED`.
    """
    _print_any_text()
    # Orbax logs every save at INFO; --verbosity=0 shows these messages.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_is_reported_here_only)
    # In a thread as well: TensorBoard's writes events, and disks are full there, too.
    threading.excepthook = _in_thread
    sys.unraisablehook = _in_callback
    platforms.choose()
    app.run(lambda argv: _exit(_guarded(main, argv)), flags_parser=_parse)


def define_config() -> flags.FlagHolder:
    """The flag --config=FILE, required, whose options --config.a.b=value changes."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config() (see experiments/configs).", lock_config=True
    )
    flags.mark_flag_as_required("config")
    return holder


def define_step() -> flags.FlagHolder:
    """The flag --step, which chooses a checkpoint: an int, "best", or None (the newest)."""
    return flags.DEFINE(
        _StepParser(),
        "step",
        None,
        "Checkpoint to read: its step, or best, the one with the lowest validation loss; default: "
        "the newest.",
        flags.FLAGS,
        flags.ArgumentSerializer(),
    )


class _StepParser(flags.ArgumentParser):
    """Parses `define_step`'s values."""

    syntactic_help = "a step, or best"
    _steps = flags.IntegerParser(lower_bound=0)

    def parse(self, argument: str | int) -> str | int:
        return argument if argument == "best" else self._steps.parse(argument)

    def flag_type(self) -> str:
        return "step"


def _print_any_text() -> None:
    """Lets stdout print every string: what its encoding lacks (ASCII, as under LC_ALL=C, or a name
    that is not UTF-8) is written as an escape, as stderr does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _guarded(main, argv) -> int:
    try:
        if len(argv) > 1:
            raise errors.UserError(
                f"Unexpected argument {argv[1]!r}: options are written --name=value, and a glob "
                "in quotes."
            )
        return main(argv) or exit_codes.DONE
    except (ValueError, OSError, errors.CorruptionError) as error:
        print_error(error)
        return exit_code(error)


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ends with this error."""
    if isinstance(error, errors.CorruptionError):
        return exit_codes.CORRUPTED
    return exit_codes.ERROR


def print_error(error: Exception) -> None:
    """Prints an error that says all in one paragraph, any other one with its traceback."""
    if isinstance(error, (errors.UserError, errors.CorruptionError, OSError)):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def _exit(exit_code: int) -> NoReturn:
    """Exits; a signal while the interpreter cleans up does not change the code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: watchdog.leave(exit_code))
    sys.exit(exit_code)


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    if isinstance(failed.exc_value, Exception):
        print_error(failed.exc_value)


def _in_callback(failed: "sys.UnraisableHookArgs") -> None:
    """Where an error cannot be raised, as in a callback of a library that is not Python's.

    The storage library tells an event loop the end of each write; after one has failed, the loop of
    the others is closed, which is no news.
    """
    error = failed.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(failed)


def _is_reported_here_only(record: standard_logging.LogRecord) -> bool:
    """Whether nobody but this record tells of an error.

    Orbax logs an exception of a background write in each of its layers, with its traceback, and
    then raises it: `training.checkpoint` reports it once. Nothing else uses asyncio, which logs the
    further writes of the same save that failed.
    """
    is_of_orbax = "orbax" in pathlib.Path(record.pathname).parts or record.name == "asyncio"
    return not (is_of_orbax and record.exc_info) or logging.get_verbosity() >= logging.INFO


def _parse(argv):
    file = _config_file(argv)
    try:
        # ml_collections would report a missing file only where the config is first read.
        if file is not None and not file.is_file():
            raise errors.UserError(
                f"There is no config file {file}: --config names a Python file with get_config()."
            )
        rest = flags.FLAGS(argv)
        _check_finite()
        return rest
    except Exception as error:
        message = _renamed(argv) or _config_file_error(file, error) or _flag_error(error)
        if message is None:
            raise
        print(f"error: {message}\nSee --help.", file=sys.stderr)
        sys.exit(exit_codes.ERROR)


def _check_finite() -> None:
    """Refuses inf and nan, which absl's flags accept and none of ours means."""
    for name, value in flags.FLAGS.flag_values_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise errors.UserError(f"--{name}={value} must be a finite number.")


def _renamed(argv: collections.abc.Sequence[str]) -> str | None:
    """The message for the first flag that uses an option's old name, if any."""
    for name in (m[1] for arg in argv if (m := re.match(r"--config\.([\w.]+)", arg))):
        if new := renamed.option(name):
            return f"--config.{name} is called --config.{new} now."
    return None


def _config_file_error(file: pathlib.Path | None, error: Exception) -> str | None:
    """The message for an error in the code of a config file; None: the error is another one."""
    if file is None:
        return None
    reason = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    if isinstance(error, SyntaxError) and error.filename and _is_same(error.filename, file):
        return f"The config file {file} is not Python, line {error.lineno}: {reason}."
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if _is_same(frame.filename, file)
    ]
    if lines:
        return f"The config file {file} fails in line {lines[-1]}: {reason}."
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return f"The config file {file} has no function get_config(), which makes the config."
    return None


def _config_file(argv: collections.abc.Sequence[str]) -> pathlib.Path | None:
    """The file that --config names, without the argument that may follow it after a colon."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(=(.*))?", arg, re.DOTALL):
            value = match[2] if match[1] else following
            return pathlib.Path(value.partition(":")[0])
    return None


def _is_same(name: str, file: pathlib.Path) -> bool:
    return pathlib.Path(name).resolve() == file.resolve()


def _flag_error(error: Exception) -> str | None:
    """The message for a flag that is unknown or has a bad value; None: it is another error."""
    if not isinstance(
        error, (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)
    ):
        return None
    if isinstance(error, flags.IllegalFlagValueError):
        for name, value in re.findall(r"--(config\.[\w.]+)=(.*?): ", str(error)):
            if value == "None":
                return (
                    f"--{name}=None: this option has no None; leave the flag out for the option's "
                    "default."
                )
    # ml_collections raises AttributeError with the nearest key's name in its second line; a
    # KeyError's text is the message as a literal, quotes and all.
    text = str(error)
    while len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            text = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            break
    return " ".join(text.splitlines())
