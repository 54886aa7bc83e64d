"""The step benchmark: what it compares is the same work, and its plumbing runs."""

import math
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmarks import step, step_contenders
from keel_jax.model import lm
from tests import reference

SHAPE: dict[str, Any] = dict(
    num_blocks=2,
    d_model=16,
    d_ffn=24,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=64,
    batch_size=2,
    seq_len=16,
    compute_dtype="float32",
)


def test_the_plain_stacks_are_the_same_function():
    """The same weights give the same logits, to the order of float32 sums."""
    model = step_contenders.Shape(**SHAPE).config("keel").model
    params = reference.random_params(model, 0)
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 64)
    apply = lambda module, p: jax.jit(lambda p: module.apply({"params": p}, tokens))(p)  # noqa: E731
    want = apply(lm.LanguageModel(model), params)
    blocks = params.pop("block")
    loose = params | {
        f"block_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], blocks) for n in range(2)
    }
    params = {"output": {}} | params
    for is_unrolled, weights in ((False, params | {"block": blocks}), (True, loose)):
        got = apply(step_contenders.PlainStack(model, is_unrolled), weights)
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * want.std())


def test_ratios_are_to_keel_jax_and_a_stopped_contender_has_none():
    same = dict(num_blocks=4, device_bytes=None, compile_seconds=None, first_step_seconds=5.0)
    rows = step.with_ratios(
        [
            dict(
                same,
                contender="keel_jax",
                step_seconds=2.0,
                step_cpu_seconds=3.0,
                process_bytes=100,
                first_step_cpu_seconds=4.0,
            ),
            dict(
                same,
                contender="plain scan",
                step_seconds=3.0,
                step_cpu_seconds=6.0,
                process_bytes=50,
                first_step_cpu_seconds=2.0,
            ),
            dict(contender="unrolled Flax", num_blocks=4, stopped_after_seconds=9.0),
        ]
    )
    assert rows[0]["step_seconds_ratio"] == 1
    assert rows[1]["step_seconds_ratio"] == 1.5 and rows[1]["step_cpu_seconds_ratio"] == 2
    assert rows[1]["process_bytes_ratio"] == 0.5
    assert rows[1]["first_step_cpu_seconds_ratio"] == 0.5
    lines = [step.describe(row) for row in rows]
    assert "1.50" in lines[1] and "no first step within 9 s" in lines[2]


def test_a_contender_that_fails_says_what_it_wrote():
    worker = step.Worker("plain scan", SHAPE | {"num_heads": 3})
    with pytest.raises(RuntimeError, match="(?s)plain scan ended.*num_heads=3 is not a multiple"):
        worker.next_message()
    worker.stop()


def test_memory_is_a_process_s_own_and_not_that_of_the_one_that_started_it():
    large = bytearray(b"1") * (2 << 30)
    grown = "\n".join(
        [
            "from experiments.benchmarks import step_worker",
            "before = step_worker.peak_bytes()",
            "x = bytearray(b'1') * (64 << 20)",
            "print(step_worker.peak_bytes() - before)",
        ]
    )
    grown_bytes = subprocess.run(
        [sys.executable, "-c", grown], capture_output=True, text=True, check=True
    ).stdout
    del large
    assert int(grown_bytes) > 48 << 20


@pytest.mark.slow
def test_contenders_start_step_in_turn_and_end():
    names = ["keel_jax", "plain scan", "unrolled Flax"]
    rows = step.measure(SHAPE, names, rounds=2, steps=2, limit=300)
    assert [row["contender"] for row in rows] == names
    for row in rows:
        assert row["first_loss"] == pytest.approx(math.log(64), rel=0.05)
        assert row["compile_seconds"] > 0 and row["step_seconds"] > 0
        assert row["step_cpu_seconds"] > 0 and row["first_step_cpu_seconds"] > 0
        assert row["process_bytes"] > 0 and row["device_bytes"] is None
    [stopped] = step.measure(SHAPE, names[:1], rounds=1, steps=1, limit=0.01)
    assert stopped["stopped_after_seconds"] == 0.01 and "step_seconds" not in stopped
