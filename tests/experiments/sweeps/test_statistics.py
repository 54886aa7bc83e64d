"""Results and figures with their origin; intervals; the unigram line."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from experiments.sweeps import checks, comparison, corpus, figures, intervals, results
from keel_jax.data import shards
from tests import conftest


def test_results_say_where_they_come_from(tmp_path):
    numbers = {"a": {"b": np.float32(1 / 3), "c": [np.nan, 2], "d": np.arange(2)}, "e": None}
    results.write(tmp_path, "alpha", "micro", numbers=numbers, points=[{"lr": 0.1}], seconds=1.25)
    found = results.read(tmp_path)
    assert found["numbers"] == {"a": {"b": 0.333333, "c": [None, 2], "d": [0, 1]}, "e": None}
    assert found["command"] == "python -m experiments.alpha.run --preset=micro"
    assert len(found["commit"]) == 40 and found["is_clean"] in (True, False)
    assert {"jax", "python"} <= set(found["versions"]) and found["hardware"]["platform"] == "cpu"
    with pytest.raises(ValueError, match="run the experiment first"):
        results.read(tmp_path / "elsewhere")


def test_results_do_not_make_their_own_tree_dirty(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "code")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    made = tmp_path / "experiments/alpha/results/micro/figures"
    made.mkdir(parents=True)
    (made / "loss.json").write_text("{}")
    assert results.source.__wrapped__()["is_clean"]
    (tmp_path / "experiments/alpha/points.py").write_text("2")
    assert not results.source.__wrapped__()["is_clean"]


def test_a_figure_is_the_same_bytes_from_the_same_data(tmp_path):
    for name in ("a", "b"):
        figure, axes = figures.new()
        drawn = figures.draw(axes, [1, 2, 3], [[1, 2, 4], [2, None, np.nan], [None]], "Keel")
        figures.save(figure, tmp_path / name, "loss", {"lines": [drawn]})
    for suffix in ("png", "svg", "json"):
        first, second = (tmp_path / f"{name}/figures/loss.{suffix}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    told = json.loads(first.read_text())["lines"][0]
    assert (told["low"], told["median"], told["high"]) == ([1, 2, None], [2, 2, None], [4, 2, None])
    assert told["num_not_finished"] == [0, 2, 1]


def test_a_line_without_points_is_drawn_as_none():
    figure, axes = figures.new()
    assert figures.draw(axes, [], [], "Keel")["x"] == []


def test_an_advantage_with_an_unfinished_run_is_undecided():
    """The others' difference is told, and is no verdict: they are those that went well."""
    keel = {0.01: {0: 1.0, 1: 1.1, 2: 0.9}}
    found = comparison.advantage(keel, {0.01: {0: 2.0, 1: 2.0, 2: 2.1}}, 0.01)
    assert found["verdict"] == "holds" and found["num_not_finished"] == 0
    found = comparison.advantage(keel, {0.01: {0: 2.0, 1: 2.0, 2: None}}, 0.01)
    assert found["verdict"] == "undecided" and found["num_not_finished"] == 1
    assert found["mean"] == pytest.approx(0.95)
    assert comparison.best_row({0.01: {0: None}}) == []


def test_intervals_cover_the_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 3))
    found = [intervals.mean(row) for row in draws]
    share = np.mean([row["low"] < 3.0 < row["high"] for row in found])
    assert abs(share - intervals.CONFIDENCE) < 0.015  # three standard errors
    # Student's t for 2 degrees of freedom: 4.302653 / sqrt(3).
    assert intervals.mean([1.0, 2.0, 3.0])["high"] == pytest.approx(2.0 + 2.484138)
    assert intervals.mean([1.0])["low"] is None
    assert intervals.mean([])["num_seeds"] == 0


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([3.0, 3.1, 2.9], [1.0, 1.2, 1.1], "holds"),
        ([1.0, 1.2, 1.1], [3.0, 3.1, 2.9], "reversed"),
        ([3.0, 1.5, 2.0], [2.0, 2.0, 2.0], "undecided"),
        ([1.0, 2.5, 2.0], [2.0, 2.0, 2.0], "undecided"),
        ([3.0, 3.0, 3.0], [3.0, 3.0, 3.0], "undecided"),
        ([3.0], [1.0], "undecided"),
    ],
)
def test_an_ordering_needs_its_interval_clear_of_zero(first, second, verdict):
    assert intervals.ordering(first, second)["verdict"] == verdict


def test_a_prediction_needs_its_number():
    assert checks.within(0.2, 0.2)["holds"] and checks.within(-1.0, high=0.1)["holds"]
    assert not checks.within(0.19, 0.2)["holds"] and not checks.within(None)["holds"]
    assert checks.verdict(intervals.ordering([3.0, 3.1], [1.0, 1.1]))["holds"]
    assert not checks.verdict(intervals.ordering([3.0], [1.0]))["holds"]
    assert not checks.verdict(None)["holds"]


def test_a_chain_is_as_strong_as_its_weakest_link():
    assert intervals.chain(["holds", "holds"]) == "holds"
    assert intervals.chain(["holds", "undecided"]) == "undecided"
    assert intervals.chain(["undecided", "reversed"]) == "reversed"
    assert intervals.chain([]) == "undecided"


def test_the_unigram_line_is_the_entropy_where_it_is_averaged(token_dir):
    cfg = conftest.tiny_config(
        data=dict(path=str(token_dir)),
        model=dict(vocab_size=300),
        train=dict(num_steps=60, batch_size=8, seq_len=16),
    )
    split = shards.open_set(token_dir).split("train")
    entropy = split.unigram_entropy_bits_per_token * np.log(2)
    losses = corpus.unigram_losses(cfg)
    assert losses.shape == (60,) and losses.std() > 0
    assert losses.mean() == pytest.approx(entropy, rel=0.03)
    # Never below the entropy of the text itself.
    held_out = shards.open_set(token_dir).split("validation")
    floor = held_out.unigram_entropy_bits_per_token * np.log(2)
    assert floor * 0.97 < corpus.unigram_validation_loss(cfg) < 1.5 * floor


def test_fewer_tokens_are_the_first_of_the_same_text(token_dir, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(token_dir, whole)
    path = corpus.first_tokens(str(whole), 1000)
    fewer, all_ = shards.open_set(path, verify=True), shards.open_set(whole)
    assert fewer.split("train").num_tokens == 1000
    assert np.array_equal(fewer.split("train").tokens(0, 1000), all_.split("train").tokens(0, 1000))
    held_out = [s.split("validation") for s in (fewer, all_)]
    assert np.array_equal(*(s.tokens(0, s.num_tokens) for s in held_out))
    assert fewer.fingerprint != all_.fingerprint
    assert corpus.first_tokens(str(whole), 1000) == path
    assert corpus.first_tokens(str(whole), None) == str(whole)
    with pytest.raises(ValueError, match="are wanted"):
        corpus.first_tokens(str(whole), 10**9)
