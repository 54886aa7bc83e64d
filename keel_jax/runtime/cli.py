"""How an entry point starts and ends: parses flags, reports errors, returns an exit code."""

import collections.abc
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
    and keeps its traceback. Both exit with `ERROR`.
    """
    # Orbax logs every save at INFO; --verbosity=0 shows these messages.
    logging.set_verbosity(logging.WARNING)
    # In a thread as well: TensorBoard's writes events, and disks are full there, too.
    threading.excepthook = _in_thread
    platforms.choose()
    app.run(lambda argv: _exit(_guarded(main, argv)), flags_parser=_parse)


def define_config() -> flags.FlagHolder:
    """The flag --config=FILE, required, whose options --config.a.b=value changes."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config() (see experiments/configs).", lock_config=True
    )
    flags.mark_flag_as_required("config")
    return holder


def _guarded(main, argv) -> int:
    try:
        if len(argv) > 1:
            raise errors.UserError(
                f"Unexpected argument {argv[1]!r}: options are written --name=value, and a glob "
                "in quotes."
            )
        return main(argv) or exit_codes.DONE
    except (ValueError, OSError) as error:
        print_error(error)
        return exit_codes.ERROR


def print_error(error: Exception) -> None:
    """Prints a mistake of the user in one paragraph, any other error with its traceback."""
    if isinstance(error, (errors.UserError, OSError)):
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


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises AttributeError with the nearest key's name in its second line.
        message = " ".join(str(error).replace("\\n", "\n").strip("'\"").splitlines())
        message = _renamed(argv) or message
        print(f"error: {message}\nSee --help.", file=sys.stderr)
        sys.exit(exit_codes.ERROR)


def _renamed(argv: collections.abc.Sequence[str]) -> str | None:
    """The message for the first flag that uses an option's old name, if any."""
    for name in (m[1] for arg in argv if (m := re.match(r"--config\.([\w.]+)", arg))):
        if new := renamed.option(name):
            return f"--config.{name} is called --config.{new} now."
    return None
