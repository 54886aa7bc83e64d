"""The chip table: what it does not have is refused, and nothing is guessed."""

import pytest

from keel_jax.planning import chips


class _Device:
    id = 0
    platform = "tpu"
    device_kind = "TPU v99"

    def memory_stats(self):
        return None


def test_unknown_chips_are_refused():
    device = _Device()
    assert chips.peak_flops_per_second(device) is None
    with pytest.raises(ValueError, match="no 'TPU v99'"):
        chips.require_chip(device)
