"""Finds silent corruption: a step is computed twice, and replicas are compared (docs/goodput.md).

A chip that multiplies wrongly now and then, or memory that flips a bit, raises no error. So every
`train.check_every_steps` steps the step is computed twice by the same program from the same state
and batch, and every element of the two new states has to have the same bits. Then the devices that
hold copies of the same part of an array, in this process or another, compare digests of it.
"""

import collections
import collections.abc
import contextlib
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from keel_jax import errors
from keel_jax.runtime import clock as clock_lib

# Odd multipliers of two independent digests: the golden ratio's bits, and one of MurmurHash3's.
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B)
# Differences that a message lists.
_NUM_LISTED = 5


class Check:
    """Computes every `every_steps`-th step twice, in one run; 0: never."""

    def __init__(self, every_steps: int, clock: clock_lib.Clock):
        self._every_steps, self._clock = every_steps, clock
        # The last step whose check passed.
        self._passed = 0

    def is_due(self, step: int) -> bool:
        """Whether to check optimizer step `step`, counted from 1."""
        return bool(self._every_steps) and step % self._every_steps == 0

    def run(
        self, train_step: collections.abc.Callable, step: int, state: Any, batch: dict
    ) -> tuple[Any, Any]:
        """The results of `train_step(state, batch)`, which are checked; a collective.

        `state` is donated, as by the step itself. While the step is computed for the second time,
        the device holds two states: the one of the first time, too.

        Raises:
          CorruptionError: on every process, with what differs.
        """
        with self._measured():
            first = train_step(_copy(state), batch)
            jax.block_until_ready(first)
        results = train_step(state, batch)
        jax.block_until_ready(results)
        with self._measured():
            if found := [*repeated_differences(first, results), *replica_differences(results)]:
                raise errors.CorruptionError(self._message(step, found))
        self._passed = step
        return results

    @contextlib.contextmanager
    def _measured(self):
        # Results are read implicitly, which the loop's transfer guard would refuse.
        with self._clock.measure("check"), jax.transfer_guard("allow"):
            yield

    def _message(self, step: int, found: list[str]) -> str:
        more = f"; and {len(found) - _NUM_LISTED} more" if len(found) > _NUM_LISTED else ""
        passed = (
            f"The last check that passed was of step {self._passed}: later checkpoints"
            if self._passed
            else "No check has passed since the run was started: its checkpoints"
        )
        return (
            f"Step {step} was not computed reliably: {'; '.join(found[:_NUM_LISTED])}{more}. "
            f"Nothing was saved after it. {passed} may hold the damage. "
            "Take the machine of the named devices out before the run is started again."
        )


def repeated_differences(first: Any, second: Any) -> list[str]:
    """Where two results of one computation differ: leaf, device, process, number of elements.

    A collective; the same list on every process. Both are trees of global arrays, sharded alike.
    """
    names, devices, numbers = _inspect(first, second)
    found = []
    for leaf, device in np.argwhere(numbers[:, :, 0].T):
        size = math.prod(_shard_shape(jax.tree.leaves(second)[leaf]))
        found.append(
            f"{names[leaf]} differs in {numbers[device, leaf, 0]} of {size} elements on "
            f"{_device_name(devices[device])} when it is computed twice"
        )
    return found


def replica_differences(tree: Any) -> list[str]:
    """Where devices hold different copies of the same part of an array; as above, a collective."""
    names, devices, numbers = _inspect(tree, tree)
    row_of = {int(device): row for row, (device, _) in enumerate(devices)}
    found = []
    for leaf, array in enumerate(jax.tree.leaves(tree)):
        for replicas in _replicas(array):
            rows = [row_of[device.id] for device in replicas]
            digests = [tuple(numbers[row, leaf, 1:]) for row in rows]
            # What most of them hold; of two that differ, that of the first.
            common = collections.Counter(digests).most_common(1)[0][0]
            good = replicas[digests.index(common)]
            bad = [d for d, digest in zip(replicas, digests, strict=True) if digest != common]
            if bad and len(found) < _NUM_LISTED:
                counts = _count_against(array, good, bad)
            else:
                counts = [None] * len(bad)
            size = math.prod(_shard_shape(array))
            found += [
                f"{names[leaf]} on {_device_name(devices[row_of[device.id]])} is not the copy that "
                f"{_device_name(devices[row_of[good.id]])} has"
                + (f", in {count} of {size} elements" if count is not None else "")
                for device, count in zip(bad, counts, strict=True)
            ]
    return found


def _inspect(first: Any, second: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What every device computes of its own shards of two trees; a collective.

    Returns:
      The names of the leaves; the devices, int [devices, 2]: id and process; and uint32
      [devices, leaves, 3]: the number of elements that differ, and two digests of the second.
    """
    paths = jax.tree_util.tree_flatten_with_path(second)[0]
    names = [_leaf_name(path) for path, _ in paths]
    by_device = [_shards_by_device(tree) for tree in (first, second)]
    ids = sorted(by_device[0])
    # Each device is asked by itself: XLA would take replicas for equal.
    pending = [_inspect_shards(by_device[0][i], by_device[1][i]) for i in ids]
    numbers = np.stack([np.asarray(part) for part in pending])
    devices = np.asarray([(i, jax.process_index()) for i in ids], np.int32)
    if jax.process_count() > 1:
        devices, numbers = (
            gathered.reshape(-1, *gathered.shape[2:])
            for gathered in multihost_utils.process_allgather((devices, numbers))
        )
    return names, devices, numbers


@jax.jit
def _inspect_shards(first: list[jax.Array], second: list[jax.Array]) -> jax.Array:
    """uint32 [leaves, 3]: the number of elements whose bits differ, and two digests of `second`."""
    rows = []
    for one, other in zip(map(_bits, first), map(_bits, second), strict=True):
        count = jnp.sum(one != other, dtype=jnp.uint32)
        digests = (
            jnp.sum(other * _weights(other.shape, m), dtype=jnp.uint32) for m in _MULTIPLIERS
        )
        rows.append(jnp.stack([count, *digests]))
    return jnp.stack(rows)


def _weights(shape: tuple[int, ...], multiplier: int) -> jax.Array:
    """An odd uint32 for each element, by its index: a change of any one bit changes the sum."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    mixed = (index + np.uint32(1)) * np.uint32(multiplier)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(multiplier)
    return mixed ^ (mixed >> 13) | np.uint32(1)


def _bits(array: jax.Array) -> jax.Array:
    """The bits of each element as uint32; NaNs are equal if their bits are."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


@functools.cache
def _copier(shardings: tuple) -> collections.abc.Callable:
    return jax.jit(
        lambda leaves: [jnp.copy(leaf) for leaf in leaves], out_shardings=list(shardings)
    )


def _copy(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    copies = _copier(tuple(leaf.sharding for leaf in leaves))(leaves)
    return jax.tree.unflatten(structure, copies)


def _shards_by_device(tree: Any) -> dict[int, list[jax.Array]]:
    """The shards of all leaves on each device of this process, by its id."""
    found = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device.id].append(shard.data)
    return found


def _replicas(array: jax.Array) -> list[list]:
    """The groups of devices that hold the same part of `array`, those of several devices."""
    groups = collections.defaultdict(list)
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        groups[str(index)].append(device)
    return [sorted(group, key=lambda d: d.id) for group in groups.values() if len(group) > 1]


def _count_against(array: jax.Array, good: Any, bad: list) -> list[int]:
    """In how many elements the shard of each device in `bad` differs from that of `good`.

    A collective: the shard is sent to every process.
    """
    mine = {shard.device.id: np.asarray(shard.data) for shard in array.addressable_shards}
    reference = mine.get(good.id, np.zeros(_shard_shape(array), array.dtype))
    if jax.process_count() > 1:
        is_source = good.process_index == jax.process_index()
        reference = multihost_utils.broadcast_one_to_all(reference, is_source=is_source)
    raw = np.asarray(reference).reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)
    counts = []
    for device in bad:
        if device.id in mine:
            other = mine[device.id].reshape(-1).view(np.uint8).reshape(raw.shape)
            counts.append(int((raw != other).any(axis=1).sum()))
        else:
            counts.append(0)
    if jax.process_count() > 1:
        counts = multihost_utils.process_allgather(np.asarray(counts)).sum(axis=0).tolist()
    return counts


def _shard_shape(array: jax.Array) -> tuple[int, ...]:
    return array.sharding.shard_shape(array.shape)


def _leaf_name(path: tuple) -> str:
    """As in params/block/ffn/w_up, without the pair (state, sums) around it."""
    return jax.tree_util.keystr(path[1:], simple=True, separator="/")


def _device_name(device: np.ndarray) -> str:
    return f"device {device[0]} (process {device[1]})"
