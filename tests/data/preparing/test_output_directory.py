"""Laws of the output directory: it belongs to one plan; nothing else in it is touched."""

import dataclasses
import hashlib
import json
import pathlib

import pytest

from keel_jax.data.preparing import corpus
from tests.data.preparing import corpora


def test_a_second_run_is_done_and_a_different_one_refused(source, tmp_path):
    output = tmp_path / "out"
    corpora.prepare(source, output)
    before = corpora.contents(output)
    assert corpora.prepare(source, output).state == "already done"
    with pytest.raises(ValueError, match="vocab_size was 320, is now 330.*--overwrite"):
        corpora.prepare(source, output, vocab_size=330)
    assert corpora.contents(output) == before
    corpora.prepare(source, output, overwrite=True, vocab_size=330)
    corpora.prepare(source, tmp_path / "fresh", vocab_size=330)
    assert corpora.contents(output) == corpora.contents(tmp_path / "fresh")
    pathlib.Path(source[0]).write_text('{"text": "another corpus"}\n')
    with pytest.raises(ValueError, match=r"\(input was \w{12}"):
        corpora.prepare(source, output, vocab_size=330)


@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_the_plan_is_that_of_directories_begun_before(has_tokenizer, source, tmp_path):
    corpora.prepare(source, tmp_path / "one")
    given = corpora.OPTIONS
    recorded = {
        "tokenizer.vocab_size": 320,
        "tokenizer.model_type": "bpe",
        "tokenizer.sample_bytes": 50000000,
    }
    if has_tokenizer:
        model = tmp_path / "one" / "tokenizer.model"
        given = dataclasses.replace(given, vocab_size=None, tokenizer_model=model)
        fingerprint = hashlib.sha256(model.read_bytes()).hexdigest()
        recorded = {"tokenizer.fingerprint": fingerprint}
    corpora.prepare(source, tmp_path / "two", given)
    expected = {
        "format": "keel_jax token shards",
        "version": 2,
        "input": corpus.discover(source, unit_bytes=2000).digest,
        **recorded,
        "validation_fraction": 0.2,
        "text_field": "text",
    }
    text = (tmp_path / "two" / "preparation.json").read_text()
    assert text == json.dumps(expected, indent=2) + "\n"


def test_a_foreign_directory_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="thesis.txt"):
            corpora.prepare(source, tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        corpora.prepare(source, tmp_path / "out" / "thesis.txt")


def test_overwriting_that_fails_leaves_nothing_that_looks_finished(source, tmp_path):
    output = tmp_path / "out"
    corpora.prepare(source, output)
    with pytest.raises(ValueError, match="9000 pieces"):
        corpora.prepare(source, output, overwrite=True, vocab_size=9000)
    assert [path.name for path in output.iterdir()] == ["preparation.json"]


def test_a_bracket_in_the_outputs_name_is_no_pattern(source, tmp_path):
    output = tmp_path / "out[1]"
    corpora.prepare(source, output)
    (output / "train-00000.bin.tmp-0-1").write_text("left by a killed run")
    assert corpora.prepare(source, output).state == "already done"
    assert not (output / "train-00000.bin.tmp-0-1").exists()
    corpora.prepare(source, output, overwrite=True, vocab_size=330)
    corpora.prepare(source, tmp_path / "fresh", vocab_size=330)
    assert corpora.contents(output) == corpora.contents(tmp_path / "fresh")
