"""The levels in which weights are gathered, and gradients scattered."""

import math

import pytest

from keel_jax.parallel import gathering


@pytest.mark.parametrize("largest", [8, 16])
def test_levels_multiply_to_the_whole_and_stay_within_bounds(largest):
    for size in range(1, 300):
        levels = gathering.levels(size, largest)
        assert math.prod(levels) == size
        over = [level for level in levels if level > largest]
        for level in over:  # what no number up to the bound divides
            assert all(level % n for n in range(2, largest + 1))
        powers = size & (size - 1) == 0
        assert not (powers and over)
        if powers and size > 1:
            assert len(levels) == math.ceil(math.log(size, largest) - 1e-9)
