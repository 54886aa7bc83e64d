"""The measurement of gradient flow against derivatives by hand and against the theory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gradient_flow import analysis, measure, points
from keel_jax.model import lm

TINY = points.PRESETS["tiny"]


@pytest.fixture(scope="module")
def post_ln():
    """A Post-LN model, its program and what it reads."""
    model = points.model("post_ln", 4, TINY)
    shape = (TINY.batch_size, TINY.seq_len)
    flow = measure.compile_flow(model, *shape)
    params = measure.compile_init(model)(jax.random.key(0))
    return model, flow, params, measure.random_tokens(shape, TINY.vocab_size, 0)


def test_the_whole_gain_is_the_gradient_at_the_embedding(post_ln):
    """At sub-layer 0 the stream is the embedding's rows: their gradient, by plain jax.grad."""
    model, flow, params, tokens_BT = post_ln
    distinct = np.arange(tokens_BT.size, dtype=np.int32).reshape(tokens_BT.shape)
    v_BTD = jnp.asarray(measure.direction(distinct.shape, model.d_model, 0))

    def objective(table):
        tree = {**params, "embedding": {"table": table}}
        x_BTD: Any = lm.LanguageModel(model).apply({"params": tree}, distinct, method="hidden")
        return (measure.tangent(v_BTD, jax.lax.stop_gradient(x_BTD)) * x_BTD).sum()

    rows = np.asarray(jax.jit(jax.grad(objective))(params["embedding"]["table"]))[: distinct.size]
    measured = measure.measure_flow(flow, params, distinct, model, 0)
    assert measured["gain"][0] == pytest.approx(np.sqrt(np.mean(rows**2)), rel=1e-4)
    assert measured["path_gain"][0] != pytest.approx(measured["gain"][0], rel=0.1)


def test_unit_branches_are_units_and_the_path_is_the_theorys(post_ln):
    model, flow, params, tokens_BT = post_ln
    unit = measure.with_unit_branches(flow, params, tokens_BT, model, 0)
    measured = measure.measure_flow(flow, unit, tokens_BT, model, 0)
    np.testing.assert_allclose(measured["branch_rms"], measured["stream_rms"], rtol=0.01)
    want = np.log(analysis.theory_gain("post_ln", 4, TINY)[analysis.BLOCK_1])
    # Of 16 dimensions branches are not at right angles to their streams; each token has its sizes.
    assert np.log(measured["path_gain"][2]) == pytest.approx(want, rel=0.4)
    assert np.log(measured["predicted_path_gain"][2]) == pytest.approx(want, rel=0.02)


def test_v_has_no_part_along_the_stream():
    rng = np.random.default_rng(0)
    v, x = (jnp.asarray(rng.standard_normal((2, 3, 16)).astype(np.float32)) for _ in range(2))
    tangent = np.asarray(measure.tangent(v, x))
    assert np.abs((tangent * x).sum(-1)).max() < 1e-4
    np.testing.assert_allclose(np.sqrt((tangent**2).mean(-1)), 1, rtol=1e-5)
