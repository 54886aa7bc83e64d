"""Laws of the corpus: content alone decides its digest, its split and its sample."""

import pytest

from keel_jax.data.preparing import corpus, documents
from tests.data.preparing import corpora


def test_inputs_that_give_nothing_are_errors(tmp_path):
    with pytest.raises(ValueError, match="matches no file"):
        corpus.discover([str(tmp_path / "*.txt")])
    with pytest.raises(ValueError, match="is a directory"):
        corpus.discover([str(tmp_path)])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="empty: the 1 files"):
        corpus.discover([str(tmp_path / "*.txt")])
    with pytest.raises(ValueError, match="stands alone"):
        corpus.discover(["embedded", "x"])
    with pytest.raises(ValueError, match="'csv'.*'auto', 'text'"):
        corpus.discover(["embedded"], input_format="csv")
    with pytest.raises(ValueError, match="no input"):
        corpus.discover([])


def test_a_changed_file_changes_the_digest(tmp_path):
    path = corpora.write_texts(tmp_path / "a.jsonl")
    before = corpus.discover([str(path)]).digest
    assert corpus.discover([str(path)]).digest == before
    path.write_bytes(path.read_bytes().replace(b"end", b"END"))
    assert corpus.discover([str(path)]).digest != before


def test_the_split_goes_by_content_alone(tmp_path):
    def held_out(read):
        return {document.text for document in read if corpus.is_validation(document, 0.2)}

    in_files = held_out(corpora.read([corpora.write_texts(tmp_path / "files")])[0])
    assert in_files == held_out(
        reversed(corpora.read([corpora.write_texts(tmp_path / "a.jsonl")])[0])
    )
    # 200 documents: 20 % is 40, with a deviation of 5.7.
    assert 20 <= len(in_files) <= 60
    assert in_files <= {
        text for text in corpora.FORMAT_TEXTS if corpus.is_validation(documents.Document(text), 0.3)
    }


def test_the_tokenizers_sample_is_bounded_and_leaves_validation_out(tmp_path):
    whole = corpus.discover([str(corpora.write_texts(tmp_path / "a.jsonl"))], unit_bytes=200)
    texts = list(corpus.sample_training_texts(whole, num_bytes=10**9, validation_fraction=0.2))
    training = [
        text
        for text in corpora.FORMAT_TEXTS
        if not corpus.is_validation(documents.Document(text), 0.2)
    ]
    assert sorted(texts) == sorted(training)
    part = list(corpus.sample_training_texts(whole, num_bytes=1000, validation_fraction=0.2))
    assert set(part) < set(training)
    assert 1000 <= sum(len(text.encode()) for text in part) < 1200
    assert part == list(
        corpus.sample_training_texts(whole, num_bytes=1000, validation_fraction=0.2)
    )
