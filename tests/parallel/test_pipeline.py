"""The pipeline: equal to its stages one after another, in M + S - 1 ticks, with neighbours only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import pipeline
from keel_jax.planning import hlo, traffic

WIDTH, ROWS, TIME = 8, 2, 8
X_AXES, OUT_AXES = ("batch", "time", "stream"), ("batch", "loss_time", "stream")


def _stage(weights, x_BTD, scale_BT):
    """tanh(x w) scaled, once for each of the stage's matrices; the order matters."""

    def layer(x_BTD, w_DD):
        y_BTD = x_BTD + scale_BT[..., None] * jnp.tanh(x_BTD @ w_DD)
        return y_BTD, jnp.mean(y_BTD)

    return jax.lax.scan(layer, x_BTD, weights)


def _arrays(num_microbatches, depth=8):
    keys = jax.random.split(jax.random.key(0), 3)
    weights = 0.5 * jax.random.normal(keys[0], (depth, WIDTH, WIDTH))
    x_MBTD = jax.random.normal(keys[1], (num_microbatches, ROWS, TIME, WIDTH))
    scale_MBT = jax.random.uniform(keys[2], (num_microbatches, ROWS, TIME))
    return weights, x_MBTD, scale_MBT


def _piped(weights, x_MBTD, scale_MBT):
    return pipeline.run_stages(_stage, weights, x_MBTD, scale_MBT, x_axes=X_AXES, out_axes=OUT_AXES)


def _mesh(num_stages):
    devices = jax.devices()[:num_stages]
    return mesh_lib.make(config.MeshConfig(stage=num_stages, fsdp=1), devices)


@pytest.mark.parametrize(("num_stages", "num_microbatches"), [(2, 5), (4, 4), (8, 3)])
def test_stages_equal_the_whole_in_values_and_gradients(num_stages, num_microbatches):
    """Fewer microbatches than stages, too. The same operations, so a few float32 ulps."""
    arrays = _arrays(num_microbatches)

    def whole(weights, x_MBTD, scale_MBT):
        x_MBTD, stats_ML = jax.vmap(lambda x, s: _stage(weights, x, s))(x_MBTD, scale_MBT)
        return x_MBTD, stats_ML.mean(axis=0)

    def loss(function):
        weigh = jnp.arange(1.0, num_microbatches + 1)[:, None, None, None]
        return lambda *arrays: (weigh * jnp.square(function(*arrays)[0])).sum()

    with jax.set_mesh(_mesh(num_stages)):
        values = jax.jit(_piped)(*arrays)
        gradients = jax.jit(jax.grad(loss(_piped), (0, 1, 2)))(*arrays)
    for found, expected in zip(values, jax.jit(whole)(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for found, expected in zip(
        gradients, jax.jit(jax.grad(loss(whole), (0, 1, 2)))(*arrays), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_the_bubble_is_what_the_schedule_says():
    """Trip counts of the compiled loop, and what is sent from stage to stage."""
    num_stages, num_microbatches = 4, 6
    mesh = _mesh(num_stages)
    with jax.set_mesh(mesh):
        compiled = jax.jit(_piped).lower(*_arrays(num_microbatches)).compile()
    program = hlo.read_program(compiled)
    ticks = pipeline.num_ticks(num_stages, num_microbatches)
    assert ticks == 9
    assert ticks in program.trip_counts.values()
    found = traffic.collectives(program, mesh)
    assert {c.kind for c in found} <= {"collective-permute", "reduce-scatter", "all-reduce"}
    [handed_on] = [c for c in found if c.kind == "collective-permute"]
    assert (handed_on.count, handed_on.axes) == (ticks, ("stage",))
    assert handed_on.bytes == ticks * ROWS * TIME * WIDTH * 4
    # Of each stage's ticks all but the microbatches' are idle.
    idle = 1 - num_microbatches / ticks
    assert pipeline.bubble_fraction(num_stages, num_microbatches) == pytest.approx(idle)


def test_four_microbatches_a_stage_by_default():
    assert pipeline.num_microbatches(0, 8) == 32
    assert pipeline.num_microbatches(6, 8) == 6
    assert pipeline.num_microbatches(0, 1) == 1
    assert pipeline.bubble_fraction(8, 32) < 0.2
