"""How a verb starts and ends: flags in, an exit code out, mistakes in one paragraph."""

import collections.abc
import dis
import sys
import traceback

from absl import app, flags, logging

from keel_jax.runtime import exit_codes, platforms


def run(main: collections.abc.Callable[[list[str]], int | None]) -> None:
    """Parses the flags, runs `main`, exits with its code; a mistake of the user's is told plainly.

    A ValueError raised by our own code and an OSError (a full disk, a missing file) are the
    user's to mend: one message, no traceback. Anything else is ours, a ValueError from within a
    library too, and keeps its traceback. Either exits with `ERROR`.
    """
    # Orbax narrates every save at INFO; --verbosity=0 brings it back.
    logging.set_verbosity(logging.WARNING)
    platforms.choose()
    app.run(lambda argv: sys.exit(_guarded(main, argv)), flags_parser=_parse)


def _guarded(main, argv) -> int:
    try:
        if len(argv) > 1:
            raise ValueError(
                f"Unexpected argument {argv[1]!r}: options are written --name=value, and a glob "
                "in quotes."
            )
        return main(argv) or exit_codes.DONE
    except (ValueError, OSError) as error:
        tell(error)
        return exit_codes.ERROR


def tell(error: Exception) -> None:
    """A mistake of the user's in one paragraph, anything else with its traceback."""
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_ours(error)):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def _is_ours(error: ValueError) -> bool:
    """Whether a `raise` in the project's own code made it, not something that code called."""
    traceback_ = error.__traceback__
    while traceback_.tb_next is not None:
        traceback_ = traceback_.tb_next
    frame = traceback_.tb_frame
    name = frame.f_globals.get("__name__", "")
    by_raise = frame.f_code.co_code[traceback_.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    ours = name == "__main__" or name.split(".")[0] in ("keel_jax", "experiments", "launch")
    return ours and by_raise


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises AttributeError with the nearest key's name in its second line.
        message = " ".join(str(error).replace("\\n", "\n").strip("'\"").splitlines())
        print(f"error: {message}\nSee --help.", file=sys.stderr)
        sys.exit(exit_codes.ERROR)
