"""Whole-model logits of every topology against the float64 equations of tests/reference.py."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.config import topologies
from keel_jax.model import attention, lm
from keel_jax.model.residual import norms
from tests import reference

# In units of the logits' standard deviation. The model works in fp32 (unit roundoff 6e-8); ten
# sub-layers leave some tens of roundoffs, and a norm on a small branch output magnifies them.
# measured, worst of 20 draws of the weights: 6.5e-6, OLMo-2 2.1e-5. The mildest wrong equation
# (test_the_reference_tells_topologies_apart) is a thousand times further off.
TOLERANCE = 5e-5

KEEL_FAMILY = (
    "keel",
    "keel_no_inner_norm",
    "keel_scaled_input",
    "keel_scaled_inner_norm",
    "keel_capped",
)
# Topologies with a block that is unlike the others, or with N in their equation.
DEPTH_DEPENDENT = (
    *KEEL_FAMILY,
    "deepnorm",
    "hybridnorm_star",
    "mix_ln",
    "layernorm_scaling",
    "complete_p",
    "siamese_norm",
)
ALL_KEPT = config.RecomputeConfig(plan="none")


def small(**overrides) -> config.ModelConfig:
    """A decoder whose every width differs, so that no wrong axis fits by accident."""
    options = dict(
        num_blocks=3,
        d_model=16,
        d_ffn=24,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        vocab_size=23,
        compute_dtype="float32",
        recompute=ALL_KEPT,
    )
    return config.ModelConfig(**(options | overrides))


@functools.cache
def compiled(model: config.ModelConfig):
    module = lm.LanguageModel(model)
    return jax.jit(
        lambda params, tokens, ids: module.apply({"params": params}, tokens, ids),
        # Compiling is all the time these tests take.
        compiler_options={"xla_backend_optimization_level": 0},
    )


def batch(model: config.ModelConfig):
    """Tokens [2, 12]; ids of rows packed with 2 and with 4 documents, one of a single token."""
    tokens_BT = np.random.default_rng(7).integers(0, model.vocab_size, (2, 12))
    ids_BT = np.array([[1] * 5 + [2] * 7, [1] * 4 + [2] + [3] * 4 + [4] * 3])
    return tokens_BT.astype(np.int32), ids_BT.astype(np.int32)


def assert_agrees(model: config.ModelConfig, seed: int = 0):
    """Compares on packed rows and on rows of one document, with one compilation."""
    params = reference.random_params(model, seed)
    tokens_BT, packed_BT = batch(model)
    for ids_BT in (packed_BT, np.ones_like(packed_BT)):
        got = np.asarray(compiled(model)(params, tokens_BT, ids_BT))
        want = reference.logits(model, params, tokens_BT, ids_BT)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * want.std())


@pytest.mark.parametrize(
    ("topology", "num_blocks"),
    (*itertools.product(config.TOPOLOGIES, (1, 3)), *itertools.product(DEPTH_DEPENDENT, (2, 5))),
)
def test_logits_equal_the_equations(topology, num_blocks):
    assert_agrees(small(topology=topology, num_blocks=num_blocks), seed=num_blocks)


@pytest.mark.parametrize("topology", ("keel", "pre_ln"))
def test_512_sublayers(topology):
    # Neither magnifies roundoff with depth; Post-LN's gets to 0.2. Measured over six draws: Keel
    # 6e-7 to 2e-5, but for one token of draw 0, which any order of the operations loses more of
    # (2e-5 to 7e-5).
    assert_agrees(small(topology=topology, num_blocks=256), seed=1)


@pytest.mark.parametrize("num_blocks", (1, 3))
@pytest.mark.parametrize("topology", KEEL_FAMILY)
def test_v1_first_block(topology, num_blocks):
    assert_agrees(small(topology=topology, num_blocks=num_blocks, keel_first_block="v1"))


@pytest.mark.parametrize("topology", (*KEEL_FAMILY, "deepnorm"))
def test_alpha_override(topology):
    assert_agrees(small(topology=topology, alpha=2.7))


@pytest.mark.parametrize("weight", (0.3, 1.0))
def test_branch_scale(weight):
    assert_agrees(small(topology="complete_p", branch_scale=weight))


def test_the_embedding_begins_with_its_own_deviation():
    """And nothing else does."""
    of_its_own, usual = (
        lm.init(lm.LanguageModel(small(vocab_size=400, **options)), jax.random.key(0))
        for options in (dict(embedding_std=1.0), {})
    )
    assert np.std(of_its_own["embedding"].pop("table")) == pytest.approx(1.0, rel=0.03)
    assert np.std(usual["embedding"].pop("table")) == pytest.approx(0.02, rel=0.03)
    jax.tree.map(np.testing.assert_array_equal, of_its_own, usual)


def test_complete_p_with_a_branch_scale_of_1_is_pre_ln():
    params = reference.random_params(small(topology="pre_ln"), 0)
    tokens_BT, ids_BT = batch(small())
    one, other = (
        compiled(small(**options))(params, tokens_BT, ids_BT)
        for options in (dict(topology="complete_p", branch_scale=1.0), dict(topology="pre_ln"))
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("topology", topologies.readers("learned_branch"))
def test_a_learned_branch(topology):
    """The equation with learned weights, and the topology itself as long as they are initial."""
    model = small(topology=topology, learned_branch=True)
    assert_agrees(model)
    params = lm.init(lm.LanguageModel(model), jax.random.key(0))
    tokens_BT, ids_BT = batch(model)
    learned = compiled(model)(params, tokens_BT, ids_BT)
    for sublayer in params["block"].values():
        np.testing.assert_array_equal(sublayer.pop("residual_scale"), np.ones(model.num_blocks))
    fixed = compiled(small(topology=topology))(params, tokens_BT, ids_BT)
    np.testing.assert_array_equal(learned, fixed)


# Below, among and above the RMS of the branches: from block 1 on their medians are 0.3 to 2.
@pytest.mark.parametrize("cap", (0.1, 0.5, 100.0))
def test_branch_cap(cap):
    assert_agrees(small(topology="keel_capped", branch_cap=cap))


def test_a_cap_above_all_branches_is_keel():
    params = reference.random_params(small(), 0)
    tokens_BT, ids_BT = batch(small())
    capped, keel = (
        compiled(small(**options))(params, tokens_BT, ids_BT)
        for options in (dict(topology="keel_capped", branch_cap=1e6), dict(topology="keel"))
    )
    np.testing.assert_array_equal(capped, keel)


def test_branches_of_0_have_gradients_under_a_cap():
    """As growing leaves them: the cap divides by the length of the branch, which is 0 there."""
    found = jax.grad(lambda x: norms.capped(x, 1.0).sum())(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(found, np.ones((2, 4)))


@pytest.mark.parametrize("fraction", (0.0, 0.5, 1.0))
def test_mix_ln_fraction(fraction):
    assert_agrees(small(topology="mix_ln", mix_ln_post_fraction=fraction))


@pytest.mark.parametrize("topology", reference.HYPER)
@pytest.mark.parametrize("num_streams", (1, 3))
def test_hyper_connections_of_any_width(topology, num_streams):
    assert_agrees(small(topology=topology, num_blocks=2, hyper_streams=num_streams))


@pytest.mark.parametrize("num_groups", (1, 2, 3))
def test_groups_of_attention_residuals(num_groups):
    # Of 5 blocks: 5; 3 and 2; 2, 2 and 1.
    assert_agrees(small(topology="attention_residuals", num_blocks=5, attn_res_groups=num_groups))


@pytest.mark.parametrize(
    "options",
    (
        dict(qk_norm=True),
        dict(qk_norm=True, topology="post_ln"),
        dict(qk_norm=True, topology="hybridnorm"),
        dict(tie_embeddings=True),
        dict(tie_embeddings=True, topology="peri_ln"),
        dict(final_norm="on"),
        dict(final_norm="off", topology="pre_ln"),
        dict(final_norm="off", topology="peri_ln"),
        dict(final_norm="on", topology="rezero"),
        dict(tie_embeddings=True, topology="resi_dual"),
        dict(num_kv_heads=1),
        dict(num_kv_heads=4),
        dict(rope_theta=30.0),
        dict(norm_epsilon=0.1),
    ),
    ids=str,
)
def test_options(options):
    assert_agrees(small(**options))


def test_positions_restart_with_every_document():
    # RoPE sees only differences of positions, so no logit shows where they start.
    _, ids_BT = batch(small())
    want_BT = [reference.positions(ids_T) for ids_T in ids_BT]
    np.testing.assert_array_equal(attention.positions_in_document(ids_BT), want_BT)
    assert np.max(want_BT) == 6


@pytest.mark.parametrize("plan", ("none", "block"))
def test_no_segment_ids_is_one_segment(plan):
    model = small(recompute=config.RecomputeConfig(plan=plan))
    params = reference.random_params(model, 0)
    tokens_BT, _ = batch(model)
    got = np.asarray(compiled(model)(params, tokens_BT, None))
    want = reference.logits(model, params, tokens_BT)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * want.std())


@pytest.mark.parametrize("num_blocks", (1, 4))
@pytest.mark.parametrize(
    "options",
    (
        *(dict(topology=name) for name in config.TOPOLOGIES),
        *(dict(topology=name, keel_first_block="v1") for name in KEEL_FAMILY),
        dict(qk_norm=True),
        dict(tie_embeddings=True),
        *(dict(topology=n, learned_branch=True) for n in topologies.readers("learned_branch")),
        dict(topology="mix_ln", mix_ln_post_fraction=0.0),
        dict(topology="mix_ln", mix_ln_post_fraction=1.0),
    ),
    ids=str,
)
def test_parameters_are_those_that_the_equations_read(options, num_blocks):
    model = small(num_blocks=num_blocks, **options)
    tree = jax.eval_shape(lambda: lm.init(lm.LanguageModel(model), jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, tree) == reference.shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}


def test_the_reference_tells_topologies_apart():
    # Otherwise agreement with it would prove little: two equations, or Keel with half its alpha,
    # must differ by far more than the tolerance on the very inputs used above.
    models = {name: small(topology=name, mix_ln_post_fraction=0.5) for name in config.TOPOLOGIES}
    models |= {f"{name} v1": small(topology=name, keel_first_block="v1") for name in KEEL_FAMILY}
    models |= {
        "alpha N": small(alpha=3.0),
        "alpha 1": small(alpha=1.0),
        "qk_norm": small(qk_norm=True),
        "final": small(final_norm="on"),
    }
    every_leaf = {}
    for model in models.values():
        _merge(every_leaf, reference.random_params(model, 0))
    tokens_BT, ids_BT = batch(small())
    logits = {
        name: reference.logits(model, every_leaf, tokens_BT, ids_BT)
        for name, model in models.items()
    }
    for one, other in itertools.combinations(logits, 2):
        gap = np.abs(logits[one] - logits[other]).max() / logits[one].std()
        assert gap > 1000 * TOLERANCE, f"{one} and {other} differ by {gap}"


def _merge(into: dict, tree: dict):
    for key, value in tree.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into.setdefault(key, value)
