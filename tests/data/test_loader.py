"""Laws of loading: sample i is a function of (seed, i); validation is every target once."""

import collections
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from etils import epath

from keel_jax.data import loader, shards
from tests.data.preparing import corpora

SEQ_LEN = 16
KEYS = {
    "inputs": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "loss_weights": np.float32,
}


def _make_set(directory, name, values, tokenizer_model: epath.PathLike = ""):
    inputs = corpora.write_jsonl(directory / f"{name}.jsonl", values)
    corpora.prepare(
        inputs,
        directory / name,
        unit_bytes=700,
        tokenizer_model=tokenizer_model,
        vocab_size=None if tokenizer_model else 300,
    )
    return shards.open_set(directory / name)


@pytest.fixture(scope="module")
def token_sets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets")
    lines = [{"text": f"document {i} " + "word " * (i % 9)} for i in range(90)]
    lines += [{"prompt": f"ask {i} ", "response": "yes " * 5, "weight": 0.5} for i in range(20)]
    first = _make_set(directory, "first", lines)
    model = first.path / "tokenizer.model"
    second = _make_set(
        directory, "second", [{"text": f"{i} other text " * 3} for i in range(150)], model
    )
    return first, second


@pytest.fixture(scope="module")
def token_set(token_sets):
    return token_sets[0]


def _take(token_sets, count, **options):
    given: dict[str, Any] = {"seq_len": SEQ_LEN, "batch_size": 4, "seed": 0, **options}
    batches = loader.train_batches(token_sets, **given)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys() == KEYS.keys()
        for key, dtype in KEYS.items():
            assert batch[key].dtype == dtype
            np.testing.assert_array_equal(batch[key], other[key])


def _num_windows(token_set):
    return -(-(token_set.split("train").num_tokens - 1) // SEQ_LEN)


def _position(split, row):
    """Where a row lies in the stream, by its tokens: every start is compared."""
    stream = split.tokens(0, split.num_tokens)
    window = np.append(row["inputs"], row["targets"][-1])
    views = np.lib.stride_tricks.sliding_window_view(stream, SEQ_LEN + 1)
    return set(np.flatnonzero((views == window).all(axis=1)).tolist())


def _rows(batches):
    for batch in batches:
        for row in range(len(batch["inputs"])):
            yield {key: value[row] for key, value in batch.items()}


@pytest.mark.parametrize("num_sets", [1, 2])
def test_starting_anywhere_is_the_uninterrupted_stream(num_sets, token_sets):
    sets = token_sets[:num_sets]
    count = sum(map(_num_windows, sets)) // 4 * 3  # into the third epoch
    whole = _take(sets, count)
    _assert_equal(_take(sets, count), whole)
    for start in range(0, count, 5):
        _assert_equal(
            _take(sets, 5, start_step=start, num_threads=start % 3), whole[start : start + 5]
        )
    far = 10**9
    _assert_equal(_take(sets, 1, start_step=far + 1), _take(sets, 2, start_step=far)[1:])


@pytest.mark.parametrize("num_sets", [1, 2])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one(num_sets, world_size, token_sets):
    sets = token_sets[:num_sets]
    whole = _take(sets, 6, start_step=3)
    by_rank = [
        _take(sets, 6, start_step=3, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step, expected in enumerate(whole):
        joined = {key: np.concatenate([own[step][key] for own in by_rank]) for key in expected}
        _assert_equal([joined], [expected])


def test_every_window_comes_once_an_epoch_in_another_order(token_set):
    split, count = token_set.split("train"), _num_windows(token_set)
    rows = list(_rows(_take([token_set], 2 * count, batch_size=1)))
    last = split.num_tokens - SEQ_LEN - 1
    starts = {min(i * SEQ_LEN, last) for i in range(count)}
    orders = []
    for epoch in range(2):
        # Equal windows at different places are told apart by taking each place once.
        left, order = set(starts), []
        for row in rows[epoch * count : (epoch + 1) * count]:
            place = min(_position(split, row) & left)
            left.remove(place)
            order.append(place)
        assert not left
        orders.append(order)
    assert orders[0] != orders[1] and sorted(orders[0]) != orders[0]


def test_seeds_differ_and_neighbours_are_no_shift_of_each_other(token_set):
    count = _num_windows(token_set)
    first = _take([token_set], 2 * count, batch_size=1, seed=0)
    second = _take([token_set], count, batch_size=1, seed=1)
    for begin in (0, count):
        same = [
            np.array_equal(a["inputs"], b["inputs"])
            for a, b in zip(first[begin : begin + count], second, strict=True)
        ]
        assert sum(same) < count / 4


def test_examples_are_shifted_windows_with_segments_and_weights(token_set):
    split = token_set.split("train")
    weights = split.loss_weights(0, split.num_tokens)
    assert set(np.unique(weights)) == {0.0, 0.5, 1.0}
    for row in _rows(_take([token_set], 8)):
        np.testing.assert_array_equal(row["inputs"][1:], row["targets"][:-1])
        segment = 0
        for token, segment_id in zip(row["inputs"], row["segment_ids"], strict=True):
            segment += token == token_set.eos_id
            assert segment_id == segment
        assert any(
            np.array_equal(weights[place + 1 : place + SEQ_LEN + 1], row["loss_weights"])
            for place in _position(split, row)
        )
    for masked, plain in zip(
        _take([token_set], 3), _take([token_set], 3, mask_documents=False), strict=True
    ):
        assert masked["segment_ids"].any() and not plain["segment_ids"].any()
        np.testing.assert_array_equal(masked["inputs"], plain["inputs"])


def test_a_mixture_keeps_its_proportions_in_every_stretch(token_sets):
    def fraction_of_first(weights, start, count):
        rows = _rows(_take(token_sets, count, weights=weights, start_step=start, batch_size=8))
        of_first = [bool(_position(token_sets[0].split("train"), row)) for row in rows]
        return sum(of_first) / len(of_first)

    for start in (0, 40, 1000):
        assert fraction_of_first((3.0, 1.0), start, 10) == pytest.approx(0.75, abs=0.03)
        assert fraction_of_first((0.1, 0.9), start, 10) == pytest.approx(0.1, abs=0.03)
    sizes = [token_set.split("train").num_tokens for token_set in token_sets]
    assert fraction_of_first((), 0, 20) == pytest.approx(sizes[0] / sum(sizes), abs=0.03)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("seq_len, batch_size", [(16, 4), (7, 4), (1, 4), (13, 8), (5000, 4)])
def test_validation_is_every_target_once_in_order(seq_len, batch_size, world_size, token_set):
    split = token_set.split("validation")
    options: dict[str, Any] = {"seq_len": seq_len, "batch_size": batch_size}
    count = loader.num_validation_batches(token_set, **options)
    by_rank = [
        list(loader.validation_batches(token_set, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    assert [len(own) for own in by_rank] == [count] * world_size
    rows = {
        key: np.concatenate([own[step][key] for step in range(count) for own in by_rank])
        for key in KEYS
    }
    # A window without a target, which is here a token of a prompt if seq_len is 1, is left out.
    weights = split.loss_weights(1, split.num_tokens)
    windows = np.arange(len(weights)) // seq_len
    is_read = (np.bincount(windows, weights) > 0)[windows]
    num_targets = int(is_read.sum())
    assert (num_targets < len(weights)) == (seq_len == 1)
    flat = {key: value.reshape(-1) for key, value in rows.items()}
    assert len(flat["targets"]) - num_targets < seq_len * batch_size
    inputs, targets = split.tokens(0, split.num_tokens - 1), split.tokens(1, split.num_tokens)
    np.testing.assert_array_equal(flat["inputs"][:num_targets], inputs[is_read])
    np.testing.assert_array_equal(flat["targets"][:num_targets], targets[is_read])
    np.testing.assert_array_equal(flat["loss_weights"][:num_targets], weights[is_read])
    assert not flat["loss_weights"][num_targets:].any()
    np.testing.assert_array_equal(
        rows["segment_ids"], np.cumsum(rows["inputs"] == token_set.eos_id, axis=1)
    )
    for key, dtype in KEYS.items():
        assert rows[key].dtype == dtype and rows[key].shape[1] == seq_len


def test_validation_can_end_earlier(token_set):
    options: dict[str, Any] = {"seq_len": 8, "batch_size": 2}
    whole = list(loader.validation_batches(token_set, **options))
    _assert_equal(list(loader.validation_batches(token_set, num_batches=3, **options)), whole[:3])
    assert loader.num_validation_batches(token_set, num_batches=3, **options) == 3
    assert loader.num_validation_batches(token_set, num_batches=10**6, **options) == len(whole)
    plain = loader.validation_batches(token_set, mask_documents=False, **options)
    assert not any(batch["segment_ids"].any() for batch in plain)


def test_impossible_requests_are_errors_with_both_numbers(token_sets, token_set, tmp_path):
    size = token_set.split("train").num_tokens
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([token_set], {"seq_len": size}, rf"{size} tokens.*= {size + 1}"),
        ([token_set], {"batch_size": 6, "world_size": 4}, "batch of 6.*equally among 4"),
        ([token_set], {"rank": 4, "world_size": 4}, "Rank 4 is outside the world size of 4"),
        ([token_set], {"split": "test"}, "no split 'test'; it has train, validation"),
        (token_sets, {"weights": (1.0,)}, "1 weights for 2"),
        (token_sets, {"weights": (1.0, 0.0)}, "positive"),
        ([], {}, "no token set"),
    ]
    for sets, options, message in cases:
        with pytest.raises(ValueError, match=message):
            _take(sets, 1, **options)
    with pytest.raises(ValueError, match="batch of 3.*equally among 2"):
        loader.validation_batches(token_set, seq_len=8, batch_size=3, world_size=2)
    foreign = _make_set(tmp_path, "foreign", [{"text": f"{i} quite other"} for i in range(40)])
    with pytest.raises(ValueError, match="different tokenizers.*--tokenizer="):
        _take([token_set, foreign], 1)
    # The whole split is one window: still enough.
    assert _take([token_set], 1, seq_len=size - 1)[0]["inputs"].shape == (4, size - 1)


def test_errors_are_raised_by_the_call_and_not_by_the_first_batch(token_sets):
    for wrong in ({"weights": (1.0,)}, {"seq_len": 10**9}, {"batch_size": 0}):
        with pytest.raises(ValueError):
            options: dict[str, Any] = {"seq_len": SEQ_LEN, "batch_size": 4, "seed": 0, **wrong}
            loader.train_batches(token_sets, **options)


@pytest.mark.parametrize("num_sets", [1, 2])
def test_closing_ends_the_threads(num_sets, token_sets):
    before = set(threading.enumerate())
    batches = loader.train_batches(
        token_sets[:num_sets], seq_len=SEQ_LEN, batch_size=4, seed=0, num_threads=3
    )
    next(batches)
    readers = set(threading.enumerate()) - before
    assert readers
    batches.close()
    batches.close()  # twice is once
    for thread in readers:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in readers)
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_batches_are_read_ahead_in_the_background(token_set, monkeypatch):
    threads = collections.Counter()
    tokens = shards.TokenSplit.tokens

    def counted(self, start, stop):
        threads[threading.current_thread() is threading.main_thread()] += 1
        return tokens(self, start, stop)

    monkeypatch.setattr(shards.TokenSplit, "tokens", counted)
    _take([token_set], 2, num_threads=2, prefetch_batches=3)
    assert threads[False] >= 8 and not threads[True]
    _take([token_set], 2, num_threads=0)
    assert threads[True] == 8
