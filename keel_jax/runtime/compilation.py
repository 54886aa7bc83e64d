"""The persistent compilation cache, and a count of its hits and misses."""

import collections
import os
import pathlib

import jax
import jax.monitoring


def enable_cache(directory: str) -> str:
    """Keeps compiled programs in `directory` ("auto": the user's cache; "": nowhere).

    Returns the directory in use, or "".
    """
    if not directory:
        jax.config.update("jax_enable_compilation_cache", False)
        return ""
    if directory == "auto":
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        directory = str(pathlib.Path(home) / "keel_jax" / "compilation")
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", directory)
    # Everything is cached, however small, so that a restart compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return directory


class Counter:
    """Programs taken from the persistent cache (`hits`) and compiled (`misses`) within a `with`."""

    _EVENTS = {
        "/jax/compilation_cache/cache_hits": "hits",
        "/jax/compilation_cache/cache_misses": "misses",
    }

    def __init__(self):
        self._counts = collections.Counter()
        self._open = False

    def __enter__(self):
        self._open = True
        jax.monitoring.register_event_listener(self._listen)
        return self

    def __exit__(self, *_):
        # Listeners cannot be removed one by one through the public interface.
        self._open = False

    def _listen(self, event: str, **_):
        if self._open and event in self._EVENTS:
            self._counts[self._EVENTS[event]] += 1

    @property
    def hits(self) -> int:
        return self._counts["hits"]

    @property
    def misses(self) -> int:
        return self._counts["misses"]
