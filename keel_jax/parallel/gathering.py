"""Gathering what ZeRO has split, on the way back scattering sums: level by level.

A TPU's compiler (libtpu 0.0.42, arrays of width 1024 on v5e) scatters sums among up to 8 devices.
Among 16 it sums the whole array on every device and keeps a part; among 64 it gathers by summing as
well. So groups are taken apart into levels, which send the same bytes: of 16 devices first 4
neighbours each, then 4 such groups (docs/planning.md).
"""

import functools
import math

import jax

from keel_jax.parallel import sharding

# Devices of one level, at most.
MAX_GATHER, MAX_SCATTER = 16, 8


def rows(w: jax.Array, logical_axis: str) -> jax.Array:
    """All of a weight of which each device holds consecutive rows; within shard_map.

    The gradient is summed over the devices and scattered, in w's dtype. The result does not differ
    between them, but their gradients do: use it within the same shard_map.

    Args:
      w: this device's rows, [rows / devices, …].
      logical_axis: of the rows, for which ZeRO has split them: "embed" or "table_embed".
    """
    sizes = sharding.mesh_sizes()
    axes = tuple(axis for axis in sharding.RULES[logical_axis] if sizes[axis] > 1)
    return _gather(w, axes) if axes else w


def levels(size: int, largest: int) -> list[int]:
    """`size` as a product of few, nearly equal factors up to `largest`; a larger prime stays.

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
def _gather(w, axes: tuple[str, ...]):
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
    """Level by level, neighbours first: which devices, numbered along `axes`, work together."""
    sizes = sharding.mesh_sizes()
    num_devices = math.prod(sizes[axis] for axis in axes)
    found, stride = [], 1
    for size in levels(num_devices, largest):
        found.append(
            [
                [first + stride * i for i in range(size)]
                for start in range(0, num_devices, stride * size)
                for first in range(start, start + stride)
            ]
        )
        stride *= size
    return found
