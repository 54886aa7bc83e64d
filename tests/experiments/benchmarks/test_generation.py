"""The contenders of `benchmarks.generation` write the same texts."""

import dataclasses

import numpy as np

from experiments.benchmarks import generation
from keel_jax.training import state as state_lib
from tests import conftest


def test_both_ways_to_write_give_the_same_tokens():
    cfg = conftest.tiny_config(train=dict(seq_len=40))
    model = generation.random_model()
    params = state_lib.create(cfg, model.mesh).params
    model = dataclasses.replace(model, cfg=cfg, params=params)
    rows = generation.random_prompts(5, 40, 64)
    assert sorted(len(row.ids) for row in rows)[::4] == [8, 40]
    contenders = {
        "batched": generation.batched(model, rows, 9, 2),
        "one_scan": generation.one_scan(model, rows, 9),
    }
    result = generation.measure(contenders, num_rounds=1)
    assert {row["same_texts_fraction"] for row in result.values()} == {1.0}
    one = result["one_scan"]
    assert np.isclose(one["tokens_per_second"] * one["seconds"], 5 * 9)
