"""The step: big batch = small ones, 1 device = 8, a trial = a run, divergence freezes."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import lm
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from tests import conftest, reference


def _train(cfg: config.Config, num_devices=1, num_steps=3, num_slices=1):
    """The state and the metrics after a few steps on `num_devices`."""
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:num_devices], num_slices)
    state = state_lib.create(cfg, mesh)
    train_step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    for index in range(num_steps):
        state, sums = train_step(
            state, conftest.random_batch(step_lib.abstract_batch(cfg, mesh), index)
        )
    return jax.device_get(state), jax.device_get(sums)


@functools.cache
def _train_alone(cfg: config.Config):
    return _train(cfg)


def _alone(cfg: config.Config):
    """What the same run gives on one device."""
    return _train_alone(dataclasses.replace(cfg, mesh=config.MeshConfig()))


def _assert_close(one, other, rtol=1e-4):
    """Float32 sums in another order; AdamW's first steps turn rounding of tiny gradients into
    whole steps of the learning rate, so parameters are compared on the scale of their leaf."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        scale = np.abs(np.asarray(b, np.float64)).max()
        np.testing.assert_allclose(
            a, b, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path)
        )


# Sign-like first updates would amplify rounding; a large epsilon keeps the comparison linear.
_LINEAR = dict(epsilon=1e-3, clip_norm=1.0)


def test_accumulation_equals_the_big_batch():
    big = conftest.tiny_config(optim=_LINEAR, train=dict(z_loss=1e-2))
    small = conftest.tiny_config(optim=_LINEAR, train=dict(z_loss=1e-2, accumulation_steps=4))
    _assert_close(_train(small), _train(big))


# Every axis alone and in pairs; sizes that are not named are 1, but for data.
_MESHES = [
    dict(fsdp=8),
    dict(data=8),
    dict(tensor=2),
    dict(context=8),
    dict(data=2, fsdp=4),
    dict(fsdp=4, tensor=2),
    dict(fsdp=2, context=4),
    dict(context=4),
    dict(context=4, tensor=2),
    dict(fsdp=2, context=2, tensor=2),
    dict(stage=4),
    dict(stage=2, fsdp=4),
    dict(stage=2, tensor=2),
    dict(stage=4, context=2),
    dict(stage=2, fsdp=2, tensor=2),
    dict(stage=2, context=2, tensor=2),
]


@pytest.mark.parametrize("mesh", _MESHES, ids=str)
def test_one_device_equals_eight(mesh):
    if "stage" in mesh:
        mesh = {"stage_microbatches": 4, **mesh}
    cfg = conftest.tiny_config(
        model=dict(num_blocks=4),
        optim=_LINEAR,
        mesh={"data": -1, "fsdp": 1, **mesh},
        train=dict(loss_chunk=3, batch_size=16),
    )
    _assert_close(_train(cfg, num_devices=8), _alone(cfg))


# Of the topologies that carry several streams: what they carry split over every axis, and handed
# from stage to stage, and their own parameters split or not.
_STREAMS = [
    ("attention_residuals", dict(stage=2, fsdp=2, tensor=2)),
    *(
        pytest.param(topology, mesh, marks=pytest.mark.slow)
        for topology, mesh in (
            ("mhc", dict(fsdp=4, tensor=2)),
            # Its projection sums over the split model dimension.
            ("ngpt", dict(stage=2, fsdp=2, tensor=2)),
            ("resi_dual", dict(stage=2, context=2)),
            ("siamese_norm", dict(context=4, tensor=2)),
            ("hyper_connections", dict(stage=2, fsdp=4)),
        )
    ),
]


@pytest.mark.parametrize(("topology", "mesh"), _STREAMS)
def test_one_device_equals_eight_with_several_streams(topology, mesh):
    cfg = conftest.tiny_config(
        model=dict(num_blocks=4, topology=topology, **_smaller(topology)),
        optim=_LINEAR,
        mesh={"data": -1, "fsdp": 1, "stage_microbatches": 4 * ("stage" in mesh), **mesh},
        train=dict(batch_size=16),
    )
    state, sums = _train(cfg, num_devices=8)
    _assert_close((state, sums), _alone(cfg))
    # nGPT's steps end on the sphere; the others are free.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        state.params,
        jax.device_get(lm.project(state.params, cfg.model)),
    )


def _smaller(topology) -> dict:
    """Options that leave less to compile."""
    if topology in reference.HYPER:
        return dict(hyper_streams=2)
    return dict(attn_res_groups=2) if topology == "attention_residuals" else {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "optimizer"), [("rezero", "adafactor"), ("mhc", "muon"), ("ngpt", "adafactor")]
)
def test_every_optimizer_takes_the_parameters_of_a_rule(topology, optimizer):
    """Numbers, vectors, matrices and a stack of matrices a block; in trials."""
    cfg = conftest.tiny_config(
        model=dict(num_blocks=2, topology=topology, **_smaller(topology)),
        optim=dict(name=optimizer, warmup_steps=0),
        trials=dict(seed=(1, 2)),
    )
    before = jax.device_get(state_lib.create(cfg, mesh_lib.make(cfg.mesh, jax.devices()[:1])))
    after, _ = _train(cfg, num_steps=2)
    assert not after.diverged.any()
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before.params),
        jax.tree.leaves(after.params),
        strict=True,
    ):
        assert np.isfinite(new).all() and np.any(old != new), jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("topology", conftest.OTHER_RULES)
def test_training_lowers_the_loss(topology):
    """On one batch, seen 20 times. measured: from 4.16 nats to 3.84 (ReZero), 1.95 or less."""
    cfg = conftest.tiny_config(
        model=dict(topology=topology, **_smaller(topology)),
        optim=dict(warmup_steps=2),
        train=dict(num_steps=40),
    )
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    state, train_step = (
        state_lib.create(cfg, mesh),
        step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh),
    )
    batch, losses = conftest.random_batch(step_lib.abstract_batch(cfg, mesh)), []
    for _ in range(20):
        state, sums = train_step(state, batch)
        losses.append(float(sums["nats"] / sums["weight"]))
    assert losses[-1] < 0.95 * losses[0], losses


@pytest.mark.parametrize(
    "mesh", [dict(fsdp=4), dict(fsdp=2, dcn_fsdp=2), dict(dcn_stage=2)], ids=str
)
def test_one_device_equals_two_slices(mesh):
    options = {"data": -1, "fsdp": 1, "stage_microbatches": 4 * ("dcn_stage" in mesh), **mesh}
    cfg = conftest.tiny_config(
        model=dict(num_blocks=4),
        optim=_LINEAR,
        mesh=options,
        train=dict(loss_chunk=3, batch_size=16),
    )
    _assert_close(_train(cfg, num_devices=8, num_slices=2), _alone(cfg))


def test_fsdp_leaves_nothing_large_whole():
    """Every matrix and its moments are split over the eight devices, in the compiled step too."""
    cfg = conftest.tiny_config()
    mesh = mesh_lib.make(cfg.mesh)
    state = state_lib.create(cfg, mesh)
    matrices = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim >= 2 and leaf.size > 64]
    assert len(matrices) > 20
    for leaf in matrices:
        if leaf.shape[-2:] != (3, 16):  # stacked gains
            assert leaf.addressable_shards[0].data.size == leaf.size // 8, leaf.shape
    compiled = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    argument_bytes = compiled.memory_analysis().argument_size_in_bytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert argument_bytes < 0.3 * whole, (argument_bytes, whole)


@pytest.mark.parametrize(
    "mesh",
    [dict(), dict(trial=2), dict(trial=2, fsdp=2, tensor=2), dict(trial=2, data=2, context=2)],
    ids=str,
)
def test_a_trial_equals_the_run_alone(mesh):
    """Two trials in one program against two programs; and over a mesh's trial axis."""
    cfg = conftest.tiny_config(
        optim=_LINEAR, trials=dict(peak_lr=(1e-3, 1e-2), seed=(1, 2)), mesh={"fsdp": 1, **mesh}
    )
    trials = _train(cfg, num_devices=math.prod(mesh.values()))
    for trial in range(2):
        _assert_close(state_lib.trial_of(trials, trial, 2), _alone(cfg.for_trial(trial)))


def test_trials_go_through_the_stages_together():
    cfg = conftest.tiny_config(
        model=dict(num_blocks=2),
        optim=_LINEAR,
        trials=dict(peak_lr=(1e-3, 1e-2), seed=(1, 2)),
        mesh=dict(stage=2, fsdp=2, stage_microbatches=2),
    )
    trials = _train(cfg, num_devices=4)
    for trial in range(2):
        _assert_close(state_lib.trial_of(trials, trial, 2), _alone(cfg.for_trial(trial)))


def test_one_executable_serves_every_learning_rate():
    cfg = conftest.tiny_config()
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    jitted = step_lib.jit_train_step(resolve.resolve(cfg, mesh), mesh)
    batch = conftest.random_batch(step_lib.abstract_batch(cfg, mesh))
    moved = []
    with jax.set_mesh(mesh):
        for rate in (1e-3, 1e-2, 1e-1):
            state = state_lib.create(cfg, mesh)
            state = dataclasses.replace(state, peak_lr=jax.numpy.float32(rate))
            before = np.asarray(state.params["output"]["matrix"])
            state, _ = jitted(state, batch)  # a step of the warm-up's zero rate
            state, _ = jitted(state, batch)
            moved.append(np.abs(np.asarray(state.params["output"]["matrix"]) - before).max())
    assert jitted._cache_size() == 1
    assert moved[0] * 5 < moved[1] and moved[1] * 5 < moved[2]


def test_a_diverged_trial_freezes_and_the_other_goes_on():
    cfg = conftest.tiny_config(trials=dict(peak_lr=(1e30, 1e-2)))
    state, sums = _train(cfg, num_steps=5)
    assert state.diverged.tolist() == [True, False]
    assert state.step[1] == 5 and state.step[0] < 5
    for leaf in jax.tree.leaves(state.params):
        assert np.isfinite(leaf[1]).all()
    alone, _ = _train(cfg.for_trial(1), num_steps=5)
    _assert_close(state_lib.trial_of(state, 1, 2).params, alone.params, rtol=1e-3)


def test_the_last_good_state_survives_divergence():
    cfg = conftest.tiny_config(optim=dict(peak_lr=1e30))
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    state = state_lib.create(cfg, mesh)
    train_step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    batch = conftest.random_batch(step_lib.abstract_batch(cfg, mesh))
    history = []
    for _ in range(5):
        state, sums = train_step(state, batch)
        history.append((jax.device_get(state), bool(sums["diverged"])))
    first = next(i for i, (_, diverged) in enumerate(history) if diverged)
    for later, _ in history[first:]:
        jax.tree.map(np.testing.assert_array_equal, later.params, history[first - 1][0].params)
        assert later.step == first


def test_weights_of_zero_are_no_examples():
    """A row of weight 0 changes nothing, whatever its tokens."""
    cfg = conftest.tiny_config(optim=_LINEAR)
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    train_step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    abstract = step_lib.abstract_batch(cfg, mesh)
    results = []
    for seed in (0, 1):
        batch = {
            key: np.asarray(value).copy() for key, value in conftest.random_batch(abstract).items()
        }
        noise = conftest.random_batch(abstract, seed)
        for key in ("inputs", "targets", "segment_ids"):
            batch[key][3] = np.asarray(noise[key])[3]
        batch["loss_weights"][3] = 0
        state, _ = train_step(state_lib.create(cfg, mesh), batch)
        results.append(jax.device_get(state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_state_is_updated_in_place():
    """Donation: the compiled step writes the new state over the old one."""
    cfg = conftest.tiny_config()
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    compiled = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    state = state_lib.create(cfg, mesh)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= state_bytes
    old = state.params["output"]["matrix"]
    compiled(state, conftest.random_batch(step_lib.abstract_batch(cfg, mesh)))
    assert old.is_deleted()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(model=dict(d_model=12, head_dim=4)), r"'embed' of size 12 is not a .* the 8 devices"),
        (dict(train=dict(batch_size=12)), r"size 12 is not a multiple of the 8 devices"),
        (dict(mesh=dict(stage=2)), r"num_blocks=3 is not a multiple of the 2 stages"),
        (dict(mesh=dict(tensor=4)), r"keys.*'kv_heads' of size 2 is not a multiple of the 4"),
        (dict(mesh=dict(context=8), train=dict(seq_len=20)), r"'time' of size 20 .* the 8 devices"),
        (dict(mesh=dict(context=4), train=dict(seq_len=20)),
         r"seq_len=20 is not a multiple of 8: with mesh.context=4"),
        (dict(mesh=dict(tensor=2), train=dict(seq_len=17)),
         r"stream.*'stream_time' of size 17 .* the 2 devices"),
        (dict(model=dict(num_blocks=4), mesh=dict(stage=4, stage_microbatches=8)),
         r"8 / 1 / 8 microbatches.*'batch' of size 1 .* the 2 devices"),
        (dict(model=dict(num_blocks=4), mesh=dict(stage=4, stage_microbatches=3)),
         r"8 / 1 / 3 microbatches of the pipeline is not a whole number"),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_devices_cannot_share_are_refused(sections, message):
    cfg = conftest.tiny_config(**sections)
    mesh = mesh_lib.make(cfg.mesh)
    with pytest.raises(ValueError, match=message):
        step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)


def test_a_mesh_that_does_not_multiply_is_refused():
    with pytest.raises(ValueError, match=r"mesh.data=3.* 8 devices"):
        mesh_lib.make(config.MeshConfig(data=3, fsdp=1))
