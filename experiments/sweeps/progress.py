"""How far a sweep has come: a progress bar on a terminal, one line a group elsewhere."""

import sys
from collections.abc import Mapping, Sequence

import rich.progress

from experiments.sweeps import point as point_lib


class SweepProgress:
    """Counts the points that are done; as a context manager it draws and removes the bar.

    Groups that run side by side are told apart by their slots, numbers from 0.
    """

    def __init__(self, num_points: int):
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.completed:.1f} of {task.total} points"),
            rich.progress.TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("sweep", total=num_points)
        self._done, self._num_points = 0, num_points
        # By slot: what its group is called, and how many points' worth of it has been run.
        self._names: dict[int, str] = {}
        self._parts: dict[int, float] = {}

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object):
        self._bar.stop()

    def start_group(self, slot: int, group: Sequence[point_lib.Point], attempt: int) -> None:
        """A group of points starts, for the first time or again."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._names[slot] = f"{group[0].series}, {len(group)} trials{again}"
        self._parts[slot] = 0.0
        self._draw()

    def update(self, slot: int, num_trials: int, status: Mapping) -> None:
        """A group of `num_trials` points is at the step that its run's status.json says."""
        step, num_steps = status.get("step"), status.get("num_steps")
        if status.get("state") == "running" and isinstance(step, int) and num_steps:
            self._parts[slot] = num_trials * step / num_steps
            self._draw()

    def end_group(self, slot: int, num_done: int, message: str) -> None:
        """A group has ended, and `num_done` of its points are done."""
        self._done += num_done
        name = self._names.pop(slot)
        del self._parts[slot]
        self._draw()
        line = f"[{self._done}/{self._num_points}] {name}: {message}"
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self):
        self._bar.update(
            self._task,
            description="; ".join(self._names.values()) or "sweep",
            completed=self._done + sum(self._parts.values()),
        )
