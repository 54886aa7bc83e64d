"""Benchmarks during training score what `evaluate` scores on the checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest

from keel_jax import config, make_depth_suite, train
from keel_jax.depth_suite import options
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes
from keel_jax.tasks import evaluation, in_training
from keel_jax.training import logs, trained
from tests import conftest
from tests.tasks import layouts

_TASKS = ("lambada", "depth_recall")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    layouts.write("lambada", folder)
    layouts.write("gsm8k", folder)
    chosen = options.SuiteOptions(tasks=("recall",), difficulties=(1, 2), num_train=0, num_test=3)
    make_depth_suite.write(chosen, folder / "depth_suite")
    return folder


def _config(cfg, folder, **tasks):
    tasks = {"names": _TASKS, "data": str(folder), **tasks}
    return dataclasses.replace(cfg, tasks=config.TasksConfig(**tasks))


def test_the_metrics_are_those_of_evaluate(workdir, model, folder, tmp_path):
    cfg = _config(model.trained.cfg, folder)
    examination = in_training.Examination(cfg, model.trained.mesh, model.tokenizer)
    [metrics] = examination(model.trained.params)
    found, _ = evaluation.evaluate(
        workdir, [*_TASKS], folder, items=tmp_path / "items", mesh=trained.one_device()
    )
    lambada, recall = found
    assert metrics["tasks/lambada/acc"] == lambada.metrics["acc"].value
    assert metrics["tasks/lambada/nats"] == pytest.approx(lambada.metrics["nats"].value, rel=1e-6)
    assert metrics["tasks/depth_recall/acc"] == recall.headline.value
    for subject, (value, count) in recall.subjects.items():
        assert metrics[f"tasks/depth_recall/acc/{subject}"] == value and count == 3
    headlines = [result.headline.value for result in found]
    assert metrics["tasks/average"] == pytest.approx(np.mean(headlines))


def test_every_trial_is_scored_alone(model, folder):
    """Stacked weights, as the state of several trials has them."""
    one = model.trained.params
    other = jax.tree.map(lambda leaf: leaf * 1.5, one)
    cfg = _config(model.trained.cfg, folder, limit=1)
    alone = in_training.Examination(cfg, model.trained.mesh, model.tokenizer)
    several = in_training.Examination(
        dataclasses.replace(cfg, trials=config.TrialsConfig(seed=(0, 1))),
        model.trained.mesh,
        model.tokenizer,
    )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), one, other)
    assert several(stacked) == alone(one) + alone(other)
    assert alone(one) != alone(other)


def test_a_stop_request_ends_it(model, folder):
    cfg = _config(model.trained.cfg, folder, batch_size=1)
    examination = in_training.Examination(cfg, model.trained.mesh, model.tokenizer)
    asked = []
    assert examination(model.trained.params, lambda: len(asked) == 1 or asked.append(1)) is None


def test_what_cannot_be_scored_is_refused_at_the_beginning(model, folder):
    def make(**tasks):
        cfg = _config(model.trained.cfg, folder, **tasks)
        return in_training.Examination(cfg, model.trained.mesh, model.tokenizer)

    with pytest.raises(ValueError, match="tasks.names has gsm8k, whose answers are generated"):
        make(names=("gsm8k",))
    with pytest.raises(ValueError, match="Did you mean 'piqa'"):
        make(names=("pica",))
    with pytest.raises(ValueError, match="hellaswag: no file of"):
        make(names=("hellaswag",))
    mesh = mesh_lib.make(config.MeshConfig(fsdp=4, context=2))
    with pytest.raises(ValueError, match="context=2 and stage=1 cannot score"):
        in_training.Examination(_config(model.trained.cfg, folder), mesh, model.tokenizer)


def test_a_run_without_benchmarks_has_no_examination(model, workdir):
    assert in_training.make(model.trained.cfg, model.trained.mesh, workdir / "no.model") is None


def _scored_steps(directory):
    return [row["step"] for row in logs.read(directory) if "tasks/average" in row]


def test_a_run_logs_its_benchmarks_and_does_not_score_them_twice(token_dir, folder, tmp_path):
    cfg = conftest.tiny_config(
        data=dict(path=str(token_dir)),
        model=dict(vocab_size=304),
        train=dict(num_steps=5, seq_len=40, batch_size=8, checkpoint_every_steps=2),
        trials=dict(num_steps=(5, 3), peak_lr=(1e-2, 1e-3)),
        tasks=dict(names=_TASKS, data=str(folder), every_steps=2, limit=1),
    )
    assert train.train(cfg, tmp_path / "run") == exit_codes.DONE
    # A trial is scored at its own end, too, and not after it.
    trials = [tmp_path / "run/trials" / name for name in ("000", "001")]
    assert [_scored_steps(trial) for trial in trials] == [[2, 3, 4, 5], [2, 3]]
    before = [logs.read(trial) for trial in trials]
    assert train.train(cfg, tmp_path / "run") == exit_codes.DONE
    assert [logs.read(trial) for trial in trials] == before


def test_a_trial_that_stops_early_is_scored_there(token_dir, folder, tmp_path):
    """A rate of almost nothing brings no improvement: one validation is patience enough."""
    cfg = conftest.tiny_config(
        data=dict(path=str(token_dir)),
        model=dict(vocab_size=304),
        train=dict(num_steps=6, seq_len=40, eval_every_steps=1, early_stopping_validations=1),
        trials=dict(peak_lr=(1e-2, 1e-30)),
        tasks=dict(names=_TASKS, data=str(folder), limit=1),
    )
    assert train.train(cfg, tmp_path / "run") == exit_codes.DONE
    trials = [tmp_path / "run/trials" / name for name in ("000", "001")]
    assert _scored_steps(trials[0]) == [2, 6] and _scored_steps(trials[1]) == [2]


def test_benchmarks_that_cannot_be_are_refused_before_the_directory_exists(
    token_dir, folder, tmp_path
):
    cfg = conftest.tiny_config(
        data=dict(path=str(token_dir)),
        model=dict(vocab_size=304),
        tasks=dict(names=("hellaswag",), data=str(folder)),
    )
    with pytest.raises(ValueError, match="hellaswag: no file of"):
        train.train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
