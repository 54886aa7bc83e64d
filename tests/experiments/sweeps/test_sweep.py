"""Sweeps: trials of one program, skipped when finished, missing when failed, never made up."""

import dataclasses
import signal
import subprocess
import sys
import time

import pytest

from experiments.sweeps import experiment, outcome, point, results, sweep
from keel_jax import config
from keel_jax.runtime import exit_codes, files

TINY = "experiments/configs/tiny.py"


def _grid(series="a", rates=(1e-3, 1e-2), seeds=(0, 1), **overrides):
    return point.grid(series, TINY, overrides, rates, seeds)


@pytest.fixture
def faked(tmp_path, token_dir):
    return sweep.Sweep(
        runs=tmp_path / "runs", data=str(token_dir), launcher="tests.experiments.fake_train"
    )


def _starts(runs) -> int:
    return sum(len(path.read_text().split()) for path in runs.glob("groups/*/started"))


def test_a_series_is_one_program_and_is_not_run_twice(faked):
    points = _grid("a") + _grid("b", **{"model.topology": "pre_ln"})
    assert faked.run(points) == exit_codes.DONE
    assert _starts(faked.runs) == 2
    assert [o.state for o in faked.outcomes(points)] == ["done"] * 8
    assert faked.run(points) == exit_codes.DONE
    assert _starts(faked.runs) == 2
    # What is added is run alone.
    more = points + _grid("a", rates=(3e-2,))
    assert len(faked.commands(more)) == 1
    assert faked.run(more) == exit_codes.DONE
    assert _starts(faked.runs) == 3
    assert None not in [o.eval_loss for o in faked.outcomes(more)]


def test_changed_options_are_another_run(faked):
    assert faked.run(_grid()) == exit_codes.DONE
    changed = _grid(**{"train.batch_size": 4})
    assert {o.state for o in faked.outcomes(changed)} == {"pending"}
    # Where the data lie, and how the machine is used, is not.
    same = _grid(**{"runtime.step_timeout_seconds": 5.0})
    assert {o.state for o in faked.outcomes(same)} == {"done"}


def test_divergence_is_a_result_without_a_final_loss(faked):
    points = _grid(rates=(1e-2, 2.0), seeds=(0,))
    faked.run(points)
    good, bad = faked.outcomes(points)
    assert (good.state, bad.state) == ("done", "diverged")
    assert bad.has_result and bad.eval_loss is None
    assert len(bad.curve()[1]) == bad.step > 0
    alone = _grid("alone", rates=(2.0,), seeds=(0,))
    faked.run(alone)
    assert faked.outcomes(alone)[0].state == "diverged"


@pytest.mark.parametrize(("failures", "state"), [(1, "done"), (2, "missing")])
def test_a_failure_is_tried_once_more_and_then_missing(faked, failures, state):
    faked.runs.mkdir()
    (faked.runs / "FAILURES").write_text(str(failures))
    points = _grid()
    assert faked.run(points) == exit_codes.DONE
    assert _starts(faked.runs) == 2
    found = faked.outcomes(points)
    assert {o.state for o in found} == {state}
    assert all((o.eval_loss is None) == (state == "missing") for o in found)
    assert faked.run(points) == exit_codes.DONE  # a missing one has another chance
    assert {o.state for o in faked.outcomes(points)} == {"done"}


@pytest.mark.parametrize("code", [exit_codes.PREEMPTED, 5])
def test_a_stop_ends_the_sweep_and_the_same_command_goes_on(faked, code):
    """5 is a launcher's: a paid machine may be running, so that nothing more is started."""
    faked.runs.mkdir()
    (faked.runs / "STOP").write_text(str(code))
    points = _grid("a") + _grid("b", **{"model.topology": "pre_ln"})
    assert faked.run(points) == code
    assert _starts(faked.runs) == 1
    (faked.runs / "STOP").unlink()
    assert faked.run(points) == exit_codes.DONE
    assert {o.state for o in faked.outcomes(points)} == {"done"}


def test_ctrl_c_reaches_the_run_and_the_same_command_goes_on(faked):
    faked.runs.mkdir()
    (faked.runs / "HANG").touch()
    script = (
        "import pathlib, sys\nfrom tests.experiments.sweeps import test_sweep\n"
        "from experiments.sweeps import sweep\n"
        f"made = sweep.Sweep(runs=pathlib.Path({str(faked.runs)!r}), data={faked.data!r}, "
        f"launcher={faked.launcher!r})\n"
        "sys.exit(made.run(test_sweep._grid()))\n"
    )
    # A session of its own: the signal reaches the sweep alone.
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=point.ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not _starts(faked.runs):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == exit_codes.PREEMPTED
    assert {o.state for o in faked.outcomes(_grid())} == {"pending"}
    (faked.runs / "HANG").unlink()
    assert faked.run(_grid()) == exit_codes.DONE
    assert {o.state for o in faked.outcomes(_grid())} == {"done"}


def test_shards_share_the_groups_between_them(faked):
    points = [p for name in "abcde" for p in _grid(name, **{"train.num_steps": ord(name)})]
    for index in range(2):
        dataclasses.replace(faked, shard=(index, 2)).run(points)
        done = [o.point.series for o in faked.outcomes(points) if o.has_result]
        assert set(done) == (set("ace") if index == 0 else set("abcde"))
    assert _starts(faked.runs) == 5


def test_results_are_written_once_every_point_is_decided(faked, tmp_path, capsys):
    points = _grid("a") + _grid("b", **{"model.topology": "pre_ln"})
    preset = experiment.Preset(points=points)

    def finish():
        return experiment.finish(
            "alpha",
            "micro",
            faked,
            preset,
            lambda found, out, data: {"n": len(found)},
            tmp_path / "out",
        )

    dataclasses.replace(faked, shard=(0, 2)).run(points)
    assert finish() == exit_codes.DONE
    assert "4 of 8 points are with other shards" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    (faked.runs / "FAILURES").write_text("2")
    dataclasses.replace(faked, shard=(1, 2)).run(points)
    assert finish() == exit_codes.ERROR
    written = results.read(tmp_path / "out")
    assert written["numbers"] == {"n": 8, "missing": [p.name for p in points[4:]]}
    states = [row["state"] for row in written["points"]]
    assert states == ["done"] * 4 + ["missing"] * 4
    assert written["points"][-1]["eval_loss_nats_per_token"] is None
    assert faked.run(points) == exit_codes.DONE and finish() == exit_codes.DONE
    assert results.read(tmp_path / "out")["numbers"]["missing"] == []


def test_trials_are_limited_by_memory(faked):
    limited = dataclasses.replace(faked, max_trials=3)
    assert limited.run(_grid()) == exit_codes.DONE
    assert _starts(faked.runs) == 2


def test_mistakes_are_found_before_anything_runs(faked):
    with pytest.raises(ValueError, match="Did you mean model.topology"):
        faked.run(_grid("a") + _grid("b", **{"model.topolgy": "keel"}))
    with pytest.raises(ValueError, match="its own fields"):
        _grid(seed=1)
    with pytest.raises(ValueError, match="a series of its own"):
        faked.run(_grid("a") + _grid("a", **{"model.topology": "pre_ln"}))
    with pytest.raises(ValueError, match="twice"):
        faked.run(_grid("a") + _grid("a"))
    assert _starts(faked.runs) == 0
    for wrong in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="i/n"):
            experiment.parse_shard(wrong)
    assert experiment.parse_shard("1/4") == (1, 4)


def test_flags_make_the_same_run_as_the_point(tmp_path, token_dir):
    """What the driver reads from the flags is what the record's digest is made of."""
    points = point.grid(
        "a",
        TINY,
        {
            "model.alpha": 3.0,
            "model.qk_norm": True,
            "model.topology": "keel_no_inner_norm",
        },
        (1e-3, 2.0 / 3),
        (0, 7),
    )
    script = (
        "import sys\nfrom absl import app, flags\nfrom ml_collections import config_flags\n"
        "from keel_jax import config\nimport json\n"
        "C = config_flags.DEFINE_config_file('config')\n"
        "flags.DEFINE_string('workdir', None, '')\n"
        "app.run(lambda _: print(json.dumps(config.to_dict(config.from_config_dict(C.value)))))\n"
    )
    flags = point.arguments(points, str(token_dir), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=point.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "told.json").write_text(done.stdout)
    assert files.read_json(tmp_path / "told.json") == config.to_dict(
        point.build(points, str(token_dir))
    )


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
    first = point.grid("first", TINY, tiny, (1e-3, 1e-2), (0, 1))
    other = point.grid("other", TINY, tiny, (2e-3, 3e-2), (2, 3))
    real = sweep.Sweep(runs=tmp_path / "runs", data=str(token_dir))
    assert real.run(first + other) == exit_codes.DONE
    found = real.outcomes(first + other)
    assert [o.state for o in found] == [outcome.DONE] * 8
    logs = {
        series: next((tmp_path / "runs/groups").glob(f"{series}-*/log.txt")).read_text()
        for series in ("first", "other")
    }
    assert [log.count("compiled step:") for log in logs.values()] == [1, 1]
    assert "compiled step: compiled anew" in logs["first"]
    assert "compiled step: from the cache" in logs["other"]
    # What is new is the initializer, which has seeds and rates for constants.
    new = [outcome.record["compilations"]["new"] for outcome in (found[0], found[-1])]
    assert new[0] > 1 and new[1] == 1
    losses = {o.eval_loss for o in found}
    assert len(losses) == 8 and all(0 < loss < 10 for loss in losses)
    steps, values = found[0].curve()
    assert steps[0] == 1 and steps[-1] == 3 and len(values) == len(steps)
