"""Variants differ from Keel in what they are named after, and are compared on one grid."""

import pytest

from experiments.sweeps import point as point_lib
from experiments.vanishing import drawing, points
from keel_jax import config


@pytest.mark.parametrize("preset", points.PRESETS)
def test_variants_of_a_depth_have_the_same_rates_and_seeds(preset):
    """The primary pair may have more seeds."""
    members = points.PRESETS[preset]().points
    by_depth = {}
    for series, group in point_lib.group_by_series(members).items():
        variant, depth = points.parse_series(series)
        assert points.series(variant, depth) == series
        runs = frozenset((each.peak_lr, each.seed) for each in group)
        by_depth.setdefault(depth, {})[variant] = runs
    for variants in by_depth.values():
        assert {"keel", "keel_capped", "complete_p"} <= set(variants)
        assert variants["keel"] == variants["keel_capped"]
        rest = {runs for name, runs in variants.items() if name not in points._PRIMARY}
        assert len(rest) == 1 and rest.pop() <= variants["keel"]
        assert len({frozenset(rate for rate, _ in runs) for runs in variants.values()}) == 1


@pytest.mark.parametrize("variant", points.VARIANTS)
def test_a_variant_is_a_config_that_can_be_trained(variant, token_dir):
    """It sets what it says, over the preset's own options."""
    members = points.PRESETS["deep"]().points
    chosen = [each for each in members if each.series == points.series(variant, 64)]
    cfg = point_lib.build_config(chosen[:1], str(token_dir))
    flat = config.to_dict(cfg)
    for name, value in points.VARIANTS[variant].items():
        section, option = name.split(".")
        assert flat[section][option] == value
    is_open = cfg.model.topology == "keel"
    assert is_open == (variant in points.UNCAPPED)
    assert (cfg.model.topology == "keel_capped") == (variant in points.CAPPED)


def test_every_variant_is_drawn():
    assert {v for group in drawing._GROUPS.values() for v in group} == set(points.VARIANTS)


def test_its_cost_is_that_of_the_docs():
    """Millions of steps of a sub-layer in a trial, by depth."""
    cost = {}
    members = points.deep().points
    for each in members:
        depth = points.parse_series(each.series)[1]
        cost[depth] = cost.get(depth, 0) + depth * each.overrides["train.num_steps"] / 1e6
    assert cost == pytest.approx({256: 17.82, 64: 5.18, 1024: 8.29}, abs=0.005)
    assert len(members) == 529
