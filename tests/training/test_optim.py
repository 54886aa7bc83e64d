"""Optimizers on stacked leaves: equal to a loop over blocks, grouped, LR applied once and last."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from keel_jax import config
from keel_jax.config import topologies
from keel_jax.training import optim as optim_lib
from keel_jax.training import schedule

# N blocks, widths D, Hq, Hkv, H, F and vocabulary V: all different, so that no axis can be taken
# for another, and N between them, so that plain Adafactor's "two largest axes" picks it.
N, D, HQ, HKV, H, F, V = 9, 8, 12, 6, 3, 16, 20
NUM_STEPS = 4
_RESIDUAL = (
    "beta",
    "step_size",
    "residual_scale",
    "depth_query",
    "hyper_static",
    "hyper_dynamic",
    "hyper_scale",
    "mhc_bias",
    "mhc_dynamic",
    "mhc_scale",
)
# Same arithmetic, other fusion and summation order, relative to a leaf's largest element. Measured:
# 1.2e-7 at most for the first three, on either jax. Newton-Schulz multiplies the smallest singular
# values by 3.44^5 = 480, and with them the rounding of batched against single matrix products:
# measured 5e-5. Mixed blocks differ by more than 0.1 (test_plain_optax_...).
TOLERANCE = {"adamw": 5e-7, "lion": 5e-7, "adafactor": 5e-7, "muon": 2e-4}


def _shapes():
    # One leaf of each kind, a tall and a wide matrix: compiling is what these tests cost.
    return {
        "embedding": {"table": (V, D), "norm": (D,)},
        "block": {
            "attention": {"key": (N, D, HKV), "query_norm": (N, H), "beta": (N, D)},
            "ffn": {"gate": (N, D, F), "inner_norm": (N, D)},
        },
        "output": {"norm": (D,), "matrix": (D, V)},
    }


def _random(seed, scale_blocks=False):
    """A tree of normal numbers; `scale_blocks`: block n's are 3^n times as large."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        x = rng.standard_normal(shape).astype(np.float32)
        if scale_blocks and path[0].key == "block":
            x *= (3.0 ** np.arange(N, dtype=np.float32)).reshape((N,) + (1,) * (len(shape) - 1))
        return x

    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map_with_path(leaf, _shapes(), is_leaf=is_shape)


def _model_shapes():
    """Every parameter that the model may have."""
    shapes = _shapes()
    gains = {name: (N, D) for name in ("inner_norm", "outer_norm", "branch_norm", "beta")}
    gains |= {name: (N, D) for name in ("post_norm", "pre_norm", "depth_query", "step_size")}
    gains |= {
        "residual_scale": (N,),
        "hyper_static": (N, 4, 6),
        "hyper_dynamic": (N, D, 6),
        "hyper_scale": (N, 2),
        "mhc_bias": (N, 24),
        "mhc_dynamic": (N, 4, D, 24),
        "mhc_scale": (N, 3),
    }
    scales = {"gate_scale": (N, F), "up_scale": (N, F)}
    heads = {name: (N, H) for name in ("query_norm", "key_norm", "value_norm")}
    kv = {"key": (N, D, HKV), "value": (N, D, HKV)}
    shapes["block"] = {
        "attention": {
            "query": (N, D, HQ),
            **kv,
            "out": (N, HQ, D),
            **heads,
            **gains,
            "qk_scale": (N, HKV),
        },
        "ffn": {"gate": (N, D, F), "up": (N, D, F), "down": (N, F, D), **gains, **scales},
    }
    shapes["output"] |= {name: (D,) for name in ("dual_norm", "post_norm", "depth_query")}
    shapes["output"]["logit_scale"] = (V,)
    to_struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    return jax.tree.map(to_struct, shapes, is_leaf=lambda x: isinstance(x, tuple))


@functools.cache
def _params():
    return jax.tree.map(lambda x: 0.1 * x, _random(0))


def _grads(step):
    # As different between blocks as Keel's are: by orders of magnitude.
    return jax.tree.map(lambda x: 1e-3 * x, _random(100 + step, scale_blocks=True))


def _base(name):
    return config.OptimConfig(name=name, weight_decay=0.05)


@functools.cache
def _compiled(optim):
    """The update, compiled, and the first state."""
    transform = optim_lib.make(optim)
    return jax.jit(transform.update), jax.jit(transform.init)(_params())


@functools.cache
def _run(optim):
    """Updates of each step, and the last state; parameters follow with lr 0.1."""
    update, state = _compiled(optim)
    apply = jax.jit(optim_lib.apply)
    params, all_updates = _params(), []
    for step in range(NUM_STEPS):
        updates, state = update(_grads(step), state, params)
        params = apply(params, updates, np.float32(0.1))
        all_updates.append(updates)
    return all_updates, state


def _reference_run(transform, params, grads):
    """optax's own optimizer at learning rate 1 on un-stacked leaves, as updates u to subtract."""
    # The compiled functions are found again by their identity: once for all blocks.
    update, state = jax.jit(transform.update), jax.jit(transform.init)(params)
    apply, all_updates = jax.jit(optim_lib.apply), []
    for grad in grads:
        negated, state = update(grad, state, params)
        updates = jax.tree.map(np.negative, jax.device_get(negated))
        params = apply(params, updates, np.float32(0.1))
        all_updates.append(updates)
    return all_updates


def _is_gain(name):
    return name.endswith(("norm", "_scale")) or name == "beta"


def _reference_transform(optim, muon):
    """optax's ready-made optimizer with the default decay mask, on a flat dict of parameters."""
    mask = lambda tree: {name: not _is_gain(name.split("/")[-1]) for name in tree}  # noqa: E731
    decay = optim.weight_decay
    if muon:
        return optax.contrib.muon(
            1.0, beta=0.95, eps=optim.epsilon, weight_decay=decay, consistent_rms=0.2
        )
    if optim.name in ("adamw", "muon"):
        return optax.adamw(
            1.0, optim.beta1, optim.beta2, optim.epsilon, weight_decay=decay, mask=mask
        )
    if optim.name == "lion":
        return optax.lion(1.0, optim.beta1, optim.beta2, weight_decay=decay, mask=mask)
    return optax.adafactor(
        1.0, min_dim_size_to_factor=2, multiply_by_parameter_scale=False,
        eps=optim.epsilon**2, weight_decay_rate=decay, weight_decay_mask=mask,
    )  # fmt: skip


def _flat(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in leaves}


def _assert_close(actual, expected, rtol, name):
    # Relative to the leaf's largest element: single ones may cancel.
    scale = np.abs(expected).max() or 1.0
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=rtol, err_msg=name)


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_stacked_equals_a_loop_over_blocks(name):
    optim = _base(name)
    stacked = [_flat(updates) for updates in _run(optim)[0]]
    params, grads = _flat(_params()), [_flat(_grads(step)) for step in range(NUM_STEPS)]
    compared = 0

    def compare(names, block, muon):
        nonlocal compared
        pick = lambda tree: {k: tree[k] if block is None else tree[k][block] for k in names}  # noqa: E731
        expected = _reference_run(transforms[muon], pick(params), [pick(g) for g in grads])
        for step in range(NUM_STEPS):
            for key, value in pick(stacked[step]).items():
                where = f"{key}, block {block}, step {step}"
                _assert_close(value, expected[step][key], TOLERANCE[name], where)
        compared += len(names)

    transforms = {muon: _reference_transform(optim, muon) for muon in (False, True)}
    in_block = [key for key in params if key.startswith("block/")]
    compare([key for key in params if key not in in_block], None, muon=False)
    is_muon = {key: name == "muon" and not _is_gain(key.split("/")[-1]) for key in in_block}
    for block in range(N):
        for muon in set(is_muon.values()):
            compare([key for key in in_block if is_muon[key] == muon], block, muon)
    assert compared == len(params) - len(in_block) + N * len(in_block)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_plain_optax_on_stacked_leaves_differs(name):
    """Why `per_block` exists: the same optimizer, given the stacked leaves, mixes the blocks."""
    optim = _base(name)
    plain = _reference_transform(optim, muon=name == "muon")
    plain_updates = _reference_run(plain, _flat(_params()), [_flat(_grads(0))])[0]
    ours = _flat(_run(optim)[0][0])
    for key in ("block/ffn/gate", "block/ffn/inner_norm"):
        difference = np.abs(ours[key] - plain_updates[key]).max() / np.abs(ours[key]).max()
        assert difference > 0.1, (key, difference)


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_lr_multiplier_scales_its_group_and_no_other(name):
    fields = [field.name for field in dataclasses.fields(config.ParamGroups)]
    # All different, and powers of two: exact.
    factors = {field: 2.0**-i for i, field in enumerate(fields)} | {"norm": 0.0}
    before = _flat(_run(_base(name))[0][0])
    # Another peak_lr, which must not matter here.
    scaled = dataclasses.replace(
        _base(name), lr_multiplier=config.ParamGroups(**factors), peak_lr=7.0
    )
    after = _flat(_run(scaled)[0][0])
    groups = _groups(_params())
    assert set(groups.values()) == set(fields)
    for path, group in groups.items():
        expected = np.float32(factors[group]) * before[path]
        np.testing.assert_array_equal(after[path], expected, err_msg=path)
        assert np.any(after[path]) == (group != "norm"), path


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_without_gradient_only_decay_moves_a_parameter_and_tiny_gradients_are_safe(name):
    """Keel's branch gradients are tiny, and the squares of the tiniest are 0 in fp32."""
    groups = config.ParamGroups(norm=0.0, residual=0.0, embedding=0.25)
    update, state = _compiled(
        config.OptimConfig(name=name, weight_decay=0.5, decay_multiplier=groups)
    )
    for size in (0.0, 1e-25, 1e-19, 1e-12):
        grads = jax.tree.map(lambda x, size=size: np.float32(size) * np.sign(x), _params())
        for key, value in _flat(update(grads, state, _params())[0]).items():
            gain = _is_gain(key.split("/")[-1])
            factor = 0.0 if gain else 0.125 if key == "embedding/table" else 0.5
            decay = np.float32(factor) * _flat(_params())[key]
            if size == 0.0:
                np.testing.assert_array_equal(value, decay, err_msg=key)
            # Signs are ±1, Adafactor's RMS is 1, Muon's matrices have singular values up to 1.3.
            assert np.all(np.abs(value - decay) <= 1.5), (key, size, value)


def _groups(params) -> dict[str, str]:
    """The group of each parameter, by its path."""
    paths = (path for path, _ in jax.tree.leaves_with_path(params))
    return {"/".join(key.key for key in path): optim_lib.group_of(path) for path in paths}


def test_gains_and_residual_scales_do_not_decay_by_default():
    decays = optim_lib.multipliers(_model_shapes(), config.OptimConfig().decay_multiplier)
    for path, decay in _flat(decays).items():
        name = path.split("/")[-1]
        assert decay == (not (_is_gain(name) or name in _RESIDUAL)), path


def test_every_topologys_parameters_are_among_them():
    assert set(_RESIDUAL) == set(topologies.RESIDUAL_PARAMS)


def test_every_parameter_has_its_group():
    names = {}
    for path, group in _groups(_model_shapes()).items():
        names.setdefault(group, set()).add(path)
    block = lambda sublayer, *leaves: {f"block/{sublayer}/{leaf}" for leaf in leaves}  # noqa: E731
    norms = ("inner_norm", "outer_norm", "branch_norm", "post_norm", "pre_norm")
    assert names == {
        "embedding": {"embedding/table"},
        "output": {"output/matrix"},
        "attention": block("attention", "query", "key", "value", "out"),
        "ffn": block("ffn", "gate", "up", "down"),
        "residual": block("attention", *_RESIDUAL) | block("ffn", *_RESIDUAL)
        | {"output/depth_query"},
        "norm": {f"output/{name}" for name in ("norm", "dual_norm", "post_norm", "logit_scale")}
        | {"embedding/norm"} | block("ffn", *norms, "gate_scale", "up_scale")
        | block("attention", *norms, "qk_scale", "query_norm", "key_norm", "value_norm"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "params",
    [
        {"block": {"attention": {"alpha": np.zeros(N)}}},
        {"block": {"router": {"gate": np.zeros((N, D, F))}}},
        {"embedding": {"positions": np.zeros((V, D))}},
        {"beta": np.zeros(D)},
    ],
)
def test_unknown_parameter_is_an_error(params):
    with pytest.raises(ValueError, match="belongs to no known group"):
        optim_lib.multipliers(params, config.ParamGroups())


def test_lr_comes_in_once_and_linearly():
    """In `apply`; that `peak_lr` changes no update is seen with the multipliers."""
    params, updates = _params(), _run(_base("adamw"))[0][0]
    zeros = jax.tree.map(np.zeros_like, params)
    once, twice = (optim_lib.apply(zeros, updates, jnp.float32(lr)) for lr in (0.3, 0.6))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), once, twice)
    jax.tree.map(
        lambda p, q, u: np.testing.assert_array_equal(q, p - np.float32(0.5) * u),
        params, optim_lib.apply(params, updates, 0.5), updates,
    )  # fmt: skip


def _make_step(optim, num_steps):
    """A train step's optimizer half, and the count of its traces."""
    transform = optim_lib.make(optim)
    factor = schedule.unit_schedule(optim, num_steps)
    traces = []

    def step(params, state, grads, peak_lr, step_number):
        traces.append(1)
        grads, _ = optim_lib.clip(grads, optim.clip_norm)
        updates, state = transform.update(grads, state, params)
        return optim_lib.apply(params, updates, peak_lr * factor(step_number)), state

    return transform, step, traces


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_trials_equal_separate_runs_and_no_lr_recompiles(name):
    optim = config.OptimConfig(name=name, warmup_steps=1)
    transform, step, traces = _make_step(optim, 10)
    rates = jnp.asarray([1e-3, 0.1], jnp.float32)
    stack = lambda *trees: jax.tree.map(lambda *x: np.stack(x), *trees)  # noqa: E731
    starts = [_params(), _random(1)]

    single, init = jax.jit(step), jax.jit(transform.init)
    ends = []
    for trial, params in enumerate(starts):
        state = init(params)
        for s in range(3):
            params, state = single(
                params, state, _grads(10 * trial + s), rates[trial], jnp.int32(s)
            )
        ends.append((params, state))
    assert len(traces) == 1, "another peak_lr or step must not compile again"

    trials = jax.jit(jax.vmap(step, in_axes=(0, 0, 0, 0, None)))
    params = stack(*starts)
    state = jax.jit(jax.vmap(transform.init))(params)
    for s in range(3):
        grads = stack(_grads(s), _grads(10 + s))
        params, state = trials(params, state, grads, rates, jnp.int32(s))
    expected = stack(*ends)
    assert jax.tree.structure((params, state)) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path((params, state)), jax.tree.leaves(expected), strict=True
    ):
        _assert_close(a, b, TOLERANCE[name], jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_state_is_float32_has_scalar_counts_and_is_known_abstractly(name):
    params = _params()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    transform = optim_lib.make(_base(name))
    _, state = _compiled(_base(name))
    _, after = _run(_base(name))
    abstract = jax.eval_shape(transform.init, shapes)
    assert jax.tree.structure(abstract) == jax.tree.structure(state) == jax.tree.structure(after)
    describe = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert describe(abstract) == describe(state) == describe(after)
    for path, leaf in jax.tree.leaves_with_path(after):
        if path[-1] == jax.tree_util.GetAttrKey("count"):
            assert leaf.shape == () and leaf == NUM_STEPS
        else:
            assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_match_params_covers_every_leaf(name):
    params = _params()
    names = jax.tree.map_with_path(lambda path, _: [jax.tree_util.keystr(path)], params)
    transform = optim_lib.make(config.OptimConfig(name=name))
    state = jax.eval_shape(transform.init, params)
    matched = optim_lib.match_params(state, params, names, lambda leaf: ["default"])
    is_leaf = lambda x: isinstance(x, list)  # noqa: E731
    assert jax.tree.structure(matched, is_leaf=is_leaf) == jax.tree.structure(state)
    shapes = {jax.tree_util.keystr(k): x.shape for k, x in jax.tree.leaves_with_path(params)}
    mirrored = []
    for (path, leaf), [value] in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(matched, is_leaf=is_leaf), strict=True
    ):
        key = jax.tree_util.keystr(path)
        if value == "default":
            assert all(not key.endswith(p) or leaf.shape != shapes[p] for p in shapes), key
        else:
            assert key.endswith(value) and leaf.shape == shapes[value], key
            mirrored.append(value)
    gains = [p for p in shapes if _is_gain(p.split("'")[-2])]
    rest = [p for p in shapes if not p.startswith("['block']") or p in gains]
    expected = {
        "adamw": 2 * list(shapes),
        "lion": list(shapes),
        # The unfactored second moments.
        "adafactor": gains,
        # One momentum for the matrices, two moments for the rest.
        "muon": list(shapes) + rest,
    }[name]
    assert sorted(mirrored) == sorted(expected)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e6])
def test_clip_is_global_and_returns_the_norm_before(clip_norm):
    grads = _grads(0)
    clipped, norm = jax.jit(optim_lib.clip, static_argnums=1)(grads, clip_norm)
    exact = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(grads)))
    # Sums of fp32 squares.
    np.testing.assert_allclose(norm, exact, rtol=1e-5)
    assert exact > 0.5
    expected = grads
    if clip_norm:
        expected, _ = optax.clip_by_global_norm(clip_norm).update(grads, optax.EmptyState())
    # optax divides by the norm and multiplies by the bound: two roundings where we have one.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped, expected)


def test_clip_of_zero_gradients_is_zero():
    clipped, norm = optim_lib.clip(jax.tree.map(np.zeros_like, _params()), 1.0)
    assert norm == 0.0
    assert all(np.all(np.asarray(x) == 0.0) for x in jax.tree.leaves(clipped))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_epsilon_below_float32_is_an_error(name):
    with pytest.raises(ValueError, match="epsilon"):
        optim_lib.make(config.OptimConfig(name=name, epsilon=1e-20))


def test_per_block_refuses_a_count_that_depends_on_the_gradients():
    """What is held once for all blocks may not differ between them; vmap says so, loudly."""

    def update(updates, count, params=None):
        return updates, count + jnp.sum(updates["x"]).astype(jnp.int32)

    counting = optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)
    transform = optim_lib.per_block(counting)
    x = {"x": jnp.ones((N, D))}
    with pytest.raises(ValueError, match="out_axes"):
        transform.update(x, transform.init(x), x)
