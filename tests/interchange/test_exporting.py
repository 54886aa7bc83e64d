"""An exported folder: complete or absent, written leaf by leaf, with numbers that are true."""

import json
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest
import safetensors.numpy

from keel_jax import config
from keel_jax.interchange import exporting, importing, safetensors_file
from keel_jax.interchange import folder as folder_lib
from keel_jax.model import lm
from keel_jax.training import checkpoint, leaves, trained
from tests.interchange import models

_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "modeling_keel.py",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


def _json(path):
    return json.loads(path.read_text())


def test_the_folder_holds_what_transformers_reads(folder):
    names = {path.name for path in folder.iterdir()}
    shards = {name for name in names if name.endswith(".safetensors")}
    assert names - shards == _FILES and len(shards) > 2
    index = _json(folder / "model.safetensors.index.json")
    assert set(index["weight_map"].values()) == shards
    total = 0
    for name in shards:
        tensors = safetensors.numpy.load_file(folder / name)
        assert {t for t, file in index["weight_map"].items() if file == name} == set(tensors)
        total += sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_size"] == total


def test_matrices_are_those_of_linear_layers(workdir, folder):
    """[out, in], as torch.nn.Linear stores them; the embedding is a table in both."""
    params = trained.load_params(workdir, trained.one_device())[0]
    weights = folder_lib.open_weights(folder)
    for name, ours in (
        ("model.layers.1.ffn.up.weight", params["block"]["ffn"]["up"][1].T),
        ("model.layers.2.attention.key.weight", params["block"]["attention"]["key"][2].T),
        ("model.layers.0.attention.inner_norm", params["block"]["attention"]["inner_norm"][0]),
        ("lm_head.weight", params["output"]["matrix"].T),
        ("model.embed_tokens.weight", params["embedding"]["table"]),
    ):
        np.testing.assert_array_equal(weights.read(name), ours)


def test_a_small_model_is_one_file(workdir, tmp_path):
    exported = exporting.export(workdir, tmp_path / "new")
    assert exported.num_files == 1
    assert (tmp_path / "new/model.safetensors").exists()
    assert not (tmp_path / "new/model.safetensors.index.json").exists()


def test_rows_that_are_no_tokens_are_never_generated(folder):
    generation, values = _json(folder / "generation_config.json"), _json(folder / "config.json")
    assert generation["suppress_tokens"] == list(range(700, 704)) and values["vocab_size"] == 704
    assert generation["eos_token_id"] == generation["bos_token_id"] == 1


def test_one_leaf_is_held_at_a_time(workdir, tmp_path, monkeypatch):
    read, alive = leaves.Leaves.read, []

    def counted(self, path):
        assert not [path for path, leaf in alive if leaf() is not None]
        leaf = read(self, path)
        alive.append((path, weakref.ref(leaf)))
        return leaf

    monkeypatch.setattr(leaves.Leaves, "read", counted)
    monkeypatch.setattr(exporting, "_LARGE_BYTES", 0)
    exporting.export(workdir, tmp_path / "new", max_shard_bytes=30_000)
    params, _ = trained.load_params(workdir, trained.one_device())
    assert len(alive) == len(jax.tree.leaves(params))


@pytest.mark.parametrize("trial", [0, 1])
def test_a_trial_is_exported_alone(trial, tokenizer_paths, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    cfg = models.write_workdir(run, tokenizer_paths["bpe"], trials=2)
    with pytest.raises(ValueError, match="holds 2 trials; name one of them"):
        exporting.export(run, tmp_path / "new")
    own = run / f"trials/{trial:03}"
    own.mkdir(parents=True)
    (own / "tokenizer.model").write_bytes(tokenizer_paths["bpe"].read_bytes())
    (own / "trial.json").write_text(json.dumps({"checkpoints_in": "../..", "trial": trial}))
    (own / "config.json").write_text(json.dumps(config.to_dict(cfg.for_trial(trial))))
    exporting.export(own, tmp_path / "new")
    importing.import_folder(tmp_path / "new", tmp_path / "back")
    back = trained.load_params(tmp_path / "back", trained.one_device())[0]
    jax.tree.map(np.testing.assert_array_equal, back, models.random_params(cfg.model, trial))


def test_nothing_is_left_of_an_export_that_failed(workdir, tmp_path, monkeypatch):
    def full(file, tensors, values):
        next(iter(values))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "write", full)
    with pytest.raises(OSError, match="No space left while writing"):
        exporting.export(workdir, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(workdir, folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ValueError, match="is not empty: choose a new or empty"):
        exporting.export(workdir, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        exporting.export(workdir, tmp_path / "file")
    with pytest.raises(ValueError, match="gs://a/b is not local"):
        exporting.export(workdir, "gs://a/b")
    (tmp_path / "empty").mkdir()
    exporting.export(workdir, tmp_path / "empty")
    assert (tmp_path / "empty/config.json").exists()


def test_the_card_has_numbers_of_this_model(workdir, folder):
    cfg, card = checkpoint.load_config(workdir), (folder / "README.md").read_text()
    for fact in (
        f"| parameters | {lm.count_params(cfg.model):,} |",
        "| sub-layers L = 2N | 6 |",
        "| alpha | 6 |",
        f"| step | {models.STEP} |",
        f"| tokens of training | {models.STEP * cfg.train.tokens_per_step:,} |",
    ):
        assert fact in card
    assert "No numbers were given" in card and "arXiv:2601.19895" in card


@pytest.mark.parametrize(
    "metrics, told",
    [
        ("{", "is not JSON"),
        ("[1]", "no object of numbers"),
        ('{"name": "x"}', "no object of numbers"),
        ('{"step": 6, "perplexity": 2.0}', "is of step 6, and step 7 is exported"),
    ],
)
def test_metrics_of_another_step_or_kind_are_refused(workdir, tmp_path, metrics, told):
    (tmp_path / "metrics.json").write_text(metrics)
    with pytest.raises(ValueError, match=told):
        exporting.export(workdir, tmp_path / "new", metrics=tmp_path / "metrics.json")
    assert not (tmp_path / "new").exists()


def test_nested_numbers_are_in_the_card(workdir, tmp_path):
    metrics = {"step": models.STEP, "tasks": {"copy": {"accuracy": 0.25, "name": "x"}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    exporting.export(workdir, tmp_path / "new", metrics=tmp_path / "metrics.json")
    assert "| tasks/copy/accuracy | 0.25 |" in (tmp_path / "new/README.md").read_text()


def test_a_missing_file_of_metrics_is_named(workdir, tmp_path):
    with pytest.raises(ValueError, match="no_such.json"):
        exporting.export(workdir, tmp_path / "new", metrics=tmp_path / "no_such.json")


def test_other_checkpoints_and_damage_are_named(workdir, tokenizer_paths, tmp_path):
    with pytest.raises(ValueError, match=r"the checkpoint of step 3; the steps there: \[7\]"):
        exporting.export(workdir, tmp_path / "new", step=3)
    copy = tmp_path / "copy"
    copy.mkdir()
    models.write_workdir(copy, tokenizer_paths["bpe"])
    (copy / "tokenizer.model").write_bytes(tokenizer_paths["unigram"].read_bytes())
    with pytest.raises(ValueError, match="the checkpoint was trained with"):
        exporting.export(copy, tmp_path / "new")
    [data] = [path for path in (copy / "checkpoints/7/params/d").iterdir()]
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is whole .*params/d/"):
        exporting.export(copy, tmp_path / "new")


def test_the_command_prints_the_numbers_of_the_card(workdir, tmp_path):
    command = ["-m", "keel_jax.export", f"--workdir={workdir}", f"--output={tmp_path / 'new'}"]
    command += ["--format=hf", "--dtype=bfloat16", "--step=7"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "new/README.md").read_text()
    for line in done.stdout.splitlines()[:-1]:
        name, number = line.split(": ", 1)
        assert f"| {name} | {number} |" in card
    assert "bytes of weights in 1 files" in done.stdout
