"""Pipeline parallelism: consecutive parts of the depth on the devices of the mesh axis `stage`.

GPipe's schedule (1811.06965): M microbatches pass one after another through S stages, in M + S - 1
ticks. In tick t stage s works on microbatch t - s and then sends the result to stage s + 1. In the
first ticks the later stages have no microbatch yet, and in the last ones the earlier stages have
none left: their results are unused for (S - 1) / (M + S - 1) of the time, the bubble.

    tick      0    1    2    3    4    5        S = 3, M = 4
    stage 0   m0   m1   m2   m3   ·    ·
    stage 1   ·    m0   m1   m2   m3   ·
    stage 2   ·    ·    m0   m1   m2   m3

The backward pass is the transpose: the same schedule, from the last stage to the first. Only
`stage` is manual inside (shard_map); the compiler partitions each stage's work over the other axes
as it would without stages.

Dimension letters: M microbatches, B batch, T time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from keel_jax.parallel import manual, sharding

AXIS = "stage"


def num_microbatches(option: int, num_stages: int) -> int:
    """M for the option `mesh.stage_microbatches`; with one stage, 1.

    0 stands for four per stage, which keeps the bubble below a fifth.
    """
    return 1 if num_stages == 1 else option or 4 * num_stages


def num_ticks(num_stages: int, num_microbatches: int) -> int:
    """Steps of the schedule, in each of which every stage runs once."""
    return num_microbatches + num_stages - 1


def bubble_fraction(num_stages: int, num_microbatches: int) -> float:
    """The fraction of the stages' time in which their results are unused."""
    return (num_stages - 1) / num_ticks(num_stages, num_microbatches)


def run_stages(
    stage: Callable[[Any, Any, Any], tuple[Any, Any]],
    stage_arrays: Any,
    x_MBT: Any,
    context_MBT: Any,
    *,
    x_axes: tuple[str, ...],
    out_axes: tuple[str, ...],
) -> tuple[Any, Any]:
    """Runs every microbatch through all stages; under `jax.set_mesh` with an axis `stage`.

    Args:
      stage: (this stage's part of `stage_arrays`, x [B, T, …], one microbatch of `context_MBT`,
        [B, T, …]) -> (x, stats): the computation of one stage; pure, the same program on every
        stage. `stats` is a tree of arrays, or None; their first dimension is the stage's depth,
        their values are means over the batch.
      stage_arrays: a tree of arrays whose first dimension is depth, a multiple of the stages.
      x_MBT: the input of the first stage: an array, or a tree of arrays, microbatches first.
      context_MBT: a tree of arrays that every stage reads, microbatches first.
      x_axes: logical axes of the last stage's output of one microbatch, [B, T, …], the same for
        every array of it.
      out_axes: logical axes of the result: as x_axes, but with time sharded over the stages too.

    Returns:
      The x of the last stage, [M, B, T, …], its time axis sharded over the stages so that they can
      share the computation after it; and `stats`, concatenated over the stages' depths and averaged
      over the microbatches. (A cotangent of `stage_arrays` is a sum over the microbatches.)
    """
    num_stages = jax.sharding.get_abstract_mesh().shape[AXIS]
    num_microbatches = jax.tree.leaves(x_MBT)[0].shape[0]

    def pipe(stage_arrays, x_MBT, context_MBT):
        index = jax.lax.axis_index(AXIS)

        def tick(received_BT, t):
            # Before its first microbatch and after its last, a stage repeats that one, unused.
            m = jnp.clip(t - index, 0, num_microbatches - 1)
            select = lambda x: jax.lax.dynamic_index_in_dim(x, m, keepdims=False)  # noqa: E731
            in_BT = jax.tree.map(
                lambda x, received: jnp.where(index == 0, select(x), received), x_MBT, received_BT
            )
            out_BT, stats = stage(stage_arrays, in_BT, jax.tree.map(select, context_MBT))
            is_real = (t >= index) & (t - index < num_microbatches)
            stats = jax.tree.map(lambda x: jnp.where(is_real, x / num_microbatches, 0), stats)
            to_next = [(s, s + 1) for s in range(num_stages - 1)]
            return jax.lax.ppermute(out_BT, AXIS, to_next), (out_BT, stats)

        ticks = jnp.arange(num_ticks(num_stages, num_microbatches))
        zeros_BT = jax.tree.map(lambda x: jnp.zeros_like(x[0]), x_MBT)
        _, (done, stats) = jax.lax.scan(tick, zeros_BT, ticks)
        done = jax.tree.map(lambda x: x[None, num_stages - 1 :], done)
        return done, jax.tree.map(lambda x: x.sum(axis=0), stats)

    by_stage, everywhere = sharding.spec(("blocks",)), sharding.spec(())
    done_SMBT, stats = jax.shard_map(
        pipe,
        in_specs=(by_stage, everywhere, everywhere),
        out_specs=by_stage,
        axis_names={AXIS},
        # The check does not support vmap with an spmd_axis_name (trials) around a mesh of which
        # only some axes are manual.
        check_vma=False,
    )(stage_arrays, x_MBT, context_MBT)
    return jax.tree.map(lambda x: _scatter_time(x, x_axes, out_axes), done_SMBT), stats


def _scatter_time(
    done_SMBT: jax.Array, x_axes: tuple[str, ...], out_axes: tuple[str, ...]
) -> jax.Array:
    """The last stage's [M, B, T, …], with the time axis scattered over the stages.

    All axes are manual here: with only `stage` manual the partitioner would gather the batch.
    """

    def scatter(done_SMBT):
        is_last = jax.lax.axis_index(AXIS) == jax.lax.axis_size(AXIS) - 1
        last_MBT = jnp.where(is_last, done_SMBT[0], 0)
        return jax.lax.psum_scatter(last_MBT, AXIS, scatter_dimension=2, tiled=True)

    in_axes = ("blocks", "scalar", *x_axes)
    return manual.over_mesh(scatter, (in_axes,), ("scalar", *out_axes))(done_SMBT)
