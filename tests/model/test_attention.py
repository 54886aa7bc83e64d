"""What a token may see: the past of its own document, and nothing else; by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax.model import attention, lm
from tests import conftest


def _influence(model, params, segment_ids_BT):
    """[T, T] bool: whether the logits at t depend on the embedding at s."""
    seq_len = segment_ids_BT.shape[1]
    # Every position has a token of its own, so a row of the table is a position.
    tokens_BT = jnp.arange(seq_len)[None]

    def logits(table):
        swapped = {**params, "embedding": {"table": table}}
        return model.apply({"params": swapped}, tokens_BT, segment_ids_BT)[0].sum(-1)

    jacobian_TVD = jax.jit(jax.jacrev(logits))(params["embedding"]["table"])
    return np.abs(np.asarray(jacobian_TVD[:, :seq_len])).sum(-1) > 0


def _tiny(**options):
    cfg = conftest.tiny_config(model=options).model
    model = lm.LanguageModel(cfg)
    params = lm.init(model, jax.random.key(0))
    # Weights of 0.02 give influences near the rounding of a product of many; larger ones do not.
    # And what begins at 0, such as ReZero's scales, shall speak.
    params = jax.tree.map(lambda p: p + 0.1 if not p.any() else p, params)
    return model, jax.tree.map(lambda p: p * 10 if p.ndim > 2 else p, params)


@pytest.mark.parametrize(
    "topology",
    [
        "keel",
        "pre_ln",
        "hybridnorm_star",
        *conftest.other_rules("attention_residuals", "ngpt"),
    ],
)
def test_causality_by_gradient(topology):
    model, params = _tiny(topology=topology)
    seen = _influence(model, params, jnp.zeros((1, 9), jnp.int32))
    np.testing.assert_array_equal(seen, np.tril(np.ones((9, 9), bool)))


def test_packing_mask_by_gradient():
    model, params = _tiny()
    segments = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2]])
    seen = _influence(model, params, jnp.asarray(segments))
    same = segments[0][:, None] == segments[0][None, :]
    np.testing.assert_array_equal(seen, np.tril(same))


def test_a_packed_document_equals_itself_alone():
    model, params = _tiny()
    one, two = jnp.arange(5)[None], jnp.arange(20, 27)[None]
    packed = jnp.concatenate([one, two], axis=1)
    segments = jnp.asarray([[0] * 5 + [1] * 7])
    forward = jax.jit(model.apply)
    together = forward({"params": params}, packed, segments)
    for part, alone in ((together[:, :5], one), (together[:, 5:], two)):
        np.testing.assert_allclose(part, forward({"params": params}, alone), rtol=1e-4, atol=1e-5)


def test_positions_restart_with_each_document():
    segments = jnp.asarray([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
    np.testing.assert_array_equal(
        attention.positions_in_document(segments), [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    )


def test_rotation_depends_on_the_distance_only():
    key = jax.random.key(0)
    q, k = (jax.random.normal(key, (1, 1, 1, 8)) for key in jax.random.split(key))

    def score(t, s):
        rope_tables = lambda p: attention.rope_tables(jnp.asarray([[p]]), 8, 10_000.0)  # noqa: E731
        at = lambda x, p: attention.rotate(x, *rope_tables(p))  # noqa: E731
        return float((at(q, t) * at(k, s)).sum())

    # Far positions lose float32 digits in the angle.
    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_scores_and_softmax_are_float32():
    """Scores of 256 and 256.5: in bf16, whose neighbours there are 2 apart, they are equal."""
    q = jnp.full((1, 2, 1, 4), 16.0, jnp.bfloat16)
    # q k / sqrt(4) is 256; 1/16 more in one component, which bf16 holds exactly, adds 0.5.
    k = jnp.full((1, 2, 1, 4), 8.0, jnp.bfloat16).at[0, 1, 0, 0].set(8.0625)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones_like(q)
    zeros = jnp.zeros((1, 2), jnp.int32)

    def attend(q, k, v):
        return attention.attend(
            q,
            k,
            v,
            kernel="reference",
            query_index_BT=zeros + 1,
            key_index_BS=jnp.arange(2)[None],
            query_segment_ids_BT=zeros,
            key_segment_ids_BS=zeros,
        )

    # Weights and output are rounded to bf16, half a unit in 2^-8 each; a half would be 20% off.
    expected = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(np.asarray(attend(q, k, v), np.float32)[0, 1], expected, rtol=2**-8)
    [exponential] = [
        line
        for line in jax.jit(attend).lower(q, k, v).as_text().splitlines()
        if "stablehlo.exponential" in line
    ]
    assert "bf16" not in exponential and "xf32>" in exponential, exponential
