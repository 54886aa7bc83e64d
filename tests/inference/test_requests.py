"""Which tokens are scored, after which: the harness's conventions, on a tokenizer that merges."""

import numpy as np
import pytest

from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.inference import requests


@pytest.fixture(scope="module")
def tokenizer(token_dir):
    return tokenizer_lib.Tokenizer.load(token_dir / "tokenizer.model")


def _scored(tokenizer, row) -> str:
    return tokenizer.decode(row.ids[len(row.ids) - row.num_scored :])


@pytest.mark.parametrize(
    ("context", "continuation", "scored"),
    [
        ("x + 2", "\n    return x", "\n    return x"),
        ("return", " x", " x"),
        # A space at the end of a context is the continuation's.
        ("return ", "x", " x"),
        ("return \n", "x", " \nx"),
        ("", "def f", "def f"),
        ("  ", "def f", "  def f"),
    ],
)
def test_the_continuation_is_what_is_scored(tokenizer, context, continuation, scored):
    row = requests.of_continuation(tokenizer, context, continuation, 100)
    assert _scored(tokenizer, row) == scored
    assert row.ids[0] == tokenizer.eos_id and row.num_cut == 0
    assert tokenizer.decode(row.ids[1:]) == context + continuation


def test_a_piece_across_the_boundary_is_the_contexts(tokenizer):
    """As many tokens as the context has alone are taken away, whatever they hold."""
    piece = max(
        (tokenizer.piece(i) for i in range(tokenizer_lib.NUM_BASE_PIECES, tokenizer.vocab_size)),
        key=len,
    )
    context, continuation = piece[:-1], piece[-1] + "(x)"
    whole, alone = (len(tokenizer.encode(text)) for text in (context + continuation, context))
    row = requests.of_continuation(tokenizer, context, continuation, 100)
    assert row.num_scored == whole - alone
    assert _scored(tokenizer, row) != continuation
    np.testing.assert_array_equal(row.ids[1:], tokenizer.encode(context + continuation))


def test_of_a_long_context_the_end_is_kept(tokenizer):
    context, continuation = "def f(x):\n    return x\n" * 20, "def"
    whole = requests.of_continuation(tokenizer, context, continuation, 10_000)
    row = requests.of_continuation(tokenizer, context, continuation, 12)
    assert len(row.ids) == 13 and row.num_cut == len(whole.ids) - 13
    np.testing.assert_array_equal(row.ids, whole.ids[-13:])
    assert row.num_scored == whole.num_scored


def test_what_cannot_be_scored_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"'' has no tokens of its own after 'def f'"):
        requests.of_continuation(tokenizer, "def f", "", 100)
    with pytest.raises(ValueError, match=r"has 90 tokens, and the model was trained on windows of"):
        requests.of_continuation(tokenizer, "def f", "\u4e00" * 30, 16)  # 3 bytes each
    assert requests.of_continuation(tokenizer, "def f", "\u4e00" * 30, 90).num_scored == 90


class _Letters:
    """A tokenizer of one id for each letter."""

    eos_id = 99

    def encode(self, text):
        return np.array([ord(letter) - ord("a") for letter in text], np.int32)


def test_a_text_is_cut_into_full_windows():
    """The example of the harness's documentation: ten tokens, four positions."""
    rows = requests.of_text(_Letters(), "abcdefghij", 4)
    assert [row.ids.tolist() for row in rows] == [
        [99, 0, 1, 2, 3],
        [3, 4, 5, 6, 7],
        [5, 6, 7, 8, 9],
    ]
    assert [row.num_scored for row in rows] == [4, 4, 2]


@pytest.mark.parametrize("length", range(1, 13))
@pytest.mark.parametrize("max_length", [1, 3, 4, 20])
def test_every_token_of_a_text_is_scored_once(length, max_length):
    text = "abcdefghijkl"[:length]
    rows = requests.of_text(_Letters(), text, max_length)
    scored = np.concatenate([row.ids[len(row.ids) - row.num_scored :] for row in rows])
    np.testing.assert_array_equal(scored, _Letters().encode(text))
    assert max(len(row.ids) for row in rows) <= max_length + 1


def test_an_empty_text_has_no_rows():
    assert requests.of_text(_Letters(), "", 4) == []


def test_rows_get_the_least_length_that_holds_them():
    rows = [requests.Row(np.zeros(size + 1, np.int32), 1) for size in (3, 8, 9, 4, 1)]
    assert list(requests.by_length(rows, [4, 8, 16])) == [(4, [0, 3, 4]), (8, [1]), (16, [2])]


def test_lengths_grow_by_half():
    expected = [32, 48, 72, 112, 168, 248, 368, 552, 824, 1232, 1848, 2048]
    assert requests.lengths(2048, 8) == expected
    assert requests.lengths(20, 1) == [20]
