"""A compilation cache whose entries are verified before they are loaded.

JAX loads whatever an entry's file holds. A single changed bit of machine code is a segmentation
fault, and it is one again at every retry. Here every entry is kept with a digest of its key and its
content. An entry that does not match, because it is damaged, cut off, or another key's, is deleted
and its program compiled again.

The digest says that an entry is as it was written, not who wrote it: whoever may write to the
directory can run code in the processes that read it (docs/compile_time.md).
"""

import hashlib

from etils import epath
from jax._src import compilation_cache, compilation_cache_interface

from keel_jax.runtime import best_effort

# Keeps these entries apart from JAX's own, which have no digest, in a directory that others use.
_SUFFIX = "-sha256"


def install() -> None:
    """Makes JAX verify the entries of every persistent cache that it opens from now on.

    JAX has no public hook for this. Its cache is opened by the one function that is replaced here,
    in all supported versions; tests/runtime/test_verified_cache.py fails if that changes.
    """
    if compilation_cache.get_file_cache is not _open:
        compilation_cache.get_file_cache = _open
        compilation_cache.reset_cache()  # one that is open already


_open_file_cache = compilation_cache.get_file_cache


def _open(path: str):
    opened = _open_file_cache(path)
    return opened and (VerifiedCache(opened[0]), opened[1])


class VerifiedCache(compilation_cache_interface.CacheInterface):
    """Another cache, with a digest before each of its values."""

    def __init__(self, cache: compilation_cache_interface.CacheInterface):
        self._cache = cache
        self._path = cache._path

    def get(self, key: str) -> bytes | None:
        """The value of `key`, as JAX wrote it; None if there is none or a damaged one."""
        stored = self._cache.get(key + _SUFFIX)
        if stored is None:
            return None
        length = hashlib.sha256().digest_size
        digest, value = stored[:length], stored[length:]
        if digest == _digest(key, value):
            return value
        self._delete(key)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps `value`, unless there is one."""
        with best_effort.writing(self._path):
            self._cache.put(key + _SUFFIX, _digest(key, value) + value)

    def _delete(self, key: str):
        # The cache itself would keep it: it never replaces an entry.
        path = epath.Path(self._path) / f"{key}{_SUFFIX}-cache"
        best_effort.warn(
            f"{path} is damaged, or was not written to its end: it is deleted, and its program "
            "compiled again."
        )
        with best_effort.writing(path):
            path.unlink(missing_ok=True)


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).digest()
