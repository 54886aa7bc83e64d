"""Ends a process that is alive but stuck, which nothing else would detect.

If a step waits for a peer or a loader for a dead disk, the heartbeat of `jax.distributed`
continues, so the other processes wait too. A thread polls the run's clock and ends the process with
`exit_codes.HUNG` when there is no progress for too long. It needs the interpreter's lock, which JAX
releases wherever it waits.
"""

import collections.abc
import contextlib
import faulthandler
import os
import sys
import threading
import time

from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import exit_codes

# Seconds between two polls of the clock.
_POLL_SECONDS = 1.0
# Longest time to report a hang: what hangs may be the disk of the report.
_REPORT_SECONDS = 20.0


class Watchdog:
    """Ends the process once one activity of `clock` shows no sign of life for its limit.

    Args:
      limit_seconds: the longest time without a sign of life; 0: no limit.
      other_limits: limits of named activities, where they differ.
    """

    # Called before the process ends, with a message about what hung; may write a status.
    on_hang: collections.abc.Callable[[str], None] | None = None

    def __init__(
        self,
        clock: clock_lib.Clock,
        limit_seconds: float,
        other_limits: collections.abc.Mapping[str, float],
    ):
        self._clock, self._limit_seconds, self._other_limits = clock, limit_seconds, other_limits
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._thread.join()

    def _watch(self):
        last_beats, silent_seconds, last_poll = None, 0.0, time.monotonic()
        while not self._closed.wait(_POLL_SECONDS):
            now = time.monotonic()
            activity, beats = self._clock.activity, self._clock.beats
            # If a poll is late, the whole process was stopped (SIGSTOP, a frozen machine): that
            # time does not count for the activity.
            silent_seconds += min(now - last_poll, 2 * _POLL_SECONDS)
            if beats != last_beats:
                silent_seconds = 0.0
            last_beats, last_poll = beats, now
            limit = self._other_limits.get(activity, self._limit_seconds)
            if limit and silent_seconds > limit:
                end_process(
                    f"{activity or 'a step'} showed no sign of life for {silent_seconds:.0f} s "
                    f"(the limit is {limit:g} s)",
                    self.on_hang,
                )


@contextlib.contextmanager
def deadline(
    seconds: float, message: collections.abc.Callable[[], str]
) -> collections.abc.Iterator[None]:
    """Ends the process with `HUNG` and `message()` if the body takes longer than `seconds`."""
    timer = threading.Timer(seconds, lambda: end_process(message(), stacks=False))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(
    message: str,
    on_hang: collections.abc.Callable[[str], None] | None = None,
    *,
    stacks: bool = True,
) -> None:
    """Prints why, with the stacks of all threads, and exits at once, whatever the main thread does.

    There is no cleanup, which would wait for what hangs. Saved files are whole (files.py, Orbax).
    """
    print(f"error: {message}: ending with exit code {exit_codes.HUNG}.", file=sys.stderr)
    if stacks:
        with contextlib.suppress(OSError, ValueError):  # standard error is not a file
            faulthandler.dump_traceback(all_threads=True)
    if on_hang is not None:
        reporting = threading.Thread(target=on_hang, args=(message,), daemon=True)
        reporting.start()
        reporting.join(_REPORT_SECONDS)
    leave(exit_codes.HUNG)


def leave(exit_code: int) -> None:
    """Ends the process now, without waiting for anything, not even for peers at a barrier."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    os._exit(exit_code)
