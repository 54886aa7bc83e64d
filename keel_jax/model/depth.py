"""Depth as a number: N blocks as one `nn.scan`, so that program size does not grow with N.

Parameters of all blocks are stacked, [N, …], at `params/block/…`, whatever the scan or the
recomputation looks like: checkpoints know about neither.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import layers, residual, streams
from keel_jax.parallel import pipeline, sharding


class Block(nn.Module):
    """Attention, then the FFN: two sub-layers."""

    model: config.ModelConfig

    @nn.compact
    def __call__(self, carry, constants, context: layers.Context):
        """One step of the scan: (stream, cache) -> (stream, cache).

        The stream is what the topology carries (`streams.Carry`).
        """
        stream, cache = carry
        stream = _constrain(stream)
        stream, cache = layers.Attention(self.model, name="attention")(
            stream, constants, context, cache
        )
        stream = layers.Ffn(self.model, name="ffn")(_constrain(stream), constants)
        return _constrain(stream), cache


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
    ) -> tuple[streams.Carry, layers.Cache | None]:
        """The stream after the last block; the cache, updated in place in the loop's carry.

        `num_microbatches` is read where the mesh has stages; the time axis is then split over them.
        """
        m, num_stages = self.model, sharding.mesh_sizes()[pipeline.AXIS]
        if num_stages == 1 or self.is_initializing():
            return scan_blocks(m, Block(m, name="block"), (stream, cache), constants(m), context)
        assert cache is None, "no decoding over stages"

        def stage(arrays, stream, context):
            params, constants = arrays
            return Stage(m).apply({"params": {"block": params}}, stream, constants, context)

        count = pipeline.num_microbatches(num_microbatches, num_stages)
        parts = jax.tree.map(lambda x: sharding.split_rows(x, count, layers.STREAM_AXES), stream)
        contexts = jax.tree.map(lambda x: sharding.split_rows(x, count, ("batch", "time")), context)
        arrays = self.variables["params"]["block"], constants(m)
        parts = pipeline.run(
            stage, arrays, parts, contexts, x_axes=layers.BRANCH_AXES, out_axes=layers.LOSS_AXES
        )
        return jax.tree.map(lambda x, y: x.swapaxes(0, 1).reshape(y.shape), parts, stream), None


class Stage(nn.Module):
    """As many of the blocks as it is given constants and parameters for: one pipeline stage."""

    model: config.ModelConfig

    @nn.compact
    def __call__(self, stream: streams.Carry, constants, context: layers.Context) -> streams.Carry:
        block = Block(self.model, name="block")
        return scan_blocks(self.model, block, (stream, None), constants, context)[0]


def scan_blocks(model: config.ModelConfig, block: Block, carry, constants, context):
    """The (stream, cache) after all blocks of `constants`, whose leaves are [blocks, …]."""
    def body(block, carry, constants, context):
        return block(carry, constants, context), None

    if model.remat == "block" and carry[1] is None:
        # Inside a scan the loop itself keeps XLA from merging the two computations.
        body = nn.remat(body, prevent_cse=False)
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=len(constants["block"]),
        metadata_params={nn.PARTITION_NAME: "blocks"},
    )
    carry, _ = scan(block, carry, constants, context)
    return carry


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
