"""Work directories of random weights, for tests of what is written and read."""

import dataclasses

import jax
import numpy as np

from keel_jax import config
from keel_jax.config import topologies
from keel_jax.data import tokenizer
from keel_jax.model import lm
from keel_jax.runtime import files
from keel_jax.training import checkpoint, checkpoint_meta
from tests import conftest

SINGLE_STREAM = topologies.names(lambda row: row.is_single_stream)
STEP = 7


def random_params(model: config.ModelConfig, seed: int = 0) -> dict:
    """Weights, gains and scalars, all drawn: initial ones would hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        is_matrix = len(leaf.shape) - (path[0].key == "block") == 2
        # At 0.02 branches would be so small that no tolerance sees them.
        drawn = rng.normal(0, 0.16, leaf.shape) if is_matrix else rng.uniform(0.5, 1.5, leaf.shape)
        return np.asarray(drawn, np.float32)

    return jax.tree_util.tree_map_with_path(draw, lm.shapes(model))


def write_workdir(path, model_path, seed=0, trials=1, **model) -> config.Config:
    """What a run with these options of the model leaves, as far as others read it."""
    tokens = tokenizer.Tokenizer.load(model_path)
    options = dict(vocab_size=tokens.vocab_size + 4, **model)
    cfg = conftest.tiny_config(model=options, train=dict(seq_len=48))
    params = random_params(cfg.model, seed)
    if trials > 1:
        trial_options = dict(seed=tuple(range(trials)))
        cfg = conftest.tiny_config(model=options, train=dict(seq_len=48), trials=trial_options)
        others = [random_params(cfg.model, seed + 1 + n) for n in range(trials - 1)]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), params, *others)
    meta = checkpoint_meta.Meta(
        step=STEP,
        data_fingerprint="data",
        tokenizer_fingerprint=tokens.fingerprint,
        model=config.model_options(cfg),
    )
    with checkpoint.Checkpoints(path, cfg.train) as checkpoints:
        checkpoints.save_weights(jax.tree.map(jax.numpy.asarray, params), meta)
    (path / "tokenizer.model").write_bytes(model_path.read_bytes())
    files.write_checked_json(path / "config.json", config.to_dict(cfg))
    return cfg


def tokens(cfg, shape, seed=0) -> np.ndarray:
    """Random ids, int32; the first of each row is EOS."""
    ids = np.random.default_rng(seed).integers(2, cfg.model.vocab_size - 4, shape)
    ids[:, 0] = 1
    return ids.astype(np.int32)


def logits(cfg, params, ids) -> np.ndarray:
    """Of JAX, float32 [B, T, V]."""
    model = lm.LanguageModel(dataclasses.replace(cfg.model, attention="reference"))
    return np.asarray(jax.jit(model.apply)({"params": params}, ids))
