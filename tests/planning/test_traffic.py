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


# --- A GPU's text --------------------------------------------------------------------------------

# As XLA writes it (jax 0.10.2): collectives of several arrays, started and ended apart; one that
# has nothing beside it says so.
_GPU_TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: bf16[16,8], y: bf16[32,8], z: f32[4]) -> f32[4] {
  %x = bf16[16,8]{1,0} parameter(0)
  %y = bf16[32,8]{1,0} parameter(1)
  %z = f32[4]{0} parameter(2)
  %g = ((bf16[16,8]{1,0}, bf16[32,8]{1,0}), (bf16[64,8]{1,0}, bf16[128,8]{1,0})) \
all-gather-start(%x, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, ASYNC
  %gd = (bf16[64,8]{1,0}, bf16[128,8]{1,0}) all-gather-done(%g)
  %s = ((bf16[16,8]{1,0}), bf16[4,8]{1,0}) reduce-scatter-start(%x), \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add, ASYNC
  %sd = bf16[4,8]{1,0} reduce-scatter-done(%s)
  %r = f32[4]{0} all-reduce-start(%z), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add, SYNC
  ROOT %rd = f32[4]{0} all-reduce-done(%r)
}
"""


def test_collectives_of_a_gpu_s_text():
    """Two hosts of four GPUs: NVLink within them, the network between them."""
    text = _GPU_TEXT
    for name, value in (("ASYNC", "false"), ("SYNC", "true")):
        config = f'backend_config={{"collective_backend_config":{{"is_sync":{value}}}}}'
        text = text.replace(f", {name}\n", f", {config}\n")
    mesh = _mesh(simulated_slices=2, fsdp=4, dcn_data=2)
    found = traffic.collectives(hlo.parse(text), mesh, 2, ("nvlink", "network"))
    shapes = [[shape.dims for shape in c.shapes] for c in found]
    assert shapes == [[(64, 8), (128, 8)], [(4, 8)], [(4,)]]
    assert [(c.kind, c.axes, c.network, c.is_async) for c in found] == [
        ("all-gather", ("fsdp",), "nvlink", True),
        ("reduce-scatter", ("fsdp",), "nvlink", True),
        ("all-reduce", ("data",), "network", False),
    ]
    assert [c.bytes for c in found] == [3 * 48 * 8 * 2, 0.75 * 16 * 8 * 2, 4 * 4]
