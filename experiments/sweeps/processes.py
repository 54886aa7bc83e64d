"""What a sweep needs to run processes side by side: cores for each, and a stop of them all."""

import os
import signal
from typing import Any

from keel_jax.runtime import exit_codes

# Codes after which no other process is started, and those that run are stopped.
STOPS = (exit_codes.PREEMPTED, exit_codes.INTERRUPTED, exit_codes.LEFT_RUNNING)


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered, so that none finds a process half started."""

    def __init__(self):
        self.is_made = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, *_: object):
        self.is_made = True


def stronger_stop(code: int, other: int) -> int:
    """Which of two exit codes a sweep ends with; that a paid machine may still run comes first."""
    stops = [each for each in (code, other) if each in STOPS]
    if exit_codes.LEFT_RUNNING in stops:
        return exit_codes.LEFT_RUNNING
    return stops[0] if stops else exit_codes.DONE


def share_of_cores(slot: int, jobs: int) -> set[int]:
    """The cores of one of the groups that run side by side; none where cores are not assigned.

    XLA's programs then have a thread for each of them and no more.
    """
    if not hasattr(os, "sched_getaffinity"):  # as on macOS
        return set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[slot::jobs]) or {cores[slot % len(cores)]}
