"""A run that the tests of this package load."""

import pytest

import keel_jax
from keel_jax import train
from keel_jax.runtime import exit_codes
from tests import conftest


@pytest.fixture(scope="session")
def workdir(token_dir, tmp_path_factory):
    """A run whose windows are longer than the shortest program, with a padded vocabulary."""
    cfg = conftest.tiny_config(
        data=dict(path=str(token_dir)),
        model=dict(vocab_size=304),
        train=dict(num_steps=3, seq_len=40, batch_size=8, loss_chunk=16),
    )
    path = tmp_path_factory.mktemp("model") / "run"
    assert train.train(cfg, path) == exit_codes.DONE
    return path


@pytest.fixture(scope="session")
def model(workdir):
    return keel_jax.load(workdir)
