"""Growing depth: the orders, and that blocks which add nothing leave the function as it was."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from keel_jax import config
from keel_jax.config import topologies
from keel_jax.model import growth, lm, residual
from tests import reference

# Topologies with a norm within the block and none at its end: a new block fits after the last only.
NORMED_WITHIN = ("hybridnorm", "hybridnorm_star")


def small(**options) -> config.ModelConfig:
    return config.ModelConfig(
        **(
            dict(
                num_blocks=4,
                d_model=16,
                d_ffn=24,
                num_heads=4,
                num_kv_heads=2,
                vocab_size=32,
                compute_dtype="float32",
                recompute=config.RecomputeConfig(plan="none"),
            )
            | options
        )
    )


def grown(how: growth.Growth, params) -> dict:
    model = lm.LanguageModel(how.new)
    like = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
    return growth.grow(how, params, like)


@functools.cache
def logits(model: config.ModelConfig):
    return jax.jit(lambda p, t: lm.LanguageModel(model).apply({"params": p}, t))


def moved(how: growth.Growth, params=None) -> float:
    """The largest change of a logit, in standard deviations of the logits."""
    if params is None:
        params = reference.random_params(how.old, 0)  # gains of its own in every norm
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, how.old.vocab_size)
    before = np.asarray(logits(how.old)(params, tokens))
    after = np.asarray(logits(how.new)(grown(how, params), tokens))
    return np.abs(after - before).max() / before.std()


# --- Orders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "num_blocks", "order"),
    [
        ("stack", 6, "012012"),
        ("stack", 9, "012012012"),
        ("stack", 5, "01212"),  # the rest are the upper ones: the top stays the top
        ("stack", 7, "0120122"),
        ("interleave", 6, "001122"),
        ("interleave", 5, "00112"),
        ("interleave", 4, "0012"),
    ],
)
def test_copies_stand_in_order_and_are_copies(method, num_blocks, order):
    how = growth.plan(small(num_blocks=3, topology="pre_ln"), num_blocks, method)
    assert "".join(map(str, how.source)) == order
    assert not how.inserted.any() and not how.keeps_function
    params = reference.random_params(how.old, 0)
    for before, after in zip(
        jax.tree.leaves(params["block"]), jax.tree.leaves(grown(how, params)["block"]), strict=True
    ):
        np.testing.assert_array_equal(after, before[how.source])


@pytest.mark.parametrize(
    ("position", "num_blocks", "order"),
    [
        ("spread", 8, "0_1_2_3_"),
        ("spread", 6, "01_23_"),
        ("spread", 13, "0__1__2__3___"),
        ("end", 6, "0123__"),
    ],
)
def test_new_blocks_stand_between_the_old(position, num_blocks, order):
    how = growth.plan(small(topology="keel"), num_blocks, "identity", position=position)
    assert (
        "".join("_" if new else str(k) for k, new in zip(how.source, how.inserted, strict=True))
        == order
    )


def test_a_copy_of_block_0_gets_the_norms_that_block_0_lacks():
    """Block 0 of Keel never read its attention's outer norm: what is stored there is no gain."""
    how = growth.plan(small(topology="keel", num_blocks=2), 4, "stack")
    params = reference.random_params(how.old, 0)
    gains = grown(how, params)["block"]["attention"]["outer_norm"]
    np.testing.assert_array_equal(gains[2], np.ones(16))
    np.testing.assert_array_equal(gains[3], params["block"]["attention"]["outer_norm"][1])


@pytest.mark.parametrize("method", growth.METHODS)
def test_mix_ln_grows_as_two_stacks(method):
    """No Post-LN block comes to stand among the Pre-LN ones, nor the other way round."""
    how = growth.plan(small(topology="mix_ln", mix_ln_post_fraction=0.4, num_blocks=5), 11, method)
    is_post = [residual.topology(m).outer_norm[:, residual.FFN] for m in (how.old, how.new)]
    np.testing.assert_array_equal(is_post[0][how.source], is_post[1])


# --- The function --------------------------------------------------------------------------------


# A block of theirs does something even where its branches give 0.
NOT_KEPT = topologies.names(lambda row: not row.is_kept_by_zero)
CAPPED = topologies.readers("branch_cap")


@pytest.mark.parametrize("topology", NOT_KEPT)
def test_identity_is_refused_where_zero_is_not_nothing(topology):
    with pytest.raises(ValueError, match=f"{topology}.*Use stack or interleave"):
        growth.plan(small(topology=topology), 6, "identity")
    how = growth.plan(small(topology=topology), 6, "interleave")
    assert np.isfinite(moved(how))


@pytest.mark.parametrize(
    ("topology", "position"),
    # At the end, a gain is handed on once, and over many.
    [
        *((name, "spread") for name in config.TOPOLOGIES if name not in (*NOT_KEPT, *CAPPED)),
        ("keel", "end"),
        ("post_ln", "end"),
        ("layernorm_scaling", "end"),
        ("mix_ln", "end"),
    ],
)
def test_identity_keeps_the_function(topology, position):
    """5e-5 of the logits' deviation is what the model is held to against float64, too.

    Norms within a few parts of epsilon = 1e-5 (module docstring) are well below it.
    """
    split = dict(mix_ln_post_fraction=0.5) if topology == "mix_ln" else {}
    how = growth.plan(small(topology=topology, **split), 10, "identity", position=position)
    assert how.inserted.sum() == 6
    assert moved(how) < 5e-5


@pytest.mark.parametrize(
    "options",
    [
        dict(keel_first_block="v1"),
        dict(alpha=3.0),
        dict(num_blocks=1),
        dict(final_norm="on"),
        dict(topology="deepnorm", alpha=1.5),
        dict(topology="hybridnorm", num_blocks=1),
        dict(topology="pre_ln", final_norm="off"),
        dict(topology="complete_p", learned_branch=True),
        dict(tie_embeddings=True, qk_norm=True),
    ],
    ids=str,
)
def test_identity_keeps_the_function_of_variants(options):
    assert moved(growth.plan(small(**options), 5, "identity")) < 5e-5


@pytest.mark.parametrize("topology", CAPPED)
def test_a_cap_allows_no_other_alpha_under_identity(topology):
    """Branches would have to grow with alpha, beyond the cap."""
    with pytest.raises(ValueError, match=r"alpha=20 instead of 8.*branch_cap=0.5.*alpha=keep"):
        growth.plan(small(topology=topology, branch_cap=0.5), 10, "identity")
    for method in ("stack", "interleave"):
        assert np.isfinite(moved(growth.plan(small(topology=topology), 10, method)))


@pytest.mark.parametrize("topology", ("keel", "keel_scaled_input", "deepnorm", *CAPPED))
def test_the_old_alpha_may_stay(topology):
    how = growth.plan(small(topology=topology), 9, "identity", keep_alpha=True)
    assert how.alphas[0] == how.alphas[1] == residual.topology(how.old).alpha[-1, 0]
    assert moved(how) < 5e-5
    how = growth.plan(small(topology=topology), 9, "stack")
    assert how.alphas[1] == residual.topology(small(topology=topology, num_blocks=9)).alpha[-1, 0]


def test_depth_may_grow_twice():
    model = small(topology="keel")
    params = reference.random_params(model, 0)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 32)
    before = np.asarray(logits(model)(params, tokens))
    for num_blocks in (6, 11):
        how = growth.plan(model, num_blocks, "identity")
        model, params = how.new, grown(how, params)
    after = np.asarray(logits(model)(params, tokens))
    assert np.abs(after - before).max() < 5e-5 * before.std()


def test_new_blocks_learn():
    """Each has a gradient, whatever was set to zero in it."""
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 32)
    for topology, kind, name in (("keel", "attention", "out"), ("olmo2", "ffn", "branch_norm")):
        how = growth.plan(small(topology=topology), 8, "identity")
        params = grown(how, reference.random_params(how.old, 0))
        model = lm.LanguageModel(how.new)
        loss = lambda p, m=model: m.apply({"params": p}, tokens)[..., 0].std()  # noqa: E731
        grads = jax.jit(jax.grad(loss))(params)
        leaf = np.asarray(params["block"][kind][name]), np.asarray(grads["block"][kind][name])
        assert not leaf[0][how.inserted].any()
        assert (np.abs(leaf[1][how.inserted]).reshape(4, -1).max(1) > 0).all(), topology


@pytest.mark.parametrize("topology", ("keel", "complete_p"))
def test_interleaving_refines_where_branches_shrink_with_depth(topology):
    """Copies of half the weight are half steps: their change shrinks with depth as 1 / L."""

    def change(num_blocks):
        model = small(topology=topology, num_blocks=num_blocks)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: np.ones_like(leaf) if "norm" in path[-1].key else leaf,
            reference.random_params(model, 0),
        )
        return moved(growth.plan(model, 2 * num_blocks, "interleave"), params)

    shallow, deep = change(8), change(64)
    assert deep < shallow / 2, (shallow, deep)


# --- Refusals ------------------------------------------------------------------------------------


def test_what_cannot_be_grown_is_refused():
    with pytest.raises(ValueError, match="num_blocks=4 is not more than the 4 blocks"):
        growth.plan(small(), 4, "stack")
    with pytest.raises(ValueError, match="num_blocks=3 is not more than the 4 blocks"):
        growth.plan(small(), 3, "identity")
    with pytest.raises(ValueError, match="alpha=keep has no effect with model.topology='pre_ln'"):
        growth.plan(small(topology="pre_ln"), 8, "identity", keep_alpha=True)
    for options in (
        dict(topology=NORMED_WITHIN[0], final_norm="off"),
        dict(topology=NORMED_WITHIN[1], final_norm="off"),
        dict(keel_first_block="v1", num_blocks=1),
    ):
        with pytest.raises(ValueError, match="No new block leaves this stream unchanged"):
            growth.plan(small(**options), 8, "identity")
    model = small(topology="mix_ln", mix_ln_post_fraction=0.2)
    with pytest.raises(ValueError, match="makes 1 of 8 blocks Post-LN, and there is no Post-LN"):
        growth.plan(model, 8, "interleave")


@pytest.mark.parametrize("topology", NORMED_WITHIN)
def test_norms_within_a_block_leave_room_after_the_last_only(topology):
    """Put elsewhere, the function changes: the refusal to spread them is not idle."""
    how = growth.plan(small(topology=topology), 6, "identity")
    np.testing.assert_array_equal(how.source, [0, 1, 2, 3, 3, 3])
    forced = dataclasses.replace(
        how,
        source=np.array([0, 1, 1, 2, 2, 3]),
        inserted=np.array([False, False, True, False, True, False]),
    )
    assert moved(forced) > 1e-2
