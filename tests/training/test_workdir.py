"""The files of a work directory: what a run needs is verified, what it only logs stops nothing."""

import json
import shutil

import pytest

from keel_jax import config, evaluate, train
from keel_jax.runtime import exit_codes, files
from keel_jax.training import ancestry, checkpoint, logs, trials
from tests import conftest

_NUM_STEPS = 3


@pytest.fixture(scope="module")
def finished(token_dir, cache_dir, tmp_path_factory):
    """A finished run of two trials."""
    workdir = tmp_path_factory.mktemp("finished")
    cfg = conftest.tiny_config(
        model=dict(num_blocks=2, vocab_size=0),
        data=dict(path=str(token_dir)),
        train=dict(num_steps=_NUM_STEPS, eval_num_batches=1),
        trials=dict(peak_lr=(1e-2, 1e-3)),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


@pytest.fixture
def copy(finished, tmp_path):
    cfg, workdir = finished
    shutil.copytree(workdir, tmp_path / "copy")
    return cfg, tmp_path / "copy"


def _rows(workdir):
    return [logs.read(workdir / "trials" / trial) for trial in ("000", "001")]


def test_a_run_killed_after_its_last_validation_has_it_once(copy, finished, capsys):
    """Also if it was killed between the rows of two trials, and its statuses are damaged."""
    cfg, workdir = copy
    for status, content in (("status.json", "[]"), ("trials/000/status.json", '{"state": ')):
        (workdir / status).write_text(content)
    (workdir / "versions.json").write_text("3")
    (workdir / "trials/001/status.json").unlink()
    log = workdir / "trials/001" / logs.JSONL
    *rows, last = log.read_text().splitlines(keepends=True)
    assert "eval/" in last
    log.write_text("".join(rows))
    assert train.train(cfg, workdir) == exit_codes.DONE
    assert _rows(workdir) == _rows(finished[1])
    assert files.read_json(workdir / "status.json")["state"] == "done"
    for name in ("status.json", "trials/000/status.json", "versions.json"):
        assert (workdir / f"{name}.damaged").exists()
        assert f"{workdir / name} is not" in capsys.readouterr().err or name != "status.json"


def test_the_cache_is_not_where_the_work_directory_says(copy, tmp_path):
    """Its config may be someone else's, and cached programs are code."""
    _, workdir = copy
    for directory in (workdir, workdir / "trials/000"):
        values = files.read_json(directory / checkpoint.CONFIG)
        values["runtime"]["compilation_cache_dir"] = str(tmp_path / "foreign")
        files.write_checked_json(directory / checkpoint.CONFIG, values)
    assert evaluate.evaluate(workdir / "trials/000")["step"] == _NUM_STEPS
    assert not (tmp_path / "foreign").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON .*; restore it from a copy"),
        ("[]", r"is not a JSON object but '\[\]'; restore it"),
        ("3", "is not a JSON object but '3'; restore it"),
        ("null", "is not a work directory of a run: it has no config.json|not a JSON object"),
        ('{"model": null}', "model=None: expected a mapping of options to values.*restore it"),
        ("{}", "The run has no length|model.vocab_size is missing, as in no completed config"),
        (
            '{"train": {"num_steps": 6}, "optim": {"warmup_steps": 2}}',
            "model.vocab_size is missing, as in no completed config.*restore it",
        ),
        (
            '{"model": {"recompute": 3}}',
            "model.recompute=3: expected a mapping of options to values",
        ),
        ('{"model": {"num_blocks": "many"}}', "model.num_blocks='many': expected int"),
        ('{"trials": {"seed": 3}}', "trials.seed=3: expected a tuple"),
        ('{"lanes": 3}', "Unknown config key lanes"),
    ],
)
def test_a_damaged_config_is_named(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load_config(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_changed_digit_of_a_config_is_noticed(tmp_path):
    path = tmp_path / "config.json"
    files.write_checked_json(path, config.to_dict(conftest.tiny_config()))
    assert checkpoint.load_config(tmp_path) == conftest.tiny_config()
    path.write_text(path.read_text().replace('"d_ffn": 24', '"d_ffn": 25'))
    with pytest.raises(ValueError, match=f"{path} has changed since it was written"):
        checkpoint.load_config(tmp_path)


@pytest.mark.parametrize("name", ["trial.json", "lane.json"])
@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"checkpoints_in": 3, "trial": 0, "lane": 0}',
        '{"checkpoints_in": "../..", "trial": -1, "lane": -1}',
        '{"checkpoints_in": "../..", "trial": true, "lane": "0"}',
    ],
)
def test_a_damaged_pointer_is_named_with_what_it_should_be(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ValueError, match=r'{"checkpoints_in": "../..", "(trial|lane)": 0}'
    ) as error:
        trials.pointer(tmp_path)
    assert f"{tmp_path / name} " in str(error.value)


def test_a_pointer_to_no_trial_is_refused(copy):
    _, workdir = copy
    files.write_json(workdir / "trials/000/trial.json", {"checkpoints_in": "../..", "trial": 7})
    with pytest.raises(ValueError, match="names trial 7, but the run in .* has trials 0 to 1"):
        evaluate.evaluate(workdir / "trials/000")


def test_a_damaged_pointer_of_an_old_run_stops_nothing(tmp_path):
    """Its directory's name says the same."""
    old = tmp_path / "lanes/003"
    old.mkdir(parents=True)
    (old / "lane.json").write_text("[]")
    trials.rename_old(tmp_path)
    assert trials.pointer(tmp_path / "trials/003") == trials.Pointer("../..", 3)


@pytest.mark.parametrize("content", ["", "3", '{"a": 1}', "[3]"])
def test_damaged_ancestors_are_named_and_left_out(content, tmp_path, capsys):
    (tmp_path / "ancestry.json").write_text(content)
    assert ancestry.read(tmp_path) == []
    assert f"{tmp_path}/ancestry.json is not" in capsys.readouterr().err
    (tmp_path / "ancestry.json").write_text(json.dumps([{"action": "grow"}]))
    assert ancestry.read(tmp_path) == [{"action": "grow"}]
