"""What gradient flow measures."""

from experiments.gradient_flow import points
from keel_jax import config


def test_every_topology_is_measured():
    cases = points.cases(points.PRESETS["micro"])
    assert {name for name, _ in cases} == set(points.NAMES) >= set(config.TOPOLOGIES)
    assert len(cases) == len(set(cases)) and ("keel", 512) in cases
    assert max(n for name, n in cases if name == "post_ln") < 63  # 2^-63 squared is no float32
