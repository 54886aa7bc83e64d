"""The mesh: sizes within and across slices, -1, and where each slice's devices end up."""

import dataclasses

import jax
import numpy as np
import pytest

from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib


def _sizes(num_devices=8, num_slices=1, **options):
    resolved = mesh_lib.resolve_sizes(config.MeshConfig(**options), num_devices, num_slices)
    return {axis: pair for axis, pair in resolved.items() if pair != (1, 1)}


def test_what_is_left_goes_to_the_axis_that_asks_for_it():
    assert _sizes() == {"fsdp": (8, 1)}
    assert _sizes(tensor=2, context=2) == {"fsdp": (2, 1), "context": (2, 1), "tensor": (2, 1)}
    assert _sizes(fsdp=2, data=-1, stage=2) == {"stage": (2, 1), "data": (2, 1), "fsdp": (2, 1)}


def test_slices_are_data_replicas_unless_told_otherwise():
    assert _sizes(num_slices=4) == {"data": (1, 4), "fsdp": (8, 1)}
    assert _sizes(num_slices=4, dcn_stage=2) == {"stage": (1, 2), "data": (1, 2), "fsdp": (8, 1)}
    assert _sizes(num_slices=4, dcn_fsdp=4) == {"fsdp": (8, 4)}


@pytest.mark.parametrize(
    ("options", "num_slices", "message"),
    [
        (dict(data=3), 1, r"mesh.data=3, mesh.fsdp=-1 do not multiply to the 8 devices"),
        (dict(fsdp=1), 1, r"do not multiply to the 8 devices"),
        (dict(fsdp=16), 1, r"mesh.fsdp=16 do not multiply to the 8 devices"),
        (dict(dcn_fsdp=3), 4, r"mesh.dcn_data=-1, mesh.dcn_fsdp=3 do not multiply to the 4 slices"),
        (dict(dcn_data=2), 1, r"mesh.dcn_data=2 do not multiply to the 1 slices"),
    ],
)
def test_sizes_that_do_not_multiply_are_refused_with_both_numbers(options, num_slices, message):
    with pytest.raises(ValueError, match=message):
        _sizes(num_slices=num_slices, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fsdp=-1, data=-1), "mesh.data=-1, mesh.fsdp=-1.* at most one is -1"),
        (dict(tensor=0), "mesh.tensor=0"),
        (dict(dcn_fsdp=-1), "mesh.dcn_data=-1, mesh.dcn_fsdp=-1.* at most one is -1"),
        (dict(stage_microbatches=4), "stage_microbatches=4 has no effect with mesh.stage=1"),
        (dict(trial=2, stage=2), "mesh.trial=2 and mesh.stage=2"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config.MeshConfig(**options)


def test_a_slice_is_a_block_along_every_axis():
    """Devices of one slice are neighbours along each axis; slices are its outer part."""
    options = config.MeshConfig(data=2, fsdp=2, dcn_data=1, dcn_fsdp=2)
    mesh = mesh_lib.make(options, simulated_slices=2)
    assert dict(mesh.shape) == dict(trial=1, stage=1, data=2, fsdp=4, context=1, tensor=1)
    ids = np.vectorize(lambda device: device.id)(mesh.devices).squeeze()
    np.testing.assert_array_equal(ids // 4, [[0, 0, 1, 1], [0, 0, 1, 1]])
    assert sorted(ids.flat) == list(range(8))


@dataclasses.dataclass(frozen=True, eq=False)
class _Device:
    """A device that says in which slice it is."""

    slice_index: int
    id: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5e"

    def memory_stats(self):
        return None


def test_slices_of_unlike_size_are_refused():
    with pytest.raises(ValueError, match=r"The 3 devices form slices of \[2, 1\] devices"):
        mesh_lib.split_slices([_Device(0), _Device(0), _Device(1)])


def test_slices_count_from_the_devices_themselves():
    devices = [_Device(index) for index in (1, 0, 1, 0)]
    groups = mesh_lib.split_slices(devices)
    assert groups == [[devices[1], devices[3]], [devices[0], devices[2]]]
    assert len(mesh_lib.split_slices(jax.devices())) == 1
    assert [len(g) for g in mesh_lib.split_slices(jax.devices(), 4)] == [2, 2, 2, 2]
