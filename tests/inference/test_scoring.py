"""Scores are of a row alone, whatever is scored with it, on one device and on eight."""

import jax
import numpy as np
import pytest

import keel_jax
from keel_jax import config
from keel_jax.inference import requests, scoring
from keel_jax.parallel import mesh as mesh_lib
from tests.inference.texts import PAIRS


def test_what_greedy_decoding_writes_is_said_to_be_greedy(model):
    """As tokens: the text that they stand for may be encoded otherwise."""
    forward = jax.jit(lambda tokens: model._network.apply({"params": model.trained.params}, tokens))
    ids = np.zeros(12, np.int32)
    ids[:3] = model.tokenizer.eos_id, 40, 50
    for place in range(3, 7):
        ids[place] = forward(ids[None])[0, place - 1].argmax()
    changed = ids.copy()
    changed[5] += 1
    rows = [requests.Row(ids[:7], 4), requests.Row(changed[:7], 4), requests.Row(ids[:7], 6)]
    assert [score.is_greedy for score in model.scorer(2)(rows)] == [True, False, False]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scores_do_not_depend_on_what_is_scored_with_them(model, batch_size):
    """Nor on the order; sums over another number of rows may round differently."""
    whole = model.score(PAIRS)
    parts = model.score(PAIRS[::-1], batch_size=batch_size)[::-1]
    for one, other in zip(whole, parts, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6)
        assert (one.is_greedy, one.num_tokens) == (other.is_greedy, other.num_tokens)


@pytest.mark.parametrize("mesh", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices_score_as_one(workdir, model, mesh):
    several = keel_jax.load(workdir, mesh=mesh_lib.make(config.MeshConfig(**mesh)))
    for one, other in zip(model.score(PAIRS), several.score(PAIRS, batch_size=3), strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
        assert (one.is_greedy, one.num_tokens) == (other.is_greedy, other.num_tokens)


@pytest.mark.parametrize("mesh", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices_have_the_logits_of_one(workdir, model, mesh):
    several = keel_jax.load(workdir, mesh=mesh_lib.make(config.MeshConfig(**mesh)))
    one, other = (each.logits("def f(x)") for each in (model, several))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_other_weights_are_scored_by_the_same_programs(model):
    rows = [requests.of_continuation(model.tokenizer, *pair, model.max_length) for pair in PAIRS]
    scorer = model.scorer(4)
    before = scorer(rows)
    other = scorer.of(jax.tree.map(lambda leaf: leaf * 2, model.trained.params))
    changed = other(rows)
    assert other._programs is scorer._programs
    assert all(a.log_likelihood != b.log_likelihood for a, b in zip(before, changed, strict=True))
    assert scorer(rows) == before


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(model, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be at least 1"):
        model.score(PAIRS, batch_size=batch_size)


def test_what_does_not_fit_in_front_is_counted(model):
    counts = [score.num_cut for score in model.score([("x = 1\n" * 60, "y"), ("x", "y")])]
    assert counts[0] > 100 and counts[1] == 0


def test_a_mesh_that_splits_sequences_is_refused(workdir):
    mesh = mesh_lib.make(config.MeshConfig(fsdp=4, context=2))
    with pytest.raises(ValueError, match="context=2 and stage=1 cannot score single tokens"):
        keel_jax.load(workdir, mesh=mesh).score(PAIRS)


def test_programs_are_few_and_compiled_once(model):
    scorer = scoring.Scorer(
        model.trained.cfg, model.trained.mesh, model.trained.params, batch_size=2
    )
    rows = [requests.Row(np.ones(size + 1, np.int32), 1) for size in (*range(1, 41), 3)]
    assert len(scorer(rows)) == 41
    assert sorted(scorer._programs) == [32, 40]
