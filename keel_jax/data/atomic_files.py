"""Files that are whole or not there: written under a temporary name, flushed, then renamed."""

import errno
import hashlib
import json
import os

from etils import epath


def write_json(path: epath.Path, value: dict, temporary_suffix: str):
    """Writes a JSON file at once: it is whole or not there."""
    temporary = path.with_name(path.name + temporary_suffix)
    with explained(path), temporary.open("wb") as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
        flush_to_disk(file)
    temporary.replace(path)


class explained:  # noqa: N801 - reads as a word in a with statement
    """Turns "no space left" into an error that says what was written and what to do."""

    def __init__(self, path: epath.Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"No space left while writing {self._path}: free some and run the same command "
                "again; finished shards are kept, and no index says that the set is whole",
            ) from error


class HashedFile:
    """A temporary file that is hashed as it is written and renamed when it is whole."""

    def __init__(self, temporary: epath.Path):
        self._temporary = temporary
        self._digest = hashlib.sha256()
        self._is_named = False
        with explained(temporary):
            self._file = temporary.open("wb")

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes):
        with explained(self._temporary):
            self._file.write(data)
        self._digest.update(data)

    def finish(self, path: epath.Path):
        with explained(path):
            flush_to_disk(self._file)
            self._file.close()
            self._temporary.replace(path)
        self._is_named = True

    def discard(self):
        if self._is_named:
            return
        try:
            self._file.close()
        except OSError:  # closing flushes, which fails again where the disk is full
            pass
        self._temporary.unlink(missing_ok=True)


def flush_to_disk(file):
    """Asks for the bytes to be on disk before the rename: a power cut leaves no hollow file."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except (AttributeError, OSError) as error:
        # A remote file has no descriptor; some file systems refuse fsync (EINVAL), which is fine,
        # but "no space left" comes here too.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
