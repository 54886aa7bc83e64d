"""The one table that maps each logical axis to mesh axes.

Modules name logical axes at the initializer; nothing else in the project writes a PartitionSpec.
"""

import collections
import math
from collections.abc import Mapping

import jax
from jax.sharding import NamedSharding, PartitionSpec

from keel_jax import errors

# Logical axis -> mesh axes, outermost first.
#   Parameters and optimizer state are sharded over `fsdp` and `context`, whose devices all see
#   different tokens, along their model dimension, and gathered where they are used (ZeRO-3); the
#   stream is not moved between devices for this.
#   `tensor` shards heads, FFN and vocabulary (Megatron); between the branches the stream is sharded
#   over it along time, so that norms and the residual sum are divided among its devices too: the
#   all-reduce after a branch becomes a reduce-scatter, and an all-gather before the next branch, of
#   the same bytes.
#   `stage` holds consecutive blocks; within a stage the scan reads one block at a time.
RULES = {
    "trial": ("trial",),
    "batch": ("data", "fsdp"),
    # Tokens, and the inputs of attention.
    "time": ("context",),
    # The stream between the branches.
    "stream_time": ("context", "tensor"),
    # The input of the loss: divided among the stages.
    "loss_time": ("context", "stage"),
    "stream": (),
    "blocks": ("stage",),
    "embed": ("fsdp", "context"),
    # The embedding and the output, which belong to no stage: sharded over all of them.
    "table_embed": ("fsdp", "context", "stage"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    # Rows of the matrices that write to the stream. ZeRO shards these and not the columns: a TPU's
    # compiler does not reduce-scatter a gradient along columns, but all-reduces all of it.
    "heads_row": ("tensor", "fsdp", "context"),
    "ffn_row": ("tensor", "fsdp", "context"),
    "vocab": ("tensor",),
    "norm": (),
    "head_dim": (),
    "scalar": (),
}


def spec(logical_axes: tuple[str, ...]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions are `logical_axes`.

    Raises:
      UserError: an axis is not in the table, or two dimensions claim the same mesh axis.
    """
    used: dict[str, str] = {}
    dims = []
    for logical in logical_axes:
        if logical not in RULES:
            raise errors.UserError(
                f"Logical axis {logical!r} has no rule; known: {', '.join(RULES)}."
            )
        for mesh_axis in RULES[logical]:
            if mesh_axis in used:
                raise errors.UserError(
                    f"Axes {used[mesh_axis]!r} and {logical!r} of {logical_axes} both claim mesh "
                    f"axis {mesh_axis!r}."
                )
            used[mesh_axis] = logical
        dims.append(RULES[logical] or None)
    return PartitionSpec(*dims)


def sharding(
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    logical_axes: tuple[str, ...],
    shape: tuple[int, ...],
    name: str = "",
) -> NamedSharding:
    """The sharding of an array of `shape`; `name` is its name in messages.

    Raises:
      UserError: a dimension is not a multiple of the devices over which it is sharded.
    """
    if len(logical_axes) != len(shape):
        raise errors.UserError(f"{name}: shape {shape} does not have the axes {logical_axes}.")
    for logical, size in zip(logical_axes, shape, strict=True):
        devices = num_shards(logical, mesh.shape)
        if size % devices:
            raise errors.UserError(
                f"{name or 'array'} of shape {shape}: dimension {logical!r} of size {size} is not "
                f"a multiple of the {devices} devices along {RULES[logical]}."
            )
    return NamedSharding(mesh, spec(logical_axes))


def mesh_sizes() -> Mapping[str, int]:
    """Devices along each mesh axis, inside jit under `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return collections.defaultdict(lambda: 1, () if mesh.empty else mesh.shape.items())


def has_several_devices() -> bool:
    """Whether the mesh has several devices, inside jit under `jax.set_mesh`."""
    return math.prod(mesh_sizes().values()) > 1


def num_shards(logical_axis: str, sizes: Mapping[str, int]) -> int:
    """The number of shards of a dimension, by the table and these sizes of mesh axes."""
    return math.prod(sizes[axis] for axis in RULES.get(logical_axis, ()))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding with which every device holds the whole array."""
    return NamedSharding(mesh, spec(()))


def constrain(array: jax.Array, logical_axes: tuple[str, ...]) -> jax.Array:
    """Constrains `array` to the table's sharding, inside jit under `jax.set_mesh`.

    Without a mesh it is returned unchanged. The stream needs this: otherwise the partitioner
    gathers the rows of the whole batch on every device instead of a small weight.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, spec(logical_axes))


def split_rows(x_B: jax.Array, parts: int, logical_axes: tuple[str, ...]) -> jax.Array:
    """[B, …] -> [parts, B / parts, …], each part with `logical_axes`.

    Row b goes to part b mod parts, so that each device keeps its own rows.
    """
    x_PB = x_B.reshape(-1, parts, *x_B.shape[1:]).swapaxes(0, 1)
    return constrain(x_PB, ("scalar", *logical_axes))
