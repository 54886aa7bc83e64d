"""Transfers between host and devices: batches in, scalars out; for any number of processes."""

import dataclasses
from typing import Any

import jax
import numpy as np

from keel_jax.parallel import sharding
from keel_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which of `world_size` equal, contiguous parts of a batch's rows this process reads."""

    rank: int
    world_size: int


def rows_of(leaf: jax.ShapeDtypeStruct) -> Rows:
    """The smallest part that holds the rows [..., B, T] of `leaf` on this process's devices.

    Not every process has its own rows: along axes other than the batch's, several hold the same.
    """
    size = leaf.shape[-2]
    assert leaf.sharding is not None
    places = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    spans = [place[-2].indices(size)[:2] for place in places if place is not None]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    num_rows = last - first
    if size % num_rows or first % num_rows:
        return Rows(0, 1)
    return Rows(first // num_rows, size // num_rows)


def put_batch(batch: dict[str, np.ndarray], abstract: dict, rows: Rows) -> dict[str, jax.Array]:
    """The global arrays of a batch, of which this process holds `rows`.

    Args:
      batch: arrays [..., B / world_size, T], whole except for the rows.
      abstract: shapes and shardings of the global arrays [..., B, T].
    """

    def put(local, leaf):
        first = rows.rank * local.shape[-2]

        def part(place):
            start, stop, _ = place[-2].indices(leaf.shape[-2])
            return local[(*place[:-2], slice(start - first, stop - first), place[-1])]

        # Not from a callback: the loop's transfer guard requires explicit copies.
        places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        parts = jax.device_put([part(place) for place in places.values()], list(places))
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

    return {key: put(batch[key], leaf) for key, leaf in abstract.items()}


def put_everywhere(array: np.ndarray, place: jax.sharding.Sharding) -> jax.Array:
    """A global array with sharding `place` from `array`, which every process holds whole."""
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def fetch(tree: Any) -> Any:
    """The values of global arrays as NumPy arrays, whole on every process.

    A collective if an array is sharded over processes (trials): every process must call it.
    """

    def whole(array):
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        everywhere = sharding.replicated(array.sharding.mesh)
        return jax.jit(lambda x: x, out_shardings=everywhere)(array)

    return jax.device_get(jax.tree.map(whole, tree))


def per_trial(sums: dict, num_trials: int) -> list[dict]:
    """Waits for scalars ([K] with K trials); one dictionary of Python numbers per trial.

    Vectors ([K, …]) are NumPy arrays.
    """
    host = {key: np.asarray(value) for key, value in jax.device_get(sums).items()}
    trials = [
        {key: state_lib.trial_of(value, trial, num_trials) for key, value in host.items()}
        for trial in range(num_trials)
    ]
    return [
        {key: value if value.ndim else value.item() for key, value in trial.items()}
        for trial in trials
    ]
