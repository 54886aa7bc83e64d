"""A set of fewer tokens is the beginning of the same text."""

import shutil

import numpy as np
import pytest

from experiments.sweeps import datasets
from keel_jax.data import shards


def test_fewer_tokens_are_the_first_of_the_same_text(token_dir, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(token_dir, whole)
    path = datasets.first_tokens(str(whole), 1000)
    fewer, all_ = shards.open_set(path, verify=True), shards.open_set(whole)
    assert fewer.split("train").num_tokens == 1000
    assert np.array_equal(fewer.split("train").tokens(0, 1000), all_.split("train").tokens(0, 1000))
    first, second = (s.split("validation") for s in (fewer, all_))
    assert np.array_equal(first.tokens(0, first.num_tokens), second.tokens(0, second.num_tokens))
    assert fewer.fingerprint != all_.fingerprint
    assert datasets.first_tokens(str(whole), 1000) == path
    assert datasets.first_tokens(str(whole), None) == str(whole)
    with pytest.raises(ValueError, match="are wanted"):
        datasets.first_tokens(str(whole), 10**9)
