"""The loss of the unigram model is the entropy of the text, where it is averaged."""

import numpy as np
import pytest

from experiments.sweeps import unigram
from keel_jax.data import shards
from tests import conftest


def test_the_unigram_line_is_the_entropy_where_it_is_averaged(token_dir):
    cfg = conftest.tiny_config(
        data=dict(path=str(token_dir)),
        model=dict(vocab_size=300),
        train=dict(num_steps=60, batch_size=8, seq_len=16),
    )
    split = shards.open_set(token_dir).split("train")
    entropy = split.unigram_entropy_bits_per_token * np.log(2)
    losses = unigram.training_losses(cfg)
    assert losses.shape == (60,) and losses.std() > 0
    assert losses.mean() == pytest.approx(entropy, rel=0.03)
    # Never below the entropy of the text itself.
    held_out = shards.open_set(token_dir).split("validation")
    floor = held_out.unigram_entropy_bits_per_token * np.log(2)
    assert floor * 0.97 < unigram.validation_loss(cfg) < 1.5 * floor
