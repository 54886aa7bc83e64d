"""Goodput: the part of a run's time, over all its restarts, that advanced the training.

effective time = productive steps * median seconds of a step; MegaScale's definition (Jiang et al.,
arXiv:2402.15627, section 1) divides it by the total time. The rest of the total is told by its
cause, and the parts add up to the total (docs/goodput.md).
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Parts of the total that are no activity of `runtime.clock`.
PRODUCTIVE = "productive"
COMPUTED_AGAIN = "computed_again"
SLOWER_STEPS = "slower_steps"
OTHER = "other"
DOWN = "down"


class Steps(NamedTuple):
    """What is kept of an event "steps": a month has tens of thousands of them."""

    num_steps: float
    seconds: float
    median_step_seconds: float
    data_wait_seconds: float


@dataclasses.dataclass
class Run:
    """The time between one start and its end, as far as the event log knows it, in seconds."""

    # Unix time of its beginning.
    began: float
    # The step that it started from; None until its start is read.
    first_step: int | None = None
    # From its beginning to its last event.
    seconds: float = 0.0
    # From the last event of the run before to this beginning.
    down_seconds: float = 0.0
    # By activity of the clock; data_wait apart, which comes with the steps.
    activities: dict[str, float] = dataclasses.field(default_factory=dict)
    # By the first step of each event "steps".
    steps: dict[int, Steps] = dataclasses.field(default_factory=dict)
    # Its last step, and the last of them that no later run computed again.
    last_step: int = 0
    kept_step: int = 0
    exit_code: int | None = None

    @property
    def num_steps(self) -> int:
        return self.last_step - (self.first_step or 0)

    @property
    def num_computed_again(self) -> int:
        """Steps that were lost, so that a later run computed them again."""
        return self.last_step - self.kept_step

    def parts(self) -> dict[str, float]:
        """Seconds by cause; they add up to `seconds + down_seconds`."""
        in_steps = sum(event.seconds for event in self.steps.values())
        each = self._seconds_of_a_step(in_steps)
        again = self.num_computed_again
        parts = {
            PRODUCTIVE: (self.num_steps - again) * each,
            COMPUTED_AGAIN: again * each,
            SLOWER_STEPS: in_steps - self.num_steps * each,
            "data_wait": sum(event.data_wait_seconds for event in self.steps.values()),
            **self.activities,
        }
        return {**parts, OTHER: self.seconds - sum(parts.values()), DOWN: self.down_seconds}

    def _seconds_of_a_step(self, in_steps: float) -> float:
        """The median over steps, by the medians of the events; the mean where that is smaller, so
        that no more time is productive than was spent in steps."""
        if not (self.num_steps and self.steps):
            return 0.0
        medians = sorted(
            (event.median_step_seconds, event.num_steps) for event in self.steps.values()
        )
        counts = list(itertools.accumulate(count for _, count in medians))
        median, _ = medians[bisect.bisect_left(counts, counts[-1] / 2)]
        return min(median, in_steps / self.num_steps)


class Tally:
    """The runs of a work directory, from their events in the order of the log."""

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()):
        self.runs: list[Run] = []
        for event in events:
            self.add(event)

    @property
    def last_step(self) -> int:
        """The last step of the last run; 0 if there is none."""
        return self.runs[-1].last_step if self.runs else 0

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes one event in; a later event "steps" with the same first step replaces it."""
        name, step = event["event"], int(number(event, "step"))
        elapsed = number(event, "elapsed_seconds")
        if name == "start" or not self.runs:
            self._begin(number(event, "time") - elapsed)
        run = self.runs[-1]
        run.seconds = max(run.seconds, elapsed)
        if name == "start":
            run.first_step = run.last_step = run.kept_step = step
            self._lose_after(step)
        elif name == "steps":
            steps = Steps(*(number(event, name) for name in Steps._fields))
            run.steps[int(number(event, "first_step"))] = steps
            if run.first_step is None:
                run.first_step = int(number(event, "first_step")) - 1
            run.last_step = run.kept_step = max(run.last_step, step)
        elif name == "stop":
            run.exit_code = int(number(event, "exit_code"))
        elif name == "activity":
            activity = str(event.get("activity"))
            seconds = run.activities.get(activity, 0.0) + number(event, "seconds")
            run.activities[activity] = seconds

    def _begin(self, began: float):
        run = Run(began)
        if self.runs:
            last = self.runs[-1]
            # A wall clock that was set back cannot make a negative time.
            run.down_seconds = max(0.0, began - (last.began + last.seconds))
        self.runs.append(run)

    def _lose_after(self, step: int):
        """The steps after `step` of all earlier runs are computed again."""
        for run in self.runs[:-1]:
            run.kept_step = max(run.first_step or 0, min(run.kept_step, step))

    def parts(self) -> dict[str, float]:
        """Seconds by cause over all runs."""
        total: dict[str, float] = {}
        for run in self.runs:
            for name, seconds in run.parts().items():
                total[name] = total.get(name, 0.0) + seconds
        return total

    def to_json(self) -> dict[str, Any]:
        """The summary in status.json."""
        parts = self.parts()
        total = sum(parts.values())
        again = sum(run.num_computed_again for run in self.runs)
        return {
            "effective_fraction": parts.get(PRODUCTIVE, 0.0) / total if total else 0.0,
            "num_runs": len(self.runs),
            "num_productive_steps": sum(run.num_steps for run in self.runs) - again,
            "num_steps_computed_again": again,
            "total_seconds": total,
            "seconds": parts,
        }


def number(event: Mapping[str, Any], key: str) -> float:
    """A number of an event, none of which is negative; 0 in place of any other value, as a log may
    be damaged."""
    value = event.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return max(0.0, value)
    return 0.0


def to_text(tally: Tally) -> str:
    """A table with a column for each run and for all of them, for people."""
    summary, columns = tally.to_json(), [run.parts() for run in tally.runs]
    names = [name for name, seconds in summary["seconds"].items() if round(seconds, 1)]
    names.sort(key=lambda name: (name == DOWN, name == OTHER))
    heads = [f"run {number}" for number in range(1, len(columns) + 1)]
    rows = [["seconds", *heads, "all", "share"]]
    for name in names:
        cells = [f"{column.get(name, 0.0):,.1f}" for column in columns]
        share = summary["seconds"][name] / summary["total_seconds"]
        rows.append([name, *cells, f"{summary['seconds'][name]:,.1f}", f"{share:.1%}"])
    totals = [f"{sum(column.values()):,.1f}" for column in columns]
    rows.append(["total", *totals, f"{summary['total_seconds']:,.1f}", "100.0%"])
    steps = [f"{run.first_step} to {run.last_step}" for run in tally.runs]
    rows.append(["steps", *steps, f"{summary['num_productive_steps']}", ""])
    lost = [str(run.num_computed_again) for run in tally.runs]
    rows.append(["of these lost", *lost, f"{summary['num_steps_computed_again']}", ""])
    ends = ["-" if run.exit_code is None else str(run.exit_code) for run in tally.runs]
    rows.append(["exit code", *ends, "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    lines.append(f"goodput: {summary['effective_fraction']:.1%} of the time advanced the training")
    return "\n".join(lines)
