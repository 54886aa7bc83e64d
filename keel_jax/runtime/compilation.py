"""The persistent compilation cache, and a count of its hits and misses."""

import collections
import os
import pathlib

import jax
import jax.monitoring
from etils import epath

from keel_jax.runtime import best_effort, verified_cache


def enable_cache(directory: str) -> str:
    """Keeps compiled programs in `directory` ("auto": the user's cache; "": nowhere).

    The user's cache is JAX_COMPILATION_CACHE_DIR or, without it, keel_jax/compilation in the user's
    cache directory. A directory that cannot be made is named, and programs are not kept. Programs
    are code: the directory must come from the user, never from a file that others may have written.

    Returns the directory in use, or "".
    """
    if directory == "auto":
        directory = _users_directory()
    if not (directory and _exists(directory)):
        jax.config.update("jax_enable_compilation_cache", False)
        return ""
    verified_cache.install()
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", directory)
    # Everything is cached, however small, so that a restart compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return directory


def enable_users_cache() -> str:
    """The cache that this process has already or, if it has none, the user's.

    For commands that read a directory which may be someone else's: its config does not say where
    programs are loaded from. Returns the directory in use, or "".
    """
    current = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]: JAX defines it at run time
    return enable_cache(current or "auto")


def _users_directory() -> str:
    if directory := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return directory
    if not (cache := os.environ.get("XDG_CACHE_HOME")):
        try:
            cache = pathlib.Path.home() / ".cache"
        except RuntimeError:
            # A place that others can guess, as in /tmp, would let them run code here.
            best_effort.warn(
                "this user has no home directory (HOME is not set), so compiled programs are not "
                "kept: set HOME, XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to keep them."
            )
            return ""
    return str(pathlib.Path(cache) / "keel_jax" / "compilation")


def _exists(directory: str) -> bool:
    """Whether `directory` exists or could be created; if not, a warning says so once."""
    try:
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        best_effort.warn(
            f"{directory} cannot be created ({error.strerror or error}), so compiled programs are "
            "not kept there: set JAX_COMPILATION_CACHE_DIR or "
            "--config.runtime.compilation_cache_dir to another directory."
        )
        return False
    return True


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
