"""The driver: resume is exact, a stop is clean, a restart compiles nothing, bad input is harmless.

Most tests call `train.train` in this process; those on signals and exit codes start
the command.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing import event_accumulator

import keel_jax
from keel_jax import config, evaluate, train
from keel_jax.model import sampling
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes, files, ownership, stop
from keel_jax.training import inputs, logs, loop, profiling, trained
from tests import conftest

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 5


def _config(token_dir, cache_dir, **sections):
    sections["model"] = {"vocab_size": 0, **sections.get("model", {})}
    sections["data"] = {"path": str(token_dir), **sections.get("data", {})}
    sections["train"] = {"num_steps": NUM_STEPS, **sections.get("train", {})}
    sections["runtime"] = {"compilation_cache_dir": cache_dir}
    return conftest.tiny_config(**sections)


def _params(workdir, step=None):
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    params, _ = trained.load_params(workdir, mesh, step)
    return jax.device_get(params)


def _numbers(workdir):
    """The rows of metrics.jsonl without the clock's."""
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in logs.read(workdir)
    ]


def _unfinished(workdir, tmp_path, last_step=NUM_STEPS - 1):
    """A copy of a run as a kill after `last_step` would have left it."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for step in range(last_step + 1, NUM_STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / str(step))
    return copy


def _progress(workdir, step):
    """The optimizer's state and counts in a checkpoint, as plain arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(pathlib.Path(workdir) / f"checkpoints/{step}/progress")


def _status(workdir):
    return files.read_json(pathlib.Path(workdir) / "status.json")


@pytest.fixture(scope="module")
def finished(token_dir, cache_dir, tmp_path_factory):
    """A run that was never stopped, with a checkpoint of every step."""
    workdir = tmp_path_factory.mktemp("run")
    cfg = _config(
        token_dir,
        cache_dir,
        train=dict(checkpoint_every_steps=1, keep_checkpoints=NUM_STEPS, eval_every_steps=2),
    )
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


def test_a_run_writes_what_it_promises(finished):
    cfg, workdir = finished
    status = _status(workdir)
    assert status["state"] == "done" and status["exit_code"] == 0
    assert status["step"] == NUM_STEPS and status["num_sublayers"] == 6
    assert status["compile_seconds"] > 0 and status["num_params"] > 0
    assert status["attention_kernel"] == "reference"
    rows = logs.read(workdir)
    train_rows = [row for row in rows if "train/loss_nats_per_token" in row]
    assert [row["step"] for row in train_rows] == [1, 2, 3, 4, 5]
    for key in (
        "tokens",
        "train/grad_norm",
        "train/learning_rate",
        "train/bits_per_byte",
        "time/step_seconds",
        "time/tokens_per_second",
        "time/data_wait_fraction",
        "time/model_flops_per_second",
    ):
        assert key in train_rows[0]
    assert "time/mfu" not in train_rows[0], "a CPU's peak is not known: no guess"
    evals = [row["step"] for row in rows if "eval/loss_nats_per_token" in row]
    assert evals == [2, 4, 5]
    assert train_rows[0]["train/loss_nats_per_token"] == pytest.approx(math.log(300), rel=0.02)
    saved = config.from_dict(files.read_json(workdir / "config.json"))
    assert saved.model.vocab_size == 300
    assert files.read_json(workdir / "versions.json")["packages"]["jax"] == jax.__version__
    assert list((workdir / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("stop", range(NUM_STEPS))
def test_resume_from_every_step_is_bitwise_the_run_never_stopped(finished, tmp_path, stop):
    """Weights, optimizer and metrics; the log starts out with lines beyond the checkpoint."""
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path, stop)
    assert train.train(cfg, copy) == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _params(copy), _params(workdir))
    assert _numbers(copy) == _numbers(workdir)
    for step in range(stop + 1, NUM_STEPS + 1):
        jax.tree.map(np.testing.assert_array_equal, _params(copy, step), _params(workdir, step))
        jax.tree.map(np.testing.assert_array_equal, _progress(copy, step), _progress(workdir, step))


def test_a_restart_compiles_nothing(finished, tmp_path):
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path)
    assert train.train(cfg, copy) == exit_codes.DONE
    compilations = _status(copy)["compilations"]
    assert compilations["new"] == 0 and compilations["cached"] >= 2, compilations


def test_a_finished_run_says_so(finished, capsys):
    cfg, workdir = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert train.train(cfg, workdir) == exit_codes.DONE
    assert "is done: step 5 of 5" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_finished_run_can_be_lengthened_and_its_rate_changed(finished, tmp_path):
    cfg, workdir = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    longer = dataclasses.replace(
        cfg,
        train=dataclasses.replace(cfg.train, num_steps=NUM_STEPS + 2, num_tokens=0),
        optim=dataclasses.replace(cfg.optim, peak_lr=1e-4, schedule="constant"),
    )
    assert train.train(longer, copy) == exit_codes.DONE
    last = [row for row in logs.read(copy) if "train/learning_rate" in row][-1]
    assert last["step"] == NUM_STEPS + 2
    assert last["train/learning_rate"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", dict(d_ffn=48)),
        ("model", dict(topology="pre_ln")),
        ("train", dict(seq_len=8)),
        ("optim", dict(name="lion")),
        ("data", dict(mask_documents=False)),
    ],
)
def test_a_changed_config_is_refused_and_nothing_lost(finished, section, change):
    cfg, workdir = finished
    [(key, value)] = change.items()
    old = getattr(getattr(cfg, section), key)
    values = config.to_dict(cfg)
    values["train"]["num_tokens"] = 0
    values[section] |= change
    before = {p: p.read_bytes() for p in workdir.glob("*.json*")}
    with pytest.raises(ValueError, match=f"{section}.{key}: {old!r} there, {value!r} now"):
        train.train(config.from_config_dict(values), workdir)
    assert {p: p.read_bytes() for p in workdir.glob("*.json*")} == before


def _with_data(cfg, path):
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, path=str(path)))


def test_other_data_are_refused_and_nothing_lost(finished, tmp_path, corpus_dir):
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(corpus_dir, other)
    (other / "new.txt").write_text("a document that was not there\n" * 50)
    conftest.prepare_text_files(other, tmp_path / "tokens")
    before = {p: p.read_bytes() for p in copy.glob("*.json*")}
    with pytest.raises(ValueError, match=r"was trained with (tokenizer|data) \w{12}, data.path"):
        train.train(_with_data(cfg, tmp_path / "tokens"), copy)
    assert {p: p.read_bytes() for p in copy.glob("*.json*")} == before
    assert (copy / "checkpoints" / "4").exists()


def test_moved_data_are_the_same_data(finished, tmp_path):
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path)
    shutil.copytree(cfg.data.path, tmp_path / "moved")
    assert train.train(_with_data(cfg, tmp_path / "moved"), copy) == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _params(copy), _params(workdir))


def test_a_first_start_that_failed_binds_nothing(token_dir, cache_dir, tmp_path):
    """No step was taken, so the corrected options are welcome."""
    with pytest.raises(ValueError, match="size 12 is not a multiple of the 8 devices"):
        train.train(_config(token_dir, cache_dir, train=dict(batch_size=12)), tmp_path / "run")
    assert train.train(_config(token_dir, cache_dir), tmp_path / "run") == exit_codes.DONE


def test_trials_are_runs_of_their_own(token_dir, cache_dir, tmp_path):
    """A trial's metrics equal those of the run alone; each has a work directory to evaluate."""
    cfg = _config(token_dir, cache_dir, trials=dict(peak_lr=(1e-2, 1e30), seed=(3, 3)))
    assert train.train(cfg, tmp_path / "trials") == exit_codes.DONE
    alone = cfg.for_trial(0)
    assert train.train(alone, tmp_path / "alone") == exit_codes.DONE
    for one, other in zip(
        _numbers(tmp_path / "trials/trials/000"), _numbers(tmp_path / "alone"), strict=True
    ):
        for key in other:
            assert one[key] == pytest.approx(other[key], rel=1e-3), key
    states = [_status(tmp_path / f"trials/trials/{trial:03}")["state"] for trial in range(2)]
    assert states == ["done", "diverged"]
    found = [
        evaluate.evaluate(tmp_path / d)["loss_nats_per_token"]
        for d in ("trials/trials/000", "alone")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    with pytest.raises(ValueError, match="holds 2 trials"):
        evaluate.evaluate(tmp_path / "trials")
    # Started again, the trials are done.
    assert train.train(cfg, tmp_path / "trials") == exit_codes.DONE


def test_divergence_is_exit_code_three_and_stays(token_dir, cache_dir, tmp_path, capsys):
    cfg = _config(token_dir, cache_dir, optim=dict(peak_lr=1e30))
    assert train.train(cfg, tmp_path) == exit_codes.DIVERGED
    assert _status(tmp_path)["state"] == "diverged"
    rows = logs.read(tmp_path)
    assert train.train(cfg, tmp_path) == exit_codes.DIVERGED
    assert "with the same options it would again" in capsys.readouterr().out
    assert logs.read(tmp_path) == rows
    for leaf in jax.tree.leaves(_params(tmp_path)):
        assert np.isfinite(leaf).all()
    gentle = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, peak_lr=1e-3))
    with pytest.raises(ValueError, match="only holds the diverged state of step ."):
        train.train(gentle, tmp_path)


def test_a_diverged_run_is_rescued_by_a_lower_rate(token_dir, cache_dir, tmp_path):
    """It goes on from the newest checkpoint before the divergence."""
    often = dict(checkpoint_every_steps=1, keep_checkpoints=9)
    cfg = _config(token_dir, cache_dir, optim=dict(peak_lr=1e30), train=often)
    assert train.train(cfg, tmp_path) == exit_codes.DIVERGED
    # The rate of the first step of a warm-up is 0: what it left is as good as new.
    for step in (tmp_path / "checkpoints").iterdir():
        if int(step.name) > 1:
            shutil.rmtree(step)
    gentle = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, peak_lr=1e-2))
    assert train.train(gentle, tmp_path) == exit_codes.DONE
    rows = [row["step"] for row in logs.read(tmp_path) if "tokens" in row]
    assert rows == [1, 2, 3, 4, 5]


def test_init_from_takes_the_weights_and_nothing_else(finished, token_dir, cache_dir, tmp_path):
    cfg, workdir = finished
    start = _config(
        token_dir,
        cache_dir,
        train=dict(init_from=f"{workdir}/checkpoints/3", checkpoint_every_steps=1, num_steps=1),
        optim=dict(warmup_steps=0, schedule="constant", peak_lr=1e-30),
    )
    assert train.train(start, tmp_path / "new") == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _params(tmp_path / "new"), _params(workdir, 3))
    assert _status(tmp_path / "new")["step"] == 1
    other = _config(token_dir, cache_dir, model=dict(d_ffn=48), train=dict(init_from=str(workdir)))
    with pytest.raises(ValueError, match=r"model.d_ffn: 24 there, 48 here"):
        train.train(other, tmp_path / "other")


def test_evaluation_is_the_same_on_one_device_and_on_eight(finished):
    """Token-exact over the whole split, whatever the batch, the devices, or the last row's fill."""
    _, workdir = finished
    one_mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    found = [
        evaluate.evaluate(workdir),
        evaluate.evaluate(workdir, batch_size=3),
        evaluate.evaluate(workdir, mesh=one_mesh),
        evaluate.evaluate(workdir, mesh=one_mesh, batch_size=5),
    ]
    last = [row for row in logs.read(workdir) if "eval/loss_nats_per_token" in row][-1]
    for result in found:
        assert result["num_tokens"] == found[0]["num_tokens"]
        assert result["loss_nats_per_token"] == pytest.approx(
            last["eval/loss_nats_per_token"], rel=1e-6
        )


def test_evaluation_fits_itself_to_the_devices(token_dir, cache_dir, tmp_path):
    """A width that eight devices cannot share: some share the width, the others the rows."""
    cfg = _config(
        token_dir, cache_dir, model=dict(d_model=12, head_dim=4), mesh=dict(data=8, fsdp=1)
    )
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    assert evaluate.evaluate(tmp_path)["step"] == NUM_STEPS


def test_a_stop_during_the_last_validation_loses_nothing(
    token_dir, cache_dir, tmp_path, monkeypatch
):
    """The state is saved before; the next start only validates."""
    cfg = _config(token_dir, cache_dir)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "stops", lambda self, step: step == NUM_STEPS)
        assert train.train(cfg, tmp_path) == exit_codes.PREEMPTED
    assert not [row for row in logs.read(tmp_path) if "eval/loss_nats_per_token" in row]
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    assert [row["step"] for row in logs.read(tmp_path)] == [1, 2, 3, 4, 5, 5]


def test_a_stop_during_compilation_ends_before_the_first_step(
    finished, token_dir, cache_dir, tmp_path, monkeypatch
):
    cfg, workdir = finished
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "stops", lambda self, step: True)
        assert train.train(cfg, tmp_path) == exit_codes.PREEMPTED
    assert _status(tmp_path)["step"] == 0
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _params(tmp_path), _params(workdir))


@pytest.mark.parametrize("asked_at", [1, 2, 3])
def test_a_stop_during_compilation_does_not_wait_for_the_programs_that_follow(
    asked_at, token_dir, cache_dir, tmp_path, monkeypatch, capsys
):
    """Nothing was computed that could be lost, so nothing is saved; the next start goes on."""
    cfg = _config(token_dir, cache_dir, telemetry=dict(every_steps=4))
    numbers = iter(range(1, 10))
    with monkeypatch.context() as patch:
        patch.setattr(stop.StopRequest, "asked", lambda self: next(numbers) >= asked_at)
        assert train.train(cfg, tmp_path) == exit_codes.PREEMPTED
    assert capsys.readouterr().out.count("\ncompiled ") == asked_at - 1
    assert _status(tmp_path)["state"] == "preempted"
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()]


def test_a_dead_trial_stays_dead_over_a_restart(token_dir, cache_dir, tmp_path, monkeypatch):
    """Stopped and started, the trials are those of a run never stopped, the dead one too."""
    cfg = _config(token_dir, cache_dir, trials=dict(peak_lr=(1e-2, 1e30)))
    assert train.train(cfg, tmp_path / "whole") == exit_codes.DONE
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "stops", lambda self, step: step == 4)
        assert train.train(cfg, tmp_path / "parts") == exit_codes.PREEMPTED
    assert train.train(cfg, tmp_path / "parts") == exit_codes.DONE
    for trial in ("trials/000", "trials/001"):
        whole, parts = tmp_path / "whole" / trial, tmp_path / "parts" / trial
        assert _numbers(parts) == _numbers(whole)
        assert _status(parts)["state"] == _status(whole)["state"]
        assert _status(parts)["step"] == _status(whole)["step"]
        jax.tree.map(np.testing.assert_array_equal, _params(parts), _params(whole))


def test_tensorboard_forgets_what_a_killed_run_wrote_too_much(finished, tmp_path):
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path, 3)
    assert train.train(cfg, copy) == exit_codes.DONE
    events = event_accumulator.EventAccumulator(str(copy / "tensorboard")).Reload()
    steps = [event.step for event in events.Scalars("train/loss_nats_per_token")]
    assert steps == [1, 2, 3, 4, 5]


def test_generation_needs_the_checkpoints_tokenizer(finished, tmp_path, corpus_dir):
    _, workdir = finished
    how = sampling.Sampling(temperature=0.0)
    texts = keel_jax.load(workdir).generate(["def f", ""], num_tokens=4, how=how)
    assert texts == keel_jax.load(workdir).generate(["def f", ""], num_tokens=4, how=how)
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    conftest.prepare_text_files(corpus_dir, tmp_path / "other", vocab_size=290)
    shutil.copy(tmp_path / "other/tokenizer.model", copy / "tokenizer.model")
    with pytest.raises(ValueError, match="the checkpoint was trained with"):
        keel_jax.load(copy).generate([""], num_tokens=1, how=how)


def test_a_prompt_longer_than_a_window_is_refused(finished):
    _, workdir = finished
    how = sampling.Sampling(temperature=0.0)
    seq_len = 16
    [text] = keel_jax.load(workdir).generate(["x" * (seq_len - 1)], num_tokens=2, how=how)
    assert isinstance(text, str)
    with pytest.raises(ValueError, match=r"prompt has 1201 tokens.*trained on windows of 16"):
        keel_jax.load(workdir).generate(["", "\u4e00" * 400], num_tokens=2, how=how)  # 3 bytes each


@pytest.mark.parametrize("option", ["batch_size", "seq_len"])
def test_an_evaluation_of_nothing_is_refused(option, finished):
    _, workdir = finished
    with pytest.raises(ValueError, match=f"train.{option}=0 must be at least 1"):
        evaluate.evaluate(workdir, **{option: 0})
    done = _verb("evaluate", f"--workdir={workdir}", f"--{option}=0")
    assert done.returncode == exit_codes.ERROR
    assert f"--{option}=0" in done.stderr and "Traceback" not in done.stderr


def test_generate_prints_to_an_ascii_terminal(finished, monkeypatch):
    _, workdir = finished
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = _verb("generate", f"--workdir={workdir}", "--prompt=\u00fc\u6f22", "--num_tokens=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"\xfc\u6f22")


def test_a_comma_in_the_name_of_a_data_directory(token_dir, tmp_path):
    path = tmp_path / "a,b"
    shutil.copytree(token_dir, path)
    told = r"directories .*a, b, of which .*/a does not exist.*--config.data.path='.*a\\,b'"
    with pytest.raises(ValueError, match=told):
        inputs.open_inputs(config.DataConfig(path=str(path)))
    tokens = inputs.open_inputs(config.DataConfig(path=config.join_paths([str(path)])))
    assert [str(token_set.path) for token_set in tokens.token_sets] == [str(path)]
    cfg = conftest.tiny_config(
        model=dict(vocab_size=0), data=dict(path=config.join_paths([str(path)]))
    )
    assert inputs.complete(cfg, tokens).data.paths == (str(path),)


def test_a_trace_is_written(token_dir, cache_dir, tmp_path):
    cfg = _config(token_dir, cache_dir, train=dict(profile_steps="2:3"))
    assert train.train(cfg, tmp_path) == exit_codes.DONE
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    """The profiler raises this where it cannot make its directory, and stays on: none is real."""

    def fail():
        raise jax.errors.JaxRuntimeError("FAILED_PRECONDITION: runs/file is not a directory")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", fail)
    with profiling.StepTrace((1, 1), str(tmp_path)) as trace:
        trace.start()
    assert f"{tmp_path} cannot be written (FAILED_PRECONDITION" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(data=dict(path="")), "data.path is empty"),
        (dict(data=dict(path="/nowhere")), "/nowhere"),
        (dict(model=dict(vocab_size=200)), "vocab_size=200 .* 300 pieces"),
        (dict(train=dict(batch_size=12)), "size 12 is not a multiple of the 8 devices"),
        (dict(train=dict(seq_len=10**6)), "1000001"),
        (dict(train=dict(init_from="/nowhere")), "/nowhere is not a work directory"),
    ],
)
def test_bad_input_is_refused_by_name(token_dir, cache_dir, tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        train.train(_config(token_dir, cache_dir, **sections), tmp_path / "run")


def test_a_truncated_shard_is_refused(token_dir, cache_dir, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(token_dir, copy)
    shard = next(copy.glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=shard.name):
        train.train(_config(copy, cache_dir), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_workdir_is_refused(token_dir, cache_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Cannot write to .*/file"):
        train.train(_config(token_dir, cache_dir), tmp_path / "file")


def test_a_failed_checkpoint_write_is_an_error_that_keeps_the_older_ones(
    finished, tmp_path, monkeypatch
):
    """The write fails in the background, after `save` has returned, as a full disk would."""
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path, 3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(pathlib.Path, "rename", full)
        patch.setattr(os, "rename", full)
        train.train(cfg, copy)
    assert _status(copy)["state"] == "failed"
    assert train.train(cfg, copy) == exit_codes.DONE
    jax.tree.map(np.testing.assert_array_equal, _params(copy), _params(workdir))


def test_a_second_start_is_told_who_holds_the_directory(finished, tmp_path):
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with ownership.Claim(copy):
        with pytest.raises(ValueError, match=rf"copy is in use by process {os.getpid()} on "):
            train.train(cfg, copy)
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert before == after
    assert train.train(cfg, copy) == exit_codes.DONE
    assert not (copy / ownership.FILE).exists()


def test_a_start_that_was_killed_before_its_first_checkpoint_can_be_repeated(
    finished, token_dir, cache_dir, tmp_path
):
    """Orbax makes the directory of checkpoints before the run describes itself."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    cfg = _config(token_dir, cache_dir, train=dict(num_steps=3))
    assert train.train(cfg, tmp_path / "run") == exit_codes.DONE


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(finished, tmp_path):
    cfg, workdir = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    path = max((copy / "checkpoints" / "5" / "params" / "d").iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    (copy / "checkpoints" / "999").mkdir()
    assert train.train(cfg, copy) == exit_codes.DONE
    status = _status(copy)
    assert status["state"] == "done" and status["step"] == NUM_STEPS
    assert [record["step"] for record in status["damaged_checkpoints"]] == [5, 999]
    assert path.name in status["damaged_checkpoints"][0]["damage"][0]
    jax.tree.map(np.testing.assert_array_equal, _params(copy), _params(workdir))
    assert _numbers(copy) == _numbers(workdir)


def test_the_config_of_another_topology_is_not_that_of_these_weights(finished, tmp_path):
    """Their arrays have the same shapes, so that nothing else would notice."""
    cfg, workdir = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    other = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, alpha=3.0))
    saved = files.read_json(copy / "config.json")
    saved["model"]["alpha"] = other.model.alpha
    files.write_checked_json(copy / "config.json", saved)
    message = r"model.alpha: 'its default' there, 3.0 in config.json\): put the run's own config"
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(copy)
    with pytest.raises(ValueError, match=message):
        train.train(
            dataclasses.replace(
                other, train=dataclasses.replace(cfg.train, num_steps=6, num_tokens=0)
            ),
            copy,
        )


def test_a_run_without_a_whole_checkpoint_says_that_it_failed(finished, tmp_path):
    cfg, workdir = finished
    copy = _unfinished(workdir, tmp_path, 1)
    (copy / "checkpoints" / "1" / "meta" / "metadata").write_text("")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"No checkpoint in .* is whole \(step 1: meta/"):
            train.train(cfg, copy)
        status = _status(copy)
        assert status["state"] == "failed" and "is whole" in status["error"]


# --- The command itself --------------------------------------------------------------------------


def _verb(name, *flags, **options):
    return subprocess.run(
        [sys.executable, "-m", f"keel_jax.{name}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        **options,
    )


def test_sigterm_saves_and_exits_75_and_the_next_start_goes_on(token_dir, cache_dir, tmp_path):
    flags = [
        f"--workdir={tmp_path}",
        "--config=experiments/configs/tiny.py",
        f"--config.data.path={token_dir}",
        "--config.train.num_steps=100000",
        "--config.train.seq_len=16",
        "--config.train.log_every_steps=1",
        f"--config.runtime.compilation_cache_dir={cache_dir}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "keel_jax.train", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while len(logs.read(tmp_path)) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == exit_codes.PREEMPTED, output
    status = _status(tmp_path)
    assert status["state"] == "preempted" and status["step"] >= 3
    assert (tmp_path / "checkpoints" / str(status["step"])).is_dir()
    flags[3] = f"--config.train.num_steps={status['step'] + 2}"
    again = _verb("train", *flags, "--config.optim.warmup_steps=1")
    assert again.returncode == exit_codes.DONE, again.stderr
    steps = [row["step"] for row in logs.read(tmp_path) if "tokens" in row]
    assert steps == list(range(1, status["step"] + 3))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config=experiments/configs/tiny.py", "--config.model.num_block=3"],
            'Did you mean "num_blocks"',
        ),
        (["--config=experiments/configs/tiny.py", "--wrokdir=x"], "workdir"),
        (["--config=experiments/configs/tiny.py", "--config.model.num_blocks=x"], "num_blocks"),
        (["--config=experiments/configs/none.py"], "none.py"),
        (["--config=experiments/configs/tiny.py", "extra"], "Unexpected argument 'extra'"),
        (
            ["--config=experiments/configs/tiny.py", "--config.model.topology=keeel"],
            "Did you mean 'keel'",
        ),
    ],
)
def test_the_verb_tells_mistakes_plainly(flags, message, tmp_path):
    done = _verb("train", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == exit_codes.ERROR
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_and_generate_write_json(finished, tmp_path):
    _, workdir = finished
    done = _verb("evaluate", f"--workdir={workdir}", f"--json={tmp_path / 'e.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    assert set(found) >= {
        "loss_nats_per_token",
        "perplexity",
        "bits_per_byte",
        "num_tokens",
        "step",
    }
    done = _verb(
        "generate",
        f"--workdir={workdir}",
        "--prompt=def",
        "--num_tokens=3",
        f"--json={tmp_path / 'g.json'}",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "g.json").read_text())[0]["prompt"] == "def"
    assert done.stdout.startswith("def")
