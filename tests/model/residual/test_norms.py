"""Two norms that meet (`norms.norm_twice`) and where the scan cuts the block, against autodiff.

The plain formula is two `rms_norm`s, one after the other. Float32 tolerances: both forms add the
same numbers in another order; 64 of them leave a few roundoffs of 6e-8, magnified a little where
sums cancel. measured, worst of the cases here: see TOLERANCE.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import attention, lm, residual
from keel_jax.model.residual import deferred, norms
from tests import reference

B, T, D = 2, 5, 64
# Relative to the largest entry.
TOLERANCE = 2e-6


def _plain(z, outer_gain, is_on, inner_gain, epsilon):
    x = jnp.where(is_on, residual.rms_norm(z, outer_gain, epsilon), z)
    return x, residual.rms_norm(x, inner_gain, epsilon)


def _arguments(scale=1.0, zeros=(), seed=0):
    """z, the gains with zeros at `zeros`, and cotangents of x and h."""
    keys = jax.random.split(jax.random.key(seed), 5)
    z, dx, dh = (jax.random.normal(key, (B, T, D)) for key in keys[:3])
    gains = [1 + 0.3 * jax.random.normal(key, (D,)) for key in keys[3:]]
    at = jnp.asarray(zeros, jnp.int32)
    return (scale * z, *(gain.at[at].set(0.0) for gain in gains)), (dx, dh)


def _with_gradients(rule, is_on, epsilon, arguments, cotangents):
    def call(z, outer_gain, inner_gain):
        return rule(z, outer_gain, is_on, inner_gain, epsilon)

    values, pull_back = jax.vjp(call, *arguments)
    return (*values, *pull_back(cotangents))


_compiled = jax.jit(_with_gradients, static_argnums=(0, 2))
_NAMES = ("x", "h", "d z", "d outer gain", "d inner gain")


def _assert_close(ones, others, tolerance=TOLERANCE):
    for name, one, other in zip(_NAMES, ones, others, strict=True):
        atol = tolerance * float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("is_on", (True, False))
@pytest.mark.parametrize(
    # As in a deep stack, where z is alpha x; as an embedding of 0.02; where epsilon is not small.
    ("scale", "epsilon"),
    ((1.0, 1e-5), (512.0, 1e-5), (0.02, 1e-5), (1.0, 0.5)),
)
def test_two_norms_at_once_are_two_norms(is_on, scale, epsilon):
    arguments, cotangents = _arguments(scale)
    ones, others = (
        _compiled(rule, jnp.asarray(is_on), epsilon, arguments, cotangents)
        for rule in (norms.norm_twice, _plain)
    )
    _assert_close(ones, others)


def test_a_gain_of_zero_divides_nothing():
    # Its own gradient is sum(u dx'), u the normalized z, which no output shows where the gain is 0.
    arguments, cotangents = _arguments(zeros=(0, 7))
    ones, others = (
        _compiled(rule, jnp.asarray(True), 1e-5, arguments, cotangents)
        for rule in (norms.norm_twice, _plain)
    )
    _assert_close(ones, others)
    assert (ones[0][..., 7] == 0).all() and abs(ones[3][7]) > 1e-2
    assert all(jnp.isfinite(one).all() for one in ones)
    # And with all gains 0: x = 0, whose inner norm is 0 too.
    (z, gain, inner), _ = arguments, cotangents
    all_zero = _compiled(
        norms.norm_twice, jnp.asarray(True), 1e-5, (z, 0 * gain, inner), cotangents
    )
    assert all(jnp.isfinite(one).all() for one in all_zero)


def test_two_norms_over_trials():
    """vmap over everything, the flag too, is one trial after the other."""
    on_K = jnp.asarray([True, False])
    trials = [_arguments(seed=seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trials)
    call = functools.partial(_with_gradients, norms.norm_twice)
    together = jax.jit(jax.vmap(lambda on, args, cot: call(on, 1e-5, args, cot)))(on_K, *stacked)
    for trial, (arguments, cotangents) in enumerate(trials):
        _assert_close(
            [leaf[trial] for leaf in together],
            _compiled(norms.norm_twice, on_K[trial], 1e-5, arguments, cotangents),
        )


@pytest.mark.parametrize("stream_dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("plan", ("none", "block"))
def test_deferred_norms_are_the_plain_model(monkeypatch, stream_dtype, plan):
    """A whole Keel with each outer norm one sub-layer later, and as its equation is written.

    A bf16 stream is rounded at other places: half a unit in 2^-8 each, sixteen times.
    """
    model = config.ModelConfig(
        num_blocks=4,
        d_model=32,
        d_ffn=48,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=32,
        compute_dtype="float32",
        stream_dtype=stream_dtype,
        recompute=config.RecomputeConfig(plan=plan),
    )
    params = reference.random_params(model, 3)
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 32)

    def loss(params):
        logits = lm.LanguageModel(model).apply({"params": params}, tokens)
        return jnp.square(logits).mean()

    moved = jax.jit(jax.grad(loss))(params)
    monkeypatch.setattr(deferred, "defer_outer_norms", lambda inputs, *_: (inputs, None))
    plain = jax.jit(jax.grad(loss))(params)
    tolerance = {"float32": 1e-5, "bfloat16": 0.06}[stream_dtype]
    for (path, one), other in zip(
        jax.tree.leaves_with_path(moved), jax.tree.leaves(plain), strict=True
    ):
        error = jnp.linalg.norm(one - other) / jnp.linalg.norm(other)
        assert error < tolerance, (jax.tree_util.keystr(path), float(error))


def test_the_backward_pass_computes_no_product_a_third_time():
    """Matrix products of a recomputed Keel, counted in its program: as many as Pre-LN's."""

    def num_products(topology):
        model = config.ModelConfig(
            num_blocks=3,
            d_model=32,
            d_ffn=48,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=32,
            compute_dtype="float32",
            topology=topology,
            attention="reference",
            recompute=config.RecomputeConfig(plan="block"),
        )
        params = reference.random_params(model, 0)

        def loss(params):
            logits = lm.LanguageModel(model).apply({"params": params}, jnp.ones((2, 8), int))
            return jnp.square(logits).mean()

        text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
        return text.count(" dot(")

    # Forward 7 and 2 of attention, again without the last, and two each for their gradients; the
    # logits' three.
    assert num_products("keel") == num_products("pre_ln") == 9 + 8 + 18 + 3


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_rotation_by_a_product_is_the_rotation(dtype):
    """What a TPU does: bit for bit, as its product only moves numbers."""
    x_BTNH = jax.random.normal(jax.random.key(0), (B, T, 3, 16)).astype(dtype)
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    rope_tables = attention.rope_tables(positions, 16, 10_000.0)
    np.testing.assert_array_equal(
        attention.rotate_half_by_matmul(x_BTNH, *rope_tables),
        attention._rotate_half(x_BTNH, *rope_tables),
    )


def test_the_derivative_of_a_rotation_is_the_turn_back():
    x_BTNH, dx_BTNH = jax.random.normal(jax.random.key(0), (2, B, T, 3, 16))
    rope_tables = attention.rope_tables(jnp.broadcast_to(jnp.arange(T), (B, T)), 16, 10_000.0)
    _, by_rule = jax.vjp(lambda x: attention.rotate(x, *rope_tables), x_BTNH)
    _, by_autodiff = jax.vjp(lambda x: attention._rotate_half(x, *rope_tables), x_BTNH)
    # The same four products, added in the same order.
    np.testing.assert_allclose(by_rule(dx_BTNH)[0], by_autodiff(dx_BTNH)[0], rtol=0, atol=5e-7)
