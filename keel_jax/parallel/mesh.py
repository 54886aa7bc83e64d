"""The device mesh: named axes over the devices that a run uses."""

from collections.abc import Sequence

import jax
import numpy as np

from keel_jax import config

AXES = ("lane", "data", "fsdp")


def make(mesh: config.MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh with axes AXES over `devices` (all of them by default).

    Axes are of type Auto: `jax.make_mesh` gives Explicit ones, under which linen's constraints
    raise.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = resolve_sizes(mesh, len(devices))
    return jax.sharding.Mesh(
        np.asarray(devices).reshape(sizes),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    )


def resolve_sizes(mesh: config.MeshConfig, num_devices: int) -> tuple[int, ...]:
    """The size of each axis in AXES, with -1 replaced by what is left of `num_devices`."""
    sizes = [getattr(mesh, axis) for axis in AXES]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and num_devices % fixed == 0:
        sizes[sizes.index(-1)] = num_devices // fixed
    if int(np.prod(sizes)) != num_devices:
        wanted = ", ".join(f"mesh.{a}={getattr(mesh, a)}" for a in AXES)
        raise ValueError(
            f"{wanted} do not multiply to the {num_devices} devices that are there; set one of "
            "them to -1 to take what is left."
        )
    return tuple(sizes)
