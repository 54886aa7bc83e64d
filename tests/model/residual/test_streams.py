"""What the topologies that carry several streams promise beyond their equations.

The equations themselves are held to tests/reference.py in test_topologies.py, the scan to a loop in
test_depth.py, decoding to the forward pass in test_sampling.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import depth, lm, residual
from keel_jax.model.residual import hyper_connections
from tests import conftest, reference


def small(**options) -> config.ModelConfig:
    return conftest.tiny_config(model=options).model


def initial(model: config.ModelConfig) -> dict:
    return lm.init(lm.LanguageModel(model), jax.random.key(0))


def tokens_of(model: config.ModelConfig) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (2, 8), 0, model.vocab_size)


def carried(model: config.ModelConfig, params: dict):
    """The carry before block 0 and after the last."""
    tokens_BT = tokens_of(model)

    def run(module):
        before = module.embedding(tokens_BT)
        context = lm.ordered_context(jnp.zeros_like(tokens_BT))
        return before, module.depth(before, context)[0]

    return jax.jit(lambda params: lm.LanguageModel(model).apply({"params": params}, method=run))(
        params
    )


# --- At initialization ---------------------------------------------------------------------------


def test_rezero_begins_as_the_identity():
    model = small(topology="rezero")
    before, after = carried(model, initial(model))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("topology", ("static_hyper_connections", "hyper_connections"))
def test_hyper_connections_begin_as_pre_ln(topology):
    """Each stream is Pre-LN's: r = e_k, A = I, w = 1. The final norm takes away the factor of 3."""
    model, pre_ln = small(topology=topology, hyper_streams=3), small(topology="pre_ln")
    params = initial(model)
    _, want = carried(pre_ln, params)
    for stream in carried(model, params)[1]:
        # Fused otherwise: a few float32 ulps.
        np.testing.assert_allclose(stream, want, rtol=1e-5, atol=1e-7)
    read_NM = params["block"]["attention"]["hyper_static"][:, :, 0]
    np.testing.assert_array_equal(read_NM, np.eye(3)[[0, 2, 1]])  # sub-layers 0, 2, 4
    np.testing.assert_array_equal(
        params["block"]["ffn"]["hyper_static"][:, :, 0], np.eye(3)[[1, 0, 2]]
    )


def test_mhc_begins_as_pre_ln():
    """Up to rounding of A's rows: what a branch reads is a multiple of what Pre-LN's reads."""
    model = small(topology="mhc", norm_epsilon=1e-12)
    pre_ln = small(topology="pre_ln", norm_epsilon=1e-12)
    params = initial(model)
    _, want = carried(pre_ln, params)
    for stream in carried(model, params)[1]:
        np.testing.assert_allclose(stream, want, rtol=1e-4, atol=1e-6)


def test_attention_residuals_begin_as_means():
    """With q = 0 the logits read the mean of the embedding and of every group's sum."""
    model = small(topology="attention_residuals", num_blocks=3, attn_res_groups=3)
    params = initial(model)
    _, (memory, last) = carried(model, params)
    assert len(memory) == 3
    left = residual.rule(model).readout((memory, last), params["output"], model)
    np.testing.assert_allclose(left, np.mean([*memory, last], 0), rtol=1e-5, atol=1e-7)


def test_ngpt_begins_on_the_sphere_and_stays():
    """Rows of length 1 in every matrix, and so a stream of length 1 at every token."""
    model = small(topology="ngpt")
    params = initial(model)
    for leaf, axis in matrices_and_model_axes(params):
        np.testing.assert_allclose(np.linalg.norm(leaf, axis=axis), 1, rtol=1e-6)
    for stream in carried(model, params):
        np.testing.assert_allclose(np.linalg.norm(stream, axis=-1), 1, rtol=1e-6)
    again = lm.project(params, model)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_only_ngpt_is_projected():
    params = initial(small())
    assert lm.project(params, small()) is params


def matrices_and_model_axes(params: dict):
    """Every matrix, with the dimension of it that is the model's (D = 16 and no other is)."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if 16 in leaf.shape[-2:] and leaf.ndim > 1]
    matrices = [leaf for leaf in leaves if min(leaf.shape[-2:]) >= 8]
    assert len(matrices) == 9
    return [(leaf, axis) for leaf, axis in zip(matrices, MODEL_AXES, strict=True)]


# Of key, out, query, value; down, gate, up; the table and the output's matrix, in the tree's order.
MODEL_AXES = (1, 2, 1, 1, 2, 1, 1, 1, 0)


# --- mHC's manifold ------------------------------------------------------------------------------


def test_sinkhorn_gives_doubly_stochastic_matrices():
    """Rows, normalized last, to rounding; columns as far as 20 iterations of such logits get."""
    logits = 2 * jax.random.normal(jax.random.key(0), (4, 4, 3, 500))
    matrices = np.asarray(jax.jit(hyper_connections.sinkhorn)(logits))
    assert (matrices > 0).all()
    np.testing.assert_allclose(matrices.sum(1), 1, atol=1e-6)
    column_errors = np.abs(matrices.sum(0) - 1)
    # measured: median 1e-7, worst of 6000 columns 0.013.
    assert np.median(column_errors) < 1e-5 and column_errors.max() < 0.05
    one = logits[..., 1, 7]
    np.testing.assert_allclose(
        matrices[..., 1, 7], reference.sinkhorn(np.asarray(one, np.float64)), atol=1e-5
    )


def test_sinkhorn_survives_extreme_logits():
    logits = jnp.asarray([[200.0, -200.0], [150.0, -300.0]])[..., None, None]
    value, grad = jax.value_and_grad(lambda x: hyper_connections.sinkhorn(x)[0, 0, 0, 0])(logits)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("stream_scale", (1.0, 1e4))
def test_mhc_mixes_on_its_manifold(stream_scale):
    """The weights that the model uses, far from their first values and for streams of any size."""
    model = small(topology="mhc")
    params = reference.random_params(model, 0)["block"]["ffn"]
    params = {name: jnp.asarray(leaf[0]) for name, leaf in params.items()}
    inputs = depth.block_inputs(model)
    sub = residual.SublayerContext(model, residual.topology(model), residual.FFN, params, inputs)
    carry = tuple(stream_scale * jax.random.normal(jax.random.key(2), (4, 2, 5, 16)))
    reads, writes, mixes = hyper_connections.mhc_weights(carry, sub)
    assert reads.shape == writes.shape == (4, 2, 5) and mixes.shape == (4, 4, 2, 5)
    assert ((0 < reads) & (reads < 1)).all() and ((0 < writes) & (writes < 2)).all()
    np.testing.assert_allclose(mixes.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(mixes.sum(0), 1, atol=0.02)
    assert np.std(mixes, axis=(2, 3)).max() > 0.01  # moved by the token


# --- Like every topology -------------------------------------------------------------------------


@functools.cache
def value_and_gradients(model: config.ModelConfig):
    params = reference.random_params(model, 3)
    tokens_BT = tokens_of(model)

    def loss(params):
        return jnp.square(lm.LanguageModel(model).apply({"params": params}, tokens_BT)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "topology",
    (
        "siamese_norm",
        pytest.param("mhc", marks=pytest.mark.slow),
        pytest.param("attention_residuals", marks=pytest.mark.slow),
    ),
)
def test_recomputation_changes_no_gradient(topology):
    """A carry of a pair, of many streams, and of a memory: remat = plain."""
    options = dict(topology=topology, hyper_streams=2, attn_res_groups=2)
    options = {key: value for key, value in options.items() if _is_read(key, topology)}
    plain, remat = (
        value_and_gradients(small(recompute=dict(plan=how), **options)) for how in ("none", "block")
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6 * np.abs(other).max())


def _is_read(option: str, topology: str) -> bool:
    readers = {"hyper_streams": reference.HYPER, "attn_res_groups": ("attention_residuals",)}
    return topology in readers.get(option, (topology,))


@pytest.mark.parametrize("topology", conftest.OTHER_RULES)
def test_every_array_of_the_carry_is_a_float32_stream(topology):
    """And as many as the memory's closed form counts; also where the model computes in bfloat16."""
    model = small(topology=topology, compute_dtype="bfloat16")
    params = jax.eval_shape(lambda: initial(model))
    before, after = jax.eval_shape(lambda params: carried(model, params), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    leaves = jax.tree.leaves(after)
    assert len(leaves) == residual.rule(model).num_arrays(model)
    for leaf in leaves:
        assert (leaf.shape, leaf.dtype) == ((2, 8, 16), jnp.float32)


def test_groups_need_not_come_out_even():
    def arrays(num_blocks, groups):
        model = small(topology="attention_residuals", num_blocks=num_blocks, attn_res_groups=groups)
        return residual.rule(model).num_arrays(model)

    # Groups of 2 blocks: 5 of them hold 9, and 8 were asked for. An array each, and the embedding.
    assert arrays(9, 8) == 6
    assert arrays(64, 8) == 9
    assert arrays(3, 8) == 4


def test_the_stream_may_be_stored_in_bfloat16():
    model = small(topology="hyper_connections", stream_dtype="bfloat16", hyper_streams=2)
    _, after = jax.eval_shape(lambda: carried(model, initial(model)))
    assert {leaf.dtype for leaf in after} == {jnp.dtype("bfloat16")}


def test_small_parameters_of_a_rule_are_replicated_and_large_ones_are_not():
    axes = lm.logical_axes(lm.LanguageModel(small(topology="mhc")))["block"]["ffn"]
    assert axes["mhc_dynamic"] == ("blocks", "scalar", "embed", "scalar")
    assert axes["mhc_bias"] == ("blocks", "scalar")
    assert axes["mhc_scale"] == ("blocks", "scalar")
