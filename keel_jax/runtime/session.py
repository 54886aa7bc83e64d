"""The machine side of one run: clock, stop request, watchdog, compilation counter and cache."""

import contextlib

from keel_jax import config
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import compilation, stop, watchdog

# Activities that may take longer than a step.
_PAUSES: tuple[str, ...] = ("initialization", "restore", "compile", "checkpoint_wait")


class Session(contextlib.ExitStack):
    """The services of a run, as a context manager.

    Attributes:
      clock: measures its time by activity.
      stop_request: whether it was asked to stop.
      compilations: counts programs that were compiled or taken from the cache.
      watchdog: ends the process if it hangs.
    """

    def __init__(self, options: config.RuntimeConfig):
        super().__init__()
        self.clock = clock_lib.Clock("initialization")
        self.stop_request = stop.StopRequest()
        self.compilations = compilation.Counter()
        pauses = dict.fromkeys(_PAUSES, options.pause_timeout_seconds)
        self.watchdog = watchdog.Watchdog(self.clock, options.step_timeout_seconds, pauses)
        self._cache_dir = options.compilation_cache_dir

    def __enter__(self) -> "Session":
        super().__enter__()
        self.enter_context(self.stop_request)
        self.enter_context(self.compilations)
        self.enter_context(self.watchdog)
        compilation.enable_cache(self._cache_dir)
        return self
