"""The file that a command writes its result to: checked before the work that makes the result."""

import json
from typing import Any

from etils import epath

from keel_jax import errors
from keel_jax.runtime import files


def check(flag: str, path: epath.PathLike | None) -> None:
    """Checks that a result can be written to `path`; call it before any work.

    A missing directory is created if the one that holds it exists.

    Args:
      flag: that named the path, for messages.
      path: None or "": there is no such file.

    Raises:
      UserError: it is a directory, its directory's own parent is missing (a mistyped path), or
        nothing can be written there.
    """
    if not path:
        return
    path = epath.Path(path)
    if path.is_dir():
        raise errors.UserError(f"{flag}={path} is a directory: give the name of a file in it.")
    if "://" not in str(path) and not path.parent.exists() and not path.parent.parent.exists():
        raise errors.UserError(
            f"{flag}={path}: neither {path.parent} nor {path.parent.parent} exists: create them, "
            "or give another file. Nothing has been done yet."
        )
    try:
        files.make_writable_directory(path.parent)
    except errors.UserError as error:
        raise errors.UserError(f"{flag}={path}: {error} Nothing has been done yet.") from error


def write_json(path: epath.PathLike | None, value: Any) -> None:
    """Writes the result to `path`, if there is one; if that fails, prints it instead.

    Raises:
      OSError: it could not be written; it is on standard output.
    """
    if not path:
        return
    try:
        files.write_json(path, value)
    except OSError:
        print(json.dumps(value, indent=2), flush=True)
        raise
