"""How a verb starts and ends: flags in, an exit code out, mistakes in one paragraph."""

import collections.abc
import sys

import jax
from absl import app, flags, logging

from keel_jax.runtime import exit_codes


def run(main: collections.abc.Callable[[list[str]], int | None]) -> None:
    """Parses the flags, runs `main`, exits with its code; a mistake of the user's is told plainly.

    ValueError and OSError are the user's mistakes (a wrong option, a full disk): one message, no
    traceback. Anything else is ours and keeps its traceback. Either exits with `ERROR`.
    """
    # Orbax narrates every save at INFO; --verbosity=0 brings it back.
    logging.set_verbosity(logging.WARNING)
    app.run(lambda argv: sys.exit(_guarded(main, argv)), flags_parser=_parse)


def _guarded(main, argv) -> int:
    try:
        _no_arguments_left(argv)
        return main(argv) or exit_codes.DONE
    except (ValueError, OSError) as error:
        if isinstance(error, jax.errors.JAXTypeError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.ERROR


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises AttributeError with the nearest key's name in its second line.
        message = " ".join(str(error).replace("\\n", "\n").strip("'").splitlines())
        print(f"error: {message}\nSee --help.", file=sys.stderr)
        sys.exit(exit_codes.ERROR)


def _no_arguments_left(argv):
    if len(argv) > 1:
        raise ValueError(f"Unexpected argument {argv[1]!r}: options are written --name=value.")
