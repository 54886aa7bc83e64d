"""Processes that were not started alike are refused, each with the value of every process.

Every test starts real processes (tests/processes.py); each prints its error and ends with 1, after
which no supervisor starts it again.
"""

import shutil

import pytest

from keel_jax.data import shards
from keel_jax.runtime import exit_codes
from tests import conftest, processes


def _config(token_dir, cache_dir, **sections):
    return conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=2),
        data=dict(path=str(token_dir)),
        train=dict(num_steps=3),
        runtime=dict(compilation_cache_dir=cache_dir),
        **sections,
    )


def _refused(flags, tmp_path, **options):
    """What each process prints, once all have ended with exit code 1."""
    with processes.start("keel_jax.train", flags, tmp_path, **options) as program:
        codes = program.codes()
        assert codes == [exit_codes.ERROR] * options["num_processes"], program.told()
    return [path.read_text() for path in program.outputs]


def test_two_peak_rates_are_refused_by_both(token_dir, cache_dir, tmp_path):
    run = tmp_path / "run"
    flags = processes.train_flags(_config(token_dir, cache_dir), run)
    other = {1: ["--config.optim.peak_lr=0.5", "--config.model.d_ffn=32"]}
    for told in _refused(flags, tmp_path, num_processes=2, flags_of=other):
        assert told.splitlines()[-1] == (
            "error: The processes were started with different options: model.d_ffn is 24 on "
            "process 0, 32 on process 1; optim.peak_lr is 0.01 on process 0, 0.5 on process 1. "
            "Start all of them with the same command."
        )
        assert "Traceback" not in told and "compiled" not in told
    assert not run.exists()


def test_options_of_one_machine_may_differ_and_data_may_not(
    corpus_dir, token_dir, cache_dir, tmp_path
):
    """Copies of the data at two places are the same data; other tokens are not."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(token_dir, copy)
    texts = tmp_path / "texts"
    texts.mkdir()
    for path in sorted(corpus_dir.iterdir())[:20]:
        shutil.copy(path, texts)
    conftest.prepare_text_files(texts, other)
    flags = processes.train_flags(_config(token_dir, cache_dir), tmp_path / "run")
    own = {1: [f"--config.data.path={copy}", "--config.data.num_threads=1"]}
    too_many = [*flags, "--config.mesh.data=3"]
    for told in _refused(too_many, tmp_path, num_processes=2, flags_of=own):
        assert "do not multiply to the 2 devices" in told, "a later check"
    fingerprints = [shards.open_set(path).fingerprint[:12] for path in (token_dir, other)]
    own = {1: [f"--config.data.path={other}"]}
    for path, told in zip(
        (token_dir, other), _refused(flags, tmp_path, num_processes=2, flags_of=own), strict=True
    ):
        assert (
            "error: The processes were started on different data: the data's fingerprint is "
            f'"{fingerprints[0]}" on process 0, "{fingerprints[1]}" on process 1; the tokenizer'
        ) in told
        assert told.strip().endswith(
            f"This one reads {path}: give every machine a copy of the same token shards."
        )


@pytest.mark.slow
def test_of_four_processes_those_that_differ_are_named(token_dir, cache_dir, tmp_path):
    """Two have another matmul precision, which would change the numbers and not the shapes."""
    flags = processes.train_flags(_config(token_dir, cache_dir), tmp_path / "run")
    other = {"JAX_DEFAULT_MATMUL_PRECISION": "float32"}
    told = _refused(flags, tmp_path, num_processes=4, environment_of={1: other, 3: other})
    for one in told:
        assert (
            "started with different software: jax_default_matmul_precision is null on processes "
            '0, 2, "float32" on processes 1, 3. Install and set the same on every machine.'
        ) in one
