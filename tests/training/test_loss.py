"""The loss: its value, its chunks, and what its program never holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax.training import loss


def _inputs(batch=2, seq_len=12, d_model=8, vocab=40, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    h = jax.random.normal(keys[0], (batch, seq_len, d_model))
    w = jax.random.normal(keys[1], (d_model, vocab))
    targets = jax.random.randint(keys[2], (batch, seq_len), 0, vocab)
    weights = (jax.random.uniform(keys[3], (batch, seq_len)) > 0.3).astype(jnp.float32)
    return h, w, targets, weights


def test_sums_equal_a_float64_reference():
    h, w, targets, weights = (np.asarray(x) for x in _inputs())
    logits = h.astype(np.float64) @ w
    log_z = np.log(np.exp(logits).sum(-1))
    target = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expected = {
        "nats": (weights * (log_z - target)).sum(),
        "weight": weights.sum(),
        "log_z_squared": (weights * log_z**2).sum(),
        "correct": (weights * (logits.argmax(-1) == targets)).sum(),
    }
    sums = loss.cross_entropy_sums(h, w, targets, weights, chunk=0)
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
def test_chunks_change_neither_value_nor_gradient(chunk):
    """Also where the chunk does not divide the length, or exceeds it."""
    h, w, targets, weights = _inputs()

    def value(h, w, chunk):
        sums = loss.cross_entropy_sums(h, w, targets, weights, chunk=chunk)
        return sums["nats"] + 0.1 * sums["log_z_squared"], sums

    gradient = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True), static_argnums=2)
    whole, chunked = gradient(h, w, 0), gradient(h, w, chunk)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_program_never_holds_all_logits():
    """No buffer of the compiled gradient has tokens x vocabulary elements; without chunks, some."""
    batch, seq_len, vocab, chunk = 2, 64, 997, 8
    h, w, targets, weights = _inputs(batch, seq_len, 8, vocab)

    def largest(chunk):
        def value(h, w):
            return loss.cross_entropy_sums(h, w, targets, weights, chunk=chunk)["nats"]

        text = jax.jit(jax.grad(value, argnums=(0, 1))).lower(h, w).compile().as_text()
        shapes = re.findall(r"(?:f32|pred|s32)\[([\d,]+)\]", text)
        return max(np.prod([int(size) for size in shape.split(",")]) for shape in set(shapes))

    assert largest(0) >= batch * seq_len * vocab
    assert largest(chunk) <= batch * chunk * vocab


@pytest.mark.parametrize("chunk", [0, 1, 5, 12, 100])
def test_scores_of_tokens_equal_a_float64_reference(chunk):
    """Also where the chunk does not divide the length, or exceeds it."""
    h, w, targets, _ = _inputs()
    logits = np.asarray(h, np.float64) @ np.asarray(w, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]
    targets = targets.at[0, 3].set(int(logits[0, 3].argmax()))
    expected[0, 3] = log_p[0, 3].max()
    got, is_first = loss.token_scores(h, w, targets, chunk=chunk)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(is_first, logits.argmax(-1) == np.asarray(targets))
    assert is_first[0, 3]
