"""Small files of a work directory, local or remote, written atomically."""

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from keel_jax import errors

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The key of the checksum in a file of `write_checked_json`.
_CHECKSUM = "content_sha256"


def write_json(path: epath.PathLike, value: Any, *, temporary_suffix: str = "") -> None:
    """Writes `value` as JSON atomically: a reader sees the old file or the new one.

    Args:
      temporary_suffix: suffix of the temporary file's name; empty: one unique to this process.

    Raises:
      OSError: no space left, or the directory cannot be written; the old file stays.
    """
    content = (json.dumps(value, indent=2) + "\n").encode()
    write_bytes(path, content, temporary_suffix=temporary_suffix)


def write_checked_json(path: epath.PathLike, value: dict[str, Any]) -> None:
    """Writes an object with a checksum, which `read_json` verifies and removes.

    Without one, a changed digit would be read as another number. Errors as in `write_json`.
    """
    write_json(path, {**value, _CHECKSUM: _checksum(value)})


def write_bytes(path: epath.PathLike, content: bytes, *, temporary_suffix: str = "") -> None:
    """Writes a file atomically; arguments and errors as in `write_json`."""
    path = epath.Path(path)
    temporary = path.with_name(path.name + (temporary_suffix or f".tmp-{os.getpid()}"))
    try:
        with explained(path):
            with temporary.open("wb") as file:
                file.write(content)
                flush_to_disk(file)
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise


def append_text(path: epath.Path, text: str) -> None:
    """Appends `text` to a file, which need not exist.

    An object in a bucket (gs://) cannot be appended to: it is read and rewritten. A log line every
    few seconds is well within a bucket's limits.

    Raises:
      OSError: it could not be written; the file ends where it did before.
    """
    if "://" in str(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    # Unbuffered: what a full disk refuses must not be written later, when the file is closed.
    with open(path, "ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(text.encode())
        try:
            while rest:  # a nearly full disk takes a part
                rest = rest[file.write(rest) :]
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                file.truncate(end)
            raise


def read_json(
    path: epath.PathLike,
    *,
    remedy: str = "remove it or restore it",
    needs_checksum: bool = False,
) -> Any:
    """Reads a JSON file; None if it does not exist.

    Args:
      needs_checksum: whether a file without the checksum of `write_checked_json` is damaged.
      remedy: what the user can do about a damaged one.

    Raises:
      UserError: the file is not JSON, or not what its checksum says.
    """
    path = epath.Path(path)
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise errors.UserError(f"{path} is not JSON ({error}); {remedy}.") from error
    if needs_checksum and not (isinstance(value, dict) and _CHECKSUM in value):
        raise errors.UserError(f"{path} has no checksum of its content; {remedy}.")
    if isinstance(value, dict) and _CHECKSUM in value:
        expected = value.pop(_CHECKSUM)
        if _checksum(value) != expected:
            raise errors.UserError(
                f"{path} has changed since it was written: its checksum is not that of its "
                f'content; {remedy}. If you changed it yourself, remove "{_CHECKSUM}" from it.'
            )
    return value


def _checksum(value: dict[str, Any]) -> str:
    # As a reader finds it: tuples are lists, and keys are strings.
    value = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def matching(directory: epath.Path, pattern: str) -> list[epath.Path]:
    """The entries of `directory` whose names match `pattern`, sorted.

    Unlike `epath.Path.glob`, it takes the directory as it is: a bracket in its name is no pattern.
    """
    return sorted(path for path in directory.iterdir() if fnmatch.fnmatchcase(path.name, pattern))


def make_writable_directory(path: epath.PathLike) -> epath.Path:
    """Creates `path` and checks that files can be written there.

    Raises:
      UserError: it is a file, or the user may not write there, or no space is left.
    """
    path = epath.Path(path)
    # Several hosts may probe one directory, and in containers all may have the same process id.
    probe = path / f".writable.{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise errors.UserError(
            f"Cannot write to {path}: {error.strerror or error}. Choose another directory, or "
            "make room or permissions there."
        ) from error
    return path


@contextlib.contextmanager
def explained(path: epath.PathLike) -> Iterator[None]:
    """Converts "no space left" to an error that says what was being written and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"No space left while writing {path}: free some and run the same command again; "
            "finished files are kept",
        ) from error


def flush_to_disk(file: Any) -> None:
    """Flushes to disk before a rename, so that a power failure leaves no empty file."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except (AttributeError, OSError) as error:
        # A remote file has no descriptor, and some file systems refuse fsync (EINVAL), which is
        # harmless; but "no space left" is reported here too.
        if getattr(error, "errno", None) in (*_FULL, errno.EIO):
            raise
