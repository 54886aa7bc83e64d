"""Interventions: what they say they change, they change, and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import instruments, intervention, lm, telemetry
from tests import conftest

N = 4
TOKENS = np.random.default_rng(0).integers(64, size=(2, 8), dtype=np.int32)


def _model(topology: str, num_blocks: int = N, **more) -> config.ModelConfig:
    options = {"topology": topology, "num_blocks": num_blocks, "init_std": 0.2, **more}
    return conftest.tiny_config(model=options).model


def _params(model: config.ModelConfig):
    """Initial parameters with gains that are not 1, so that a norm left out is seen."""
    params = lm.init(lm.LanguageModel(model), jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def _hidden(model, params, change=None, probes_N2=None):
    measured = instruments.Instruments(probes=probes_N2, intervention=change)
    return lm.LanguageModel(model).apply(
        {"params": params}, TOKENS, measured=measured, method="hidden_and_stats"
    )[0]


# Compiled once for each model; the changes are data.
_run = jax.jit(_hidden, static_argnums=0)


# One of each rule of the carry, and one of each kind of norm.
_KINDS = (
    "keel",
    "pre_ln",
    "hybridnorm_star",
    "sandwich",
    "rezero",
    "resi_dual",
    "siamese_norm",
    "hyper_connections",
    "mhc",
    "attention_residuals",
    "ngpt",
)


def _topologies(*quick: str) -> list:
    """All kinds; those not in `quick` in the slow part."""
    slow = pytest.mark.slow
    return [name if name in quick else pytest.param(name, marks=slow) for name in _KINDS]


def _without(params, block: int):
    """The parameters of the model that never had this block."""
    return {**params, "block": jax.tree.map(lambda x: jnp.delete(x, block, 0), params["block"])}


@pytest.mark.parametrize("topology", _topologies("keel"))
def test_none_changes_nothing(topology):
    """Neither numbers nor gradients; the telemetry's program, whose norms are in place, says so."""
    model = _model(topology)
    params, probes_N2 = _params(model), telemetry.probes(N)

    def loss(params, change):
        return jnp.sum(_hidden(model, params, change, probes_N2) ** 2)

    plain = jax.jit(jax.value_and_grad(lambda p: loss(p, None)))(params)
    changed = jax.jit(jax.value_and_grad(loss))(params, intervention.none(N))
    # The compiler is free to fuse and so to round otherwise.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), *(plain, changed)
    )


@pytest.mark.parametrize(
    "topology", ["keel", "resi_dual", pytest.param("pre_ln", marks=pytest.mark.slow)]
)
def test_a_skipped_block_was_never_there(topology):
    """Skipping both sub-layers is the shorter model with the same alpha."""
    alpha = {"alpha": 8.0} if topology == "keel" else {}
    long, short = _model(topology, **alpha), _model(topology, N - 1, **alpha)
    params, none = _params(long), intervention.none(N)
    whole = _run(long, params, none)
    for block in (1, 3):
        change = none.replace(is_skipped=none.is_skipped.at[block].set(True))
        skipped = _run(long, params, change)
        want = _run(short, _without(params, block))
        np.testing.assert_allclose(skipped, want, rtol=1e-4, atol=1e-5)
        assert np.abs(skipped - whole).max() > 0.01


@pytest.mark.parametrize("topology", _topologies("keel", "sandwich", "attention_residuals"))
def test_a_branch_of_scale_0_has_weights_of_0(topology):
    """The norms around it stay: the same as zeros in the matrix that ends the branch."""
    model = _model(topology)
    params, none = _params(model), intervention.none(N)
    for sublayer, (branch, last) in enumerate((("attention", "out"), ("ffn", "down"))):
        change = none.replace(branch_scale=none.branch_scale.at[2, sublayer].set(0.0))
        block = dict(params["block"])
        block[branch] = {**block[branch], last: block[branch][last].at[2].set(0.0)}
        want = _run(model, {**params, "block": block}, none)
        got = _run(model, params, change)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert np.abs(got - _run(model, params, none)).max() > 1e-3


def test_a_cut_gradient_takes_the_residual_path_alone():
    """Numbers as before, branches' weights without a gradient, the embedding with another one."""
    model = _model("keel")
    params = _params(model)

    def loss(params, change):
        return jnp.sum(_hidden(model, params, change)[..., 0])

    change = intervention.none(N)
    cut = change.replace(branch_gradient=0 * change.branch_gradient)
    whole, path = map(functools.partial(jax.jit(jax.value_and_grad(loss)), params), (change, cut))
    np.testing.assert_array_equal(whole[0], path[0])
    for branch, last in (("attention", "query"), ("ffn", "down")):
        assert np.abs(whole[1]["block"][branch][last]).min(axis=(1, 2)).max() > 0
        assert not np.any(path[1]["block"][branch][last])
    tables = [found[1]["embedding"]["table"] for found in (whole, path)]
    assert np.any(tables[1]) and np.abs(tables[0] - tables[1]).max() > 1e-3


def test_one_program_serves_every_mask():
    """Masks are data: sub-layers removed one after another compile nothing."""
    model, traces = _model("keel"), 0
    params = _params(model)

    @jax.jit
    def run(params, change):
        nonlocal traces
        traces += 1
        return _hidden(model, params, change)

    none = intervention.none(N)
    found = [
        run(params, none.replace(is_skipped=none.is_skipped.at[block].set(True)))
        for block in range(N)
    ]
    assert traces == 1 and all(np.any(found[0] != other) for other in found[1:])


@pytest.mark.slow
def test_with_recomputation_it_is_the_same():
    model = _model("keel", recompute=dict(plan="block"))
    plain = dataclasses.replace(model, recompute=config.RecomputeConfig(plan="none"))
    params, change = _params(model), intervention.none(N)
    change = change.replace(is_skipped=change.is_skipped.at[1, 0].set(True))

    def gradient(model):
        loss = lambda p: jnp.sum(_hidden(model, p, change) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(model),
        gradient(plain),
    )
