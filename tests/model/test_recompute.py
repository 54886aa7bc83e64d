"""Segments = flat, whatever is kept and wherever; and each plan keeps less than the one before."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import lm, recompute
from keel_jax.parallel import mesh as mesh_lib
from tests import conftest

WIDTH, ROWS = 6, 4


def _plan(plan="segments", *segment_blocks, **more) -> config.RecomputeConfig:
    sizes = dict(segment_blocks=segment_blocks) if segment_blocks else {}
    return config.RecomputeConfig(plan=plan, **sizes, **more)


FLAT = _plan("none")
PLANS = (
    _plan("block", save="attention"),
    _plan("block", save="mlp", offload=True),
    _plan("block", save="attention", offload=True, offload_saved=True),
    _plan(),
    _plan(save="all"),
    _plan(offload=True),
    _plan("segments", 4, 2, save="mlp"),
)


def _name(plan: config.RecomputeConfig) -> str:
    options = plan.plan, plan.segment_blocks, plan.save, plan.offload, plan.offload_saved
    return " ".join(map(str, options))


# --- The scan, with a body that has everything a block may have ----------------------------------


def _body(carry, row):
    """A carry of two leaves, a block's number, a probe, and outputs."""
    x, count = carry
    weights, number, probe = row
    branch = jnp.tanh(x @ weights) / (1 + number)
    return (x + branch + probe, count + 1), {"rms": jnp.square(branch).mean(), "number": number}


def _rows(num_blocks):
    weights = 0.3 * jax.random.normal(jax.random.key(0), (num_blocks, WIDTH, WIDTH))
    return weights, jnp.arange(num_blocks), jnp.zeros((num_blocks, ROWS, WIDTH))


@functools.cache
def _scanned(plan, num_blocks):
    """Carry and outputs, and gradients by weights, probes and the first carry."""
    weights, numbers, probes = _rows(num_blocks)
    x = jax.random.normal(jax.random.key(1), (ROWS, WIDTH))

    def run(weights, probes, x):
        carry = x, jnp.zeros((), jnp.int32)
        return recompute.scan(_body, carry, (weights, numbers, probes), plan)

    def loss(*arrays):
        (x, _), told = run(*arrays)
        return jnp.square(x).sum() + (told["rms"] * (1 + numbers)).sum()

    arrays = weights, probes, x
    return jax.jit(run)(*arrays), jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5, 7, 13])
@pytest.mark.parametrize("plan", [_plan(), _plan("segments", 0, 0, offload=True)], ids=_name)
def test_any_depth_in_segments_is_the_flat_scan(plan, num_blocks):
    """Bitwise forward, outputs too; gradients to the order in which a matrix product is fused."""
    flat, flat_gradients = _scanned(FLAT, num_blocks)
    values, gradients = _scanned(plan, num_blocks)
    jax.tree.map(np.testing.assert_array_equal, values, flat)
    for one, other in zip(gradients, flat_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize("asked", [(0,), (0, 0), (0, 0, 0), (0, 3)], ids=str)
def test_sizes_fit_any_depth_and_keep_few_carries(asked):
    for num_blocks in (*range(1, 130), 512, 997, 1024, 5000):
        sizes = recompute.segment_sizes(_plan("segments", *asked), num_blocks)
        lengths = (num_blocks, *sizes)
        assert all(a > b > 0 for a, b in itertools.pairwise(lengths)), (num_blocks, sizes)
        if asked == (0,) and num_blocks > 3:
            # 2 sqrt(N) is the least; a prime pays, and a number near it may be taken instead.
            kept = sum(recompute.kept_carries(sizes, num_blocks))
            assert kept <= 1.3 * 2 * num_blocks**0.5 + 2, (num_blocks, sizes)
    assert recompute.segment_sizes(_plan("segments", 0), 1024) == (32,)
    assert recompute.segment_sizes(_plan("segments", 0, 0), 512) == (64, 8)


# --- The model -----------------------------------------------------------------------------------


def _model(plan, num_blocks=7, **options):
    cfg = conftest.tiny_config(model=dict(num_blocks=num_blocks, **options)).model
    return lm.LanguageModel(dataclasses.replace(cfg, recompute=plan))


def _gradient(model):
    def loss(params, tokens_BT):
        return jnp.square(model.apply({"params": params}, tokens_BT)).mean()

    return jax.jit(jax.value_and_grad(loss))


def _tokens(batch_size=2, seq_len=12):
    return jax.random.randint(jax.random.key(1), (batch_size, seq_len), 0, 64)


@pytest.fixture(scope="module")
def flat():
    params = lm.init(_model(FLAT), jax.random.key(0))
    return params, _gradient(_model(FLAT))(params, _tokens())


@pytest.mark.parametrize("plan", PLANS, ids=_name)
def test_no_plan_changes_the_numbers(flat, plan):
    """The loss bitwise. Gradients: the same operations, fused in another way, a few ulps."""
    params, (loss, gradients) = flat
    found_loss, found = _gradient(_model(plan))(params, _tokens())
    assert found_loss == loss
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())


def test_initial_values_do_not_depend_on_the_plan(flat):
    params = lm.init(_model(_plan("segments", 3)), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, flat[0])


def test_bf16_gradients_are_stacked_as_they_are_computed():
    """A matrix's gradient is a bf16 number before it becomes float32: nothing was lost."""
    model = _model(_plan(), compute_dtype="bfloat16")
    params = lm.init(model, jax.random.key(0))
    _, found = _gradient(model)(params, _tokens())
    for leaf in jax.tree.leaves(found["block"]):
        assert leaf.dtype == jnp.float32
        if leaf.ndim > 2:
            np.testing.assert_array_equal(leaf, leaf.astype(jnp.bfloat16).astype(jnp.float32))


def test_trials_and_stages_in_segments():
    """Each stage segments its own blocks, each trial all: as without."""
    tokens, losses = _tokens(batch_size=8), {}
    mesh = mesh_lib.make(config.MeshConfig(stage=2, fsdp=1), jax.devices()[:2])
    for plan in (FLAT, _plan("segments", 2, offload=True)):
        model = _model(plan, num_blocks=6)
        params = lm.init(model, jax.random.key(0))
        with jax.set_mesh(mesh):
            staged = jax.jit(lambda p, t, m=model: m.apply({"params": p}, t, method="hidden"))(
                params, tokens
            )
        twice = jax.tree.map(lambda p: jnp.stack([p, p]), params)
        trials = jax.jit(jax.vmap(_gradient(model), (0, None)))(twice, tokens)
        losses[plan] = np.asarray(staged), np.asarray(trials[0])
    one, other = losses.values()
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


# --- Memory --------------------------------------------------------------------------------------


def _temporaries(plan, **options) -> int:
    """Bytes, of a deep model whose carries (128 KiB) outweigh a block's weights (10 KiB)."""
    model = _model(plan, num_blocks=512, final_norm="off", **options)
    params = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
    compiled = _gradient(model).lower(params, _tokens(batch_size=256, seq_len=8)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_every_plan_saves_memory():
    """By plan, and by what is kept, on the compiled program: an option without effect fails."""
    block, segments = _temporaries(_plan("block")), _temporaries(_plan("segments", 32))
    by_plan = [_temporaries(FLAT), block, segments, _temporaries(_plan("segments", 64, 8))]
    by_save = [
        by_plan[0],
        _temporaries(_plan("block", save="mlp")),
        _temporaries(_plan("block", save="attention")),
        block,
    ]
    within = [by_plan[0], _temporaries(_plan("segments", 32, save="all")), segments]
    for kept in (by_plan, by_save, within):
        for more, less in itertools.pairwise(kept):
            assert less < 0.93 * more, (by_plan, by_save, within)


def test_offloaded_inputs_are_stacked_in_the_hosts_memory():
    """As traced: a CPU has one memory. On a TPU: tests/planning/test_cost_model.py."""

    def traced(plan):
        model = _model(plan)
        params = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
        return str(jax.make_jaxpr(_gradient(model))(params, _tokens()))

    # Seven blocks; or one whole segment of four.
    assert "f32<host>[7,2,12,16]" in traced(_plan("block", offload=True))
    assert "f32<host>[1,2,12,16]" in traced(_plan("segments", 4, offload=True))
    assert "<host>" not in traced(_plan("block"))
    # The input, queries, keys, values, and attention's output.
    kept = [
        traced(_plan("block", save="attention", offload=True, offload_saved=wait)).count(
            "<host>[7,"
        )
        for wait in (False, True)
    ]
    assert kept[1] >= kept[0] + 4
