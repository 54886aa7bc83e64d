"""Effects of cells whose losses are sums of known terms."""

import itertools

import pytest

from experiments.branch_weight import effects, points
from experiments.branch_weight.points import Cell
from experiments.sweeps import intervals

UNIGRAM = 5.0
_OF_WEIGHT = dict(zip(points.WEIGHTS, (0.0, 0.1, 0.4, 0.45), strict=True))
_OF_SEED = {30: 0.01, 31: -0.02, 32: 0.015}


def _learned(cell: Cell, seed: int) -> float:
    """Nats below the line; what the norm does depends on the weight, and a little on the seed."""
    norm = {points.ONE: 0.3, points.INV_L: -0.1}.get(cell.weight, 0.0)
    is_normed = cell.stream == points.NORMED
    return (
        1.0
        + _OF_WEIGHT[cell.weight]
        + is_normed * (norm + _OF_SEED[seed])
        + 0.2 * (cell.embedding == points.UNIT)
        - 0.3 * (cell.init == points.WIDTH_SCALED)
    )


def _rows(cells=points.CELLS, seeds=tuple(_OF_SEED)):
    return {
        cell: {
            seed: {rate: UNIGRAM - _learned(cell, seed) for rate in (1e-3, 1e-2)} for seed in seeds
        }
        for cell in cells
    }


def test_each_effect_is_the_term_that_it_is_of():
    found = effects.effects(_rows(), UNIGRAM)
    assert len(found) == len(effects.CONTRASTS)
    shift = sum(_OF_SEED.values()) / 3
    expected = {
        "normed vs plain, weight 1": 0.3 + shift,
        "normed vs plain, weight inv_L": -0.1 + shift,
        "normed vs plain, weight learned": shift,
        "normed vs plain, weight inv_L, embedding small": -0.1 + shift,
        "inv_L vs 1, stream plain": 0.4,
        "inv_L vs 1, stream normed": 0.4 - 0.1 - 0.3,
        "inv_L vs inv_sqrt_L, stream plain": 0.3,
        "learned vs inv_L, stream normed": 0.05 + 0.1,
        "unit vs small, stream plain": 0.2,
        "width_scaled vs fixed, stream normed": -0.3,
    }
    for name, value in expected.items():
        assert found[name]["mean"] == pytest.approx(value, abs=1e-9), name
        assert found[name]["num_seeds"] == 3


def test_p_values_are_corrected_for_their_number():
    found = effects.effects(_rows(), UNIGRAM)
    assert [row["p_holm"] for row in found.values()] == intervals.holm(
        [row["p"] for row in found.values()]
    )
    # Its interval alone would decide it.
    row = found["normed vs plain, weight inv_L"]
    assert row["high"] < 0 and row["p"] < 0.05 < row["p_holm"]


def test_cells_that_were_not_run_take_no_part():
    scaled = [cell for cell in points.CELLS if cell.init == points.WIDTH_SCALED]
    found = effects.effects(_rows(scaled), UNIGRAM)
    assert not [name for name in found if name.startswith("width_scaled")]
    row = found["unit vs small, stream plain"]
    assert row["mean"] == pytest.approx(0.2) and row["num_pairs"] == 4
    # Nor does a cell whose partner was not run.
    alone = effects.effects(_rows(points._FEW_CELLS), UNIGRAM)
    assert alone["unit vs small, stream plain"]["num_pairs"] == 4
    assert alone["learned vs inv_L, stream plain"]["num_pairs"] == 1


def test_pairs_differ_in_one_factor_alone():
    for contrast in effects.CONTRASTS:
        pairs = contrast.pairs(points.CELLS)
        assert len(pairs) == len(points.CELLS) // _share(contrast)
        for one, other in pairs:
            assert vars(one) | {contrast.factor: contrast.other} == vars(other)
            assert all(getattr(one, factor) == choice for factor, choice in contrast.where.items())


def _share(contrast) -> int:
    sizes = {"stream": 2, "weight": 4, "embedding": 2, "init": 2}
    share = 1
    for factor in itertools.chain([contrast.factor], contrast.where):
        share *= sizes[factor]
    return share
