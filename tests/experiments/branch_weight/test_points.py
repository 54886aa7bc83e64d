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
    weight = {points.ONE: 1.0, points.OVER_SQRT_L: 0.25}.get(cell.weight, 1 / 16)
    np.testing.assert_allclose((topology.branch_scale / topology.alpha)[1:], weight, rtol=1e-6)
    assert topology.residual_scale == (1.0 if cell.weight == points.LEARNED else None)
    assert model.embedding_std == (1.0 if cell.embedding == points.UNIT else 0.02)
    assert model.init_std == pytest.approx(0.16 if cell.scale == points.CARRIED else 0.02)


def test_the_named_cells_are_the_named_topologies():
    # At their defaults: the config of Keel, of CompleteP and of Pre-LN, up to the initial values.
    rest = points.SMALL, points.LITERAL
    assert _model(Cell("normed", "over_L", *rest)).topology == "keel"
    assert _model(Cell("normed", "over_L", *rest)).alpha is None
    complete_p = _model(Cell("plain", "over_L", *rest))
    assert complete_p.topology == "complete_p" and complete_p.branch_scale is None
    pre_ln = dataclasses.replace(complete_p, topology="pre_ln")
    one = residual.topology(_model(Cell("plain", "1", *rest)))
    for name, values in vars(residual.topology(pre_ln)).items():
        np.testing.assert_array_equal(getattr(one, name), values, err_msg=name)


@pytest.mark.parametrize("preset", points.PRESETS)
def test_every_depth_has_whole_factors_and_seeds_in_common(preset):
    for depth, cells in _by_depth(points.PRESETS[preset]().points).items():
        kinds = set(cells)
        for cell in kinds:
            for factor, choices in (("stream", points.STREAMS), ("weight", points.WEIGHTS)):
                assert {dataclasses.replace(cell, **{factor: c}) for c in choices} <= kinds, depth
        assert len({frozenset(runs) for runs in cells.values()}) == 1, "rates and seeds differ"


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
