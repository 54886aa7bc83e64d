"""Functions of each device's shard of an array: `jax.shard_map` with specs from the rule table."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from keel_jax.parallel import sharding

Axes = tuple[str, ...]


def over_mesh(
    function: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Axes | tuple[Axes, ...]
) -> Callable[..., Any]:
    """A function of whole arrays, in which every device runs `function` on its own shard of them.

    The mesh is the ambient one (`jax.set_mesh`), without the axes that a surrounding shard_map has
    made manual (`stage`, within a pipeline's stage). Without a mesh, or if no axis remains, the
    result is `function` itself.

    Args:
      in_axes: logical axes of each positional argument.
      out_axes: logical axes of the one result, or of each of several.
    """
    mesh = jax.sharding.get_abstract_mesh()
    auto = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == jax.sharding.AxisType.Auto
    }
    if not auto:
        return function
    return jax.shard_map(
        function,
        in_specs=tuple(sharding.spec(axes) for axes in in_axes),
        out_specs=jax.tree.map(sharding.spec, out_axes, is_leaf=_is_one_array),
        axis_names=auto,
        # Pallas kernels and hand-written gradients do not declare over which axes they vary, and
        # JAX does not know that the result of a gather over an axis is equal along it.
        check_vma=False,
    )


def _is_one_array(axes: tuple) -> bool:
    """Whether these are the axes of one array, and not a tuple of several arrays' axes."""
    return all(isinstance(axis, str) for axis in axes)
