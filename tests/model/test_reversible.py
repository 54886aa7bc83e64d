"""Blocks run backwards give the gradients of blocks that are kept, say how well, and fall back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax import train as train_verb
from keel_jax.model import depth, instruments, layers, lm, residual, reversible
from keel_jax.model.residual import equation
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.training import logs, plots, telemetry_records
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from tests import conftest

BLOCK = config.RecomputeConfig(plan="block")
# Far above what float32 leaves of a reconstruction that works, below any that fails.
BOUND = 0.1


def _plan(anchor_blocks=3, fixed_point_iterations=4, error_bound=BOUND) -> config.RecomputeConfig:
    return config.RecomputeConfig(
        plan="reversible",
        anchor_blocks=anchor_blocks,
        fixed_point_iterations=fixed_point_iterations,
        error_bound=error_bound,
    )


def _model(plan, num_blocks=7, **options) -> lm.LanguageModel:
    """Branches as strong as the stream, as training makes them, and the alpha of 16 blocks."""
    options = dict(init_std=0.3, alpha=32.0) | options
    cfg = conftest.tiny_config(model=dict(num_blocks=num_blocks, **options)).model
    return lm.LanguageModel(dataclasses.replace(cfg, recompute=plan))


def _tokens(batch_size=2, seq_len=12):
    return jax.random.randint(jax.random.key(1), (batch_size, seq_len), 0, 64)


@functools.cache
def _params(**options):
    model = _model(BLOCK, **options)
    params = jax.jit(lambda: lm.init(model, jax.random.key(0)))()
    # Gains that are not 1, so that a forgotten one shows.
    return jax.tree.map(
        lambda p: p * (1 + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape)), params
    )


@functools.cache
def _gradient(model):
    """(params, probe) -> the loss, and its gradients by both."""

    def loss(params, probe_A2):
        measured = instruments.Instruments(reversal=probe_A2)
        method = "hidden_and_stats"
        h = model.apply({"params": params}, _tokens(), measured=measured, method=method)[0]
        weights = jax.random.normal(jax.random.key(2), h.shape)
        return (h * weights).sum() + jnp.square(h[..., 0]).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def _found(plan, params, **options):
    """Loss, gradients, and what the stretches tell, [A, 2]."""
    model = _model(plan, **options)
    probe_A2 = None
    if plan.plan == "reversible":
        probe_A2 = reversible.probe(plan, model.model.num_blocks)
    loss, (gradients, told_A2) = _gradient(model)(params, probe_A2)
    return loss, gradients, told_A2


def _distance(one, other) -> float:
    """The largest relative distance of any leaf; a leaf that nothing reads has no gradient."""
    return max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        if jnp.any(b)
    )


# --- The gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_blocks", "anchor_blocks"),
    [
        (5, 2),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(8, 3, marks=pytest.mark.slow),
        pytest.param(8, 8, marks=pytest.mark.slow),
    ],
)
def test_any_depth_backwards_has_the_exact_gradients(num_blocks, anchor_blocks):
    """With remainders of every kind; forward bitwise. The tolerance: float32, through norms."""
    options = dict(num_blocks=num_blocks)
    params = _params(**options)
    loss, gradients, told_A2 = _found(
        _plan(anchor_blocks, fixed_point_iterations=6), params, **options
    )
    exact_loss, exact, _ = _found(BLOCK, params, **options)
    assert loss == exact_loss
    assert _distance(gradients, exact) < 3e-4
    assert told_A2.shape == (-(-num_blocks // anchor_blocks), 2)
    assert told_A2.max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(topology="keel_scaled_inner_norm", keel_first_block="v1"),
        dict(topology="keel_no_inner_norm"),
        dict(topology="keel_scaled_input", qk_norm=True),
        dict(learned_branch=True),
        dict(topology="keel_capped", branch_cap=0.2),
    ],
    ids=str,
)
def test_every_topology_of_the_family(options):
    params = _params(**options)
    _, gradients, told_A2 = _found(_plan(fixed_point_iterations=6), params, **options)
    _, exact, _ = _found(BLOCK, params, **options)
    assert told_A2.max() < 1e-5
    assert _distance(gradients, exact) < 3e-4


def test_each_evaluation_brings_the_stream_nearer():
    """What the stretches tell falls by the contraction, and the gradients' error with it."""
    params = _params()
    _, exact, _ = _found(BLOCK, params)
    errors, tolds = [], []
    for fixed_point_iterations in (1, 2, 3):
        _, gradients, told_A2 = _found(_plan(7, fixed_point_iterations), params)
        errors.append(_distance(gradients, exact))
        tolds.append(told_A2.max(axis=0))
    for (one, other), (told, next_told) in zip(
        zip(errors, errors[1:], strict=False), zip(tolds, tolds[1:], strict=False), strict=True
    ):
        assert other < 0.3 * one
        assert (next_told < 0.3 * told).all()
    # The second evaluation is the first one's error, made smaller: both are told.
    assert 0 < tolds[0][0] < tolds[0][1] < BOUND


def test_the_error_at_an_anchor_is_that_of_the_stream():
    """The inverse written down once more, of one stretch: from the top down to the second block."""
    model = _model(_plan(7, fixed_point_iterations=2))
    m, params = model.model, _params()
    context = lm.ordered_context(jnp.zeros_like(_tokens()))
    x_BTD = params["embedding"]["table"][_tokens()]
    streams_2N, inputs = [], depth.block_inputs(m)
    row = lambda tree, block: jax.tree.map(lambda p: p[block], tree)  # noqa: E731

    @functools.partial(jax.jit, static_argnums=(1, 3, 4))
    def sublayer(x_BTD, name, block, is_norm_deferred=False, is_branch_alone=False):
        own, here = row(params["block"], block)[name], row(inputs, block)
        if is_norm_deferred:  # any norm there says so
            norm = equation.DeferredNorm(gain=None, is_on=None)
            above = (None, norm) if name == "attention" else (norm, None)
            here = here.replace(deferred_norm=above)
        if is_branch_alone:
            here = here.replace(topology=here.topology | {"alpha": jnp.zeros(2)})
        module = layers.Attention if name == "attention" else layers.Ffn
        more = (context, None) if name == "attention" else ()
        return module(m, parent=None).apply({"params": own}, x_BTD, here, *more)[0]

    names = [(name, block) for block in range(7) for name in ("attention", "ffn")]
    for name, block in names:
        streams_2N.append(x_BTD)
        x_BTD = sublayer(x_BTD, name, block)
    *_, last = streams_2N

    def z_above(x_BTD, name, block, is_branch_alone=False):
        """What a sub-layer leaves whose outer norm is left to the one above it."""
        return sublayer(x_BTD, name, block, True, is_branch_alone)

    z_BTD = z_above(last, *names[-1])
    for index in reversed(range(2, 14)):
        name, block = names[index]
        alpha = inputs.topology["alpha"][block, 0]
        guess = z_BTD / alpha
        for _ in range(2):
            f_BTD = z_above(guess, name, block, is_branch_alone=True)
            guess = (z_BTD - f_BTD) / alpha
        below, at = names[index - 1]
        exact = z_above(streams_2N[index - 1], below, at)
        gain_11D = row(params["block"], at)[below]["outer_norm"][None, None]
        z_BTD = guess / (gain_11D * jax.lax.rsqrt(jnp.mean(exact**2, -1, keepdims=True) + 1e-5))
    expected = jnp.linalg.norm(z_BTD - exact) / jnp.linalg.norm(exact)
    _, _, told_A2 = _found(_plan(7, fixed_point_iterations=2), params)
    assert expected > 1e-5
    np.testing.assert_allclose(told_A2[0, 0], expected, rtol=0.05)


# --- The fall-back -------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor_blocks", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_with_bound_0_every_stretch_is_computed_again(anchor_blocks):
    """One evaluation, whose own gradients are far off: the fall-back's are recomputation's."""
    params, plan = _params(), _plan(anchor_blocks, 1, 0.0)
    _, gradients, told_A2 = _found(plan, params)
    _, exact, _ = _found(BLOCK, params)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())
    found = reversible.summary(told_A2, plan, 7)
    assert found["reversal_fallbacks"] == len(told_A2)
    _, reversed_gradients, _ = _found(_plan(anchor_blocks, 1), params)
    assert _distance(reversed_gradients, exact) > 1e-3


def test_only_the_stretch_that_fails_falls_back():
    """A gain of 0 cannot be undone: not a number, told as such, and the gradients are exact."""
    params, plan = _params(), _plan(3, 6)
    gain_ND = params["block"]["ffn"]["outer_norm"]
    params = jax.tree.map(lambda p: p, params)
    params["block"]["ffn"]["outer_norm"] = gain_ND.at[3, 2].set(0.0)  # undone by block 4
    _, gradients, told_A2 = _found(plan, params)
    _, exact, _ = _found(BLOCK, params)
    assert _distance(gradients, exact) < 3e-4
    assert np.isfinite(told_A2[0]).all() and np.isfinite(told_A2[2]).all()
    assert not np.isfinite(told_A2[1]).all()
    found = reversible.summary(told_A2, plan, 7)
    assert found["reversal_fallbacks"] == 1
    is_bad_N = ~np.isfinite(found["reversal_error"])
    np.testing.assert_array_equal(np.flatnonzero(is_bad_N), [3, 4, 5])


# --- The step, the devices, the run --------------------------------------------------------------


def _config(**recompute) -> config.Config:
    recompute = dict(plan="reversible", anchor_blocks=3, fixed_point_iterations=3) | recompute
    return conftest.tiny_config(
        model=dict(num_blocks=7, init_std=0.1, recompute=recompute),
        optim=dict(epsilon=1e-3, warmup_steps=0),
        train=dict(accumulation_steps=2, batch_size=16),
    )


def _batch(cfg):
    shape = cfg.train.batch_size, cfg.train.seq_len
    tokens = np.random.default_rng(0).integers(0, 64, shape)
    return {
        "inputs": tokens.astype(np.int32),
        "targets": np.roll(tokens, -1, 1).astype(np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "loss_weights": np.ones(shape, np.float32),
    }


def _step(cfg, num_devices=1):
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:num_devices])
    places = step_lib.abstract_batch(cfg, mesh)
    batch = {key: jax.device_put(value, places[key].sharding) for key, value in _batch(cfg).items()}
    state, told = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)(
        state_lib.create(cfg, mesh), batch
    )
    return jax.device_get(state.params), jax.device_get(told)


def test_the_step_takes_the_step_of_recomputation_on_any_devices():
    """In micro-batches; over eight devices, where every evaluation gathers its weights."""
    params, told = _step(_config())
    expected, _ = _step(_config(plan="block", anchor_blocks=8, fixed_point_iterations=1))
    shared, told_by_eight = _step(_config(), num_devices=8)
    initial = jax.device_get(
        state_lib.create(_config(), mesh_lib.make(config.MeshConfig(), jax.devices()[:1])).params
    )
    for found in (params, shared):
        moved = jax.tree.map(np.subtract, found, initial)
        assert _distance(moved, jax.tree.map(np.subtract, expected, initial)) < 1e-3
    assert told["reversal_error"].shape == told["reversal_step"].shape == (7,)
    assert told["reversal_fallbacks"] == 0
    np.testing.assert_allclose(told_by_eight["reversal_step"], told["reversal_step"], rtol=0.01)


def test_a_run_logs_its_errors(token_dir, cache_dir, tmp_path):
    """The largest in metrics.jsonl, all of them by depth in the records of telemetry."""
    plan = dict(plan="reversible", anchor_blocks=2, fixed_point_iterations=1, error_bound=1e-9)
    cfg = conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=4, recompute=plan),
        data=dict(path=str(token_dir)),
        optim=dict(warmup_steps=0),
        train=dict(num_steps=2),
        telemetry=dict(every_steps=1),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    train_verb.train(cfg, tmp_path)
    rows = [row for row in logs.read(tmp_path) if "train/grad_norm" in row]
    records = telemetry_records.load(tmp_path)
    assert len(rows) == len(records["step"]) == 2
    for index, row in enumerate(rows):
        assert row["train/reversal_fallbacks"] == 2
        for name in plots.REVERSIBLE:
            assert records[name].shape == (2, 4)
            assert row[f"train/{name}_max"] == pytest.approx(records[name][index].max())
            assert row[f"train/{name}_max"] > 0


# --- Memory, and where it is refused -------------------------------------------------------------


def _temporaries(plan, num_blocks=512) -> int:
    """Bytes, of a deep model whose carries (128 KiB) outweigh a block's weights (10 KiB)."""
    model = _model(plan, num_blocks=num_blocks, init_std=0.02)
    params = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))

    def loss(params, tokens_BT):
        return jnp.square(model.apply({"params": params}, tokens_BT)).mean()

    tokens = jax.ShapeDtypeStruct((256, 8), "int32")
    compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_less_is_kept_than_by_recomputation():
    """On the compiled program: of 512 carries the anchors are left, and what a fall-back needs."""
    block, sparse = _temporaries(BLOCK), _temporaries(_plan(32, 1))
    dense = _temporaries(_plan(4, 1))
    assert sparse < 0.93 * dense < 0.93 * 0.93 * block, (sparse, dense, block)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (dict(model=dict(topology="pre_ln")), "topology='pre_ln'"),
        (dict(model=dict(stream_dtype="bfloat16")), "stream_dtype"),
        (dict(model=dict(num_blocks=4)), "anchor_blocks=8 for model.num_blocks=4"),
        (dict(mesh=dict(stage=2)), "2 stages"),
        (dict(trials=dict(seed=(0, 1))), "2 trials"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_run_backwards_is_refused(sections, told):
    model = dict(num_blocks=8, recompute=dict(plan="reversible")) | sections.pop("model", {})
    with pytest.raises(ValueError, match=told):
        conftest.tiny_config(model=model, **sections)


@pytest.mark.parametrize(
    "options",
    [
        dict(anchor_blocks=1),
        dict(fixed_point_iterations=0),
        dict(error_bound=-1.0),
        dict(offload=True),
        dict(save="attention"),
        dict(segment_blocks=(4,)),
    ],
    ids=str,
)
def test_options_that_it_does_not_read_or_cannot_take_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        conftest.tiny_config(model=dict(num_blocks=8, recompute=dict(plan="reversible", **options)))


def test_its_own_options_are_refused_elsewhere():
    for option in (dict(anchor_blocks=4), dict(fixed_point_iterations=2), dict(error_bound=0.5)):
        with pytest.raises(ValueError, match="is read by model.recompute.plan reversible"):
            conftest.tiny_config(model=dict(recompute=dict(plan="block", **option)))


def test_decoding_and_the_rule_that_it_needs():
    """A plan of the backward pass changes nothing without one."""
    model = _model(_plan())
    assert residual.rule(model.model).defers_outer_norm
    cache = lm.empty_cache(model.model, 2, 12)
    logits, _ = model.apply(
        {"params": _params()}, _tokens(), jnp.zeros(2, jnp.int32), cache, method="decode"
    )
    np.testing.assert_allclose(
        logits, model.apply({"params": _params()}, _tokens()), rtol=1e-4, atol=1e-4
    )
