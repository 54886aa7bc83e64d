"""The closed forms of gradient flow."""

import numpy as np
import pytest

from experiments.gradient_flow import analysis, points, theory
from keel_jax.model import residual

TINY = points.PRESETS["tiny"]


def _gain(name: str, num_blocks: int) -> float:
    """The closed form's gain from block 0's output to the top."""
    return analysis.theory_gain(name, num_blocks, TINY)[analysis.BLOCK_1]


@pytest.mark.parametrize(("num_sublayers", "paper"), [(64, 0.992), (1024, 0.9995)])
def test_the_papers_figures_for_keel(num_sublayers, paper):
    """arXiv:2601.19895, §3. Block 0 has an alpha of its own, so two of L sub-layers are missing."""
    factor = num_sublayers / np.hypot(num_sublayers, 1)
    assert _gain("keel", num_sublayers // 2) == pytest.approx(factor ** (num_sublayers - 2))
    assert factor**num_sublayers == pytest.approx(paper, abs=5e-4)


def test_the_closed_forms_of_the_others():
    assert _gain("post_ln", 32) == pytest.approx(2.0**-31)
    assert _gain("pre_ln", 32) == 1
    assert _gain("keel, alpha = sqrt(L)", 512) == pytest.approx(np.exp(-0.5), rel=0.01)
    assert _gain("keel, alpha = 10", 512) == pytest.approx(0.006, rel=0.05)
    assert _gain("deepnorm", 256) == pytest.approx(1.6e-5, rel=0.05)


def test_factors_from_sizes_are_those_of_unit_branches_where_branches_are_units():
    topology = residual.topology(points.model("keel", 4, TINY))
    ones_N2 = np.ones((4, 2))
    np.testing.assert_allclose(
        theory.from_sizes(topology, ones_N2, ones_N2, ones_N2), theory.unit_branches(topology)
    )
    small = theory.gain(theory.from_sizes(topology, ones_N2, 0.1 * ones_N2, ones_N2))
    assert theory.gain(theory.unit_branches(topology))[2] < small[2] < 1


def test_gains_that_all_grow_alike_leave_the_path_as_it_is():
    """alpha is that many times larger beside F, and each norm divides by as much."""
    topology = residual.topology(points.model("keel", 4, TINY))
    ones_N2 = np.ones((4, 2))
    factors = theory.from_sizes(topology, 2 * ones_N2, 2 * ones_N2, 2 * ones_N2)
    np.testing.assert_allclose(factors, theory.unit_branches(topology))
