"""Functions on each device's part of an array: `jax.shard_map`, placed by the one rule table."""

from collections.abc import Callable, Sequence

import jax

from keel_jax.parallel import sharding

Axes = tuple[str, ...]


def over_mesh(
    function: Callable, in_axes: Sequence[Axes], out_axes: Axes | tuple[Axes, ...]
) -> Callable:
    """`function` of whole arrays, run by every device on its own part of them.

    The mesh is the ambient one (`jax.set_mesh`), and of it what no surrounding shard_map has taken:
    within a pipeline's stage the axis `stage` is manual already, and the others are still to be
    split. Without a mesh, or with nothing left to split, `function` itself.

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
    is_one = not out_axes or isinstance(out_axes[0], str)
    out_specs = sharding.spec(out_axes) if is_one else tuple(map(sharding.spec, out_axes))
    return jax.shard_map(
        function,
        in_specs=tuple(sharding.spec(axes) for axes in in_axes),
        out_specs=out_specs,
        axis_names=auto,
        # Pallas kernels and hand-written gradients do not say over which axes they vary, and what
        # was gathered over an axis is not known to be alike along it.
        check_vma=False,
    )
