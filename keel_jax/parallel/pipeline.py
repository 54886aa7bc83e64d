"""Pipeline parallelism: consecutive parts of the depth on the devices of the mesh axis `stage`.

GPipe's schedule (1811.06965): M microbatches follow each other through S stages, in M + S - 1
ticks. In tick t stage s works on microbatch t - s and then hands the result to stage s + 1. In the
first ticks the later stages have nothing yet, and in the last the earlier nothing more: they
compute what nobody reads, a share (S - 1) / (M + S - 1) of the time, the bubble.

    tick      0    1    2    3    4    5        S = 3, M = 4
    stage 0   m0   m1   m2   m3   ·    ·
    stage 1   ·    m0   m1   m2   m3   ·
    stage 2   ·    ·    m0   m1   m2   m3

The backward pass is the transpose, the same schedule from the end. Only `stage` is manual inside
(shard_map); the compiler spreads each stage's work over the other axes as it would without stages.

Dimension letters: M microbatches, B batch, T time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from keel_jax.parallel import manual, sharding

AXIS = "stage"


def num_microbatches(asked: int, num_stages: int) -> int:
    """`asked`, or where that is 0 four a stage, which keeps the bubble below a fifth; alone, 1."""
    return 1 if num_stages == 1 else asked or 4 * num_stages


def num_ticks(num_stages: int, num_microbatches: int) -> int:
    """Steps of the schedule, in each of which every stage runs once."""
    return num_microbatches + num_stages - 1


def bubble_fraction(num_stages: int, num_microbatches: int) -> float:
    """Share of the stages' time in which what they compute is not read."""
    return (num_stages - 1) / num_ticks(num_stages, num_microbatches)


def run(
    stage: Callable,
    stage_arrays,
    x_MBT,
    rows_MBT,
    *,
    x_axes: tuple[str, ...],
    out_axes: tuple[str, ...],
) -> tuple[object, object]:
    """The stages one after another, on each microbatch; under `jax.set_mesh` with an axis `stage`.

    Args:
      stage: (this stage's part of `stage_arrays`, x [B, T, …], row of `rows_MBT` [B, T, …]) ->
        (x, told): what one stage does; pure, the same program on every stage. `told` is a tree of
        arrays (None: nothing) whose first dimension is the stage's depth, means over its batch.
      stage_arrays: a tree of arrays whose first dimension is depth, a multiple of the stages.
      x_MBT: what the first stage reads: an array, or a tree of arrays, microbatches first.
      rows_MBT: a tree of arrays that every stage reads beside it, microbatches first.
      x_axes: logical axes of one microbatch's x as the last stage leaves it, [B, T, …]; of every
        array of it.
      out_axes: logical axes of the result: as x_axes, but with time split over the stages too.

    Returns:
      What the last stage gives, [M, B, T, …], its time axis split over the stages, so that they
      can share what comes after; and `told`, its depth that of all stages, averaged over the
      microbatches. (A cotangent of `stage_arrays`, as of anything read M times, is their sum.)
    """
    num_stages = jax.sharding.get_abstract_mesh().shape[AXIS]
    num_microbatches = jax.tree.leaves(x_MBT)[0].shape[0]

    def pipe(stage_arrays, x_MBT, rows_MBT):
        index = jax.lax.axis_index(AXIS)

        def tick(held_BT, t):
            # Before its first and after its last microbatch a stage repeats that one in vain.
            m = jnp.clip(t - index, 0, num_microbatches - 1)
            at = lambda x: jax.lax.dynamic_index_in_dim(x, m, keepdims=False)  # noqa: E731
            given_BT = jax.tree.map(
                lambda x, held: jnp.where(index == 0, at(x), held), x_MBT, held_BT
            )
            done_BT, told = stage(stage_arrays, given_BT, jax.tree.map(at, rows_MBT))
            is_real = (t >= index) & (t - index < num_microbatches)
            told = jax.tree.map(lambda x: jnp.where(is_real, x / num_microbatches, 0), told)
            onwards = [(s, s + 1) for s in range(num_stages - 1)]
            return jax.lax.ppermute(done_BT, AXIS, onwards), (done_BT, told)

        ticks = jnp.arange(num_ticks(num_stages, num_microbatches))
        nothing_BT = jax.tree.map(lambda x: jnp.zeros_like(x[0]), x_MBT)
        _, (done, told) = jax.lax.scan(tick, nothing_BT, ticks)
        done = jax.tree.map(lambda x: x[None, num_stages - 1 :], done)
        return done, jax.tree.map(lambda x: x.sum(axis=0), told)

    by_stage, everywhere = sharding.spec(("blocks",)), sharding.spec(())
    done_SMBT, told = jax.shard_map(
        pipe,
        in_specs=(by_stage, everywhere, everywhere),
        out_specs=by_stage,
        axis_names={AXIS},
        # The check knows no vmap with an spmd_axis_name (trials) around a partly manual mesh.
        check_vma=False,
    )(stage_arrays, x_MBT, rows_MBT)
    return jax.tree.map(lambda x: _share_out(x, x_axes, out_axes), done_SMBT), told


def _share_out(done_SMBT, x_axes, out_axes):
    """The last stage's [M, B, T, …] of all stages', a part of its time to each of them.

    All axes are manual here: with `stage` alone the partitioner would gather the batch for it.
    """

    def share(done_SMBT):
        is_last = jax.lax.axis_index(AXIS) == jax.lax.axis_size(AXIS) - 1
        last_MBT = jnp.where(is_last, done_SMBT[0], 0)
        return jax.lax.psum_scatter(last_MBT, AXIS, scatter_dimension=2, tiled=True)

    in_axes = ("blocks", "scalar", *x_axes)
    return manual.over_mesh(share, (in_axes,), ("scalar", *out_axes))(done_SMBT)
