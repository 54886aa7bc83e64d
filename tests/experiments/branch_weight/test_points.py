"""The cells are the equations that they are named after."""

import dataclasses

import numpy as np
import pytest

from experiments.branch_weight import points
from experiments.branch_weight.points import Cell
from experiments.sweeps import point as point_lib
from keel_jax.model import residual
from tests import conftest


def _model(cell: Cell, num_sublayers: int = 16):
    options = cell.options(num_sublayers, 16)
    given = {name.removeprefix("model."): value for name, value in options.items()}
    return conftest.tiny_config(model=given).model


@pytest.mark.parametrize("cell", points.CELLS, ids=lambda cell: cell.name)
def test_a_cell_has_its_norm_and_its_weight(cell):
    """The weight is that of the branch over that of the stream, from block 1 on."""
    model = _model(cell)
    topology = residual.topology(model)
    is_normed = cell.stream == points.NORMED
    assert topology.outer_norm[1:].all() == is_normed == (not topology.final_norm)
    assert topology.inner_norm.all()
    weight = {points.ONE: 1.0, points.INV_SQRT_L: 0.25}.get(cell.weight, 1 / 16)
    np.testing.assert_allclose((topology.branch_scale / topology.alpha)[1:], weight, rtol=1e-6)
    assert topology.residual_scale == (1.0 if cell.weight == points.LEARNED else None)
    assert model.embedding_std == (1.0 if cell.embedding == points.UNIT else 0.02)
    assert model.init_std == pytest.approx(0.16 if cell.init == points.WIDTH_SCALED else 0.02)


def test_the_named_cells_are_the_named_topologies():
    # At their defaults: the config of Keel, of CompleteP and of Pre-LN, up to the initial values.
    rest = points.SMALL, points.FIXED
    keel = _model(Cell("normed", "inv_L", *rest))
    assert keel.topology == "keel" and keel.alpha is None
    complete_p = _model(Cell("plain", "inv_L", *rest))
    assert complete_p.topology == "complete_p" and complete_p.branch_scale is None
    pre_ln = dataclasses.replace(complete_p, topology="pre_ln")
    one = residual.topology(_model(Cell("plain", "1", *rest)))
    for name, values in vars(residual.topology(pre_ln)).items():
        np.testing.assert_array_equal(getattr(one, name), values, err_msg=name)


@pytest.mark.parametrize("preset", points.PRESETS)
def test_cells_are_compared_on_one_grid_and_paired(preset):
    """At a depth all cells have the same rates and seeds, and a cell is there with its partners."""
    for depth, cells in _by_depth(points.PRESETS[preset]().points).items():
        assert len({frozenset(runs) for runs in cells.values()}) == 1, depth
        for cell in cells:
            assert dataclasses.replace(cell, stream=points.NORMED) in cells
            assert dataclasses.replace(cell, stream=points.PLAIN) in cells
            for weight in points.WEIGHTS:
                usual = points.UNIT, points.WIDTH_SCALED
                assert Cell(cell.stream, weight, *usual) in cells


def test_its_cost_is_that_of_the_docs():
    """Millions of steps of a sub-layer in a trial, by depth."""
    cost = {64: 0.0, 256: 0.0}
    members = points.deep().points
    for each in members:
        depth = points.parse_series(each.series)[1]
        cost[depth] += depth * each.overrides["train.num_steps"] / 1e6
    assert cost == {64: pytest.approx(9.8, abs=0.05), 256: pytest.approx(24.6, abs=0.05)}
    assert len(members) == 832


def _by_depth(members):
    depths = {}
    for each in members:
        cell, depth = points.parse_series(each.series)
        assert cell.series(depth) == each.series
        depths.setdefault(depth, {}).setdefault(cell, set()).add((each.peak_lr, each.seed))
    return depths


def test_series_are_told_apart():
    for preset in points.PRESETS.values():
        point_lib.group_by_series(preset().points)
