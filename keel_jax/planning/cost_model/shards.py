"""Bytes of state and batch on one device, from their abstract arrays."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from keel_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Shards:
    """Bytes that one device holds when a step begins."""

    parameters: int
    # Moments, counts, and the step's own scalars.
    optimizer: int
    batch: int
    # Shapes of the parameters' shards.
    param_shapes: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.batch


def measure_shards(
    state: state_lib.TrainState, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> Shards:
    """Adds up abstract arrays with shardings."""
    params = jax.tree.leaves(state.params)
    parameter_bytes = sum(map(_shard_bytes, params))
    return Shards(
        parameters=parameter_bytes,
        optimizer=sum(map(_shard_bytes, jax.tree.leaves(state))) - parameter_bytes,
        batch=sum(map(_shard_bytes, jax.tree.leaves(batch))),
        param_shapes=tuple(leaf.sharding.shard_shape(leaf.shape) for leaf in params),
    )


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an abstract array on one device."""
    assert leaf.sharding is not None, f"{leaf} has no sharding"
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
