"""Files of a token set that are whole or not there: hashed as they are written, then renamed."""

import hashlib

from etils import epath

from keel_jax.runtime import files


class HashedFile:
    """A temporary file that is hashed as it is written and renamed when it is whole."""

    def __init__(self, temporary: epath.Path):
        self._temporary = temporary
        self._digest = hashlib.sha256()
        self._is_named = False
        with files.explained(temporary):
            self._file = temporary.open("wb")

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes):
        with files.explained(self._temporary):
            self._file.write(data)
        self._digest.update(data)

    def finish(self, path: epath.Path):
        with files.explained(path):
            files.flush_to_disk(self._file)
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


def read_record(path: epath.Path) -> dict | None:
    """A JSON object that preparation wrote; None where it is missing or damaged: it is remade."""
    try:
        value = files.read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
