"""Effects of cells whose losses are sums of known terms."""

import itertools

import pytest

from experiments.branch_weight import effects, points
from experiments.branch_weight.points import Cell

UNIGRAM = 5.0
_OF_WEIGHT = dict(zip(points.WEIGHTS, (0.0, 0.1, 0.4, 0.45), strict=True))
_OF_SEED = {30: 0.01, 31: -0.02, 32: 0.015}


def _learned(cell: Cell, seed: int) -> float:
    """Nats below the line; what the norm does depends on the weight, and a little on the seed."""
    norm = {points.ONE: 0.3, points.OVER_L: -0.1}.get(cell.weight, 0.0)
    is_normed = cell.stream == points.NORMED
    return (
        1.0
        + _OF_WEIGHT[cell.weight]
        + is_normed * (norm + _OF_SEED[seed])
        + 0.2 * (cell.embedding == points.UNIT)
        - 0.3 * (cell.scale == points.CARRIED)
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
        "normed over plain, weight 1": 0.3 + shift,
        "normed over plain, weight over_L": -0.1 + shift,
        "normed over plain, weight learned": shift,
        "normed over plain": (0.3 - 0.1) / 4 + shift,
        "over_L over 1, stream plain": 0.4,
        "over_L over 1, stream normed": 0.4 - 0.1 - 0.3,
        "over_L over over_sqrt_L, stream plain": 0.3,
        "learned over over_L, stream normed": 0.05 + 0.1,
        "unit over small, stream plain": 0.2,
        "carried over literal, stream normed": -0.3,
    }
    for name, value in expected.items():
        assert found[name]["mean"] == pytest.approx(value, abs=1e-9), name
        assert found[name]["num_seeds"] == 3


def test_verdicts_are_those_of_corrected_intervals():
    found = effects.effects(_rows(), UNIGRAM)
    assert found["normed over plain, weight 1"]["verdict"] == "holds"
    # Its interval contains 0.
    assert found["normed over plain, weight learned"]["verdict"] == "undecided"
    # Its interval alone would decide it, and among so many it does not.
    row = found["normed over plain, weight over_L"]
    assert row["high"] < 0 and row["p"] < 0.05 < row["p_holm"]
    assert row["verdict"] == "undecided"


def test_cells_that_were_not_run_take_no_part():
    carried = [cell for cell in points.CELLS if cell.scale == points.CARRIED]
    found = effects.effects(_rows(carried), UNIGRAM)
    assert not [name for name in found if name.startswith("carried over")]
    assert found["unit over small, stream plain"]["mean"] == pytest.approx(0.2)


def test_pairs_differ_in_one_factor_alone():
    for contrast in effects.CONTRASTS:
        pairs = contrast.pairs(points.CELLS)
        assert len(pairs) == len(points.CELLS) // _share(contrast)
        for one, other in pairs:
            assert vars(one) | {contrast.factor: contrast.other} == vars(other)
            assert all(getattr(one, factor) == choice for factor, choice in contrast.where.items())


def _share(contrast) -> int:
    sizes = {"stream": 2, "weight": 4, "embedding": 2, "scale": 2}
    share = 1
    for factor in itertools.chain([contrast.factor], contrast.where):
        share *= sizes[factor]
    return share
