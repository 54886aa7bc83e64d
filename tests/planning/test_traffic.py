"""What a program sends between devices, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import hlo, traffic


def _mesh(simulated_slices=None, **sizes):
    return mesh_lib.make(config.MeshConfig(**sizes), jax.devices()[:8], simulated_slices)


def test_collectives_by_hand():
    mesh = _mesh(data=2, fsdp=4)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=split)
    compiled = jax.jit(lambda x: x * 2, out_shardings=whole).lower(x).compile()
    [gather] = traffic.collectives(hlo.read_program(compiled), mesh)
    assert (gather.kind, gather.axes, gather.group_size) == ("all-gather", ("fsdp",), 4)
    assert (gather.count, gather.bytes, gather.network) == (1, 3 * 4 * 4 * 4, "ici")
    assert gather.shapes[0].dims == (16, 4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("all-gather", 30), ("reduce-scatter", 7.5), ("all-reduce", 15), ("collective-permute", 10)],
)
def test_bytes_of_a_ring(kind, expected):
    assert traffic.sent_bytes(kind, 10, 4) == expected


def test_slices_tell_ici_from_dcn():
    """Each axis of a mesh whose data axis goes across slices."""
    mesh = _mesh(simulated_slices=2, fsdp=4, dcn_data=2)
    devices = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=devices)
    networks = {}
    for axis in ("data", "fsdp"):
        step = jax.shard_map(
            lambda x, axis=axis: jax.lax.psum(x, axis),
            mesh=mesh,
            in_specs=PartitionSpec(("data", "fsdp")),
            out_specs=PartitionSpec("fsdp" if axis == "data" else "data"),
        )
        [one] = traffic.collectives(hlo.read_program(jax.jit(step).lower(x).compile()), mesh, 2)
        assert one.axes == (axis,)
        networks[axis] = one.network
    assert networks == {"data": "dcn", "fsdp": "ici"}
