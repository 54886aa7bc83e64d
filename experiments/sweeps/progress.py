"""How far a sweep has come: a progress bar on a terminal, one line a group elsewhere."""

import sys
from collections.abc import Mapping, Sequence

import rich.progress

from experiments.sweeps import point as point_lib


class SweepProgress:
    """Counts the points that are done; as a context manager it draws and removes the bar."""

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
        self._description = "sweep"

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object):
        self._bar.stop()

    def start_group(self, group: Sequence[point_lib.Point], attempt: int) -> None:
        """A group of points starts, for the first time or again."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._description = f"{group[0].series}, {len(group)} trials{again}"
        self._bar.update(self._task, description=self._description)

    def update(self, num_trials: int, status: Mapping) -> None:
        """A group of `num_trials` points is at the step that its run's status.json says."""
        step, num_steps = status.get("step"), status.get("num_steps")
        if status.get("state") == "running" and isinstance(step, int) and num_steps:
            part = num_trials * step / num_steps
            self._bar.update(self._task, completed=self._done + part)

    def end_group(self, num_done: int, message: str) -> None:
        """A group has ended, and `num_done` of its points are done."""
        self._done += num_done
        self._bar.update(self._task, completed=self._done)
        line = f"[{self._done}/{self._num_points}] {self._description}: {message}"
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
