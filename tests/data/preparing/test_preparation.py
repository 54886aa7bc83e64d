"""Laws of preparation: the same set whoever makes it and however often it is interrupted."""

import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import corpus, documents, preparation, shard_writing, workers
from keel_jax.runtime import files

ROOT = pathlib.Path(__file__).parents[3]
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi".split()
OPTIONS = {"vocab_size": 320, "validation_fraction": 0.2, "unit_bytes": 2000}


def _texts(count=60, seed=0):
    generator = random.Random(seed)
    return [
        f"{i} " + " ".join(generator.choices(WORDS, k=generator.randrange(5, 60)))
        for i in range(count)
    ]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in _texts()))
    return [str(path)]


def _files(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


def test_the_stream_is_eos_and_documents_and_the_counts_are_exact(source, tmp_path):
    summary = preparation.prepare(source, tmp_path / "out", **OPTIONS)
    token_set = shards.open_set(tmp_path / "out")
    token_set.verify()
    model = token_set.tokenizer()
    assert len(list((tmp_path / "out").glob("train-*.bin"))) > 3
    for name in ("train", "validation"):
        split = token_set.split(name)
        texts = [
            text
            for text in _texts()
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
    preparation.prepare(source, tmp_path / "one", **OPTIONS)
    preparation.prepare(source, tmp_path / "three", num_workers=3, **OPTIONS)
    options = OPTIONS | {"host_count": 2}
    first = preparation.prepare(source, tmp_path / "hosts", host_index=0, **options)
    assert first.state == "share done" and not (tmp_path / "hosts" / "index.json").exists()
    with pytest.raises(ValueError, match="unfinished"):
        shards.open_set(tmp_path / "hosts")
    second = preparation.prepare(source, tmp_path / "hosts", host_index=1, **options)
    assert second.state == "done"
    assert _files(tmp_path / "one") == _files(tmp_path / "three") == _files(tmp_path / "hosts")
    again = preparation.prepare(source, tmp_path / "hosts", host_index=1, **options)
    assert again.state == "already done"


def test_the_second_host_waits_for_the_first_but_not_for_ever(source, tmp_path):
    with pytest.raises(TimeoutError, match="Host 0 made no tokenizer"):
        preparation.prepare(
            source, tmp_path / "out", host_index=1, host_count=2, host_wait_seconds=0.1, **OPTIONS
        )
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from keel_jax.data.preparing import preparation
print(preparation.prepare({source!r}, {str(tmp_path / "out")!r}, host_index=1, host_count=2,
      host_wait_seconds=60, **{OPTIONS!r}).state)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    mine = preparation.prepare(source, tmp_path / "out", host_index=0, host_count=2, **OPTIONS)
    states = {mine.state, other.communicate(timeout=60)[0].strip()}
    assert "done" in states
    preparation.prepare(source, tmp_path / "one", **OPTIONS)
    assert _files(tmp_path / "one") == _files(tmp_path / "out")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_and_run_again_is_the_uninterrupted_run(num_workers, source, tmp_path):
    preparation.prepare(source, tmp_path / "whole", **OPTIONS)
    output = tmp_path / "killed"
    # A slow sidecar leaves time to kill in the middle of the work, with workers at theirs too.
    script = tmp_path / "slow.py"
    script.write_text(f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
from keel_jax.data.preparing import corpus, preparation
read = corpus.read
def slow(*args, **kwargs):
    for document in read(*args, **kwargs):
        time.sleep(0.02)
        yield document
corpus.read = slow
if __name__ == "__main__":
    preparation.prepare({source!r}, {str(output)!r}, num_workers={num_workers}, **{OPTIONS!r})
""")
    child = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(output.glob("unit-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    finished = list(output.glob("unit-*.json"))
    assert finished and not (output / "index.json").exists()
    with pytest.raises(ValueError, match="unfinished.*same prepare command"):
        shards.open_set(output)
    _wait_until_gone(child.pid)
    summary = preparation.prepare(source, output, **OPTIONS)
    assert summary.num_units_reused >= len(finished)
    assert summary.num_units_reused < summary.num_units
    assert _files(output) == _files(tmp_path / "whole")


def _wait_until_gone(group: int):
    """Workers of a killed parent end by themselves."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        # A container without an init process keeps zombies: those have ended too.
        if all(state == "Z" for state in _states(group)):
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived their parent by 20 s")


def _states(group: int):
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            yield fields[0]


def test_a_killed_worker_is_noticed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_run_in_worker", _die)
    with pytest.raises(workers.WorkerDied, match="same command again"):
        preparation.prepare(source, tmp_path / "out", num_workers=2, **OPTIONS)
    assert not (tmp_path / "out" / "index.json").exists()


def _die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_second_run_is_done_and_a_different_one_refused(source, tmp_path):
    output = tmp_path / "out"
    preparation.prepare(source, output, **OPTIONS)
    before = _files(output)
    assert preparation.prepare(source, output, **OPTIONS).state == "already done"
    other = OPTIONS | {"vocab_size": 330}
    with pytest.raises(ValueError, match="vocab_size: 320 there, 330 now.*--overwrite"):
        preparation.prepare(source, output, **other)
    assert _files(output) == before
    preparation.prepare(source, output, overwrite=True, **other)
    preparation.prepare(source, tmp_path / "fresh", **other)
    assert _files(output) == _files(tmp_path / "fresh")
    pathlib.Path(source[0]).write_text('{"text": "another corpus"}\n')
    with pytest.raises(ValueError, match="input:"):
        preparation.prepare(source, output, **other)


def test_a_foreign_directory_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="thesis.txt"):
            preparation.prepare(source, tmp_path / "out", overwrite=overwrite, **OPTIONS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        preparation.prepare(source, tmp_path / "out" / "thesis.txt", **OPTIONS)


def _flip(path, position=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_what_is_damaged_is_made_anew(source, tmp_path):
    output = tmp_path / "out"
    preparation.prepare(source, output, **OPTIONS)
    before = _files(output)
    index = before["index.json"]
    sha256 = index.index(b'"sha256": "') + len(b'"sha256": "')
    for damage in (
        lambda: _flip(output / "train-00001.bin"),
        lambda: _flip(output / "index.json", sha256),
        lambda: (output / "train-00001.bin").unlink(),
        lambda: (output / "train-00002.bin").write_bytes(b"x"),
        lambda: (output / "index.json").write_text("{"),
        lambda: (output / "tokenizer.model").unlink(),
        lambda: (output / "unit-00000.json").write_text('{"digest"'),
    ):
        damage()
        assert preparation.prepare(source, output, **OPTIONS).state == "done"
        assert _files(output) == before
    shards.open_set(output, verify=True)


@pytest.mark.parametrize("has_index", [True, False])
def test_of_two_hosts_the_owner_finds_the_flipped_byte(has_index, source, tmp_path, caplog):
    output, options = tmp_path / "out", OPTIONS | {"host_count": 2}
    for host_index in (0, 1):
        preparation.prepare(source, output, host_index=host_index, **options)
    before = _files(output)
    _flip(output / "train-00001.bin")
    if not has_index:
        (output / "index.json").unlink()
    preparation.prepare(source, output, host_index=0, **options)
    assert "train-00001.bin" not in caplog.text
    summary = preparation.prepare(source, output, host_index=1, **options)
    assert "train-00001.bin has sha256" in caplog.text and "made anew" in caplog.text
    assert summary.state == "done" and summary.num_units_reused == summary.num_units // 2 - 1
    assert _files(output) == before


@pytest.mark.parametrize("file", ["train-00001.bin", "tokenizer.model", "index.json", "unit-0000"])
def test_no_space_left_leaves_no_index_and_goes_on_later(file, source, tmp_path, monkeypatch):
    preparation.prepare(source, tmp_path / "whole", **OPTIONS)
    output = tmp_path / "out"
    flush = files.flush_to_disk

    def full(opened):
        if file in opened.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(opened)

    def full_train(texts, path, *args, **kwargs):
        if file in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return train(texts, path, *args, **kwargs)

    train = tokenizer.train
    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        patch.setattr(tokenizer, "train", full_train)
        with pytest.raises(OSError, match=f"No space left while writing .*{file}.*same command"):
            preparation.prepare(source, output, **OPTIONS)
    with pytest.raises(ValueError, match="unfinished"):
        shards.open_set(output)
    preparation.prepare(source, output, **OPTIONS)
    assert _files(output) == _files(tmp_path / "whole")


def test_prompts_weigh_nothing_and_responses_their_weight_with_their_eos(tmp_path):
    values = [{"text": text} for text in _texts(20)]
    values[5:5] = [
        {"prompt": "alpha beta", "response": "gamma", "weight": 0.5},
        {"prompt": "delta", "response": "epsilon zeta"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    for unit_bytes in (10**6, 150):  # the EOS of a response may end a unit
        output = tmp_path / f"out{unit_bytes}"
        preparation.prepare(
            [str(path)], output, vocab_size=300, validation_fraction=0, unit_bytes=unit_bytes
        )
        token_set = shards.open_set(output)
        token_set.verify()
        split, model = token_set.split("train"), token_set.tokenizer()
        expected = [1.0]
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
    found = []
    for name, weight in (("one", 1.0), ("other", factor)):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": "ask", "response": text, "weight": weight} for text in _texts(20)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        preparation.prepare(
            [str(path)], tmp_path / name, vocab_size=300, validation_fraction=0, unit_bytes=700
        )
        split = shards.open_set(tmp_path / name).split("train")
        weights = split.loss_weights(1, split.num_tokens)
        assert weights.sum() == split.total_target_weight
        loss_nats = (2.0 * weights).sum() / weights.sum()
        found.append(loss_nats / np.log(2) / split.loss_bytes_per_token)
        num_bytes = sum(len(text.encode()) for text in _texts(20))
        np.testing.assert_allclose(
            found[-1], 2 * (weights > 0).sum() / np.log(2) / num_bytes, rtol=1e-12
        )
    assert found[0] == found[1]


def test_a_weight_counts_as_it_is_stored(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"prompt": "a", "response": text, "weight": 0.3} for text in _texts(9)]
    # Too small for float16: stored as 0, and counted so.
    lines.append({"prompt": "a", "response": "beta", "weight": 1e-9})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    preparation.prepare([str(path)], tmp_path / "out", vocab_size=300, validation_fraction=0)
    split = shards.open_set(tmp_path / "out").split("train")
    weights = split.loss_weights(1, split.num_tokens)
    assert split.total_target_weight == weights.sum(dtype=np.float64)
    assert split.num_targets == (weights > 0).sum()
    num_bytes = sum(len(text.encode()) for text in _texts(9))
    assert split.num_loss_bytes == num_bytes * float(np.float16(0.3))


def test_a_split_of_which_nothing_is_learned_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"prompt": "a", "response": text, "weight": 0} for text in _texts(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="'train' has a loss weight above 0.*9 documents"):
        preparation.prepare([str(path)], tmp_path / "out", vocab_size=300, validation_fraction=0)
    assert not (tmp_path / "out" / "index.json").exists()


def test_overwriting_that_fails_leaves_nothing_that_looks_whole(source, tmp_path):
    output = tmp_path / "out"
    preparation.prepare(source, output, **OPTIONS)
    with pytest.raises(ValueError, match="9000 pieces"):
        preparation.prepare(source, output, overwrite=True, **OPTIONS | {"vocab_size": 9000})
    assert [path.name for path in output.iterdir()] == ["preparation.json"]


def test_weights_are_whole_when_they_begin_in_the_middle_of_a_unit(tmp_path, monkeypatch):
    values = [{"text": text} for text in _texts(20)]
    values.append({"prompt": "alpha", "response": "beta"})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    options = {"vocab_size": 300, "validation_fraction": 0}
    preparation.prepare([str(path)], tmp_path / "at_once", **options)
    monkeypatch.setattr(shard_writing, "_BATCH_BYTES", 100)
    preparation.prepare([str(path)], tmp_path / "in_batches", **options)
    assert _files(tmp_path / "at_once") == _files(tmp_path / "in_batches")


def test_a_repair_that_fails_takes_the_index_away(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    preparation.prepare(source, output, **OPTIONS)
    (output / "train-00001.bin").unlink()

    def full(opened):
        if "train-" in opened.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        with pytest.raises(OSError, match="No space left"):
            preparation.prepare(source, output, **OPTIONS)
    assert not (output / "index.json").exists()


def test_a_host_that_fails_at_its_repair_counts_as_not_done(source, tmp_path, monkeypatch):
    output, options = tmp_path / "out", OPTIONS | {"host_count": 2}
    for host_index in (0, 1):
        preparation.prepare(source, output, host_index=host_index, **options)
    before = _files(output)
    _flip(output / "train-00001.bin")

    def full(opened):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        with pytest.raises(OSError, match="No space left"):
            preparation.prepare(source, output, host_index=1, **options)
    assert preparation.prepare(source, output, host_index=0, **options).state == "share done"
    assert not (output / "index.json").exists()
    assert preparation.prepare(source, output, host_index=1, **options).state == "done"
    assert _files(output) == before


def test_bad_documents_are_in_the_index_and_the_limit_holds_over_all_units(source, tmp_path):
    with open(source[0], "a") as file:
        file.write("bad\n" * 3)
    path = pathlib.Path(source[0])
    path.write_text("bad\n" * 3 + path.read_text())
    output = tmp_path / "out"
    with pytest.raises(
        ValueError, match="[56] bad documents.*max_bad_documents=4.*line 1: not JSON"
    ):
        preparation.prepare(source, output, max_bad_documents=4, **OPTIONS)
    assert not (output / "index.json").exists()
    summary = preparation.prepare(source, output, max_bad_documents=6, **OPTIONS)
    assert summary.num_bad_documents == 6 and summary.num_units_reused > 0
    index = shards.open_set(output).index
    assert index["num_bad_documents"] == 6
    assert [text.rpartition(", ")[2][:7] for text in index["bad_examples"]] == [
        "line 1:",
        "line 2:",
        "line 3:",
        "line 64",
        "line 65",
        "line 66",
    ]
    # Shards made under a higher limit do not pass under a lower one.
    (output / "index.json").unlink()
    with pytest.raises(ValueError, match="6 bad documents.*max_bad_documents=4"):
        preparation.prepare(source, output, max_bad_documents=4, **OPTIONS)
    assert not (output / "index.json").exists()


def test_empty_splits_and_corpora_are_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": " ".join(WORDS)}) + "\n")
    with pytest.raises(ValueError, match="split 'validation' is empty.*validation_fraction"):
        preparation.prepare([str(path)], tmp_path / "out", vocab_size=300, validation_fraction=1e-9)
    assert not (tmp_path / "out" / "index.json").exists()
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="no text|empty"):
        preparation.prepare([str(path)], tmp_path / "out2", vocab_size=300)


def test_impossible_settings_are_errors_before_anything_is_written(source, tmp_path):
    for options, message in (
        ({"validation_fraction": 1.0}, "1.0"),
        ({"num_workers": 0}, "0 workers"),
        ({"host_index": 2, "host_count": 2}, "2 is not within the 2"),
        ({"host_count": 2, "overwrite": True}, "delete the directory yourself"),
        ({"tokenizer_model": "x.model", "vocab_size": 300}, "no effect"),
        ({"tokenizer_model": "x.model"}, "no tokenizer model"),
    ):
        with pytest.raises(ValueError, match=message):
            preparation.prepare(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_given_tokenizer_is_used(source, tmp_path):
    preparation.prepare(source, tmp_path / "one", **OPTIONS)
    model = tmp_path / "one" / "tokenizer.model"
    options = {key: OPTIONS[key] for key in ("validation_fraction", "unit_bytes")}
    preparation.prepare(source, tmp_path / "two", tokenizer_model=model, **options)
    assert (
        shards.open_set(tmp_path / "one").fingerprint
        == shards.open_set(tmp_path / "two").fingerprint
    )


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert shards.token_dtype(1 << 16).itemsize == 2 and shards.token_dtype((1 << 16) + 1) == "<u4"


def test_settings_are_in_the_units_digest(source):
    unit = corpus.plan(source).units[0]
    settings = shard_writing.Settings(0.1, "text")
    digests = {
        shard_writing.unit_digest(unit, "a", settings),
        shard_writing.unit_digest(unit, "b", settings),
        shard_writing.unit_digest(unit, "a", shard_writing.Settings(0.2, "text")),
        shard_writing.unit_digest(unit, "a", shard_writing.Settings(0.1, "body")),
    }
    assert len(digests) == 4
