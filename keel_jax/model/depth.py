"""Depth as a number: N blocks as one `nn.scan`, so that program size does not grow with N.

Parameters of all blocks are stacked, [N, …], at `params/block/…`, whatever the scan or the
recomputation looks like: checkpoints know about neither.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import layers, residual, telemetry
from keel_jax.parallel import pipeline, sharding


class Block(nn.Module):
    """Attention, then the FFN: two sub-layers."""

    model: config.ModelConfig

    @nn.compact
    def __call__(self, carry, constants, context: layers.Context):
        """One step of the scan: (stream, cache) -> (stream, cache), and what telemetry stacks."""
        x_BTD, cache = carry
        x_BTD = sharding.constrain(x_BTD, layers.STREAM_AXES)
        x_BTD, cache, attention_told = layers.Attention(self.model, name="attention")(
            x_BTD, constants, context, cache
        )
        x_BTD = sharding.constrain(x_BTD, layers.STREAM_AXES)
        x_BTD, ffn_told = layers.Ffn(self.model, name="ffn")(x_BTD, constants)
        x_BTD = sharding.constrain(x_BTD, layers.STREAM_AXES)
        return (x_BTD, cache), telemetry.stack(attention_told, ffn_told)


class Depth(nn.Module):
    """The stack of N blocks, in one piece or, on a mesh with stages, in as many."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        context: layers.Context,
        cache: layers.Cache | None = None,
        num_microbatches: int = 0,
        probes_N2: jax.Array | None = None,
    ) -> tuple[jax.Array, layers.Cache | None, dict | None]:
        """The stream after the last block; the cache, updated in place in the loop's carry.

        `num_microbatches` is read where the mesh has stages; the time axis is then split over them.
        With probes (`telemetry.probes`), thirdly the blocks' telemetry, each [N, 2]; else None.
        """
        m, num_stages = self.model, sharding.mesh_sizes()[pipeline.AXIS]
        rows = constants(m) | ({} if probes_N2 is None else {telemetry.PROBE: probes_N2})
        if num_stages == 1 or self.is_initializing():
            block = Block(m, name="block")
            (x_BTD, cache), told = scan_blocks(m, block, (x_BTD, cache), rows, context)
            return x_BTD, cache, told
        assert cache is None, "no decoding over stages"

        def stage(arrays, x_BTD, context):
            params, constants = arrays
            return Stage(m).apply({"params": {"block": params}}, x_BTD, constants, context)

        count = pipeline.num_microbatches(num_microbatches, num_stages)
        x_MBTD = sharding.split_rows(x_BTD, count, layers.STREAM_AXES)
        contexts = jax.tree.map(lambda x: sharding.split_rows(x, count, ("batch", "time")), context)
        if probes_N2 is not None:
            rows[telemetry.PROBE] = probes_N2 / count  # the cotangent is a sum over microbatches
        arrays = self.variables["params"]["block"], rows
        x_MBTD, told = pipeline.run(
            stage, arrays, x_MBTD, contexts, x_axes=layers.BRANCH_AXES, out_axes=layers.LOSS_AXES
        )
        return x_MBTD.swapaxes(0, 1).reshape(x_BTD.shape), None, told


class Stage(nn.Module):
    """As many of the blocks as it is given constants and parameters for: one pipeline stage."""

    model: config.ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, constants, context: layers.Context):
        """The stream after these blocks, and their telemetry or None."""
        block = Block(self.model, name="block")
        (x_BTD, _), told = scan_blocks(self.model, block, (x_BTD, None), constants, context)
        return x_BTD, told


def scan_blocks(model: config.ModelConfig, block: Block, carry, constants, context):
    """The (stream, cache) after all blocks of `constants`, whose leaves are [blocks, …].

    And what the blocks return beside it, stacked to [blocks, …].
    """
    def body(block, carry, constants, context):
        return block(carry, constants, context)

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
    return scan(block, carry, constants, context)


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
