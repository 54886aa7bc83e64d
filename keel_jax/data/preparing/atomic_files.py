"""Files that are either complete or absent: hashed as they are written, then renamed."""

import hashlib

from etils import epath

from keel_jax.runtime import files


class HashedFile:
    """A temporary file that is hashed as it is written and renamed once it is complete."""

    def __init__(self, temporary: epath.Path):
        self._temporary = temporary
        self._digest = hashlib.sha256()
        self._is_finished = False
        with files.explained(temporary):
            self._file = temporary.open("wb")

    @property
    def sha256(self) -> str:
        """sha256 of what has been written so far, hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Appends to the temporary file."""
        with files.explained(self._temporary):
            self._file.write(data)
        self._digest.update(data)

    def finish(self, path: epath.Path) -> None:
        """Gives the file its final name, once its bytes are on disk."""
        with files.explained(path):
            files.flush_to_disk(self._file)
            self._file.close()
            self._temporary.replace(path)
        self._is_finished = True

    def discard(self) -> None:
        """Removes the temporary file, unless it has its final name."""
        if self._is_finished:
            return
        try:
            self._file.close()
        except OSError:  # closing flushes, which fails again where the disk is full
            pass
        self._temporary.unlink(missing_ok=True)


def read_record(path: epath.Path) -> dict | None:
    """A JSON object that preparation wrote; None if it is missing or damaged: it is rewritten."""
    try:
        value = files.read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
