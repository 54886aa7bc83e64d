"""Telemetry: its numbers are the equations' in every layout; they are kept, and they explain."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import depth, instruments, layers, lm, residual, telemetry
from keel_jax.model.residual import equation
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.training import divergence, loss, plots, telemetry_step
from keel_jax.training import optim as optim_lib
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from keel_jax.training import telemetry_records as store_lib
from tests import conftest, reference

# No warm-up: the first step's update is not zero. A large epsilon: see test_step.py.
_OPTIM = dict(epsilon=1e-3, clip_norm=1.0, warmup_steps=0)


def _config(**sections) -> config.Config:
    model = dict(num_blocks=4, d_model=16, d_ffn=24) | sections.pop("model", {})
    return conftest.tiny_config(
        model=model,
        optim=_OPTIM | sections.pop("optim", {}),
        train=dict(batch_size=16, z_loss=1e-2) | sections.pop("train", {}),
        telemetry=dict(every_steps=2),
        **sections,
    )


def _mesh(cfg: config.Config, num_devices=1) -> jax.sharding.Mesh:
    return mesh_lib.make(cfg.mesh, jax.devices()[:num_devices])


def _state(cfg, mesh):
    """An initial state whose gains are not 1: those would hide what is done with them."""
    state = state_lib.create(cfg, mesh)

    def bend(path, p):
        if path[0].key != "block" or not path[-1].key.endswith("norm"):
            return p
        shape = p.shape[-2:]  # without the trials
        gain = 1 + 0.3 * jnp.sin(jnp.arange(math.prod(shape)).reshape(shape))
        return p * jnp.broadcast_to(gain, p.shape)

    bent = jax.jit(
        lambda tree: jax.tree.map_with_path(bend, tree),
        out_shardings=jax.tree.map(lambda p: p.sharding, state.params),
    )
    return dataclasses.replace(state, params=bent(state.params))


def _compiled(cfg: config.Config, num_devices=1):
    """The program, a state and a batch."""
    mesh = _mesh(cfg, num_devices)
    batch = conftest.random_batch(step_lib.abstract_batch(cfg, mesh))
    return (
        telemetry_step.compile_statistics(resolve.resolve(cfg, mesh), mesh),
        _state(cfg, mesh),
        batch,
    )


def _look(cfg: config.Config, num_devices=1) -> dict:
    look, state, batch = _compiled(cfg, num_devices)
    return jax.device_get(look(state, batch))


@functools.cache
def _program():
    return _compiled(_config())


@functools.cache
def _alone():
    look, state, batch = _program()
    return jax.device_get(look(state, batch))


def _assert_close(found: dict, expected: dict):
    """Float32 sums in another order; of Adam's share, one entry (of 1984) may cross the border."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        atol = 6e-4 if name == "adam_below_epsilon" else 1e-4 * np.abs(values).max()
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=atol, err_msg=name)


# --- The numbers ---------------------------------------------------------------------------------


def _unrolled(model: config.ModelConfig, params, tokens_BT):
    """(stream before, branch, stream after, a b / alpha) of each sub-layer, float64 NumPy."""
    params = reference._float64(params)
    x = params["embedding"]["table"][tokens_BT]
    ids = np.zeros(tokens_BT.shape, int)
    for k in range(model.num_blocks):
        for name in ("attention", "ffn"):
            w = {leaf: stacked[k] for leaf, stacked in params["block"][name].items()}
            norm = lambda h, which, w=w: reference.rms_norm(h, w[which], model.norm_epsilon)  # noqa: E731
            h = norm(x, "inner_norm")
            f = reference.swiglu(w, h) if name == "ffn" else reference.attention(model, w, h, ids)
            alpha, b = 1.0, 1.0
            if model.topology == "sandwich":
                f = norm(f, "branch_norm")
            elif model.topology == "keel_capped":
                f = reference.capped(f, model.branch_cap)
                alpha = 2.0 * model.num_blocks if k > 0 else 1.0
            elif model.topology == "complete_p":
                b = 1 / (2 * model.num_blocks)
            elif k > 0:
                alpha = 2.0 * model.num_blocks
            if model.learned_branch:
                b *= w["residual_scale"]
            y = alpha * x + b * f
            if model.topology in ("keel", "keel_capped") and (k, name) != (0, "attention"):
                y = norm(y, "outer_norm")
            yield x, f, y, b / alpha
            x = y


def _mean_cosine(x_BTD) -> float:
    """Over rows and all pairs of different positions."""
    units = x_BTD / np.linalg.norm(x_BTD, axis=-1, keepdims=True)
    cosines = units @ units.swapaxes(1, 2)
    different = ~np.eye(x_BTD.shape[1], dtype=bool)
    return np.mean([row[different].mean() for row in cosines])


@pytest.mark.parametrize(
    "options",
    [
        dict(topology="keel"),
        dict(topology="keel", learned_branch=True),
        dict(topology="keel_capped", branch_cap=0.5),
        dict(topology="sandwich"),
        dict(topology="complete_p"),
        dict(topology="complete_p", learned_branch=True),
    ],
    ids=str,
)
def test_forward_statistics_equal_an_unrolled_loop(options):
    """Float32 against float64: some roundoffs a sub-layer."""
    model = _config(model=options).model
    params = reference.random_params(model, 1)
    if model.learned_branch:
        params["block"]["ffn"]["residual_scale"] *= -1  # a ratio has no sign
    tokens_BT = np.random.default_rng(0).integers(0, model.vocab_size, (3, 7))

    def run(params):
        probes = telemetry.probes(model.num_blocks)
        apply = lm.LanguageModel(model).apply
        measured = instruments.Instruments(probes=probes)
        return apply({"params": params}, tokens_BT, measured=measured, method="hidden_and_stats")[1]

    told = jax.jit(run)(params)
    rows = list(_unrolled(model, params, tokens_BT))
    square = lambda x: np.mean(x * x)  # noqa: E731
    expected = {
        "stream_square": [square(x) for x, *_ in rows],
        "branch_square": [square(f) for _, f, *_ in rows],
        "rotation_radians": [
            np.arccos(
                (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
            ).mean()
            for x, _, y, _ in rows
        ],
        "position_cosine": [_mean_cosine(x) for x, *_ in rows],
        "stream_branch_product": [np.mean(x * f) for x, f, *_ in rows],
    }
    assert set(told) == set(expected)
    for name, values in expected.items():
        # A cosine may be nearly 0, and comes from sums of unit vectors that are about 1; a product
        # likewise, of numbers of this size.
        of_product = 2e-7 * np.sqrt(np.max([square(x) for x, *_ in rows]))
        atol = {"position_cosine": 2e-7, "stream_branch_product": of_product}.get(name, 0)
        np.testing.assert_allclose(np.ravel(told[name]), values, 2e-5, atol, err_msg=name)
    found = telemetry_step._sublayers(
        {**told, "cotangent_square": jnp.ones((4, 2))}, model, jax.tree.map(jnp.asarray, params)
    )
    ratios = [abs(c) * np.sqrt(square(f) / square(x)) for x, f, _, c in rows]
    np.testing.assert_allclose(np.ravel(found["branch_ratio"]), ratios, rtol=2e-5)
    # What it is for: the sum's mean square over the stream's.
    sums = [square(x + c * f) / square(x) for x, f, _, c in rows]
    ratio, cosine = (
        np.ravel(found[f"branch_{name}"]).astype(float) for name in ("ratio", "cosine")
    )
    np.testing.assert_allclose(1 + 2 * ratio * cosine + ratio**2, sums, rtol=2e-5)


def test_small_angles_are_exact():
    """At 1 / 4096, where the arc cosine in float32 gives 0 or 3.5e-4."""
    x = np.random.default_rng(0).standard_normal((2, 3, 64))
    y = np.roll(x, 1, axis=-1)
    y -= x * (x * y).sum(-1, keepdims=True) / (x * x).sum(-1, keepdims=True)
    y *= np.linalg.norm(x, axis=-1, keepdims=True) / np.linalg.norm(y, axis=-1, keepdims=True)
    turned = np.cos(1 / 4096) * x + np.sin(1 / 4096) * y
    streams = (
        {"a": jnp.asarray(y[..., :16], jnp.float32), "b": jnp.asarray(y[..., 16:], jnp.float32)}
        for y in (x, 3 * turned)
    )
    found = telemetry._angles(*map(telemetry._units, streams))
    np.testing.assert_allclose(found, 1 / 4096, rtol=2e-3)  # float32 holds x to 6e-8


def test_the_probes_see_the_cotangent_of_the_stream():
    """Against the gradient with respect to zeros that a loop adds to each sub-layer's stream."""
    cfg = _config()
    mesh = _mesh(cfg)
    params = _state(cfg, mesh).params
    batch = conftest.random_batch(step_lib.abstract_batch(cfg, mesh))
    m = cfg.model

    def objective(added_LBTD):
        context = lm.ordered_context(batch["segment_ids"])
        x = lm.Embedding(m).apply({"params": params["embedding"]}, batch["inputs"])
        inputs = depth.block_inputs(m)
        for k in range(m.num_blocks):
            w = jax.tree.map(lambda leaf, k=k: leaf[k], params["block"])
            row = jax.tree.map(lambda leaf, k=k: leaf[k], inputs)
            x = x + added_LBTD[2 * k]
            attend = layers.Attention(m)
            x, *_ = attend.apply({"params": w["attention"]}, x, row, context, None)
            x = x + added_LBTD[2 * k + 1]
            x, _ = layers.Ffn(m).apply({"params": w["ffn"]}, x, row)
        h = lm.Output(m).apply({"params": params["output"]}, x)
        w_out = lm.output_matrix(params, m)
        sums = loss.cross_entropy_sums(h, w_out, batch["targets"], batch["loss_weights"], chunk=0)
        return sums["nats"] + cfg.train.z_loss * sums["log_z_squared"]

    shape = (m.num_sublayers, *batch["inputs"].shape, m.d_model)
    cotangents = jax.jit(jax.grad(objective))(jnp.zeros(shape))
    expected = np.sqrt(np.mean(np.square(cotangents), axis=(1, 2, 3)))
    np.testing.assert_allclose(np.ravel(_alone()["cotangent_rms"]), expected, rtol=1e-4)


def test_effective_alpha_is_that_of_the_gains():
    """alpha g_out(l - 1) / g_in(l): 1 in block 0, and 1 for a norm that is not there."""
    cfg = _config()
    params = jax.device_get(_state(cfg, _mesh(cfg)).params)["block"]
    rms = lambda gain: np.sqrt(np.mean(np.square(gain)))  # noqa: E731
    expected = np.empty((4, 2))
    for k in range(4):
        alpha = 1 if k == 0 else 8
        before = rms(params["ffn"]["outer_norm"][k - 1]) if k else 1.0
        expected[k, 0] = alpha * before / rms(params["attention"]["inner_norm"][k])
        before = rms(params["attention"]["outer_norm"][k]) if k else 1.0
        expected[k, 1] = alpha * before / rms(params["ffn"]["inner_norm"][k])
    np.testing.assert_allclose(_alone()["effective_alpha"], expected, rtol=1e-6)
    assert np.ptp(expected[1:]) > 0.1


@functools.cache
def _step():
    cfg = _config()
    return step_lib.compile_train_step(resolve.resolve(cfg, _mesh(cfg)), _mesh(cfg))


def test_updates_are_what_the_step_adds_and_adam_is_looked_at_after_it():
    cfg = _config()
    mesh = _mesh(cfg)
    state, step = _state(cfg, mesh), _step()
    before = jax.device_get(state.params)["block"]
    after, _ = step(state, conftest.random_batch(step_lib.abstract_batch(cfg, mesh)))
    after = jax.device_get(after)
    seen = _alone()
    for (path, old), new in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(after.params["block"]), strict=True
    ):
        name = "/".join(entry.key for entry in path)
        axes = tuple(range(1, old.ndim))
        added = np.sqrt(np.mean(np.square(np.float64(new) - old), axis=axes))
        # What is added to a gain of 1 is rounded to 6e-8 there.
        np.testing.assert_allclose(seen[f"update_rms/{name}"], added, rtol=1e-3, atol=2e-7)
        size = np.sqrt(np.mean(np.square(old), axis=axes))
        np.testing.assert_allclose(seen[f"param_rms/{name}"], size, rtol=1e-5)
    nu = after.opt_state.nu["block"]
    v_hat = [np.sqrt(leaf / (1 - 0.95)) for leaf in jax.tree.leaves(nu)]
    below = sum((v < 1e-3).reshape(4, -1).sum(axis=1) for v in v_hat)
    share = below / sum(v[0].size for v in v_hat)
    assert 0.1 < share.mean() < 1
    np.testing.assert_allclose(seen["adam_below_epsilon"], share, atol=6e-4)  # one entry


@pytest.mark.parametrize(("name", "looks"), [("lion", False), ("adafactor", False), ("muon", True)])
def test_every_optimizer_is_looked_at_block_by_block(name, looks):
    """A block at a time is all blocks at once; and Adam's epsilon where Adam is: Muon's gains."""
    optim = dict(name=name, warmup_steps=0, clip_norm=0.1)
    optim |= dict(epsilon=1e-15 if name == "lion" else 1e-3)  # Lion reads none: its default
    cfg = _config(optim=optim)

    @jax.jit
    def both(state):
        optimizer = optim_lib.make(cfg.optim)
        grads = jax.tree.map(lambda p: jnp.sin(40 * p), state.params)
        # Moments that are not zero.
        _, opt_state = optimizer.update(grads, optimizer.init(state.params), state.params)
        seen = telemetry_step._optimizer(state.replace(opt_state=opt_state), grads, cfg)
        clipped, _ = optim_lib.clip(grads, 0.1)
        updates, _ = optimizer.update(clipped, opt_state, state.params)
        rate = step_lib.learning_rate_of(state, cfg)
        return seen, telemetry_step._per_leaf(
            "update_rms", jax.tree.map(lambda u: rate * u, updates)
        )

    seen, added = both(_program()[1])
    assert ("adam_below_epsilon" in seen) == looks
    assert set(added) == set(seen) - {"adam_below_epsilon"}
    for leaf, expected in added.items():
        np.testing.assert_allclose(seen[leaf], expected, rtol=1e-4, err_msg=leaf)


# --- The layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "num_devices"),
    [
        (dict(model=dict(recompute=dict(plan="block")), train=dict(accumulation_steps=4)), 1),
        (dict(mesh=dict(data=2, fsdp=2, tensor=2)), 8),
        pytest.param(
            dict(mesh=dict(stage=2, fsdp=2, stage_microbatches=4)), 4, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_the_layout_changes_nothing(sections, num_devices):
    """Recomputed, in micro-batches, on many devices: sums in another order."""
    _assert_close(_look(_config(**sections), num_devices), _alone())


def test_trials_are_looked_at_side_by_side():
    cfg = _config(trials=dict(peak_lr=(1e-3, 1e-2)), mesh=dict(trial=2, fsdp=1))
    found = _look(cfg, 2)
    _assert_close({name: values[1] for name, values in found.items()}, _alone())
    np.testing.assert_allclose(
        found["update_rms/ffn/down"][0], found["update_rms/ffn/down"][1] / 10, rtol=1e-3
    )


def test_off_is_nothing_in_the_program_and_on_is_another_program():
    """The step is one program whether telemetry is on or off: to watch a run changes nothing."""
    texts = []
    for every_steps in (0, 1):
        cfg = conftest.tiny_config(telemetry=dict(every_steps=every_steps))
        texts.append(
            step_lib.lower_train_step(resolve.resolve(cfg, _mesh(cfg)), _mesh(cfg)).as_text()
        )
    assert texts[0] == texts[1]
    mesh = _mesh(cfg)
    with jax.set_mesh(mesh):
        look = (
            telemetry_step.jit_statistics(resolve.resolve(cfg, mesh), mesh)
            .lower(state_lib.abstract(cfg, mesh), step_lib.abstract_batch(cfg, mesh))
            .as_text()
        )
    assert "atan2" in look and "atan2" not in texts[0]


def test_a_look_takes_little_more_memory_than_a_step():
    """It may not write over the state, and makes no second one.

    A fifth more at this size: it does not put norms off, and so holds z and x of a sub-layer.
    """
    look, step = (program.memory_analysis() for program in (_program()[0], _step()))
    assert look.temp_size_in_bytes <= 1.25 * step.temp_size_in_bytes
    assert look.output_size_in_bytes < 0.05 * step.output_size_in_bytes


# --- What is kept --------------------------------------------------------------------------------


def _record(value: float) -> dict:
    return {"stream_rms": np.full((4, 2), value), "param_rms/ffn/up": np.full(4, value)}


def test_the_store_survives_a_kill_and_forgets_what_came_after_the_checkpoint(tmp_path):
    """Killed at any record: what was written is whole; resumed, it is the run never stopped."""
    store = store_lib.Store(tmp_path, 0)
    for step in range(1, 151):
        store.append(step, _record(step))
    whole = store_lib.load(tmp_path)
    assert whole["step"].tolist() == list(range(1, 151))
    assert whole["stream_rms"].shape == (150, 4, 2) and whole["stream_rms"].dtype == np.float32
    np.testing.assert_array_equal(whole["param_rms/ffn/up"][:, 3], np.arange(1, 151))
    # A kill while a file is written leaves a part of it beside its name.
    (tmp_path / "telemetry/0000000129.npz.tmp-1").write_bytes(b"PK")
    for start in (140, 128, 70, 0):
        resumed = store_lib.Store(tmp_path, start)
        assert len(store_lib.load(tmp_path).get("step", ())) == start
        for step in range(start + 1, 151):
            resumed.append(step, _record(step))
        again = store_lib.load(tmp_path)
        for name in whole:
            np.testing.assert_array_equal(again[name], whole[name])


def test_other_statistics_begin_another_file(tmp_path):
    store = store_lib.Store(tmp_path, 0)
    store.append(1, _record(1.0))
    store.append(2, _record(2.0) | {"adam_below_epsilon": np.zeros(4)})
    found = store_lib.load(tmp_path)
    assert found["step"].tolist() == [1, 2]
    first, second = found["adam_below_epsilon"]
    assert np.isnan(first).all() and not second.any()


def test_nothing_recorded_is_empty(tmp_path):
    assert store_lib.load(tmp_path) == {}


# --- What it explains ----------------------------------------------------------------------------


def _records(*seen: dict) -> dict:
    found = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
    return found | {"step": np.arange(10, 10 + len(seen))}


def _planted(block: int, sublayer: str, leaf: str) -> dict:
    """What is seen with one weight of a block at infinity."""
    look, state, batch = _program()
    params = jax.tree.map(lambda p: p, state.params)
    place = (block, *(0,) * (params["block"][sublayer][leaf].ndim - 1))
    params["block"][sublayer][leaf] = params["block"][sublayer][leaf].at[place].set(jnp.inf)
    return jax.device_get(look(dataclasses.replace(state, params=params), batch))


@pytest.mark.parametrize(
    ("block", "sublayer", "leaf", "place", "told"),
    [
        (2, "ffn", "down", (2, "ffn", "branch"), "block 2, FFN: RMS of the branch's output"),
        (1, "attention", "query", (1, "attention", "branch"), "block 1, attention"),
        (
            1,
            "ffn",
            "outer_norm",
            (2, "attention", "stream"),
            "handed on by the residual sum or outer norm of block 1, FFN",
        ),
        (3, "ffn", "outer_norm", (3, "ffn", "output"), "block 3, FFN: rotation of the stream"),
    ],
)
def test_the_first_bad_block_forward_is_the_one_planted(block, sublayer, leaf, place, told):
    found = divergence.make_report(
        _records(_alone(), _planted(block, sublayer, leaf)), math.nan, math.nan
    )
    forward = found["forward"]
    assert (forward["block"], forward["sublayer"], forward["what"]) == place
    assert told in forward["message"] and forward["message"] in found["text"]
    assert not found["loss_is_finite"] and found["step"] == 11
    # What comes back from a loss that is not finite is bad from the top.
    assert (found["backward"]["block"], found["backward"]["sublayer"]) == (3, "ffn")


def test_the_first_bad_block_backward_is_the_one_planted(monkeypatch):
    """A branch whose backward pass alone fails, in block 1's FFN: forward, all is well."""

    @jax.custom_vjp
    def fail_backward(f, is_here):
        return f

    fail_backward.defvjp(
        lambda f, is_here: (f, is_here),
        lambda is_here, ct: (jnp.where(is_here, jnp.nan, ct), None),
    )
    residual_sum = equation.residual_sum

    def planted(x, f, gains, inputs, topology, sublayer, **options):
        if sublayer == residual.FFN:
            f = fail_backward(f, inputs.block == 1)
        return residual_sum(x, f, gains, inputs, topology, sublayer, **options)

    monkeypatch.setattr(equation, "residual_sum", planted)
    found = divergence.make_report(_records(_alone(), _look(_config())), 1.0, math.nan)
    assert found["forward"] is None
    backward = found["backward"]
    assert (backward["block"], backward["sublayer"]) == (1, "ffn")
    assert backward["what"] == "gradient of down"
    assert "Forward, every block is in line." in found["text"]


def test_out_of_line_is_told_where_all_is_finite():
    calm, wild = (dict(_alone()) for _ in range(2))
    wild["branch_rms"] = calm["branch_rms"].copy()
    wild["branch_rms"][2, 1] *= 1e3
    found = divergence.make_report(_records(calm, wild), 1.0, math.inf)
    assert (found["forward"]["block"], found["forward"]["sublayer"]) == (2, "ffn")
    assert found["backward"] is None
    assert found["grew"][0]["statistic"] == "branch_rms"
    assert (found["grew"][0]["block"], found["grew"][0]["sublayer"]) == (2, "ffn")
    assert found["grew"][0]["factor"] == pytest.approx(1e3, rel=1e-3)


def test_a_loss_that_fails_after_healthy_blocks_is_told_so():
    found = divergence.make_report(_records(_alone()), math.inf, math.nan)
    assert found["forward"] is None and found["grew"] == []
    assert "the loss, or the logits, failed after them" in found["text"]
    assert "No step before it was recorded." in found["text"]


# --- What is drawn -------------------------------------------------------------------------------


def test_every_statistic_belongs_to_a_family_and_is_drawn():
    """Infinite and zero values, too, and a single record."""
    planted = _planted(2, "ffn", "down")
    records = _records(_alone(), planted, {k: np.zeros_like(v) for k, v in planted.items()})
    families = plots.families(records)
    # Of the plan "reversible" alone: tests/model/test_reversible.py.
    assert set(families) == set(plots.FAMILIES) - set(plots.REVERSIBLE)
    assert sum(map(len, families.values())) == len(records) - 1
    for some in (records, {name: values[1:2] for name, values in records.items()}):
        for family in ("stream_rms", "gradient_rms", "adam_below_epsilon"):
            for canvas in (plots.heat_map(some, family), plots.profile(some, family)):
                assert plots.png(canvas).startswith(b"\x89PNG")
