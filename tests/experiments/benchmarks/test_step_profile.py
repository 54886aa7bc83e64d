"""The profile of a step: every kind of work is result in a real trace, where it is done."""

from experiments.benchmarks import step_profile as profile
from tests import conftest


def test_a_steps_time_is_split_by_kind_and_pass():
    cfg = conftest.tiny_config(model=dict(recompute=dict(plan="block")))
    result = profile.measure(cfg, num_steps=1)
    spent = {(p["region"], p["pass"], p["kind"]): p["microseconds"] for p in result["parts"]}
    assert all(microseconds > 0 for microseconds in spent.values())
    for pass_ in ("forward", "recompute", "backward"):
        assert ("blocks", pass_, "multiplication") in spent, sorted(spent)
    assert ("optimizer", "update", "elementwise") in spent
    assert result["step_seconds"] > 0
