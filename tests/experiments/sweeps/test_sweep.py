"""Sweeps: trials of one program, skipped when finished, missing when failed, never made up."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.sweeps import outcome, point, processes, sweep
from keel_jax.runtime import exit_codes
from tests.experiments.sweeps import points_of_tiny


def _starts(runs: pathlib.Path) -> int:
    return sum(len(path.read_text().split()) for path in runs.glob("groups/*/started"))


def test_a_series_is_one_program_and_is_not_run_twice(faked):
    points = points_of_tiny.grid("a") + points_of_tiny.grid(
        "b", overrides={"model.topology": "pre_ln"}
    )
    assert faked.run(points) == exit_codes.DONE
    assert _starts(faked.runs) == 2
    assert [o.state for o in faked.outcomes(points)] == ["done"] * 8
    assert faked.run(points) == exit_codes.DONE
    assert _starts(faked.runs) == 2
    # What is added is run alone.
    more = points + points_of_tiny.grid("a", rates=(3e-2,))
    assert len(faked.commands(more)) == 1
    assert faked.run(more) == exit_codes.DONE
    assert _starts(faked.runs) == 3
    assert None not in [o.eval_loss for o in faked.outcomes(more)]


def test_changed_options_are_another_run(faked):
    assert faked.run(points_of_tiny.grid()) == exit_codes.DONE
    changed = points_of_tiny.grid(overrides={"train.batch_size": 4})
    assert {o.state for o in faked.outcomes(changed)} == {"pending"}
    # How the machine is used changes no results.
    same = points_of_tiny.grid(overrides={"runtime.step_timeout_seconds": 5.0})
    assert {o.state for o in faked.outcomes(same)} == {"done"}


def test_divergence_is_a_result_without_a_final_loss(faked):
    points = points_of_tiny.grid(rates=(1e-2, 2.0), seeds=(0,))
    faked.run(points)
    good, bad = faked.outcomes(points)
    assert (good.state, bad.state) == ("done", "diverged")
    assert bad.has_result and bad.eval_loss is None
    assert len(bad.curve()[1]) == bad.step > 0
    alone = points_of_tiny.grid("alone", rates=(2.0,), seeds=(0,))
    faked.run(alone)
    assert faked.outcomes(alone)[0].state == "diverged"


@pytest.mark.parametrize("content", ["", "[]", '{"state": "done"}', '{"digest": 1}'])
def test_a_damaged_record_is_named_and_written_again(faked, content, capsys):
    points = points_of_tiny.grid()
    faked.run(points)
    path = outcome.record_file(faked.runs, points[0])
    whole = faked.outcomes(points)
    path.write_text(content)
    assert [o.state for o in faked.outcomes(points)] == ["pending", "done", "done", "done"]
    assert str(path) in capsys.readouterr().err
    faked.run(points)
    assert [o.eval_loss for o in faked.outcomes(points)] == [o.eval_loss for o in whole]


def test_a_changed_digit_of_a_record_is_noticed(faked, capsys):
    [one] = points_of_tiny.grid(rates=(1e-2,), seeds=(0,))
    faked.run([one])
    path = outcome.record_file(faked.runs, one)
    step = faked.outcomes([one])[0].step
    path.write_text(path.read_text().replace(f'"step": {step}', f'"step": {step - 1}'))
    assert faked.outcomes([one])[0].state == "pending"
    assert f"{path} has changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"3\n", b'{"step": "x"}\n'])
def test_results_are_not_computed_from_a_part_of_a_log(faked, damage):
    [one] = points_of_tiny.grid(rates=(1e-2,), seeds=(0,))
    faked.run([one])
    [found] = faked.outcomes([one])
    path = found.workdir / "metrics.jsonl"
    path.write_bytes(damage + path.read_bytes() if damage else b"")
    with pytest.raises(ValueError, match=f"{path}.*results cannot be computed from the rest"):
        found.curve()


def test_a_run_that_does_not_say_how_it_ended_is_missing(faked, monkeypatch):
    """As when the disk was full while it wrote its status."""
    points = points_of_tiny.grid(rates=(1e-2,), seeds=(0,))
    monkeypatch.setattr(sweep.best_effort, "read_object", lambda path: {"exit_code": None})
    faked.run(points)
    monkeypatch.undo()
    assert _starts(faked.runs) == 2
    assert [o.state for o in faked.outcomes(points)] == ["missing"]


@pytest.mark.parametrize(("failures", "state"), [(1, "done"), (2, "missing")])
def test_a_failure_is_tried_once_more_and_then_missing(faked, failures, state):
    faked.runs.mkdir()
    (faked.runs / "FAILURES").write_text(str(failures))
    points = points_of_tiny.grid()
    assert faked.run(points) == exit_codes.DONE
    assert _starts(faked.runs) == 2
    outcomes = faked.outcomes(points)
    assert {o.state for o in outcomes} == {state}
    assert all((o.eval_loss is None) == (state == "missing") for o in outcomes)
    assert faked.run(points) == exit_codes.DONE  # a missing one has another chance
    assert {o.state for o in faked.outcomes(points)} == {"done"}


@pytest.mark.parametrize(
    "code", [exit_codes.PREEMPTED, exit_codes.INTERRUPTED, exit_codes.LEFT_RUNNING]
)
def test_a_stop_ends_the_sweep_and_the_same_command_goes_on(faked, code):
    """After LEFT_RUNNING, too: a paid machine may be running, so that nothing more is started."""
    faked.runs.mkdir()
    (faked.runs / "STOP").write_text(str(code))
    points = points_of_tiny.grid("a") + points_of_tiny.grid(
        "b", overrides={"model.topology": "pre_ln"}
    )
    assert faked.run(points) == code
    assert _starts(faked.runs) == 1
    (faked.runs / "STOP").unlink()
    assert faked.run(points) == exit_codes.DONE
    assert {o.state for o in faked.outcomes(points)} == {"done"}


def _three_series():
    return [
        each
        for name, blocks in (("a", 2), ("b", 3), ("c", 4))
        for each in points_of_tiny.grid(name, overrides={"model.num_blocks": blocks})
    ]


def test_groups_side_by_side_have_the_results_of_groups_in_turn(faked, tmp_path):
    in_turn = dataclasses.replace(faked, runs=tmp_path / "in_turn")
    both = dataclasses.replace(faked, jobs=2)
    (failing := both.runs).mkdir()
    (failing / "FAILURES").write_text("1")  # one of them is started once more
    for each in (in_turn, both):
        assert each.run(_three_series()) == exit_codes.DONE
    assert _starts(both.runs) == 4
    found = [[o.summary() for o in each.outcomes(_three_series())] for each in (in_turn, both)]
    assert found[0] == found[1] and len(found[0]) == 12


def _processes(runs: pathlib.Path) -> dict[int, str]:
    """The cores of each process that was started."""
    lines = [line for path in runs.glob("groups/*/started") for line in path.read_text().split()]
    return {int(process): cores for process, cores in (line.split(":") for line in lines)}


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _cores(members) -> str:
    return ",".join(map(str, sorted(members)))


@pytest.mark.parametrize("code", [exit_codes.INTERRUPTED, exit_codes.LEFT_RUNNING])
def test_a_stop_of_one_of_two_side_by_side_stops_the_other(faked, code):
    """The other would run until it is asked to stop. Each has its share of the cores."""
    both = dataclasses.replace(faked, jobs=2)
    faked.runs.mkdir()
    (faked.runs / "HANG").write_text("a-")
    (faked.runs / "STOP").write_text(str(code))
    assert both.run(_three_series()) == code
    started = _processes(faked.runs)
    assert len(started) == 2 and not [each for each in started if _is_running(each)]
    shares = [_cores(processes.share_of_cores(slot, 2)) for slot in range(2)]
    assert sorted(started.values()) == sorted(shares)
    for name in ("STOP", "HANG"):
        (faked.runs / name).unlink()
    assert both.run(_three_series()) == exit_codes.DONE
    assert {o.state for o in faked.outcomes(_three_series())} == {"done"}


def test_a_group_alone_has_all_cores(faked):
    both = dataclasses.replace(faked, jobs=2)
    assert both.run(points_of_tiny.grid()) == exit_codes.DONE
    assert list(_processes(faked.runs).values()) == [_cores(os.sched_getaffinity(0))]


@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ({0, 1}, 2, [{0}, {1}]),
        ({2, 3, 5, 8, 9}, 2, [{2, 5, 9}, {3, 8}]),
        ({4}, 3, [{4}, {4}, {4}]),
    ],
)
def test_cores_are_shared_out(monkeypatch, cores, jobs, shares):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: cores)
    assert [processes.share_of_cores(slot, jobs) for slot in range(jobs)] == shares


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_reaches_the_runs_and_the_same_command_goes_on(faked, jobs):
    faked.runs.mkdir()
    (faked.runs / "HANG").touch()
    script = (
        "import pathlib, sys\nfrom tests.experiments.sweeps import points_of_tiny\n"
        "from experiments.sweeps import sweep\n"
        f"made = sweep.Sweep(runs=pathlib.Path({str(faked.runs)!r}), data={faked.data!r}, "
        f"launcher={faked.launcher!r}, jobs={jobs}, max_trials=2)\n"
        "sys.exit(made.run(points_of_tiny.grid()))\n"
    )
    # A session of its own: the signal reaches the sweep alone.
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=point.ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while _starts(faked.runs) < jobs:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == exit_codes.PREEMPTED
    assert not [each for each in _processes(faked.runs) if _is_running(each)]
    assert {o.state for o in faked.outcomes(points_of_tiny.grid())} == {"pending"}
    (faked.runs / "HANG").unlink()
    assert faked.run(points_of_tiny.grid()) == exit_codes.DONE
    assert {o.state for o in faked.outcomes(points_of_tiny.grid())} == {"done"}


def test_shards_share_the_groups_between_them(faked):
    points = [
        p
        for name in "abcde"
        for p in points_of_tiny.grid(name, overrides={"train.num_steps": ord(name)})
    ]
    for index in range(2):
        dataclasses.replace(faked, shard=(index, 2)).run(points)
        done = [o.point.series for o in faked.outcomes(points) if o.has_result]
        assert set(done) == (set("ace") if index == 0 else set("abcde"))
    assert _starts(faked.runs) == 5


def test_trials_are_limited_by_memory(faked):
    limited = dataclasses.replace(faked, max_trials=3)
    assert limited.run(points_of_tiny.grid()) == exit_codes.DONE
    assert _starts(faked.runs) == 2


def test_mistakes_are_found_before_anything_runs(faked):
    with pytest.raises(ValueError, match="Did you mean model.topology"):
        faked.run(
            points_of_tiny.grid("a") + points_of_tiny.grid("b", overrides={"model.topolgy": "keel"})
        )
    with pytest.raises(ValueError, match="its own fields"):
        points_of_tiny.grid(overrides={"seed": 1})
    with pytest.raises(ValueError, match="a series of their own"):
        faked.run(
            points_of_tiny.grid("a")
            + points_of_tiny.grid("a", overrides={"model.topology": "pre_ln"})
        )
    with pytest.raises(ValueError, match="twice"):
        faked.run(points_of_tiny.grid("a") + points_of_tiny.grid("a"))
    assert _starts(faked.runs) == 0


def test_one_executable_serves_every_learning_rate(tmp_path, token_dir, cache_dir, monkeypatch):
    """The real driver: one train step for four trials, and the same one for four others."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device
    tiny = {
        "model.num_blocks": 2,
        "model.d_model": 16,
        "model.d_ffn": 24,
        "model.num_heads": 2,
        "train.num_steps": 3,
        "train.batch_size": 2,
        "train.seq_len": 16,
        "train.eval_num_batches": 1,
        "optim.warmup_steps": 1,
        "telemetry.every_steps": 0,
        "runtime.compilation_cache_dir": cache_dir,
    }
    first = points_of_tiny.grid("first", (1e-3, 1e-2), (0, 1), tiny)
    other = points_of_tiny.grid("other", (2e-3, 3e-2), (2, 3), tiny)
    real = sweep.Sweep(runs=tmp_path / "runs", data=str(token_dir))
    assert real.run(first + other) == exit_codes.DONE
    outcomes = real.outcomes(first + other)
    assert [o.state for o in outcomes] == [outcome.DONE] * 8
    logs = {
        series: next((tmp_path / "runs/groups").glob(f"{series}-*/log.txt")).read_text()
        for series in ("first", "other")
    }
    assert [log.count("compiled step:") for log in logs.values()] == [1, 1]
    assert "compiled step: compiled anew" in logs["first"]
    assert "compiled step: from the cache" in logs["other"]
    # What is new is the initializer, which has seeds and rates for constants.
    new = [outcome.record["compilations"]["new"] for outcome in (outcomes[0], outcomes[-1])]
    assert new[0] > 1 and new[1] == 1
    losses = {o.eval_loss for o in outcomes if o.eval_loss is not None}
    assert len(losses) == 8 and all(0 < loss < 10 for loss in losses)
    steps, values = outcomes[0].curve()
    assert steps[0] == 1 and steps[-1] == 3 and len(values) == len(steps)
