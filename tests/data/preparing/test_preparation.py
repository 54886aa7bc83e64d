"""Laws of preparation: the same set, whoever makes it."""

import random

import numpy as np
import pytest

from keel_jax.data import shards
from keel_jax.data.preparing import corpus, documents
from tests.data.preparing import corpora


def test_the_stream_is_eos_and_documents_and_the_counts_are_exact(source, tmp_path):
    summary = corpora.prepare(source, tmp_path / "out")
    token_set = shards.open_set(tmp_path / "out")
    token_set.verify()
    model = token_set.tokenizer()
    assert len(list((tmp_path / "out").glob("train-*.bin"))) > 3
    for name in ("train", "validation"):
        split = token_set.split(name)
        texts = [
            text
            for text in corpora.random_texts()
            if (name == "validation") == corpus.is_validation(documents.Document(text), 0.2)
        ]
        expected = [model.eos_id]
        for text in texts:
            expected += [*model.encode(text), model.eos_id]
        assert split.tokens(0, split.num_tokens).tolist() == expected
        assert split.tokens(0, split.num_tokens).dtype == np.int32
        assert split.num_documents == len(texts)
        assert split.num_bytes == split.num_loss_bytes == sum(len(t.encode()) for t in texts)
        assert split.num_targets == split.total_target_weight == len(expected) - 1
        assert split.loss_bytes_per_token == split.num_bytes / (len(expected) - 1)
        assert split.bytes_per_token == split.num_bytes / len(expected)
        shares = np.unique(expected, return_counts=True)[1] / len(expected)
        bits = -(shares * np.log2(shares)).sum()
        assert np.isclose(split.unigram_entropy_bits_per_token, bits, rtol=1e-12)
        assert np.isclose(
            split.unigram_entropy_bits_per_byte, bits * len(expected) / split.num_bytes, rtol=1e-12
        )
        # Any slice, across any shard border, is that slice of the whole.
        generator = random.Random(0)
        for _ in range(200):
            start, stop = sorted(generator.choices(range(len(expected) + 1), k=2))
            assert split.tokens(start, stop).tolist() == expected[start:stop]
        assert (split.loss_weights(0, split.num_tokens) == 1).all()
    assert summary.state == "done" and summary.num_documents == 60
    assert not list((tmp_path / "out").glob("*.weights"))


def test_workers_and_hosts_make_the_same_set(source, tmp_path):
    corpora.prepare(source, tmp_path / "one")
    corpora.prepare(source, tmp_path / "three", num_workers=3)
    first = corpora.prepare(source, tmp_path / "hosts", host_index=0, host_count=2)
    assert first.state == "share done" and not (tmp_path / "hosts" / "index.json").exists()
    with pytest.raises(ValueError, match="unfinished"):
        shards.open_set(tmp_path / "hosts")
    second = corpora.prepare(source, tmp_path / "hosts", host_index=1, host_count=2)
    assert second.state == "done"
    assert (
        corpora.contents(tmp_path / "one")
        == corpora.contents(tmp_path / "three")
        == corpora.contents(tmp_path / "hosts")
    )
    again = corpora.prepare(source, tmp_path / "hosts", host_index=1, host_count=2)
    assert again.state == "already done"
