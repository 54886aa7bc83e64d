"""The one table that says on which mesh axes each logical axis lies.

Modules name logical axes at the initialiser; nothing else in the project writes a PartitionSpec.
"""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

# Logical axis -> mesh axes. Parameters and optimiser state are split over `fsdp` along their
# model dimension and gathered where they are used (ZeRO-3), while the stream stays with its rows;
# depth is never split here, so that the scan reads one block at a time.
RULES = {
    "lane": ("lane",),
    "batch": ("data", "fsdp"),
    "time": (),
    "stream": (),
    "blocks": (),
    "embed": ("fsdp",),
    "heads": (),
    "kv_heads": (),
    "ffn": (),
    "vocab": (),
    "norm": (),
    "head_dim": (),
    "scalar": (),
}


def spec(logical_axes: tuple[str, ...]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions are `logical_axes`.

    Raises:
      ValueError: an axis is not in the table, or two dimensions claim the same mesh axis.
    """
    used: dict[str, str] = {}
    dims = []
    for logical in logical_axes:
        if logical not in RULES:
            raise ValueError(f"Logical axis {logical!r} has no rule; known: {', '.join(RULES)}.")
        for mesh_axis in RULES[logical]:
            if mesh_axis in used:
                raise ValueError(
                    f"Axes {used[mesh_axis]!r} and {logical!r} of {logical_axes} both claim mesh "
                    f"axis {mesh_axis!r}."
                )
            used[mesh_axis] = logical
        dims.append(RULES[logical] or None)
    return PartitionSpec(*dims)


def sharding(
    mesh: jax.sharding.Mesh, logical_axes: tuple[str, ...], shape: tuple[int, ...], name: str = ""
) -> NamedSharding:
    """Where an array of `shape` lies.

    Raises:
      ValueError: a dimension is not a multiple of the devices that share it.
    """
    if len(logical_axes) != len(shape):
        raise ValueError(f"{name}: shape {shape} has not the axes {logical_axes}.")
    for logical, size in zip(logical_axes, shape, strict=True):
        devices = math.prod(mesh.shape[axis] for axis in RULES.get(logical, ()))
        if size % devices:
            raise ValueError(
                f"{name or 'array'} of shape {shape}: dimension {logical!r} of size {size} is not "
                f"a multiple of the {devices} devices along {RULES[logical]}."
            )
    return NamedSharding(mesh, spec(logical_axes))


def constrain(array: jax.Array, logical_axes: tuple[str, ...]) -> jax.Array:
    """Keeps `array` where the table says, inside jit under `jax.set_mesh`; without a mesh, as is.

    The stream needs it: left alone, the partitioner prefers to gather the rows of the whole batch
    on every device over gathering a small weight.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, spec(logical_axes))
