"""Devices by name: what is refused, and how."""

import jax
import pytest

from keel_jax.parallel import topology
from keel_jax.planning import chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "kinds are v2, v3, v4, v5e"),
        ("", "kinds are"),
        ("v5e", r"v5e takes 2 size\(s\)"),
        ("v5e:4x4x4", r"v5e takes 2 size\(s\).*v5e:4x4"),
        ("v5p:4x4", r"v5p takes 3 size\(s\).*v5p:4x4x4"),
        ("v5e:0x4", "takes 2"),
        ("v5e:4000x4000", "at most 9216"),
        ("cpu:x", "cpu takes 1"),
        ("v5e:3x3", "knows no topology 'v5e:3x3'"),
        ("cpu:512", "JAX has 8 simulated devices"),
    ],
)
def test_what_is_not_there_is_refused(name, message, capfd):
    with pytest.raises(ValueError, match=message):
        _ = topology.parse(name).devices
    assert capfd.readouterr().err == ""


def test_libtpu_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'keel_jax\[plan\]'"):
        _ = topology.parse("v5e:2x2").devices


@pytest.mark.parametrize(
    ("name", "count"),
    [("v4:2x2x2", 8), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("tpu7x:2x2x1", 8)],
)
def test_tpus_that_are_not_there(name, count, capfd):
    devices = topology.parse(name).devices
    assert len(devices) == count
    # As JAX sees them: two devices on a tpu7x chip.
    chip = chips.require_chip(devices[0])
    assert chip and chip.flops_per_second == chips.peak_flops_per_second(devices[0])
    assert capfd.readouterr().err == ""


def test_slices_are_told_apart():
    devices = topology.parse("v5e:2x2", num_slices=2).devices
    assert [device.slice_index for device in devices] == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="num_slices=0"):
        topology.parse("v5e:2x2", num_slices=0)


def test_simulated_devices():
    assert topology.parse("cpu:4").devices == jax.devices()[:4]


@pytest.mark.parametrize(
    ("name", "num_slices", "simulated"), [("cpu:8", 2, 2), ("cpu:8", 1, 1), ("v5e:2x2", 2, None)]
)
def test_slices_are_simulated_on_a_cpu_alone(name, num_slices, simulated):
    assert topology.parse(name, num_slices).simulated_slices == simulated
