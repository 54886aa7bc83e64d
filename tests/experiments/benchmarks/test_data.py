"""The benchmark of preparing and loading data runs, and its numbers agree with each other."""

import os
import pathlib
import subprocess
import sys

import pytest

from keel_jax.runtime import files

ROOT = pathlib.Path(__file__).parents[3]


def _bench(corpus_dir, output, *flags):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [
        *(sys.executable, "-m", "experiments.benchmarks.data", f"--input={corpus_dir}/*.txt"),
        *("--vocab_size=300", "--rounds=1", "--num_batches=3", f"--json={output}"),
    ]
    result = subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    content = files.read_json(output)
    assert content is not None
    return result.stdout, content


def test_without_a_step_the_need_is_the_flags(corpus_dir, tmp_path):
    flags = ("--seq_len=32", "--batch_size=4", "--need_tokens_per_second=1000")
    printed, content = _bench(corpus_dir, tmp_path / "bench.json", *flags)
    assert "times the need of 1,000 tokens/s" in printed and "step" not in content
    rates = content["preparation"]["tokens_per_second"]
    assert rates.keys() == {"sentencepiece", "workers_1", "workers_2"}
    assert min(rates.values()) > 0 and content["preparation"]["num_tokens"] > 1000
    loading = content["loading"]
    assert loading["ratio_to_need"] == loading["tokens_per_second"] / 1000


@pytest.mark.slow
def test_the_need_is_a_measured_step(corpus_dir, tmp_path):
    printed, content = _bench(corpus_dir, tmp_path / "bench.json", "--num_steps=1")
    assert "64 sub-layers" in printed
    step, loading = content["step"], content["loading"]
    assert step["tokens_per_second"] == 16 * 128 / step["step_seconds"]
    assert loading["need_tokens_per_second"] == step["tokens_per_second"]
    assert (loading["batch_size"], loading["seq_len"]) == (step["batch_size"], step["seq_len"])


def test_a_mistake_is_one_sentence():
    result = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.data", "--input=/nonexistent/*.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: The input '/nonexistent/*.txt' matches no file")
