"""SIGTERM and Ctrl-C ask the loop to save and exit; a second one exits immediately.

Once everything is saved, any of them ends the process with the run's exit code.
"""

import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

from keel_jax.runtime import watchdog

# A signal within this time after another is the same request: a supervisor forwards signals that
# were sent to the whole process group or Slurm step.
_ECHO_SECONDS = 1.0


class StopRequest:
    """Whether this run was asked to stop.

    In one process the signal's handler sets it. In a program of several processes the preemption
    service of `jax.distributed` decides, so that all of them stop at the same point; it handles
    SIGTERM there, and a Python handler would conflict with it. A SIGTERM to any of them is enough.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._asked_at = 0.0
        self._is_one_of_several = jax.process_count() > 1
        # Number of calls of `asked`: the service's step counter, the same on all processes.
        self._num_calls = 0
        self._stops = False
        # Once everything is saved: what the process ends with.
        self._exit_code: int | None = None
        self._previous = {}

    def __enter__(self):
        signals = [signal.SIGINT] if self._is_one_of_several else [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def saved(self, exit_code: int) -> None:
        """Everything is on disk: a signal now ends the process at once with `exit_code`."""
        self._exit_code = exit_code

    def _handle(self, number, frame):
        if self._exit_code is not None:
            watchdog.leave(self._exit_code)
        if self._asked.is_set():
            if time.monotonic() - self._asked_at < _ECHO_SECONDS:
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._asked.set()
        self._asked_at = time.monotonic()
        if self._is_one_of_several:
            signal.raise_signal(signal.SIGTERM)  # the service forwards it to the others
        name = signal.Signals(number).name
        print(f"\n{name}: saving, then exiting; once more to exit at once.", file=sys.stderr)

    def asked(self) -> bool:
        """Whether to stop here; every process must call this equally often, at the same points.

        All processes get True at the same call, the first that none of them had made when the
        signal arrived. Calls are counted rather than steps, so that a validation, which calls this
        many times within a step, also ends early.
        """
        if not self._is_one_of_several:
            return self._asked.is_set()
        self._num_calls += 1
        if not self._stops:
            self._stops = multihost_utils.reached_preemption_sync_point(self._num_calls)
        return self._stops
