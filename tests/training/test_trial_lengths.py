"""Trials of different lengths, and early stopping: each ends as a run of its own would."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from keel_jax import config, errors, evaluate, train
from keel_jax.runtime import exit_codes, files
from keel_jax.training import inputs, loop, trained
from keel_jax.training import logs as logs_lib
from keel_jax.training import validations as validations_lib
from tests import conftest

LOSS = "eval/loss_nats_per_token"
LENGTHS = (3, 6, 5)


def _config(token_dir, cache_dir, **sections):
    sections["train"] = dict(num_steps=6) | sections.get("train", {})
    return conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=2),
        data=dict(path=str(token_dir)),
        runtime=dict(compilation_cache_dir=cache_dir),
        **sections,
    )


def _params(workdir, step=None):
    return jax.device_get(trained.load_params(workdir, trained.one_device(), step)[0])


def _rows(workdir):
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in logs_lib.read(workdir)
    ]


def _status(workdir):
    return files.read_json(workdir / "status.json")


@pytest.fixture(scope="module")
def grid(token_dir, cache_dir, tmp_path_factory):
    """Three lengths, of which the shortest has ended before the first checkpoint by steps."""
    cfg = _config(
        token_dir,
        cache_dir,
        trials=dict(num_steps=LENGTHS, peak_lr=(1e-2, 1e-2, 3e-3)),
        train=dict(checkpoint_every_steps=4, keep_checkpoints=9),
    )
    workdir = tmp_path_factory.mktemp("grid") / "run"
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


@pytest.mark.slow
def test_a_trial_ends_as_the_run_of_its_length_does(grid, tmp_path):
    """Weights, optimizer steps, rates and rows; a vmapped program rounds in another order."""
    cfg, workdir = grid
    for trial in (0, 2):
        alone = tmp_path / f"alone{trial}"
        assert train.train(cfg.for_trial(trial), alone) == exit_codes.DONE
        directory = workdir / f"trials/{trial:03}"
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
            _params(directory),
            _params(alone),
        )
        # It is validated where another trial ends, too.
        steps = _losses(alone)
        rows = [row for row in _rows(directory) if LOSS not in row or row["step"] in steps]
        other = _rows(alone)
        assert [row["step"] for row in rows] == [row["step"] for row in other]
        for one, its in zip(rows, other, strict=True):
            for key in its.keys() & {"train/learning_rate", "train/loss_nats_per_token", LOSS}:
                assert one[key] == pytest.approx(its[key], rel=1e-3), (key, one["step"])
        status = _status(directory)
        assert status["state"] == "done" and not status["stopped_early"]
        assert status["step"] == status["num_steps"] == LENGTHS[trial]
    assert _status(workdir)["step"] == 6


def test_weights_of_a_trial_that_has_ended_stay_bit_for_bit(grid):
    _, workdir = grid
    first = _params(workdir / "trials/000", 4)
    jax.tree.map(np.testing.assert_array_equal, first, _params(workdir / "trials/000", 6))
    moved = jax.tree.map(
        lambda a, b: np.array_equal(a, b),
        _params(workdir / "trials/001", 4),
        _params(workdir / "trials/001", 6),
    )
    assert not all(jax.tree.leaves(moved))


def test_a_restart_after_the_end_of_a_trial_is_bitwise(grid, tmp_path):
    cfg, workdir = grid
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints/6")
    assert train.train(cfg, copy) == exit_codes.DONE
    for trial in range(3):
        one, other = (root / f"trials/{trial:03}" for root in (workdir, copy))
        jax.tree.map(np.testing.assert_array_equal, _params(one), _params(other))
        assert _rows(one) == _rows(other)


def test_best_is_the_trial_and_step_with_the_lowest_validation_loss(grid):
    """Of the run, and of one trial; a trial that has ended is in a later checkpoint."""
    _, workdir = grid
    losses = {trial: _losses(workdir / f"trials/{trial:03}") for trial in range(3)}
    # Each is validated where a trial ends, as long as it is trained.
    assert [sorted(steps) for steps in losses.values()] == [[3], [3, 5, 6], [3, 5]]
    lowest = [losses[trial][length] for trial, length in enumerate(LENGTHS)]
    assert evaluate.evaluate(workdir, step="best")["loss_nats_per_token"] == pytest.approx(
        min(lowest), rel=1e-5
    )
    for trial, expected in enumerate(lowest):
        found = evaluate.evaluate(workdir / f"trials/{trial:03}", step="best")
        assert found["loss_nats_per_token"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(errors.UserError, match='holds 3 trials.*step="best"'):
        evaluate.evaluate(workdir)


def test_epochs_become_steps_where_the_data_are_known(token_dir, cache_dir):
    cfg = _config(
        token_dir,
        cache_dir,
        trials=dict(num_epochs=(0.5, 2.0)),
        train=dict(num_steps=0, num_epochs=2.0),
    )
    opened = inputs.open_inputs(cfg.data)
    num_windows = -(-(opened.first.split("train").num_tokens - 1) // 16)
    complete = inputs.complete(cfg, opened)
    assert complete.train.num_steps == -(-2 * num_windows // 8)
    assert complete.trials.num_steps == (-(-num_windows // 16), complete.train.num_steps)
    assert complete.train.num_tokens == complete.train.num_steps * 8 * 16
    assert inputs.complete(complete, opened) == complete
    assert config.from_dict(json.loads(json.dumps(config.to_dict(complete)))) == complete
    alone = complete.for_trial(0)
    assert (alone.train.num_epochs, alone.trial_steps) == (0.5, complete.trials.num_steps[:1])
    twice = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, num_steps=7))
    with pytest.raises(errors.UserError, match="length of the run once: train.num_steps=7"):
        inputs.complete(twice, opened)
    # A plan has no data: any length compiles.
    assert cfg.in_steps(1000).trial_steps == (500, 2000)
    assert conftest.tiny_config().in_steps(1000) == conftest.tiny_config()
    mixed = dataclasses.replace(cfg.data, path=f"{token_dir},{token_dir}")
    with pytest.raises(errors.UserError, match="not defined for the mixture of 2 sets"):
        inputs.complete(cfg, inputs.open_inputs(mixed))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(trials=dict(num_steps=(3, 5))), r"longest trial .*\(3, 5\) is not train.num_steps=6"),
        (dict(trials=dict(num_epochs=(1.0, 2.0))), r"is not train.num_epochs=0.0"),
        (
            dict(trials=dict(num_steps=(6,), seed=(1, 2))),
            "trials.seed has 2 entries, trials.num_steps has 1",
        ),
        (dict(trials=dict(num_steps=(0, 6))), "trials.num_steps=0 must be at least 1"),
        (dict(trials=dict(num_steps=(2, 6))), r"no room .*the shortest of trials.num_steps=2"),
        (dict(train=dict(num_epochs=-1.0)), "num_epochs=-1.0 must not be negative"),
    ],
)
def test_lengths_that_contradict_each_other(sections, message):
    with pytest.raises(errors.UserError, match=message):
        conftest.tiny_config(**sections)


# --- Early stopping ------------------------------------------------------------------------------


def test_the_lowest_losses_and_the_validations_since():
    found = validations_lib.Validations(3)
    for step, losses in enumerate([[3.0, 2.0, None], [2.5, float("nan"), 1.0], [2.5, 2.1, 0.5]], 1):
        found.add(step, losses)
    found.add(3, [0.0, 0.0, 0.0])  # read twice
    assert found.lowest == [2.5, 2.0, 0.5]
    assert found.at_step == [2, 1, 3] and found.num_since == [1, 2, 0]
    assert found.best_trial() == 2
    again = validations_lib.Validations(3, json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert validations_lib.Validations(2).best_trial() is None
    for damaged in ({}, {**found.to_json(), "lowest": [1.0]}, {**found.to_json(), "at_step": "a"}):
        with pytest.raises(errors.UserError, match="record of validations is damaged"):
            validations_lib.Validations(3, damaged)


def _early(token_dir, cache_dir, **more):
    """At the rate of the first trial the loss rises; at that of the second it falls."""
    sections = dict(
        optim=dict(schedule="constant", warmup_steps=0),
        trials=dict(peak_lr=(1.0, 3e-3)),
        train=dict(
            num_steps=12,
            eval_every_steps=1,
            early_stopping_validations=2,
            checkpoint_every_steps=0,
            keep_best=1,
            keep_checkpoints=1,
        ),
    )
    return _config(token_dir, cache_dir, **sections | more)


@pytest.fixture(scope="module")
def stopped(token_dir, cache_dir, tmp_path_factory):
    cfg = _early(token_dir, cache_dir)
    workdir = tmp_path_factory.mktemp("early") / "run"
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


def _losses(directory):
    return {row["step"]: row[LOSS] for row in _rows(directory) if LOSS in row}


def test_a_trial_ends_after_as_many_validations_without_a_new_lowest_loss(stopped):
    _, workdir = stopped
    losses = _losses(workdir / "trials/000")
    lows = list(itertools.accumulate(losses.values(), min))
    end = max(losses)
    assert end < 12 and lows[-1] == lows[-3] < lows[-4] if len(lows) > 3 else lows[-1] == lows[-3]
    assert all(lows[at] < lows[at - 2] for at in range(2, len(lows) - 1))
    assert max(row["step"] for row in _rows(workdir / "trials/000")) == end
    status = _status(workdir / "trials/000")
    assert status["stopped_early"] and status["state"] == "done" and status["step"] == end
    assert not _status(workdir / "trials/001")["stopped_early"]
    assert not _status(workdir)["stopped_early"]
    assert max(_losses(workdir / "trials/001")) == 12


@pytest.mark.slow
def test_a_run_in_which_all_have_stopped_is_done(token_dir, cache_dir, tmp_path, capsys):
    cfg = _early(
        token_dir,
        cache_dir,
        trials=dict(),
        optim=dict(schedule="constant", warmup_steps=0, peak_lr=1.0),
    )
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    status = _status(tmp_path)
    assert status["stopped_early"] and status["state"] == "done" and status["step"] < 12
    printed = capsys.readouterr().out
    assert f"step {status['step']}/12  the run stops early: 2 validations since" in printed
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows if LOSS in row] == list(range(1, status["step"] + 1))
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    assert f"it stopped early at step {status['step']} of 12" in capsys.readouterr().out
    assert _rows(tmp_path) == rows
    losses = _losses(tmp_path)
    found = evaluate.evaluate(tmp_path, step="best")
    assert losses[found["step"]] == min(losses.values())
    on = dataclasses.replace(
        cfg, train=dataclasses.replace(cfg.train, early_stopping_validations=0)
    )
    assert train.train(on, tmp_path) == exit_codes.DONE
    assert _status(tmp_path)["step"] == 12


@pytest.mark.slow
def test_early_stopping_goes_on_after_a_restart_as_if_there_had_been_none(
    stopped, tmp_path, monkeypatch
):
    """Stopped at every step, before and after the end of a trial."""
    cfg, workdir = stopped
    stops = loop.Loop.stops
    for step in range(1, 12):
        with monkeypatch.context() as patch:
            patch.setattr(loop.Loop, "stops", lambda self, at, step=step: at >= step)
            train.train(cfg, tmp_path)
    assert loop.Loop.stops is stops
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    for trial in range(2):
        one, other = (root / f"trials/{trial:03}" for root in (workdir, tmp_path))
        assert _rows(one) == _rows(other)
        jax.tree.map(np.testing.assert_array_equal, _params(one), _params(other))
    assert evaluate.evaluate(workdir, step="best") == evaluate.evaluate(tmp_path, step="best")
