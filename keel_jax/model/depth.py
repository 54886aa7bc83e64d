"""The scan over depth: N blocks as one loop, so that program size does not grow with N.

Parameters of all blocks are stacked, [N, …], at `params/block/…`, independent of the scan and of
recomputation: checkpoints depend on neither.
"""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from keel_jax import config, errors
from keel_jax.model import (
    instruments,
    inversion,
    layers,
    recompute,
    residual,
    reversible,
    telemetry,
)
from keel_jax.model.arrays import Array
from keel_jax.model.residual import deferred
from keel_jax.parallel import pipeline, sharding


class Block(nn.Module):
    """Attention, then the FFN: two sub-layers."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[residual.Carry, layers.Cache | None],
        inputs: residual.BlockInputs,
        context: layers.Context,
    ) -> tuple[tuple[residual.Carry, layers.Cache | None], dict | None]:
        """One step of the scan: (stream, cache) -> (stream, cache), and telemetry to be stacked.

        The stream is the topology's carry (`residual.Carry`).
        """
        stream, cache = carry
        stream, cache, attention_stats = layers.Attention(self.model, name="attention")(
            _constrain(stream), inputs, context, cache
        )
        stream, ffn_stats = layers.Ffn(self.model, name="ffn")(_constrain(stream), inputs)
        return (_constrain(stream), cache), telemetry.stack(attention_stats, ffn_stats)


class Depth(nn.Module):
    """The stack of N blocks, on a mesh with stages divided among them."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self,
        stream: residual.Carry,
        context: layers.Context,
        cache: layers.Cache | None = None,
        num_microbatches: int = 0,
        measured: instruments.Instruments = instruments.NONE,
    ) -> tuple[residual.Carry, layers.Cache | None, dict | None]:
        """The stream after the last block; the cache, updated in place in the loop's carry.

        `num_microbatches` is read if the mesh has stages; the time axis is then sharded over them.
        The third result is the blocks' telemetry, each [N, 2], if `measured` has probes, else None.
        """
        m, num_stages = self.model, sharding.mesh_sizes()[pipeline.AXIS]
        inputs = block_inputs(m)
        if self.is_initializing():
            stream, cache = init_blocks(Block(m, name="block"), (stream, cache), inputs, context)
            return stream, cache, None
        inputs = dataclasses.replace(
            inputs, probe=measured.probes, intervention=measured.intervention
        )
        rows = self.variables["params"]["block"], inputs
        if num_stages == 1:
            (stream, cache), stats = scan_blocks(
                m, rows, (stream, cache), context, measured.reversal
            )
            return stream, cache, stats
        assert cache is None, "no decoding over stages"

        def stage(rows, stream, context):
            (stream, _), stats = scan_blocks(m, rows, (stream, None), context)
            return stream, stats

        count = pipeline.num_microbatches(num_microbatches, num_stages)
        parts = jax.tree.map(lambda x: sharding.split_rows(x, count, layers.STREAM_AXES), stream)
        contexts = jax.tree.map(lambda x: sharding.split_rows(x, count, ("batch", "time")), context)
        if measured.probes is not None:
            # The cotangent is a sum over microbatches.
            rows = rows[0], dataclasses.replace(inputs, probe=measured.probes / count)
        parts, stats = pipeline.run_stages(
            stage, rows, parts, contexts, x_axes=layers.BRANCH_AXES, out_axes=layers.LOSS_AXES
        )
        stream = jax.tree.map(lambda x, y: x.swapaxes(0, 1).reshape(y.shape), parts, stream)
        return stream, None, cast(dict | None, stats)


def init_blocks(
    block: Block,
    carry: tuple[residual.Carry, layers.Cache | None],
    inputs: residual.BlockInputs,
    context: layers.Context,
) -> tuple[residual.Carry, layers.Cache | None]:
    """Initializes the blocks' parameters, stacked [N, …]; returns the (stream, cache) after them.

    This is always one flat scan, so parameters do not depend on the recomputation plan.
    """
    scan = nn.scan(
        lambda block, carry, inputs, context: block(carry, inputs, context),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]: linen says int
        length=len(inputs.block),
        metadata_params={nn.PARTITION_NAME: "blocks"},
    )
    return scan(block, carry, inputs, context)[0]


def scan_blocks(
    model: config.ModelConfig,
    rows: tuple[Any, residual.BlockInputs],
    carry: tuple[residual.Carry, layers.Cache | None],
    context: layers.Context,
    reversal_A2: Float[Array, "A 2"] | None = None,
) -> tuple[tuple[residual.Carry, layers.Cache | None], dict | None]:
    """The (stream, cache) after all blocks of `rows`, and each block's telemetry, [blocks, …].

    Args:
      rows: (parameters, `residual.BlockInputs`), trees whose leaves are [blocks, …]: the whole
        depth's, or one stage's.
      reversal_A2: `instruments.Instruments.reversal`.
    """

    def body(carry, row):
        params, inputs = row
        block = Block(model, parent=None)
        return cast(
            tuple[Any, dict | None], block.apply({"params": params}, carry, inputs, context)
        )

    (params, inputs), (stream, cache) = rows, carry
    last = None
    # Probes and interventions need the stream between sub-layers as the equation defines it.
    is_deferred = (
        residual.rule(model).defers_outer_norm
        and inputs.probe is None
        and inputs.intervention is None
    )
    if is_deferred:
        inputs, last = deferred.defer_outer_norms(inputs, params, residual.topology(model))
    context = layers.with_rope_tables(context, model)
    stats = None
    if cache is not None:  # decoding: no backward pass
        (stream, cache), stats = jax.lax.scan(body, carry, (params, inputs))
    else:
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: _as_multiplied(path[-1].key, p, model.compute_dtype), params
        )
        if model.recompute.plan == "reversible" and is_deferred:
            stream = reversible.scan(
                inversion.sublayers(model),
                stream,
                inversion.rows(params, inputs),
                context,
                model.recompute,
                reversal_A2,
            )
        else:
            (stream, cache), stats = recompute.scan(body, carry, (params, inputs), model.recompute)
    return (deferred.apply_deferred_norm(stream, last, model.norm_epsilon), cache), stats


def step_instruments(model: config.ModelConfig) -> instruments.Instruments:
    """What every train step measures: what the recomputation plan reports about itself."""
    if model.recompute.plan != "reversible":
        return instruments.NONE
    return instruments.Instruments(reversal=reversible.probe(model.recompute, model.num_blocks))


def step_statistics(
    measured: instruments.Instruments, model: config.ModelConfig
) -> dict[str, Array]:
    """The statistics in the cotangents of `step_instruments`, by name: float32 [N], or a scalar."""
    if measured.reversal is None:
        return {}
    return reversible.summary(measured.reversal, model.recompute, model.num_blocks)


def _as_multiplied(name: str, p: Array, dtype: str) -> Array:
    """The matrices [blocks, …, …] in the dtype of the multiplications; everything else unchanged.

    A TPU's compiler casts the weights of all blocks before the loop anyway. If they are cast here,
    the loop also stacks their gradients in this dtype, in which they are computed and reduced: no
    precision is lost, and half of the memory is saved.
    """
    return _gradient_in_this_shape(p.astype(dtype) if name in layers.MATRICES else p)


@jax.custom_vjp
def _gradient_in_this_shape(p: Array) -> Array:
    """`p`. With nested loops over depth, the compiler would otherwise use the shape in which they
    stack gradients, [segments, blocks, …], in the optimizer too, and keep copies of its results."""
    return p


_gradient_in_this_shape.defvjp(
    lambda p: (p, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),)
)


def check_stages(
    model: config.ModelConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> None:
    """Checks that the blocks can be divided among the stages of `mesh`.

    Raises:
      UserError: they cannot; both numbers are named.
    """
    num_stages = mesh.shape[pipeline.AXIS]
    if model.num_blocks % num_stages:
        raise errors.UserError(
            f"model.num_blocks={model.num_blocks} is not a multiple of the {num_stages} stages of "
            "the mesh, each of which holds equally many blocks: change mesh.stage or the depth."
        )


def block_inputs(model: config.ModelConfig) -> residual.BlockInputs:
    """The per-block inputs: the topology's constants, and the block's number; [N, …]."""
    return residual.BlockInputs(
        topology=residual.topology(model).constants(), block=jnp.arange(model.num_blocks)
    )


def _constrain(stream: residual.Carry) -> residual.Carry:
    """Constrains every array of the stream to the stream's sharding."""
    return jax.tree.map(lambda x: sharding.constrain(x, layers.STREAM_AXES), stream)
