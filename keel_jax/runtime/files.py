"""Small files of a work directory, local or remote, written whole or not at all."""

import json
import os

from etils import epath


def write_json(path: epath.PathLike, value) -> None:
    """Writes `value` as JSON: a reader sees the old file or the new one, never half of it."""
    path = epath.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def read_json(path: epath.PathLike):
    """Reads a JSON file; None where there is none.

    Raises:
      ValueError: the file is not JSON.
    """
    path = epath.Path(path)
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it or restore it.") from error


def make_writable_directory(path: epath.PathLike) -> epath.Path:
    """Creates `path` and proves that files can be written there.

    Raises:
      ValueError: it is a file, or the user may not write there, or no space is left.
    """
    path = epath.Path(path)
    probe = path / f".writable.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"Cannot write to {path}: {error.strerror or error}. Choose another directory, or "
            "make room or permissions there."
        ) from error
    return path
