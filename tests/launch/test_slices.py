"""Names of slices, against the tables of cloud.google.com/tpu/docs/supported-tpu-configurations."""

import pytest

from launch import slices


@pytest.mark.parametrize(
    ("name", "accelerator_type"),
    [
        ("v4:2x2x1", "v4-8"),
        ("v4:2x2x2", "v4-16"),
        ("v4:2x2x4", "v4-32"),
        ("v4:2x4x4", "v4-64"),
        ("v4:4x4x4", "v4-128"),
        ("v5p:2x2x1", "v5p-8"),
        ("v5p:2x2x2", "v5p-16"),
        ("v5p:4x4x4", "v5p-128"),
        ("v5p:4x4x8", "v5p-256"),
        ("v5p:4x8x8", "v5p-512"),
        ("v5p:8x8x8", "v5p-1024"),
        ("v5p:8x8x16", "v5p-2048"),
        ("v5e:1x1", "v5litepod-1"),
        ("v5e:2x2", "v5litepod-4"),
        ("v5e:2x4", "v5litepod-8"),
        ("v5e:4x4", "v5litepod-16"),
        ("v5e:4x8", "v5litepod-32"),
        ("v5e:8x16", "v5litepod-128"),
        ("v5e:16x16", "v5litepod-256"),
        ("v6e:2x4", "v6e-8"),
        ("v6e:16x16", "v6e-256"),
    ],
)
def test_accelerator_types(name, accelerator_type):
    assert slices.parse(name).accelerator_type == accelerator_type


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5", "did you mean"),
        ("v5e", "no shape"),
        ("v5e:4x4x4", "3 dimensions"),
        ("v5e:0x4", "no shape"),
        ("v5e:32x16", "512 chips"),
        ("H100:8", "Unknown TPU generation"),
    ],
)
def test_unknown_slices_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        slices.parse(name)


def test_a_shape_that_gcloud_would_change_is_refused():
    with pytest.raises(ValueError, match="has the shape 2x4x4, not 2x2x8"):
        _ = slices.parse("v5p:2x2x8").accelerator_type
    with pytest.raises(ValueError, match="GKE only"):
        _ = slices.parse("tpu7x:2x2x2").accelerator_type


def test_machines_of_a_slice():
    assert slices.parse("v5e:16x16").num_machines(4) == 64
    with pytest.raises(ValueError, match="4 chips, which is not divisible by 8 chips"):
        slices.parse("v5e:2x2").num_machines(8)
