"""Depth as one scan: equal to a loop over blocks, one compiled body, recomputation that saves."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax.model import attention, depth, layers, lm
from tests import conftest, reference


def _model_and_params(**options):
    cfg = conftest.tiny_config(model=options).model
    model = lm.LanguageModel(cfg)
    params = lm.init(model, jax.random.key(0))

    # Gains of 1 would hide a gain that is applied twice or not at all.
    def with_noise(path, p):
        key = jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return p + 0.1 * jax.random.normal(key, p.shape)

    return model, jax.tree_util.tree_map_with_path(with_noise, params)


def _tokens(batch_size=2, seq_len=12, vocab_size=64):
    return jax.random.randint(jax.random.key(1), (batch_size, seq_len), 0, vocab_size)


def _loop_logits(model: lm.LanguageModel, params, tokens_BT):
    """The model with a Python loop over blocks in place of the scan."""
    m = model.model
    segment_ids_BT = jnp.zeros_like(tokens_BT)
    context = layers.Context(
        positions_BT=attention.positions_in_document(segment_ids_BT),
        segment_ids_BT=segment_ids_BT,
        index_BT=jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape),
    )
    x_BTD = lm.Embedding(m).apply({"params": params["embedding"]}, tokens_BT)
    inputs = depth.block_inputs(m)
    for n in range(m.num_blocks):
        block = jax.tree.map(lambda leaf, n=n: leaf[n], params["block"])
        row = jax.tree.map(lambda leaf, n=n: leaf[n], inputs)
        (x_BTD, _), _ = depth.Block(m).apply({"params": block}, (x_BTD, None), row, context)
    output = params.get("output", {})
    h_BTD = lm.Output(m).apply({"params": output}, x_BTD)
    return lm.logits(h_BTD, lm.output_matrix(params, m))


def _loss(logits_fn):
    return lambda params, tokens: jnp.square(logits_fn(params, tokens)).mean()


@pytest.mark.parametrize("topology", conftest.topologies("attention_residuals"))
def test_scan_equals_loop_in_values_and_gradients(topology):
    """Same operations in the same order: only fusion differs, hence a few float32 ulps."""
    options = {
        "mix_ln": dict(mix_ln_post_fraction=0.34),
        # Two groups, the second smaller; and, to compile less, two streams.
        "attention_residuals": dict(attn_res_groups=2),
    }
    options |= dict.fromkeys(reference.HYPER, dict(hyper_streams=2))
    model, params = _model_and_params(topology=topology, **options.get(topology, {}))
    tokens = _tokens()
    scan = lambda p, t: model.apply({"params": p}, t)  # noqa: E731
    loop = lambda p, t: _loop_logits(model, p, t)  # noqa: E731
    by_scan = jax.jit(jax.value_and_grad(_loss(scan)))(params, tokens)
    by_loop = jax.jit(jax.value_and_grad(_loss(loop)))(params, tokens)
    for one, other in zip(jax.tree.leaves(by_scan), jax.tree.leaves(by_loop), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize(
    ("plan", "few"),
    [
        (dict(plan="none"), 16),
        (dict(plan="block"), 16),
        (dict(plan="segments"), 16),
        # Three loops need a few blocks more to be three.
        (dict(plan="segments", segment_blocks=(0, 0)), 64),
    ],
    ids=str,
)
def test_program_size_does_not_grow_with_depth(plan, few):
    def num_instructions(num_blocks):
        model, _ = _model_and_params(recompute=plan)
        model = lm.LanguageModel(dataclasses.replace(model.model, num_blocks=num_blocks))
        params = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
        loss = _loss(lambda p, t: model.apply({"params": p}, t))
        text = jax.jit(jax.grad(loss)).lower(params, _tokens()).compile().as_text()
        return sum(" = " in line for line in text.splitlines())

    less, more = num_instructions(few), num_instructions(1024)
    assert abs(more - less) < 0.05 * less, (less, more)


def test_one_block_is_enough():
    model, params = _model_and_params(num_blocks=1)
    by_scan = jax.jit(lambda p, t: model.apply({"params": p}, t))(params, _tokens())
    by_loop = jax.jit(lambda p, t: _loop_logits(model, p, t))(params, _tokens())
    np.testing.assert_allclose(by_scan, by_loop, rtol=1e-5, atol=1e-6)


def test_blocks_begin_with_different_weights():
    params = lm.init(lm.LanguageModel(conftest.tiny_config().model), jax.random.key(0))
    query = params["block"]["attention"]["query"]
    assert not np.allclose(query[0], query[1])
    # N(0, 0.02^2): 768 values, so the standard deviation is known to about 3 %.
    assert np.std(query) == pytest.approx(0.02, rel=0.1)


def test_compute_dtypes_are_explicit():
    model, params = _model_and_params(compute_dtype="bfloat16")
    text = jax.jit(lambda p, t: model.apply({"params": p}, t)).lower(params, _tokens()).as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert dots
    for line in dots:
        operands = line.split(" : ")[-1].split("->")[0]
        assert "f32" not in operands, f"a matrix product reads float32: {line}"
    logits = jax.eval_shape(lambda p, t: model.apply({"params": p}, t), params, _tokens())
    assert logits.dtype == jnp.float32
