"""Damaged configs and inputs: no exception but a `UserError`, and nothing absurd is accepted."""

import collections

import pytest

from experiments.benchmarks import fuzzing
from keel_jax.data import shards


@pytest.fixture(scope="module")
def directory(token_dir, tmp_path_factory):
    """A directory with a tokenizer and checkpoints."""
    path = tmp_path_factory.mktemp("fuzz")
    fuzzing.write_checkpoints(path)
    (path / shards.TOKENIZER_FILE).write_bytes((token_dir / shards.TOKENIZER_FILE).read_bytes())
    return path


@pytest.mark.parametrize(
    ("fuzz", "num_trials"),
    # A config takes some 10 ms, a file 30, a checkpoint 50.
    [
        (fuzzing.fuzz_config, 300),
        (fuzzing.fuzz_jsonl, 150),
        (fuzzing.fuzz_parquet, 150),
        (fuzzing.fuzz_manifest, 150),
    ],
)
def test_no_damage_is_a_traceback_and_nothing_absurd_is_accepted(fuzz, num_trials, directory):
    outcomes = collections.Counter(fuzz(seed, directory) for seed in range(num_trials))
    # Both happen, so the trials are neither harmless nor hopeless.
    assert min(outcomes["refused"], outcomes["accepted"]) > num_trials // 20, outcomes


def test_a_trial_is_a_function_of_its_seed(directory):
    fuzz = fuzzing.fuzz_jsonl
    assert [fuzz(seed, directory) for seed in range(9)] == [fuzz(s, directory) for s in range(9)]
