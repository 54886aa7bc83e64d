"""A polite end: SIGTERM and Ctrl-C ask the loop to save and leave; a second one leaves at once."""

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Whether this run was asked to stop.

    In one process the signal's handler sets it. In a program of several processes the preemption
    service of `jax.distributed` decides, so that all of them stop at the same step; it owns
    SIGTERM there, and a Python handler would compete with it.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._previous = {}

    def __enter__(self):
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._asked.set()
        name = signal.Signals(number).name
        print(f"\n{name}: saving, then leaving; once more to leave at once.", file=sys.stderr)

    def asked(self, step: int) -> bool:
        """To be called by every process at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
