"""Ends a process that is alive but stuck, which nothing else would detect.

If a step waits for a peer or a loader for a dead disk, the heartbeat of `jax.distributed`
continues, so the other processes wait too. A thread polls the run's clock and ends the process with
`exit_codes.HUNG` when there is no progress for too long, or when another process says that it hangs
(hangs.py). It needs the interpreter's lock, which JAX releases wherever it waits.
"""

import collections.abc
import contextlib
import faulthandler
import os
import sys
import threading
import time

import jax
from etils import epath

from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import exit_codes, hangs

# Seconds between two polls of the clock.
_POLL_SECONDS = 1.0
# A process that has been silent for as long asks whether another one hangs, so many seconds apart.
_ASK_SECONDS = 5.0
# Longest time to report a hang, with the wait for the reports of peers: what hangs may be the disk
# of the report.
_REPORT_SECONDS = 60.0


class Watchdog:
    """Ends the process once one activity of `clock` shows no sign of life for its limit.

    Args:
      limit_seconds: the longest time without a sign of life; 0: no limit.
      other_limits: limits of named activities, where they differ.
    """

    # Where the stacks of a hang are written, besides standard error; None: not yet known.
    workdir: epath.Path | None = None
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
        self._silent_seconds = 0.0
        # The announcement of another process that hangs.
        self._hang_of_peer: str | None = None
        self._is_one_of_several = jax.distributed.is_initialized() and jax.process_count() > 1
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if self._is_one_of_several:
            # Apart from the watchdog, since asking may hang, too.
            ask = threading.Thread(target=self._ask_peers, name="watchdog of peers", daemon=True)
            self._threads.append(ask)

    def __enter__(self) -> "Watchdog":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        for thread in self._threads:
            thread.join(_ASK_SECONDS)

    def _watch(self):
        last_beats, last_poll = None, time.monotonic()
        while not self._closed.wait(_POLL_SECONDS):
            now = time.monotonic()
            activity, beats = self._clock.activity, self._clock.beats
            # If a poll is late, the whole process was stopped (SIGSTOP, a frozen machine): that
            # time does not count for the activity.
            self._silent_seconds += min(now - last_poll, 2 * _POLL_SECONDS)
            if beats != last_beats:
                self._silent_seconds = 0.0
            last_beats, last_poll = beats, now
            limit = self._other_limits.get(activity, self._limit_seconds)
            silence = (
                f"{activity or 'a step'} showed no sign of life for {self._silent_seconds:.0f} s"
            )
            step = self._clock.step
            if limit and self._silent_seconds > limit:
                self._end(f"{silence} (the limit is {limit:g} s) after step {step}")
            elif self._hang_of_peer and self._silent_seconds > _POLL_SECONDS:
                self._end(f"{self._hang_of_peer}; here {silence} after step {step}")

    def _ask_peers(self):
        while not self._closed.wait(_ASK_SECONDS):
            if self._silent_seconds < _ASK_SECONDS:
                continue
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service's end ends us
                self._hang_of_peer = hangs.announced()

    def _end(self, message: str):
        def report():
            with contextlib.suppress(OSError, ValueError):  # standard error is not a file
                faulthandler.dump_traceback(all_threads=True)
            if self._is_one_of_several and not self._hang_of_peer:
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    hangs.announce(message)
            if self.workdir is not None:
                with contextlib.suppress(OSError):
                    hangs.write_stacks(self.workdir, message)
            if self.on_hang is not None:
                self.on_hang(message)
            if self._is_one_of_several:
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    hangs.wait_for_reports()

        end_process(message, report)


@contextlib.contextmanager
def deadline(
    seconds: float, message: collections.abc.Callable[[], str]
) -> collections.abc.Iterator[None]:
    """Ends the process with `HUNG` and `message()` if the body takes longer than `seconds`."""
    timer = threading.Timer(seconds, lambda: end_process(message()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(message: str, report: collections.abc.Callable[[], None] | None = None) -> None:
    """Prints why, calls `report` for a limited time, and exits, whatever the main thread does.

    There is no cleanup, which would wait for what hangs. Saved files are whole (files.py, Orbax).
    """
    print(f"error: {message}: ending with exit code {exit_codes.HUNG}.", file=sys.stderr)
    if report is not None:
        reporting = threading.Thread(target=report, daemon=True)
        reporting.start()
        reporting.join(_REPORT_SECONDS)
    leave(exit_codes.HUNG)


def leave(exit_code: int) -> None:
    """Ends the process now, without waiting for anything, not even for peers at a barrier."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    os._exit(exit_code)
