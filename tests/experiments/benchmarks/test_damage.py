"""The damage benchmark: it covers what a run writes, and finds nothing silent and no traceback."""

import random

import pytest

from experiments.benchmarks import damage
from tests import conftest

# Large, and with checks of their own.
_ELSEWHERE = ("checkpoints/",)


@pytest.mark.slow
def test_no_damage_is_silent_or_has_a_traceback(token_dir, cache_dir, tmp_path):
    base = conftest.tiny_config(
        model=dict(vocab_size=0),
        data=dict(path=str(token_dir)),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    runs = damage.make_runs(tmp_path, base)
    files = [str(p.relative_to(runs.stopped)) for p in runs.stopped.rglob("*") if p.is_file()]
    for name in files:
        same = name.replace(damage.DIVERGED, damage.GOOD)
        assert (
            name.startswith(_ELSEWHERE)
            or name == "tokenizer.model"
            or any(
                name.startswith(artefact) or same.startswith(artefact)
                for artefact in damage.ARTEFACTS
            )
        ), name
    counts, examples = damage.measure(runs, 60, seed=0)
    assert not examples, "\n".join(examples)
    assert sum(row["error"] for row in counts.values()) > 0
    assert sum(row["fallback"] for row in counts.values()) > 0


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
