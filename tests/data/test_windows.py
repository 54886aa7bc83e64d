"""Laws of windows without a target: none is drawn, no target is lost, other sets are as ever."""

import itertools

import numpy as np
import pytest

from keel_jax.data import loader, shards, windows
from tests.data.preparing import corpora

SEQ_LEN = 16


def _make_set(directory, values):
    inputs = corpora.write_jsonl(directory / "a.jsonl", values)
    corpora.prepare(inputs, directory / "set", unit_bytes=700, vocab_size=300)
    return shards.open_set(directory / "set")


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory):
    """Prompts of several windows, most of them before a short response."""
    values = [
        {"prompt": f"question {i} of {i * i} " * (1 + 9 * (i % 3)), "response": f"answer {i}"}
        for i in range(60)
    ]
    return _make_set(tmp_path_factory.mktemp("prompts"), values)


def _starts_with_targets(split, is_last_moved):
    """By definition, one window after another."""
    last_start = split.num_tokens - SEQ_LEN - 1
    starts = range(0, split.num_tokens - 1, SEQ_LEN)
    if is_last_moved:
        starts = [min(start, last_start) for start in starts]
    return [
        number
        for number, start in enumerate(starts)
        if split.loss_weights(start + 1, min(start + SEQ_LEN + 1, split.num_tokens)).any()
    ]


@pytest.mark.parametrize("tokens_at_once", [1, 5 * SEQ_LEN + 3, 1 << 22])
@pytest.mark.parametrize("is_last_moved", [False, True])
@pytest.mark.parametrize("name", ["train", "validation"])
def test_the_windows_with_targets(name, is_last_moved, tokens_at_once, long_prompts, monkeypatch):
    monkeypatch.setattr(windows, "_TOKENS_AT_ONCE", tokens_at_once)
    windows.with_targets.cache_clear()
    split = long_prompts.split(name)
    kept = windows.with_targets(split, SEQ_LEN, is_last_moved)
    expected = _starts_with_targets(split, is_last_moved)
    assert kept is not None and kept.tolist() == expected
    assert 0 < len(kept) < (split.num_tokens - 1) // SEQ_LEN


class _Weights(shards.TokenSplit):
    """A split of loss weights alone."""

    def __init__(self, weights):
        self.name, self._weights = "train", np.array(weights, np.float32)
        self.num_tokens = len(weights)
        self.num_targets = int(np.count_nonzero(self._weights[1:]))

    def loss_weights(self, start, stop):
        return self._weights[start:stop]


@pytest.mark.parametrize(
    ("target", "padded", "moved"),
    [(1, [0], [0]), (4, [0], [0]), (5, [1], [1]), (7, [1], [1, 2]), (8, [1], [1, 2])]
    + [(9, [2], [2]), (10, [2], [2])],
)
def test_the_last_window_ends_with_the_stream_or_is_cut_off_there(target, padded, moved):
    """11 tokens, windows of 4: the last has the targets 9 and 10 or, moved back, 7 to 10."""
    split = _Weights([float(position == target) for position in range(11)])
    for is_last_moved, expected in ((False, padded), (True, moved)):
        kept = windows.with_targets(split, 4, is_last_moved)
        assert kept is not None and kept.tolist() == expected


def test_every_row_that_is_drawn_has_a_target_and_every_target_is_drawn(long_prompts, caplog):
    windows.with_targets.cache_clear()
    split = long_prompts.split("train")
    num_rows = len(_starts_with_targets(split, True))
    batches = loader.train_batches([long_prompts], seq_len=SEQ_LEN, batch_size=1, seed=0)
    epoch = list(itertools.islice(batches, num_rows))
    batches.close()
    assert f"of {SEQ_LEN} tokens hold no target" in caplog.text
    assert all(batch["loss_weights"].sum() > 0 for batch in epoch)
    # The last window overlaps the one before, so that some targets may come twice.
    total = sum(float(batch["loss_weights"].sum()) for batch in epoch)
    assert split.total_target_weight <= total < split.total_target_weight + SEQ_LEN


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (6, 3)])
def test_validation_is_every_target_once(batch_size, world_size, long_prompts):
    split = long_prompts.split("validation")
    ranks = [
        list(
            loader.validation_batches(
                long_prompts,
                seq_len=SEQ_LEN,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    num_batches = loader.num_validation_batches(
        long_prompts, seq_len=SEQ_LEN, batch_size=batch_size
    )
    assert {len(batches) for batches in ranks} == {num_batches}
    assert num_batches == -(-len(_starts_with_targets(split, False)) // batch_size)
    rows = [
        {key: value[row] for key, value in batches[step].items()}
        for step in range(num_batches)
        for batches in ranks
        for row in range(batch_size // world_size)
    ]
    drawn = np.concatenate([row["targets"][row["loss_weights"] > 0] for row in rows])
    stream = split.tokens(0, split.num_tokens)
    is_target = split.loss_weights(0, split.num_tokens) > 0
    is_target[0] = False  # the EOS that leads the stream
    np.testing.assert_array_equal(drawn, stream[is_target])


def test_where_every_window_has_a_target_nothing_is_left_out(tmp_path, caplog):
    values = [{"prompt": "ask ", "response": "yes no " * 3, "weight": 0.5} for _ in range(60)]
    token_set = _make_set(
        tmp_path, [{**value, "prompt": f"{i} "} for i, value in enumerate(values)]
    )
    split = token_set.split("train")
    assert split.num_targets < split.num_tokens - 1
    assert windows.with_targets(split, SEQ_LEN, True) is None
    assert caplog.text == ""
