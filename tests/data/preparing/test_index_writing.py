"""Laws of the index: bad documents are counted over all units, empty splits are errors."""

import json
import pathlib

import pytest

from keel_jax.data import shards
from tests.data.preparing import corpora


def test_bad_documents_are_in_the_index_and_the_limit_holds_over_all_units(source, tmp_path):
    with open(source[0], "a") as file:
        file.write("bad\n" * 3)
    path = pathlib.Path(source[0])
    path.write_text("bad\n" * 3 + path.read_text())
    output = tmp_path / "out"
    with pytest.raises(
        ValueError, match="[56] bad documents.*max_bad_documents=4.*line 1: not JSON"
    ):
        corpora.prepare(source, output, max_bad_documents=4)
    assert not (output / "index.json").exists()
    summary = corpora.prepare(source, output, max_bad_documents=6)
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
        corpora.prepare(source, output, max_bad_documents=4)
    assert not (output / "index.json").exists()


def test_empty_splits_and_corpora_are_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": " ".join(corpora.WORDS)}) + "\n")
    with pytest.raises(ValueError, match="split 'validation' is empty.*validation_fraction"):
        corpora.prepare([str(path)], tmp_path / "out", corpora.TRAIN_ONLY, validation_fraction=1e-9)
    assert not (tmp_path / "out" / "index.json").exists()
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="no text|empty"):
        corpora.prepare(
            [str(path)], tmp_path / "out2", corpora.TRAIN_ONLY, validation_fraction=0.02
        )


def test_a_split_of_which_nothing_is_learned_is_an_error(tmp_path):
    values = [{"prompt": "a", "response": text, "weight": 0} for text in corpora.random_texts(9)]
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    with pytest.raises(ValueError, match="'train' has a loss weight above 0.*9 documents"):
        corpora.prepare(inputs, tmp_path / "out", corpora.TRAIN_ONLY)
    assert not (tmp_path / "out" / "index.json").exists()
