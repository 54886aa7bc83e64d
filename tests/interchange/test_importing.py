"""A folder becomes a checkpoint again, bit for bit; a damaged or another one is named."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

import keel_jax
from keel_jax import config, evaluate, train
from keel_jax.interchange import exporting, importing, layout, llama, safetensors_file
from keel_jax.interchange import folder as folder_lib
from keel_jax.runtime import exit_codes
from keel_jax.training import ancestry, checkpoint, trained
from tests import conftest
from tests.interchange import models

_PAIRS = [("def function_1", "_2(x):"), ("", "def"), ("return ", "x")]


def _params(workdir):
    return jax.device_get(trained.load_params(workdir, trained.one_device())[0])


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, _params(a), _params(b))


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "workdir"
    importing.import_folder(folder, path)
    return path


def test_the_weights_come_back_bit_for_bit(workdir, imported):
    _assert_same(workdir, imported)
    before, after = checkpoint.load_config(workdir), checkpoint.load_config(imported)
    assert config.model_options(before) == config.model_options(after)
    assert after.train.seq_len == before.train.seq_len
    assert (imported / "tokenizer.model").read_bytes() == (workdir / "tokenizer.model").read_bytes()


def test_scores_are_equal_afterwards(workdir, imported):
    before, after = (keel_jax.load(path).score(_PAIRS) for path in (workdir, imported))
    assert before == after


def test_it_knows_where_it_came_from(folder, imported):
    [ancestor] = ancestry.read(imported)
    assert ancestor["action"] == "import_hf" and ancestor["source"] == str(folder)
    assert ancestor["step"] == models.STEP and ancestor["model_type"] == "keel"


@dataclasses.dataclass(frozen=True)
class _InMemory:
    """`leaves.Leaves` without a checkpoint."""

    cfg: config.Config
    params: dict

    def read(self, path):
        return functools.reduce(lambda tree, name: tree[name], path, self.params)


@pytest.mark.parametrize("topology", models.SINGLE_STREAM)
def test_every_topology_comes_back(topology, tmp_path):
    """Gains that a block stores and does not read included."""
    tied = topology in ("post_ln", "rezero")
    cfg = conftest.tiny_config(model=dict(topology=topology, tie_embeddings=tied, vocab_size=64))
    params = models.random_params(cfg.model)
    exporting._write_weights(tmp_path, _InMemory(cfg, params), "F32", 9_000)
    weights = folder_lib.open_weights(tmp_path)
    back = importing._params(weights, layout.of_keel(cfg.model), cfg)
    jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.slow
def test_a_run_is_trained_exported_imported_and_trained_on(token_dir, cache_dir, tmp_path):
    cfg = dict(
        model=dict(num_blocks=2, vocab_size=304),
        data=dict(path=str(token_dir)),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    first = conftest.tiny_config(**cfg, train=dict(num_steps=3))
    assert train.train(first, tmp_path / "first") == exit_codes.DONE
    result = evaluate.evaluate(tmp_path / "first")
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps(result))
    exporting.export(tmp_path / "first", tmp_path / "folder", metrics=metrics)
    card = (tmp_path / "folder/README.md").read_text()
    assert f"| loss_nats_per_token | {result['loss_nats_per_token']:.6g} |" in card
    importing.import_folder(tmp_path / "folder", tmp_path / "back")
    again = evaluate.evaluate(tmp_path / "back", data_path=str(token_dir), batch_size=8, seq_len=16)
    # Another batch size orders the sums of float32 otherwise.
    assert again == pytest.approx(result, rel=1e-6)
    second = conftest.tiny_config(**cfg, train=dict(num_steps=3, init_from=str(tmp_path / "back")))
    assert train.train(second, tmp_path / "second") == exit_codes.DONE
    actions = [entry["action"] for entry in ancestry.read(tmp_path / "second")]
    assert actions == ["import_hf", "init_from"]


def test_bfloat16_comes_back_rounded(workdir, tmp_path):
    exporting.export(workdir, tmp_path / "folder", dtype="bfloat16")
    importing.import_folder(tmp_path / "folder", tmp_path / "back")
    rounded = jax.tree.map(lambda p: p.astype(ml_dtypes.bfloat16).astype("f4"), _params(workdir))
    jax.tree.map(np.testing.assert_array_equal, rounded, _params(tmp_path / "back"))


def test_nothing_is_overwritten(folder, imported):
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*")}
    with pytest.raises(ValueError, match="--workdir=.* is not empty"):
        importing.import_folder(folder, imported)
    assert {path: path.stat().st_mtime_ns for path in imported.rglob("*")} == before


def test_the_command_says_what_it_did(folder, tmp_path):
    out = tmp_path / "new"
    command = ["-m", "keel_jax.import_hf", f"--input={folder}", f"--workdir={out}"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"(keel), step {models.STEP}, 3 blocks -> {out}" in done.stdout


# --- Damage --------------------------------------------------------------------------------------

_SHARD = "model-00002-of-"


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _edit(change):
    def edit(path):
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit


def _rename_tensor(values):
    name = next(iter(values["weight_map"]))
    values["weight_map"]["model.other"] = values["weight_map"].pop(name)


@pytest.mark.parametrize(
    "name, damage, told",
    [
        ("config.json", lambda path: path.unlink(), "no model in .*no config.json"),
        ("config.json", lambda path: path.write_text("{"), "config.json is not JSON"),
        ("config.json", _edit(lambda v: v.update(model_type="gpt2")), "model_type='gpt2'; folders"),
        ("config.json", _edit(lambda v: v.update(hidden_size=8)), "hidden_size is 8"),
        ("tokenizer.model", lambda path: path.unlink(), "no .*tokenizer.model: .*--tokenizer=FILE"),
        ("tokenizer.model", lambda path: path.write_bytes(b"text"), "not a SentencePiece model"),
        (_SHARD, lambda path: path.unlink(), "no .*model-00002-of"),
        (_SHARD, _cut, "model-00002-of-.* is damaged"),
        (_SHARD, lambda path: path.write_bytes(b""), "model-00002-of-.* is empty"),
        ("model.safetensors.index.json", lambda path: path.unlink(), "neither model.safetensors"),
        ("model.safetensors.index.json", _edit(lambda v: v.clear()), "no weight_map"),
        ("model.safetensors.index.json", _edit(_rename_tensor), "lacks model.other, which"),
        (
            "model.safetensors.index.json",
            _edit(lambda v: v["weight_map"].popitem()),
            r"lacks .*, which its config.json asks for",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, tmp_path, name, damage, told):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    [path] = [path for path in copy.iterdir() if path.name.startswith(name)]
    damage(path)
    with pytest.raises(ValueError, match=told):
        importing.import_folder(copy, tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()


def test_another_tokenizer_is_named(folder, tokenizer_paths, tmp_path):
    with pytest.raises(ValueError, match="unigram is .*, the model was trained with"):
        importing.import_folder(folder, tmp_path / "new", tokenizer=tokenizer_paths["unigram"])


# --- Llama ---------------------------------------------------------------------------------------

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 704,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "float16",
}


def _write_llama(path, tokenizer_path, more=lambda tensors: {}, **changed):
    """A folder in float16, whose config.json has other values than its weights if it is told so.

    `more` returns tensors besides those that Llama reads.
    """
    values = {**_LLAMA, **changed}
    model, _ = llama.to_model(_LLAMA, "config.json", "float32")
    model = dataclasses.replace(model, tie_embeddings=values["tie_word_embeddings"])
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=leaf.tensor_shape).astype(np.float16)
        for leaf in layout.of_llama(model)
        for name in leaf.names
    }
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float16)
    tensors |= more(tensors)
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        safetensors_file.write(
            file,
            [safetensors_file.Tensor(n, t.shape, t.dtype) for n, t in tensors.items()],
            iter(tensors.values()),
        )
    (path / "config.json").write_text(json.dumps(values))
    (path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    return tensors


def test_a_llama_becomes_a_pre_ln(tokenizer_paths, tmp_path):
    """tests/interchange/test_torch.py compares its logits."""
    tensors = _write_llama(tmp_path / "llama", tokenizer_paths["bpe"])
    importing.import_folder(tmp_path / "llama", tmp_path / "workdir")
    cfg, params = checkpoint.load_config(tmp_path / "workdir"), _params(tmp_path / "workdir")
    assert (cfg.model.topology, cfg.model.rope_theta) == ("pre_ln", 5e5)
    assert (cfg.model.compute_dtype, cfg.train.seq_len) == ("bfloat16", 32)
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(params["block"]["ffn"]["down"][1], down.T.astype(np.float32))
    assert len(keel_jax.load(tmp_path / "workdir").generate(["def"], num_tokens=2)) == 1


@pytest.mark.parametrize(
    "changed, told",
    [
        (dict(attention_bias=True), "attention_bias=True computes another function"),
        (dict(mlp_bias=True), "mlp_bias=True"),
        (dict(hidden_act="gelu"), "hidden_act='gelu'.* must be 'silu'"),
        (dict(sliding_window=1024), "sliding_window=1024"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling=.*other angles"),
        (dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}), "rope_parameters="),
        (dict(rope_parameters={"partial_rotary_factor": 0.5}), "rope_parameters="),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (dict(logit_softcap=30.0), "logit_softcap=30.0 is not known"),
        (dict(architectures=["LlamaForSequenceClassification"]), "only LlamaForCausalLM"),
        (dict(num_hidden_layers=None), "num_hidden_layers=None should be a positive"),
        (dict(num_hidden_layers=3), "lacks model.layers.2.input_layernorm.weight"),
        (dict(num_hidden_layers=1), "has model.layers.1.*, which .* knows nothing of"),
        (dict(intermediate_size=32), r"down_proj.weight has shape \(16, 24\)"),
        (dict(vocab_size=300), "700 ids, and the model 300"),
    ],
)
def test_another_function_or_other_files_are_refused_by_name(
    changed, told, tokenizer_paths, tmp_path
):
    _write_llama(tmp_path / "llama", tokenizer_paths["bpe"], **changed)
    with pytest.raises(ValueError, match=told):
        importing.import_folder(tmp_path / "llama", tmp_path / "workdir")


def test_rope_theta_is_read_from_either_place():
    for rope in ({"rope_theta": 7.0}, {"rope_theta": 7.0, "rope_type": "default"}):
        values = {**_LLAMA, "rope_parameters": rope}
        assert llama.to_model(values, "config.json", "float32")[0].rope_theta == 7.0
    del values["rope_parameters"], values["rope_theta"]
    assert llama.to_model(values, "config.json", "float32")[0].rope_theta == 10_000.0


def test_a_tied_head_is_the_table(tokenizer_paths, tmp_path):
    """Left out, or saved once more; anything else contradicts config.json."""

    def write(name, more):
        _write_llama(tmp_path / name, tokenizer_paths["bpe"], more, tie_word_embeddings=True)

    table = "model.embed_tokens.weight"
    write("absent", lambda tensors: {})
    write("same", lambda tensors: {"lm_head.weight": tensors[table]})
    write("other", lambda tensors: {"lm_head.weight": tensors[table] + 1})
    for name in ("absent", "same"):
        importing.import_folder(tmp_path / name, tmp_path / f"{name}_workdir")
        assert set(_params(tmp_path / f"{name}_workdir")["output"]) == {"norm"}
    with pytest.raises(ValueError, match="lm_head.weight is not .*, and config.json ties them"):
        importing.import_folder(tmp_path / "other", tmp_path / "new")
