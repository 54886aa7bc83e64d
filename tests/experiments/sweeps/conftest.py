"""A sweep without training, and points for it."""

import pytest

from experiments.sweeps import sweep


@pytest.fixture
def faked(tmp_path, token_dir):
    """A sweep whose runs are those of `fake_train`."""
    return sweep.Sweep(
        runs=tmp_path / "runs", data=str(token_dir), launcher="tests.experiments.fake_train"
    )
