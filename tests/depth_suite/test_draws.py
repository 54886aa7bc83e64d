"""Choices: what they are made of, pinned, uniform and without replacement."""

import collections
import hashlib

import pytest
import scipy.stats

from keel_jax.depth_suite import draws


def test_choices_are_the_words_of_shake_256_and_nothing_else():
    """The recipe, step by step, so that a change of it on any version of anything is noticed."""
    content = hashlib.shake_256(b"1:7" + b"3:key" + b"/0").digest(256)
    words = [int.from_bytes(content[i : i + 8], "little") for i in range(0, 256, 8)]
    rng = draws.Draws(7, "key")
    assert [rng.below(2**64) for _ in words] == words[::-1]
    rng = draws.Draws("pinned")
    assert [rng.below(10) for _ in range(12)] == [0, 2, 8, 3, 0, 0, 6, 3, 2, 4, 1, 6]
    assert draws.Draws("pinned").shuffled("abcdef") == list("adefcb")


def test_keys_are_told_apart_by_their_parts():
    first = {draws.Draws(*key).below(2**63) for key in [("a", "bc"), ("ab", "c"), ("abc",), ("a",)]}
    assert len(first) == 4
    assert draws.Draws("a", 1).below(2**63) == draws.Draws("a", "1").below(2**63)


@pytest.mark.parametrize("bound", [2, 3, 7, 120])
def test_below_is_uniform(bound):
    rng = draws.Draws("uniform", bound)
    counts = collections.Counter(rng.below(bound) for _ in range(200 * bound))
    assert scipy.stats.chisquare([counts[i] for i in range(bound)]).pvalue > 1e-3


def test_words_that_would_favour_small_results_are_drawn_again(monkeypatch):
    rng = draws.Draws("rejected")
    words = iter([2**64 - 1, 5])
    monkeypatch.setattr(rng, "_next_word", lambda: next(words))
    assert rng.below(3) == 2  # 2^64 - 1 is a multiple of 3, so that last word has no partner
    assert next(words, None) is None


def test_samples_are_different_and_every_order_is_equally_likely():
    rng = draws.Draws("sample")
    counts = collections.Counter("".join(rng.sample("abcd", 2)) for _ in range(2400))
    assert len(counts) == 12 and all(first != second for first, second in counts)
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert sorted(rng.shuffled("hello")) == sorted("hello")
