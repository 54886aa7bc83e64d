"""A run whose models the tests measure without their parts."""

import pytest

from keel_jax import train
from tests import conftest
from tests.experiments.layer_redundancy import NUM_BLOCKS


@pytest.fixture(scope="module")
def run_dir(token_dir, cache_dir, tmp_path_factory):
    """Two trials of Keel, briefly trained."""
    workdir = tmp_path_factory.mktemp("run")
    cfg = conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=NUM_BLOCKS, init_std=0.2),
        data=dict(path=str(token_dir)),
        runtime=dict(compilation_cache_dir=cache_dir),
        trials=dict(seed=(3, 4)),
    )
    assert train.train(cfg, workdir) == 0
    return workdir
