"""Gathers weights that ZeRO has sharded, and reduce-scatters their gradients, in levels.

A TPU's compiler (libtpu 0.0.42, arrays of width 1024 on v5e) reduce-scatters over up to 8 devices.
Over 16 it all-reduces the whole array and keeps a part; over 64 it also gathers by summing. So a
group is divided into levels, which send the same number of bytes: of 16 devices first 4 neighbours
each, then 4 such groups (docs/planning.md).
"""

import functools
import math

import jax

from keel_jax.parallel import sharding

# Maximum devices of one level. For scatters: the compiler's limit above.
MAX_GATHER, MAX_SCATTER = 16, 8


def gather_rows(w: jax.Array, logical_axis: str) -> jax.Array:
    """All rows of a weight of which each device holds consecutive rows; within shard_map.

    The gradient is summed over the devices and scattered, in w's dtype. All devices get the same
    result, but each has its own gradient: the result must be used within the same shard_map.

    Args:
      w: this device's rows, [rows / devices, …].
      logical_axis: the rows' axis, along which ZeRO has sharded them: "embed" or "table_embed".
    """
    sizes = sharding.mesh_sizes()
    axes = tuple(axis for axis in sharding.RULES[logical_axis] if sizes[axis] > 1)
    return _gather(w, axes) if axes else w


def levels(size: int, largest: int) -> list[int]:
    """`size` as a product of few, nearly equal factors up to `largest`; larger primes are kept.

    >>> levels(16, 8), levels(256, 16)
    ([4, 4], [16, 16])
    """
    if size <= largest:
        return [size]
    count = math.ceil(math.log(size) / math.log(largest) - 1e-9)
    aim = size ** (1 / count)
    factors = [n for n in range(2, largest + 1) if size % n == 0]
    if not factors:
        return [size]
    factor = min(factors, key=lambda n: abs(n - aim))
    return [factor, *levels(size // factor, largest)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(w: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    for groups in _groups(axes, MAX_GATHER):
        w = jax.lax.all_gather(w, axes, axis=0, tiled=True, axis_index_groups=groups)
    return w


def _gather_forward(w, axes):
    return _gather(w, axes), None


def _gather_backward(axes, _, g):
    for groups in reversed(_groups(axes, MAX_SCATTER)):
        g = jax.lax.psum_scatter(g, axes, scatter_dimension=0, tiled=True, axis_index_groups=groups)
    return (g,)


_gather.defvjp(_gather_forward, _gather_backward)


def _groups(axes: tuple[str, ...], largest: int) -> list[list[list[int]]]:
    """The groups of devices, numbered along `axes`, of each level; neighbours first."""
    sizes = sharding.mesh_sizes()
    num_devices = math.prod(sizes[axis] for axis in axes)
    groups_of_levels, stride = [], 1
    for size in levels(num_devices, largest):
        groups_of_levels.append(
            [
                [first + stride * i for i in range(size)]
                for start in range(0, num_devices, stride * size)
                for first in range(start, start + stride)
            ]
        )
        stride *= size
    return groups_of_levels
