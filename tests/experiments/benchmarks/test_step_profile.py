"""The profile of a step: every kind of work is found in a real trace, where it is done."""

from experiments.benchmarks import step_profile as profile
from tests import conftest


def test_a_step_is_told_by_kind_and_pass():
    cfg = conftest.tiny_config(model=dict(recompute=dict(plan="block")))
    found = profile.measure(cfg, num_steps=1)
    spent = {(p["region"], p["pass"], p["kind"]): p["microseconds"] for p in found["parts"]}
    assert all(microseconds > 0 for microseconds in spent.values())
    for pass_ in ("forward", "recompute", "backward"):
        assert ("blocks", pass_, "multiplication") in spent, sorted(spent)
    assert ("optimizer", "update", "elementwise") in spent
    assert found["step_seconds"] > 0
