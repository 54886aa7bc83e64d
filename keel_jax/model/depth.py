"""Depth as a number: N blocks as one loop, so that program size does not grow with N.

Parameters of all blocks are stacked, [N, …], at `params/block/…`, whatever the scan or the
recomputation looks like: checkpoints know about neither.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import (
    intervention,
    inversion,
    layers,
    recompute,
    residual,
    reversible,
    streams,
    telemetry,
)
from keel_jax.parallel import pipeline, sharding


class Block(nn.Module):
    """Attention, then the FFN: two sub-layers."""

    model: config.ModelConfig

    @nn.compact
    def __call__(self, carry, constants, context: layers.Context):
        """One step of the scan: (stream, cache) -> (stream, cache), and what telemetry stacks.

        The stream is what the topology carries (`streams.Carry`).
        """
        stream, cache = carry
        stream, cache, attention_told = layers.Attention(self.model, name="attention")(
            _constrain(stream), constants, context, cache
        )
        stream, ffn_told = layers.Ffn(self.model, name="ffn")(_constrain(stream), constants)
        return (_constrain(stream), cache), telemetry.stack(attention_told, ffn_told)


class Depth(nn.Module):
    """The stack of N blocks, in one piece or, on a mesh with stages, in as many."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self,
        stream: streams.Carry,
        context: layers.Context,
        cache: layers.Cache | None = None,
        num_microbatches: int = 0,
        probes_N2: jax.Array | None = None,
        reversal_A2: jax.Array | None = None,
        change: intervention.Intervention | None = None,
    ) -> tuple[streams.Carry, layers.Cache | None, dict | None]:
        """The stream after the last block; the cache, updated in place in the loop's carry.

        `num_microbatches` is read where the mesh has stages; the time axis is then split over them.
        With probes (`telemetry.probes`), thirdly the blocks' telemetry, each [N, 2]; else None.
        `reversal_A2` is `reversible.probe`, read by the plan "reversible".
        `change`: what an experiment does to the sub-layers.
        """
        m, num_stages = self.model, sharding.mesh_sizes()[pipeline.AXIS]
        if self.is_initializing():
            stream, cache = init_blocks(
                Block(m, name="block"), (stream, cache), constants(m), context
            )
            return stream, cache, None
        probes = {} if probes_N2 is None else {telemetry.PROBE: probes_N2}
        changes = {} if change is None else {intervention.KEY: change}
        rows = self.variables["params"]["block"], constants(m) | probes | changes
        if num_stages == 1:
            (stream, cache), told = scan_blocks(m, rows, (stream, cache), context, reversal_A2)
            return stream, cache, told
        assert cache is None, "no decoding over stages"

        def stage(rows, stream, context):
            (stream, _), told = scan_blocks(m, rows, (stream, None), context)
            return stream, told

        count = pipeline.num_microbatches(num_microbatches, num_stages)
        parts = jax.tree.map(lambda x: sharding.split_rows(x, count, layers.STREAM_AXES), stream)
        contexts = jax.tree.map(lambda x: sharding.split_rows(x, count, ("batch", "time")), context)
        if probes_N2 is not None:
            # The cotangent is a sum over microbatches.
            rows[1][telemetry.PROBE] = probes_N2 / count
        parts, told = pipeline.run(
            stage, rows, parts, contexts, x_axes=layers.BRANCH_AXES, out_axes=layers.LOSS_AXES
        )
        stream = jax.tree.map(lambda x, y: x.swapaxes(0, 1).reshape(y.shape), parts, stream)
        return stream, None, told


def init_blocks(block: Block, carry, constants, context):
    """Makes the blocks' parameters, stacked [N, …]: always one flat scan, so that they depend on no
    plan of recomputation; the (stream, cache) after them."""
    scan = nn.scan(
        lambda block, carry, constants, context: block(carry, constants, context),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=len(constants["block"]),
        metadata_params={nn.PARTITION_NAME: "blocks"},
    )
    return scan(block, carry, constants, context)[0]


def scan_blocks(model: config.ModelConfig, rows, carry, context, reversal_A2=None):
    """The (stream, cache) after all blocks of `rows`, and what each block tells, [blocks, …].

    Args:
      rows: (parameters, constants), trees whose leaves are [blocks, …]: the whole depth's, or one
        stage's.
    """

    def body(carry, row):
        params, constants = row
        block = Block(model, parent=None)
        return block.apply({"params": params}, carry, constants, context)

    (params, constants), rule = rows, streams.rule(model)
    last = None
    # Who looks at the stream between the sub-layers, or passes one by, finds it as the equation
    # has it.
    is_put_off = telemetry.PROBE not in constants and intervention.KEY not in constants
    if is_put_off:
        constants, last = rule.put_off(constants, params, model)
    context = layers.with_turns(context, model)
    if carry[1] is not None:  # decoding: no backward pass
        (stream, cache), told = jax.lax.scan(body, carry, (params, constants))
    else:
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: _as_multiplied(path[-1].key, p, model.compute_dtype), params
        )
        if model.recompute.plan == "reversible" and is_put_off:
            (stream, cache), told = carry, None
            stream = reversible.scan(
                inversion.sublayers(model),
                stream,
                inversion.rows(params, constants),
                context,
                model.recompute,
                reversal_A2,
            )
        else:
            (stream, cache), told = recompute.scan(
                body, carry, (params, constants), model.recompute
            )
    return (rule.settle(stream, last, model), cache), told


def _as_multiplied(name: str, p: jax.Array, dtype: str) -> jax.Array:
    """The matrices [blocks, …, …] as multiplications read them; everything else as it is.

    A TPU's compiler casts the weights of all blocks before the loop anyway. Cast here, the loop
    stacks their gradients in this dtype, too: in which they are computed and reduced, so that
    nothing is lost, and half of the memory is.
    """
    return _gradient_in_this_shape(p.astype(dtype) if name in layers.MATRICES else p)


@jax.custom_vjp
def _gradient_in_this_shape(p: jax.Array) -> jax.Array:
    """`p`. Where depth is several loops, the compiler would carry the shape in which they stack
    gradients, [segments, blocks, …], on into the optimiser, and keep copies of what it computes."""
    return p


_gradient_in_this_shape.defvjp(
    lambda p: (p, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),)
)


def check_stages(model: config.ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Whether the stages of `mesh` can share the blocks.

    Raises:
      ValueError: they cannot; both numbers are named.
    """
    num_stages = mesh.shape[pipeline.AXIS]
    if model.num_blocks % num_stages:
        raise ValueError(
            f"model.num_blocks={model.num_blocks} is not a multiple of the {num_stages} stages of "
            "the mesh, which hold equally many blocks each: change mesh.stage or the depth."
        )


def constants(model: config.ModelConfig) -> dict[str, jax.Array]:
    """What each block reads of its own: the topology's constants, and its number; [N, …]."""
    return {**residual.topology(model).constants(), "block": jnp.arange(model.num_blocks)}


def _constrain(stream: streams.Carry) -> streams.Carry:
    """Keeps every array of the stream where streams lie."""
    return jax.tree.map(lambda x: sharding.constrain(x, layers.STREAM_AXES), stream)
