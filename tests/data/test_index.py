"""Laws of the index: nothing damaged is read, what is older is, and `prepare` makes it anew."""

import collections
import copy
import hashlib
import json
import math
import random
import re

import pytest

from experiments.benchmarks import fuzzing
from keel_jax import errors
from keel_jax.data import index as index_lib
from keel_jax.data import shards
from tests.data.preparing import corpora


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Prompts and responses, some of a weight of their own: every number differs."""
    values = [
        {"prompt": f"question {i}", "response": "some answer " * (i + 1), "weight": 0.5 + i % 3}
        for i in range(30)
    ]
    return corpora.write_jsonl(tmp_path_factory.mktemp("source") / "a.jsonl", values)


@pytest.fixture(scope="module")
def directory(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokens") / "set"
    corpora.prepare(inputs, output, vocab_size=300, unit_bytes=1000)
    return output


@pytest.fixture
def index(directory):
    """The set's index, which is put back after the test."""
    path = directory / shards.INDEX_FILE
    content = path.read_bytes()
    yield json.loads(content)
    path.write_bytes(content)


def _refusal(directory, index, *, verify: bool = False) -> str:
    (directory / shards.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(errors.UserError) as refusal:
        shards.open_set(directory, verify=verify)
    return str(refusal.value)


def test_a_changed_number_is_told_by_the_checksum(directory, index):
    for key in ("num_loss_bytes", "num_bytes", "total_target_weight", "num_targets"):
        changed = copy.deepcopy(index)
        changed["splits"]["train"][key] += 1
        told = _refusal(directory, changed)
        assert "index.json is damaged: its content has sha256" in told
        assert "Run the same prepare command again" in told


_TRAIN = ("splits", "train")
_SHARD = (*_TRAIN, "shards", 0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("vocab_size",), 301, "300 and 1"),
        (("vocab_size",), "300", "'vocab_size' is '300', not a whole number from 2"),
        (("vocab_size",), True, "'vocab_size' is True, not a whole number"),
        (("eos_id",), 300, "'eos_id' is 300, not a whole number from 0 to 299"),
        (("eos_id",), 2, "EOS 2, but .*tokenizer.model has 300 and 1"),
        (("dtype",), "<u4", "'dtype' is '<u4', but 300 ids are stored as '<u2'"),
        (("tokenizer_fingerprint",), None, "'tokenizer_fingerprint' is None, not a sha256"),
        (("splits",), {}, r"'splits' has \[\], not \['train', 'validation'\]"),
        (("settings", "validation_fraction"), 0, r"not \['train'\]"),
        (("splits",), [], r"'splits' is \[\], not a dict"),
        (("splits", "train"), 7, "'splits.train' is 7, not an object"),
        (("splits", "../x"), {}, "'splits' has .*'../x'"),
        (("bad_examples",), [1], "'bad_examples' is .* for 0 bad documents"),
        ((*_TRAIN, "num_tokens"), 10**9, "split 'train' has 1000000000 tokens, its shards"),
        ((*_TRAIN, "num_documents"), 10**9, "'splits.train.num_documents' is 1000000000"),
        ((*_TRAIN, "num_bytes"), 0, "'splits.train.num_bytes' is 0"),
        ((*_TRAIN, "num_loss_bytes"), math.nan, "'splits.train.num_loss_bytes' is nan"),
        ((*_TRAIN, "num_loss_bytes"), math.inf, "'splits.train.num_loss_bytes' is inf"),
        ((*_TRAIN, "num_loss_bytes"), 0.0, "'splits.train.num_loss_bytes' is 0.0"),
        ((*_TRAIN, "num_targets"), 0, "'splits.train"),
        ((*_TRAIN, "unigram_entropy_bits_per_token"), 8.3, "bits_per_token' is 8.3"),
        ((*_TRAIN, "unigram_entropy_bits_per_byte"), 0.1, "bits_per_byte' is 0.1, but"),
        ((*_SHARD, "file"), "../train-00000.bin", "has the file name '../train-00000.bin'"),
        ((*_SHARD, "file"), "train-00001.bin", "'splits.train' names train-00001.bin twice"),
        ((*_SHARD, "num_tokens"), 0, "num_tokens' is 0, not a whole number from 1"),
        ((*_SHARD, "sha256"), "", "sha256' is '', not a sha256"),
        ((*_SHARD, "weights_sha256"), "0", "weights_sha256' is '0', not a sha256"),
        ((*_SHARD, "more"), 1, "has the keys"),
    ],
)
def test_a_value_that_cannot_be_is_named_where_there_is_no_checksum(
    place, value, message, directory, index
):
    index = fuzzing.without_checksum(index)
    container = index
    for key in place[:-1]:
        container = container[key]
    container[place[-1]] = value
    told = _refusal(directory, index)
    assert re.search(message, told), told


@pytest.mark.parametrize("key", ["num_targets", "total_target_weight"])
def test_sums_are_compared_with_the_files_of_weights(key, directory, index):
    index = fuzzing.without_checksum(index)
    index["splits"]["train"][key] -= 1
    told = _refusal(directory, index, verify=True)
    assert "index.json is damaged: split 'train' has" in told


def test_without_weights_the_sums_follow_from_the_counts(tmp_path):
    inputs = corpora.write_jsonl(
        tmp_path / "a.jsonl", [{"text": text} for text in corpora.random_texts()]
    )
    corpora.prepare(inputs, tmp_path / "set")
    index = json.loads((tmp_path / "set" / shards.INDEX_FILE).read_text())
    for key in ("num_loss_bytes", "num_targets", "total_target_weight"):
        changed = fuzzing.without_checksum(copy.deepcopy(index))
        changed["splits"]["train"][key] -= 1
        told = _refusal(tmp_path / "set", changed)
        assert f"'splits.train.{key}' is" in told and "without loss weights it must be" in told


def test_an_index_from_before_there_were_checksums_is_the_same_set(directory, index):
    fingerprint = shards.open_set(directory).fingerprint
    old = fuzzing.without_checksum(index)
    assert old != index
    (directory / shards.INDEX_FILE).write_text(json.dumps(old))
    assert shards.open_set(directory, verify=True).fingerprint == fingerprint


def test_the_fingerprint_is_that_of_the_tokens_as_ever(tmp_path):
    """Results name it: a number that changed would part them from those that exist."""
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in corpora.FORMAT_TEXTS])
    corpora.prepare(inputs, tmp_path / "set", corpora.TRAIN_ONLY)
    token_set = shards.open_set(tmp_path / "set")
    [shard] = token_set.split("train").shards
    parts = [2, "<u2", 1, token_set.tokenizer_fingerprint]
    content = {"train": [[shard.num_tokens, shard.sha256, shard.weights_sha256]]}
    expected = hashlib.sha256(json.dumps([*parts, content], sort_keys=True).encode())
    assert token_set.fingerprint == expected.hexdigest()


def test_no_damage_to_an_index_is_a_traceback_or_changes_a_number(directory):
    outcomes = collections.Counter(fuzzing.fuzz_index(seed, directory) for seed in range(300))
    assert outcomes["refused"] > 200, outcomes


@pytest.mark.parametrize("name", ["index.json", "unit-00000.json", "tokenizer.json"])
def test_prepare_makes_anew_what_is_damaged(name, inputs, tmp_path):
    output = tmp_path / "set"
    options = dict(vocab_size=300, unit_bytes=1000)
    corpora.prepare(inputs, output, **options)
    before = corpora.contents(output)
    for seed in range(8):
        changed = json.loads(before[name])
        while changed == json.loads(before[name]):
            changed = fuzzing.damaged_value(random.Random(seed), changed)
            seed += 1000
        (output / name).write_text(json.dumps(changed))
        summary = corpora.prepare(inputs, output, **options)
        assert summary.state in ("done", "already done")
        after = corpora.contents(output)
        # What lacks its checksum alone is as intact as what was written before there were any.
        written = fuzzing.without_checksum(json.loads(before[name]))
        found = json.loads(after.pop(name))
        assert {key: found[key] for key in written} == written, (seed, changed)
        assert after == {key: value for key, value in before.items() if key != name}


def test_the_plan_is_written_again_where_the_tokenizers_record_agrees(inputs, tmp_path, caplog):
    output = tmp_path / "set"
    options = dict(vocab_size=300, unit_bytes=1000)
    corpora.prepare(inputs, output, **options)
    before = corpora.contents(output)
    for text in ("", "[]", '{"format": "x"}'):
        (output / "preparation.json").write_text(text)
        assert corpora.prepare(inputs, output, **options).state == "already done"
        assert corpora.contents(output) == before
    assert "preparation.json is damaged" in caplog.text


def test_a_seal_covers_everything():
    sealed = index_lib.seal({"a": 1, "b": [1.5, None]})
    index_lib.check_seal(sealed)
    index_lib.check_seal(dict(reversed(sealed.items())))  # the order of the keys says nothing
    for changed in (sealed | {"a": 2}, sealed | {"c": 1}, {"a": 1, "sha256": sealed["sha256"]}):
        with pytest.raises(index_lib.Damaged, match="but .* was written"):
            index_lib.check_seal(changed)
