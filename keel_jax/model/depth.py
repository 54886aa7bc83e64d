"""Depth as a number: N blocks as one `nn.scan`, so that program size does not grow with N.

Parameters of all blocks are stacked, [N, …], at `params/block/…`, whatever the scan or the
recomputation looks like: checkpoints know about neither.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import layers, residual
from keel_jax.parallel import sharding


class Block(nn.Module):
    """Attention, then the FFN: two sub-layers."""

    model: config.ModelConfig

    @nn.compact
    def __call__(self, carry, constants, context: layers.Context):
        """One step of the scan: (stream, cache) -> (stream, cache)."""
        x_BTD, cache = carry
        x_BTD = sharding.constrain(x_BTD, layers.STREAM_AXES)
        x_BTD, cache = layers.Attention(self.model, name="attention")(
            x_BTD, constants, context, cache
        )
        x_BTD = sharding.constrain(x_BTD, layers.STREAM_AXES)
        x_BTD = layers.Ffn(self.model, name="ffn")(x_BTD, constants)
        return sharding.constrain(x_BTD, layers.STREAM_AXES), cache


class Depth(nn.Module):
    """The stack of N blocks."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: layers.Context, cache: layers.Cache | None = None
    ) -> tuple[jax.Array, layers.Cache | None]:
        """The stream after the last block; the cache, updated in place in the loop's carry."""
        def body(block, carry, constants, context):
            return block(carry, constants, context), None

        if self.model.remat == "block" and cache is None:
            # Inside a scan the loop itself keeps XLA from merging the two computations.
            body = nn.remat(body, prevent_cse=False)
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.model.num_blocks,
            metadata_params={nn.PARTITION_NAME: "blocks"},
        )
        block = Block(self.model, name="block")
        carry, _ = scan(block, (x_BTD, cache), constants(self.model), context)
        return carry


def constants(model: config.ModelConfig) -> dict[str, jax.Array]:
    """What each block reads of its own: the topology's constants, and its number; [N, …]."""
    return {**residual.topology(model).constants(), "block": jnp.arange(model.num_blocks)}
