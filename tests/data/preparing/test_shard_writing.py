"""Laws of the shards: which loss weight each token has, and what the counts count."""

from typing import Any

import numpy as np
import pytest

from keel_jax.data import shards
from keel_jax.data.preparing import shard_writing
from tests.data.preparing import corpora


def test_prompts_weigh_nothing_and_responses_their_weight_with_their_eos(tmp_path):
    values: list[dict[str, Any]] = [{"text": text} for text in corpora.random_texts(20)]
    values[5:5] = [
        {"prompt": "alpha beta", "response": "gamma", "weight": 0.5},
        {"prompt": "delta", "response": "epsilon zeta"},
    ]
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    for unit_bytes in (10**6, 150):  # the EOS of a response may end a unit
        output = tmp_path / f"out{unit_bytes}"
        corpora.prepare(inputs, output, corpora.TRAIN_ONLY, unit_bytes=unit_bytes)
        token_set = shards.open_set(output)
        token_set.verify()
        split, model = token_set.split("train"), token_set.tokenizer()
        expected: list[float] = [1.0]
        for value in values:
            if "text" in value:
                expected += [1.0] * (len(model.encode(value["text"])) + 1)
            else:
                weight = value.get("weight", 1.0)
                expected += [0.0] * len(model.encode(value["prompt"]))
                expected += [weight] * (len(model.encode(value["response"])) + 1)
        assert split.loss_weights(0, split.num_tokens).tolist() == expected
        assert split.num_loss_bytes == split.num_bytes - len("alpha beta" + "delta" + "gamma") + 2.5
        assert split.total_target_weight == sum(expected[1:])
        assert split.num_targets == sum(weight > 0 for weight in expected[1:])
        assert split.loss_bytes_per_token == split.num_loss_bytes / sum(expected[1:])
        assert token_set.split_names == ("train",)
        with pytest.raises(ValueError, match="no split 'validation'; it has train"):
            token_set.split("validation")


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_bits_per_byte_do_not_depend_on_a_common_weight(factor, tmp_path):
    """A model of 2 nats at every learned token, weighed as the trainer weighs them."""
    bits_per_byte = []
    for name, weight in (("one", 1.0), ("other", factor)):
        texts = corpora.random_texts(20)
        values = [{"prompt": "ask", "response": text, "weight": weight} for text in texts]
        inputs = corpora.write_jsonl(tmp_path / f"{name}.jsonl", values)
        corpora.prepare(inputs, tmp_path / name, corpora.TRAIN_ONLY, unit_bytes=700)
        split = shards.open_set(tmp_path / name).split("train")
        weights = split.loss_weights(1, split.num_tokens)
        assert weights.sum() == split.total_target_weight
        loss_nats = (2.0 * weights).sum() / weights.sum()
        bits_per_byte.append(loss_nats / np.log(2) / split.loss_bytes_per_token)
        num_bytes = sum(len(text.encode()) for text in texts)
        np.testing.assert_allclose(
            bits_per_byte[-1], 2 * (weights > 0).sum() / np.log(2) / num_bytes, rtol=1e-12
        )
    assert bits_per_byte[0] == bits_per_byte[1]


def test_a_weight_counts_as_it_is_stored(tmp_path):
    texts = corpora.random_texts(9)
    values = [{"prompt": "a", "response": text, "weight": 0.3} for text in texts]
    # Too small for float16: stored, and counted, as 0.
    values.append({"prompt": "a", "response": "beta", "weight": 1e-9})
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    corpora.prepare(inputs, tmp_path / "out", corpora.TRAIN_ONLY)
    split = shards.open_set(tmp_path / "out").split("train")
    weights = split.loss_weights(1, split.num_tokens)
    assert split.total_target_weight == weights.sum(dtype=np.float64)
    assert split.num_targets == (weights > 0).sum()
    num_bytes = sum(len(text.encode()) for text in texts)
    assert split.num_loss_bytes == num_bytes * float(np.float16(0.3))


def test_weights_are_complete_when_they_begin_in_the_middle_of_a_unit(tmp_path, monkeypatch):
    values = [{"text": text} for text in corpora.random_texts(20)]
    values.append({"prompt": "alpha", "response": "beta"})
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    corpora.prepare(inputs, tmp_path / "at_once", corpora.TRAIN_ONLY)
    monkeypatch.setattr(shard_writing, "_BATCH_BYTES", 100)
    corpora.prepare(inputs, tmp_path / "in_batches", corpora.TRAIN_ONLY)
    assert corpora.contents(tmp_path / "at_once") == corpora.contents(tmp_path / "in_batches")
