"""When a run saves, which checkpoints stay, and what a run takes from one on request."""

import dataclasses
import os
import pathlib
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from keel_jax import config, errors, evaluate, train
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes
from keel_jax.training import ancestry, checkpoint, checkpoint_meta, logs, loop, trained
from keel_jax.training import state as state_lib
from tests import conftest

NUM_STEPS = 8


def _config(token_dir, cache_dir, **sections):
    sections["model"] = {"vocab_size": 0, **sections.get("model", {})}
    sections["data"] = {"path": str(token_dir)}
    sections["train"] = {"num_steps": NUM_STEPS, **sections.get("train", {})}
    sections["runtime"] = {"compilation_cache_dir": cache_dir}
    return conftest.tiny_config(**sections)


def _train(cfg, workdir):
    assert train.train(cfg, workdir) == exit_codes.DONE
    return workdir


def _params(workdir, step=None):
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    params, _ = trained.load_params(workdir, mesh, step)
    return jax.device_get(params)


def _progress(workdir, step):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(pathlib.Path(workdir) / f"checkpoints/{step}/progress")


def _steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def _equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _eval_losses(workdir):
    name = "eval/loss_nats_per_token"
    return {row["step"]: row[name] for row in logs.read(workdir) if name in row}


@pytest.fixture(scope="module")
def whole(token_dir, cache_dir, tmp_path_factory):
    """A run with a checkpoint of every step."""
    cfg = _config(
        token_dir, cache_dir, train=dict(checkpoint_every_steps=1, keep_checkpoints=NUM_STEPS)
    )
    return _train(cfg, tmp_path_factory.mktemp("whole"))


# --- When -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [2, 4, 6, 8]), (1e9, [8])])
def test_time_alone_can_ask_for_a_checkpoint(token_dir, cache_dir, tmp_path, minutes, steps):
    """At logged steps, at which processes whose clocks differ agree on it; and no number moves."""
    options = dict(checkpoint_every_steps=0, keep_checkpoints=9, log_every_steps=2)
    cfg = _config(token_dir, cache_dir, train=dict(options, checkpoint_every_minutes=minutes))
    assert _steps(_train(cfg, tmp_path / "run")) == steps


def test_a_failed_save_ends_the_run_at_the_next_step(
    whole, token_dir, cache_dir, tmp_path, monkeypatch
):
    """Although only the last step is logged, and no save follows."""
    cfg = _config(
        token_dir, cache_dir, train=dict(checkpoint_every_steps=4, log_every_steps=NUM_STEPS)
    )
    seen = []

    def slow(self, step, state, batch, original=loop.Loop._step):
        seen.append(step)
        manager = self.check_saved.__self__._manager
        while manager.is_saving_in_progress():  # so that the save of step 4 fails during step 5
            time.sleep(0.01)
        return original(self, step, state, batch)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(loop.Loop, "_step", slow)
        patch.setattr(pathlib.Path, "rename", full)
        patch.setattr(os, "rename", full)
        train.train(cfg, tmp_path / "run")
    assert seen[-1] == 5


# --- Which stay -----------------------------------------------------------------------------------


def test_the_best_checkpoints_stay_and_can_be_read(token_dir, cache_dir, tmp_path):
    """Each validation writes one; of these the best two outlive the newest."""
    options = dict(checkpoint_every_steps=0, keep_checkpoints=1, keep_best=2, eval_every_steps=2)
    # At this rate the loss rises again.
    cfg = _config(token_dir, cache_dir, train=options, optim=dict(peak_lr=0.3, schedule="constant"))
    workdir = _train(cfg, tmp_path / "run")
    losses = _eval_losses(workdir)
    last = losses.pop(NUM_STEPS)  # the last state is saved before it is validated
    best = sorted(losses, key=losses.__getitem__)
    assert best != [6, 4, 2], "the newest would be the best"
    assert _steps(workdir) == sorted([*best[:2], NUM_STEPS])
    # The log has its loss all the same, which is the lowest.
    assert last < losses[best[0]]
    assert evaluate.evaluate(workdir, step="best")["step"] == NUM_STEPS
    shutil.rmtree(workdir / "checkpoints" / str(NUM_STEPS))
    found = evaluate.evaluate(workdir, step="best")
    assert found["step"] == best[0]
    assert found["loss_nats_per_token"] == pytest.approx(losses[best[0]], rel=1e-5)
    # Without the log it is known from the checkpoints.
    (workdir / "metrics.jsonl").unlink()
    assert evaluate.evaluate(workdir, step="best")["step"] == best[0]


def test_a_restart_knows_the_losses_of_the_checkpoints_before(tmp_path):
    cfg = conftest.tiny_config(model=dict(num_blocks=1))
    options = dataclasses.replace(cfg.train, keep_checkpoints=1, keep_best=1, eval_every_steps=1)
    state = state_lib.create(cfg, mesh_lib.make(cfg.mesh))
    # Step 5 was not validated, the loss of step 6 was infinite, and of two equal ones the older
    # stays.
    for step, loss in enumerate([3.0, 2.0, 2.5, 2.0, None, float("inf"), 4.0], start=1):
        with checkpoint.Checkpoints(tmp_path, options) as checkpoints:
            checkpoints.save(state, checkpoint_meta.Meta(step, "d", "t", eval_loss=loss))
    assert _steps(tmp_path) == [2, 7]


def test_without_validations_there_is_no_best(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "metrics.jsonl").unlink()
    with pytest.raises(errors.UserError, match=r"holds no state with a validation loss"):
        evaluate.evaluate(copy, step="best")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(train=dict(keep_best=1)), r"keep_best=1 has no effect with train.eval_every_steps=0"),
        (dict(train=dict(checkpoint_every_minutes=-1.0)), r"must not be negative"),
        (dict(train=dict(init_partially=True)), r"has no effect with train.init_from=''"),
    ],
)
def test_options_that_contradict_each_other(sections, message):
    with pytest.raises(errors.UserError, match=message):
        conftest.tiny_config(**sections)


# --- What is taken from one -----------------------------------------------------------------------


@pytest.fixture
def stopped(whole, tmp_path):
    """A copy of a run as a kill after step 3 would have left it."""
    copy = shutil.copytree(whole, tmp_path / "stopped")
    for step in range(4, NUM_STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / str(step))
    return copy


def _whole_config(token_dir, cache_dir, **more):
    return _config(
        token_dir,
        cache_dir,
        train=dict(checkpoint_every_steps=1, keep_checkpoints=NUM_STEPS, **more),
    )


def test_the_optimizer_begins_anew_on_request(
    whole, stopped, token_dir, cache_dir, tmp_path, capsys
):
    """The weights, the step and the data go on; a restart after it does not do it again."""
    cfg = _whole_config(token_dir, cache_dir, reset_optimizer_at_step=3)
    again = tmp_path / "again"
    _train(cfg, stopped)
    assert "The optimizer begins anew" in capsys.readouterr().out
    _equal(_params(stopped, 3), _params(whole, 3))
    counts = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(_progress(stopped, 5)["opt_state"])
        if "count" in jax.tree_util.keystr(path)
    ]
    assert counts and all(count == 2 for count in counts)
    with pytest.raises(AssertionError):
        _equal(_params(stopped, 4), _params(whole, 4))
    shutil.copytree(stopped, again)
    for step in range(6, NUM_STEPS + 1):
        shutil.rmtree(again / "checkpoints" / str(step))
    _train(cfg, again)
    assert "anew" not in capsys.readouterr().out
    _equal(_params(again), _params(stopped))


def test_an_optimizer_cannot_begin_anew_at_a_step_to_come(stopped, token_dir, cache_dir, tmp_path):
    cfg = _whole_config(token_dir, cache_dir, reset_optimizer_at_step=4)
    with pytest.raises(errors.UserError, match=r"=4 is later than step 3.*set it to 3, or to 0"):
        train.train(cfg, stopped)
    assert _steps(stopped) == [1, 2, 3]
    with pytest.raises(errors.UserError, match=r"holds no checkpoint from which"):
        train.train(cfg, tmp_path / "new")


@pytest.mark.parametrize("num_trials", [1, 2])
def test_weights_that_fit_are_taken_and_the_others_are_named(
    whole, token_dir, cache_dir, tmp_path, capsys, num_trials
):
    sections = dict(
        model=dict(d_ffn=48),
        train=dict(
            init_from=str(whole), init_partially=True, num_steps=1, checkpoint_every_steps=0
        ),
        optim=dict(warmup_steps=0, schedule="constant", peak_lr=1e-30),
    )
    random = dict(sections, train=dict(num_steps=1))
    if num_trials == 2:
        sections["trials"] = random["trials"] = dict(peak_lr=(1e-30, 1e-30), seed=(0, 1))
    new = _train(_config(token_dir, cache_dir, **sections), tmp_path / "new")
    said = capsys.readouterr().out
    _train(_config(token_dir, cache_dir, **random), tmp_path / "random")
    named = ancestry.read(new)[-1]["random"]
    assert sorted(name for name in named if name in said) == sorted(named)
    part = f"trials/{num_trials - 1:03}" if num_trials > 1 else ""
    mine, theirs, fresh = (
        dict(jax.tree_util.tree_leaves_with_path(_params(workdir)))
        for workdir in (new / part, whole, tmp_path / "random" / part)
    )
    for path, leaf in mine.items():
        name = jax.tree_util.keystr(path)
        assert (name in named) == ("'ffn'" in name and leaf.shape != theirs[path].shape), name
        _equal(leaf, (fresh if name in named else theirs)[path])


def test_of_another_vocabulary_no_row_is_taken(whole, corpus_dir, cache_dir, tmp_path, capsys):
    """Its tokens mean something else, though as many rows would fit."""
    texts = shutil.copytree(corpus_dir, tmp_path / "texts")
    (texts / "new.txt").write_text("a document that was not there\n" * 50)
    conftest.prepare_text_files(texts, tmp_path / "tokens")
    options = dict(init_from=str(whole), checkpoint_every_steps=0)
    cfg = _config(tmp_path / "tokens", cache_dir, train=options)
    with pytest.raises(errors.UserError, match=r"with that run's tokenizer.model, or train new"):
        train.train(cfg, tmp_path / "new")
    cfg = _config(tmp_path / "tokens", cache_dir, train=dict(options, init_partially=True))
    new = _train(cfg, tmp_path / "new")
    assert {name.split("'")[1] for name in ancestry.read(new)[-1]["random"]} == {
        "embedding",
        "output",
    }
    assert "['embedding']" in capsys.readouterr().out


def test_a_model_of_which_nothing_fits_is_refused(whole, token_dir, cache_dir, tmp_path):
    sizes = dict(d_model=24, num_heads=3, num_kv_heads=3)
    cfg = _config(
        token_dir, cache_dir, model=sizes, train=dict(init_from=str(whole), init_partially=True)
    )
    with pytest.raises(errors.UserError, match=r"holds no weights that fit this model"):
        train.train(cfg, tmp_path / "new")
