"""The device mesh: named axes over the devices that a run uses, within slices and across them."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from keel_jax import config, errors
from keel_jax.runtime import devices as devices_lib

AXES = config.MESH_AXES


def make(
    mesh: config.MeshConfig,
    devices: Sequence[devices_lib.Device] | None = None,
    simulated_slices: int | None = None,
) -> jax.sharding.Mesh:
    """A mesh with axes AXES over `devices` (all of them by default).

    Along each axis the slices are outermost: its first (size within a slice) devices share a
    slice. Within a slice JAX maps the axes to the physical links.

    Axes are of type Auto: `jax.make_mesh` makes Explicit ones, with which linen's constraints
    raise.

    Args:
      simulated_slices: so many groups of equal size, in the order of `devices`, stand for slices;
        None: the devices' own `slice_index` is used.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or of slices.
    """
    slices = split_slices(jax.devices() if devices is None else devices, simulated_slices)
    sizes = tuple(resolve_sizes(mesh, len(slices[0]), len(slices)).values())
    ici, dcn = zip(*sizes, strict=True)
    within = [
        mesh_utils.create_device_mesh(ici, group, allow_split_physical_axes=True)
        for group in slices
    ]
    # [dcn…, ici…] -> [dcn0, ici0, dcn1, ici1, …] -> [dcn0 * ici0, …].
    stacked = np.stack(within).reshape(*dcn, *ici)
    pairs = [axis for pair in enumerate(range(len(AXES), 2 * len(AXES))) for axis in pair]
    return jax.sharding.Mesh(
        stacked.transpose(pairs).reshape(np.multiply(ici, dcn)),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    )


def widest(model: config.ModelConfig) -> config.MeshConfig:
    """A mesh with as many shards as all matrices allow; other devices and slices are replicas.

    For entry points that load a run's weights on whatever devices this machine has.
    """
    slice_devices = len(split_slices(jax.devices())[0])
    fsdp = math.gcd(slice_devices, model.d_model, model.d_ffn, model.num_heads * model.head_dim)
    return config.MeshConfig(data=-1, fsdp=fsdp)


def split_slices(
    devices: Sequence[devices_lib.Device], simulated_slices: int | None = None
) -> list[list[devices_lib.Device]]:
    """The devices of each slice; arguments as in `make`.

    Raises:
      UserError: the slices differ in size.
    """
    devices = list(devices)
    if simulated_slices is None:
        index_of = {device: getattr(device, "slice_index", 0) for device in devices}
    else:
        index_of = {d: i * simulated_slices // len(devices) for i, d in enumerate(devices)}
    slices: dict[int, list[devices_lib.Device]] = {}
    for device in devices:
        slices.setdefault(index_of[device], []).append(device)
    sizes = [len(group) for group in slices.values()]
    if len(set(sizes)) > 1:
        raise errors.UserError(
            f"The {len(devices)} devices form slices of {sizes} devices: they must be of one size."
        )
    return [slices[index] for index in sorted(slices)]


def resolve_sizes(
    mesh: config.MeshConfig, slice_devices: int, num_slices: int
) -> dict[str, tuple[int, int]]:
    """(size within a slice, size across slices) of each axis in AXES, with -1 replaced.

    Raises:
      UserError: the sizes do not multiply to `slice_devices` and `num_slices`.
    """
    ici = _resolve(mesh.ici_sizes, slice_devices, "devices of a slice")
    dcn = _resolve(mesh.dcn_sizes, num_slices, "slices")
    return dict(zip(AXES, zip(ici, dcn, strict=True), strict=True))


def _resolve(sizes: Mapping[str, int], total: int, what: str) -> list[int]:
    """`sizes` with -1 replaced by the rest of `total`; `what` describes it in the message."""
    fixed = math.prod(size for size in sizes.values() if size != -1)
    resolved = [total // fixed if size == -1 else size for size in sizes.values()]
    if math.prod(resolved) != total:
        given = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size != 1)
        raise errors.UserError(
            f"{given or 'The sizes of the mesh'} do not multiply to the {total} {what} "
            "available (every other size is 1); set one of them to -1 to take what is left."
        )
    return resolved
