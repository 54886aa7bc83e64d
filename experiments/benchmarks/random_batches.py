"""A batch for a train step that is timed: its tokens do not matter, only its shapes."""

import jax
import numpy as np

from keel_jax import config
from keel_jax.training import step as step_lib


def random_tokens(cfg: config.Config) -> np.ndarray:
    """Random token ids for one step and one more token a row, int32 [B, T + 1]."""
    rng = np.random.default_rng(0)
    shape = (cfg.train.batch_size, cfg.train.seq_len + 1)
    return rng.integers(0, cfg.model.vocab_size, shape, np.int32)


def on_mesh(
    tokens: np.ndarray, cfg: config.Config, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
    """The step's batch of `tokens` [B, T + 1]: one document a row, and every target counts."""
    values = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.zeros_like(tokens[:, 1:]),
        "loss_weights": np.ones_like(tokens[:, 1:]),
    }
    return {
        key: jax.device_put(values[key].astype(leaf.dtype), leaf.sharding)
        for key, leaf in step_lib.abstract_batch(cfg, mesh).items()
    }
