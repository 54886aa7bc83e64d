"""Goodput by laws: the parts add up to the whole, and what was lost is known exactly."""

import random

import pytest

from keel_jax.runtime import clock as clock_lib
from keel_jax.training import events, goodput


class Time:
    """Stands for the module `time`; its wall clock may be set, as a real one's."""

    def __init__(self):
        self.now, self.wall_offset = 1000.0, 1e9

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + self.wall_offset


@pytest.fixture
def time(monkeypatch):
    fake = Time()
    monkeypatch.setattr(clock_lib, "time", fake)
    monkeypatch.setattr(events, "time", fake)
    return fake


def _run(workdir, time, first_step, durations, *, data_wait=0.25, exit_code=None, **activities):
    """One run whose steps last `durations`; without an exit code it is killed after the last.

    Args:
      activities: seconds of each, before the first step.
    """
    clock = clock_lib.Clock()
    with clock.measure("initialization"):
        time.now += 2.0
    with events.EventLog(workdir, clock, first_step) as log:
        for activity, seconds in activities.items():
            with clock.measure(activity):
                time.now += seconds
        for step, seconds in enumerate(durations, first_step + 1):
            with clock.measure("data_wait"):
                time.now += data_wait
            time.now += seconds
            clock.finish_step(step)
        if exit_code is not None:
            time.now += 0.5
            log.stop(exit_code)
        return log.summary()


def test_a_killed_run_and_its_restart_by_hand(time, tmp_path):
    """10 steps, of which 4 are lost, 100 s down, 6 steps: every second has its place."""
    _run(tmp_path, time, 0, [5.0] + [1.0] * 9, compile=20.0, evaluation=3.0)
    time.now += 100.0
    summary = _run(tmp_path, time, 6, [1.0] * 6, exit_code=0, compile=7.0, checkpoint_wait=1.5)
    assert summary["seconds"] == pytest.approx(
        {
            "productive": 12.0,
            "computed_again": 4.0,
            "slower_steps": 4.0,
            "data_wait": 16 * 0.25,
            "initialization": 4.0,
            "compile": 27.0,
            "evaluation": 3.0,
            "checkpoint_wait": 1.5,
            "other": 0.5,
            "down": 100.0,
        },
        abs=1e-4,
    )
    assert summary["total_seconds"] == pytest.approx(time.now - 1000.0, abs=1e-4)
    assert summary["effective_fraction"] == pytest.approx(12.0 / summary["total_seconds"], abs=1e-6)
    assert (summary["num_productive_steps"], summary["num_steps_computed_again"]) == (12, 4)
    assert summary["num_runs"] == 2
    text = goodput.to_text(goodput.Tally(events.read(tmp_path)[0]))
    rows = {" ".join(line.split()) for line in text.splitlines()}
    assert {"productive 6.0 6.0 12.0 7.5%", "steps 0 to 10 6 to 12 12"} <= rows, text
    assert {"of these lost 4 0 4", "exit code - 0", "down 0.0 100.0 100.0 62.5%"} <= rows, text
    assert f"goodput: {summary['effective_fraction']:.1%} of the time" in text


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_add_up_to_the_whole(seed, time, tmp_path):
    """Of any number of runs, killed or not, from any step on; no part is negative."""
    choose = random.Random(seed)
    step, computed = 0, 0
    for number in range(choose.randint(1, 5)):
        if number:
            time.now += choose.uniform(0, 50)
        durations = [choose.uniform(0, 30) for _ in range(choose.randint(0, 150))]
        activities = {name: choose.uniform(0, 9) for name in ("compile", "evaluation")}
        summary = _run(
            tmp_path,
            time,
            step,
            durations,
            data_wait=choose.choice([0.0, 2.0]),
            exit_code=choose.choice([None, 75, 76]),
            **activities,
        )
        computed += len(durations)
        last = step + len(durations)
        step = choose.randint(0, last)
    assert all(seconds > -1e-3 for seconds in summary["seconds"].values()), summary
    assert sum(summary["seconds"].values()) == pytest.approx(summary["total_seconds"])
    assert summary["total_seconds"] == pytest.approx(time.now - 1000.0, abs=1e-2)
    assert summary["num_productive_steps"] == last
    assert summary["num_steps_computed_again"] == computed - last


def test_steps_that_several_runs_lost_are_counted_for_each(time, tmp_path):
    """The third run begins before the second did: the first has lost more than it seemed."""
    _run(tmp_path, time, 0, [1.0] * 10)
    _run(tmp_path, time, 8, [1.0] * 4)
    _run(tmp_path, time, 5, [1.0] * 2)
    runs = goodput.Tally(events.read(tmp_path)[0]).runs
    assert [run.num_computed_again for run in runs] == [5, 4, 0]
    assert events.read(tmp_path)[0][-3]["lost_steps"] == 7, "of the run before"


def test_a_wall_clock_that_is_set_back_makes_no_time_negative(time, tmp_path):
    _run(tmp_path, time, 0, [1.0] * 3)
    time.wall_offset -= 3600.0
    summary = _run(tmp_path, time, 3, [1.0] * 3, exit_code=0)
    assert summary["seconds"]["down"] == 0.0
    assert summary["total_seconds"] == pytest.approx(time.now - 1000.0, abs=1e-4)


@pytest.mark.parametrize(
    "line",
    [
        {"event": "steps"},
        {"event": "start", "step": None, "time": "x"},
        {"event": "activity", "activity": ["a"], "seconds": float("nan")},
        {"event": "stop", "exit_code": "x", "elapsed_seconds": True},
        {"event": "steps", "first_step": 1e400, "step": -5, "num_steps": -1},
    ],
)
def test_odd_values_in_a_log_are_no_numbers_and_no_error(line, time, tmp_path):
    for events_ in ([line], [{"event": "start", "time": 1.0}, line, line]):
        summary = goodput.Tally(events_).to_json()
        assert summary["total_seconds"] >= 0
        goodput.to_text(goodput.Tally(events_))
