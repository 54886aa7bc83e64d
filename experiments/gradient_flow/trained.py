"""Measures a trained model in the same way, from the work directory of a run or of a trial."""

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.gradient_flow import measure
from keel_jax import config
from keel_jax.data import shards
from keel_jax.model import lm
from keel_jax.training import trained

# Windows of the validation split that are measured.
NUM_SEQUENCES = 4


def trained_points(workdir: pathlib.Path, data_path: str | None = None) -> list[dict]:
    """`measure.measure_flow` of a run's initial weights and of its trained ones.

    Args:
      workdir: of a run, or of one of its trials.
      data_path: where the run's token shards lie now, if elsewhere than in its config.
    """
    loaded = trained.load(workdir, trained.one_device())
    cfg = loaded.cfg
    model = dataclasses.replace(cfg.model, final_norm="off")
    tokens_BT = first_windows(loaded.open_data(data_path).first, cfg.train.seq_len)
    flow = measure.compile_flow(model, *tokens_BT.shape)
    initial = measure.compile_init(model)(jax.random.key(cfg.seed))
    final = _without_final_norm(loaded.params, model)
    return [
        {
            "name": cfg.model.topology,
            "num_blocks": model.num_blocks,
            "seed": cfg.seed,
            "peak_lr": cfg.optim.peak_lr,
            "step": step,
            "kind": "trained",
            **measure.measure_flow(flow, params, tokens_BT, model, cfg.seed),
        }
        for step, params in ((0, initial), (loaded.meta.step, final))
    ]


def first_windows(token_set: shards.TokenSet, seq_len: int) -> np.ndarray:
    """The first windows of the validation split, int32 [B, T]."""
    split = token_set.split("validation")
    tokens = split.tokens(0, NUM_SEQUENCES * seq_len)
    return np.asarray(tokens, np.int32).reshape(NUM_SEQUENCES, seq_len)


def _without_final_norm(params: dict, model: config.ModelConfig) -> dict:
    """The parameters of the same model without its final norm."""
    shapes = jax.eval_shape(lambda: lm.init(lm.LanguageModel(model), jax.random.key(0)))
    return {**params, "output": {name: params["output"][name] for name in shapes["output"]}}
