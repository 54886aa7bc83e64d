"""`keel_jax.load`: logits, scores, losses and texts agree with one another."""

import math

import jax
import numpy as np
import pytest
import scipy.special

from keel_jax.inference import requests
from tests.inference import texts


def _log_p(model, ids) -> np.ndarray:
    """log p of each id but the first, from the logits of a plain forward pass, in float64."""
    whole = jax.jit(lambda tokens: model._network.apply({"params": model.trained.params}, tokens))
    log_p = scipy.special.log_softmax(np.asarray(whole(ids[None])[0], np.float64), axis=-1)
    return log_p[np.arange(len(ids) - 1), ids[1:]]


def test_logits_are_those_of_the_whole_text(model):
    text = "def function_1_2(x):"
    logits = model.logits(text)
    assert logits.shape == (len(model.tokenizer.encode(text)) + 1, model.tokenizer.vocab_size)
    assert logits.dtype == np.float32
    shorter = model.logits(text[:8])
    np.testing.assert_allclose(logits[: len(shorter) - 1], shorter[:-1], rtol=1e-5, atol=1e-6)


def test_a_score_is_the_sum_of_the_log_probabilities(model):
    """Of the tokens that `requests` says; float32 against float64."""
    for pair, score in zip(texts.PAIRS, model.score(texts.PAIRS), strict=True):
        row = requests.of_continuation(model.tokenizer, *pair, model.max_length)
        expected = _log_p(model, row.ids)[-row.num_scored :].sum()
        assert score.log_likelihood == pytest.approx(expected, rel=1e-5)
        assert score.num_tokens == row.num_scored


def test_the_loss_of_a_text_is_that_of_all_its_tokens(model):
    short, empty, long = "def f(x):\n", "", "def function_1_2(x):\n    return x + 2\n\n" * 9
    losses = model.loss([short, empty, long])
    ids = np.concatenate([[model.tokenizer.eos_id], model.tokenizer.encode(short)])
    assert losses[0].nats == pytest.approx(-_log_p(model, ids).sum(), rel=1e-5)
    assert losses[0].nats_per_token == pytest.approx(losses[0].nats / (len(ids) - 1))
    assert losses[0].bits_per_byte == pytest.approx(losses[0].nats / math.log(2) / len(short))
    assert (losses[1].nats, losses[1].num_tokens) == (0, 0)
    assert math.isnan(losses[1].nats_per_token) and math.isnan(losses[1].bits_per_byte)
    # The last of its windows overlaps the one before, of whose tokens it scores the rest.
    ids = np.concatenate([[model.tokenizer.eos_id], model.tokenizer.encode(long)])
    window = model.max_length
    assert losses[2].num_tokens == len(ids) - 1 > 2 * window
    starts = range(0, len(ids) - 1, window)
    rows = [
        ids[max(0, min(start + window, len(ids) - 1) - window) :][: window + 1] for start in starts
    ]
    scored = [min(start + window, len(ids) - 1) - start for start in starts]
    nats = -sum(_log_p(model, row)[-n:].sum() for row, n in zip(rows, scored, strict=True))
    assert losses[2].nats == pytest.approx(nats, rel=1e-5)


def test_nothing_is_written_after_no_prompt(model):
    assert model.generate([], num_tokens=3) == []
    with pytest.raises(ValueError, match="num_tokens=0 must be at least 1"):
        model.generate(["def f"], num_tokens=0)
