"""Files that are only logs: one that cannot be written or read is named once, and stops nothing."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

from etils import epath

from keel_jax import errors
from keel_jax.runtime import files

# What is set aside gets this suffix, and a number if there is one already.
DAMAGED = ".damaged"


@functools.cache  # once per process
def warn(message: str) -> None:
    """Prints a warning on standard error, the same one only once."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


@functools.cache
def _warn_unwritten(path: str, reason: str) -> None:
    warn(f"{path} cannot be written ({reason}): it is only a log, and the run goes on.")


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Within it a log is written: an OSError becomes one warning that names `path`."""
    try:
        yield
    except OSError as error:
        _warn_unwritten(str(path), error.strerror or str(error))


def read_object(path: epath.PathLike) -> dict:
    """The object in a JSON file that is only a log; {} if there is none or, named once, a bad one.

    A JSON value of another kind counts as damage.
    """
    try:
        return _read(path) or {}
    except (errors.UserError, OSError) as error:
        warn(f"{_one_line(error)} It is only a log: its content is left out.")
        return {}


def keep_damaged(path: epath.PathLike, read: Callable | None = None) -> None:
    """Renames a log that cannot be read, so that nothing writes over it.

    Args:
      read: raises a UserError if the file at its argument is damaged; default: a JSON object.
    """
    path = epath.Path(path)
    try:
        (read or _read)(path)
    except (errors.UserError, OSError) as error:
        with writing(path):
            aside = _free_name(path)
            path.rename(aside)
            warn(f"{_one_line(error)} It is only a log: kept as {aside.name}, and the run goes on.")


def append_damaged(path: epath.Path, lines: list[bytes], reason: str) -> None:
    """Keeps damaged `lines` of the log at `path` in a file of their own, beside it.

    Raises:
      OSError: they could not be written.
    """
    aside = path.with_name(path.name + DAMAGED)
    before = aside.read_bytes() if aside.exists() else b""
    new = b"".join(line + b"\n" for line in lines)
    if not before.endswith(new):  # a kill before the log was rewritten
        files.write_bytes(aside, before + new)
    warn(f"{path}, {reason}: kept in {aside.name}, and the run goes on.")


def _read(path: epath.PathLike) -> dict | None:
    value = files.read_json(path)
    if value is not None and not isinstance(value, dict):
        raise errors.UserError(f"{path} is not a JSON object but {str(value)[:40]!r}.")
    return value


def _free_name(path: epath.Path) -> epath.Path:
    number, aside = 1, path.with_name(path.name + DAMAGED)
    while aside.exists():
        number, aside = number + 1, path.with_name(f"{path.name}{DAMAGED}-{number + 1}")
    return aside


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith(".") else text + "."
