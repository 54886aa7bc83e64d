"""The damage benchmark damages what it says and compares by value."""

import random

import pytest

from experiments.benchmarks import damage


@pytest.mark.parametrize("name", damage.DAMAGES)
def test_a_damage_changes_the_content(name):
    content = b'{"state": "running", "step": 4}'
    for seed in range(20):
        damaged = damage.DAMAGES[name](content, random.Random(seed), b"of another run")
        assert damaged != content


def test_what_readers_return_is_compared_by_value():
    assert damage._same([{"loss": float("nan")}, b"a"], [{"loss": float("nan")}, b"a"])
    assert not damage._same([{"loss": 1.0}], [{"loss": 1.5}])
    assert not damage._same([{"loss": 1.0}], [])
