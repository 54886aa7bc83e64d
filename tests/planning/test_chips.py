"""The chip table: what it does not have is refused, and nothing is guessed."""

import pytest

from keel_jax import errors
from keel_jax.parallel import gpus
from keel_jax.planning import chips


class _Device:
    id = 0

    def __init__(self, platform, device_kind):
        self.platform, self.device_kind = platform, device_kind

    def memory_stats(self):
        return None


@pytest.mark.parametrize(
    ("platform", "name", "near"),
    [("tpu", "TPU v99", "TPU v"), ("gpu", "NVIDIA H100 NVL", "NVIDIA H")],
)
def test_unknown_chips_are_refused(platform, name, near):
    device = _Device(platform, name)
    assert chips.peak_flops_per_second(device) is None
    with pytest.raises(ValueError, match=f"no '{name}'; the nearest it has is '{near}"):
        chips.require_chip(device)


@pytest.mark.parametrize("kind", gpus.GPUS)
def test_every_gpu_that_can_be_described_has_its_numbers(kind):
    gpu = gpus.GPUS[kind]
    chip = chips.require_chip(_Device("gpu", gpu.device_kind))
    assert chip and chip.hbm_bytes_per_second == gpu.memory_bytes_per_second
    # A GPU's own links are faster than the network.
    assert chip.ring_bytes_per_second > chip.dcn_bytes_per_second


def test_a_gpu_lends_a_program_what_jax_s_allocator_takes(monkeypatch):
    device = _Device("gpu", "NVIDIA H100 80GB HBM3")
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    whole = gpus.GPUS["h100"].memory_bytes
    assert chips.memory_bytes(device) == round(0.75 * whole)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert chips.memory_bytes(device) == round(0.9 * whole)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "90")
    with pytest.raises(errors.UserError, match="XLA_CLIENT_MEM_FRACTION='90' must be a number"):
        chips.memory_bytes(device)
