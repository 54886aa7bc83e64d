"""Laws of the file formats: the same documents from every format, however it is cut."""

import sys

import pyarrow
import pytest
from pyarrow import parquet

from keel_jax import errors
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


def test_a_dotted_name_reaches_nested_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    values = [
        {"a": {"b": {"c": "deep"}}},
        {"a.b": {"c": "half"}, "a": 1},
        {"a.b.c": "literal", "a": {"b": {"c": "deep"}}},
        {"a": {"b": 1}},
        {"a": {"b": {"c": None}}},
    ]
    corpora.write_jsonl(path, values)
    tally = documents.Tally()
    read, _ = corpora.read([path], text_field="a.b.c", tally=tally)
    assert [document.text for document in read] == ["deep", "half", "literal"]
    assert (tally.num_bad, tally.num_empty) == (1, 1)
    assert "with neither 'a.b.c' nor prompt and response" in tally.kinds


def _table(path, columns):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def test_a_dotted_name_reaches_structs_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"b": {"c": text, "d": 1}} for text in ("one", "two", "three")]
    _table(path, {"a": [*rows, {"b": None}, None], "a.x": ["x"] * 5})
    tally = documents.Tally()
    read, _ = corpora.read([path], text_field="a.b.c", tally=tally)
    assert [document.text for document in read] == ["one", "two", "three"]
    read, _ = corpora.read([path], text_field="a.x")
    assert [document.text for document in read] == ["x"] * 5
    with pytest.raises(
        errors.UserError, match=r"no column 'text'.*strings \['a.b.c', 'a.x'\]: choose"
    ):
        corpora.read([path])


def test_null_rows_are_empty_documents(tmp_path):
    path = tmp_path / "a.parquet"
    _table(path, {"text": ["one", None, "", "two"]})
    tally = documents.Tally(max_bad=0)
    read, _ = corpora.read([path], tally=tally)
    assert [document.text for document in read] == ["one", "two"] and tally.num_empty == 2
    _table(path, {"prompt": ["p", None], "response": ["r", "s"], "weight": [None, 0.5]})
    read, _ = corpora.read([path], tally=tally)
    assert [document.parts() for document in read] == [(("p", 0.0), ("r", 1.0)), (("s", 0.5),)]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null}\n{"prompt": "q", "response": null}\n{"text": "three"}\n')
    tally = documents.Tally(max_bad=0)
    read, _ = corpora.read([path], tally=tally)
    assert [document.text for document in read] == ["three"] and tally.num_empty == 2


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([b"bytes"], "binary"),
        ([{"a": "x"}], "struct<a: string>"),
        ([["x"]], "list<element: string>"),
        ([1], "int64"),
    ],
)
def test_a_column_that_is_not_of_strings_is_an_error_that_says_so(values, kind, tmp_path):
    path = tmp_path / "a.parquet"
    _table(path, {"text": values, "body": ["x"]})
    with pytest.raises(errors.UserError) as refusal:
        corpora.read([path])
    assert f"'text' of {path} is of type {kind}, not of strings" in str(refusal.value)
    assert "'body'" in str(refusal.value) and "--text_field" in str(refusal.value)


def test_a_row_that_is_not_utf8_is_one_bad_document(tmp_path):
    path = tmp_path / "a.parquet"
    strings = pyarrow.array([b"one", b"\xff", b"two"]).cast(pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 3, strings.buffers())
    _table(path, {"text": strings})
    tally = documents.Tally()
    read, _ = corpora.read([path], tally=tally)
    assert [document.text for document in read] == ["one", "two"]
    assert tally.examples == [f"{path}, row 2: invalid UTF-8 (byte 0xff, invalid start byte)"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_a_document(name, tmp_path):
    line = b"text" if name == "a.txt" else b'{"text": "text"}\n'
    # Concatenated files have one within.
    corpora.write_compressed(
        tmp_path / name, (b"\xef\xbb\xbf" + line) * (1 if "txt" in name else 3)
    )
    tally = documents.Tally()
    read, _ = corpora.read([tmp_path / name], tally=tally)
    assert {document.text for document in read} == {"text"} and tally.num_bad == 0
    assert len(read) == (1 if "txt" in name else 3)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_text_file_in_another_encoding_is_named(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve text in another encoding".encode(encoding))
    tally = documents.Tally()
    assert corpora.read([tmp_path / "a.txt"], tally=tally)[0] == []
    name = encoding[:6].upper()
    assert tally.kinds[f"in {name}, not UTF-8"]["count"] == 1
    assert f"iconv -f {name} -t UTF-8" in tally.examples[0]


def test_text_with_zeros_is_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a table\0of zeros\0\0\0\0in C" * 9)
    assert len(corpora.read([tmp_path / "a.txt"])[0]) == 1


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    corpora.write_compressed(path, b"anything")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        corpora.read([path])


def test_every_format_is_recognized_by_a_suffix_and_tested_above(tmp_path):
    read = {
        corpora.read([corpora.write_texts(tmp_path / name)])[1].units[0].format for name in NAMES
    }
    assert read == set(formats.READERS)
    assert set(corpus.INPUT_FORMATS) == {"auto", *formats.READERS}
