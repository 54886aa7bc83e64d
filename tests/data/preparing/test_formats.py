"""Laws of the file formats: the same documents from every format, however it is cut."""

import sys

import pytest

from keel_jax.data.preparing import corpus, documents, formats
from tests.data.preparing import corpora

NAMES = ("files", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.array_record")


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_documents_however_it_is_cut(name, tmp_path):
    path = corpora.write_texts(tmp_path / name)
    for unit_bytes in (0, 1, 300, 4001):
        read, whole = corpora.read([path], unit_bytes=unit_bytes)
        assert [document.text for document in read] == corpora.FORMAT_TEXTS
        assert sum(unit.num_bytes for unit in whole.units) <= whole.num_bytes
    if name not in ("a.jsonl.gz", "a.jsonl.zst"):
        assert len(corpora.read([path], unit_bytes=300)[1].units) > 5


def test_jsonl_ranges_give_each_line_once_for_every_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": "bb"}\r\n{"text": "ccc"}')
    for unit_bytes in range(1, path.stat().st_size + 2):
        read, _ = corpora.read([path], unit_bytes=unit_bytes)
        assert [document.text for document in read] == ["a", "bb", "ccc"], unit_bytes


def test_a_text_file_that_is_not_utf8_is_one_bad_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo \xff three")
    (tmp_path / "c.txt").write_bytes(b"")
    tally = documents.Tally()
    read, _ = corpora.read([tmp_path / "*.txt"], tally=tally)
    assert [document.text for document in read] == ["good"]
    assert (tally.num_bad, tally.num_empty) == (1, 1)
    assert "b.txt, line 2: invalid UTF-8 (byte 0xff" in tally.examples[0]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.array_record"])
def test_a_cut_off_file_is_an_error_that_names_it(name, tmp_path):
    path = corpora.write_texts(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=name):
        corpora.read([path])


def test_text_field_and_missing_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a", "text": "b"}')
    read, _ = corpora.read([path], text_field="body")
    assert read == [documents.Document("a")]
    with pytest.raises(ValueError, match=r"no column 'body'.*\['text'\]"):
        corpora.read([corpora.write_texts(tmp_path / "a.parquet")], text_field="body")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        corpora.read([path])


def test_every_format_is_recognized_by_a_suffix_and_tested_above(tmp_path):
    read = {
        corpora.read([corpora.write_texts(tmp_path / name)])[1].units[0].format for name in NAMES
    }
    assert read == set(formats.READERS)
    assert set(corpus.INPUT_FORMATS) == {"auto", *formats.READERS}
