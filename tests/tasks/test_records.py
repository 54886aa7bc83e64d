"""Files of benchmarks are read whole or refused, with the file and the line."""

import gzip

import pytest

from keel_jax.tasks import records
from tests.tasks import layouts

_ROWS = [{"a": "x", "n": 1}, {"a": "\u2028 ü", "n": 2}]


def _values(path, **options):
    return [dict(record.values) for record in records.read(path, **options)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_format_holds_the_same_records(name, tmp_path):
    path = tmp_path / name
    if name == "a.parquet":
        layouts.parquet(path, _ROWS)
    elif name == "a.json":
        layouts.as_json(path, _ROWS)
    else:
        layouts.jsonl(path, _ROWS)
    assert _values(path) == _ROWS


def test_a_csv_with_and_without_a_line_of_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffa,n\n"x,\ny",1\n\nz,2\n', encoding="utf-8")
    found = list(records.read(path))
    assert [dict(record.values) for record in found] == [
        {"a": "x,\ny", "n": "1"},
        {"a": "z", "n": "2"},
    ]
    # The line on which a record begins.
    assert [record.where[-6:] for record in found] == ["line 2", "line 5"]
    path.write_text("x,1\ny,2\n")
    assert _values(path, columns=("a", "n")) == [{"a": "x", "n": "1"}, {"a": "y", "n": "2"}]


def test_lines_of_a_text_are_records(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert _values(path) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl, line 2: this is not JSON"),
        (
            "a.jsonl",
            b'{"a": 1}\n[1]\n',
            r"a\.jsonl, line 2: this is no object",
        ),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl, line 2: this is not UTF-8"),
        ("a.json", b'{"a": 1}', r'holds neither a list of records nor a list "examples"'),
        ("a.json", b"[", r"a\.json is not JSON"),
        ("a.csv", b"a,n\n1,2\n3\n", r"a\.csv, line 3: there are 1 columns, where 2 are expected"),
        ("a.csv", b'a,n\n"1,2\n', r"a\.csv, line 2: unexpected end of data"),
        ("a.parquet", b"PAR1 damaged", r"a\.parquet is not a complete Parquet file"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], r"a\.jsonl\.gz cannot be read"),
    ],
)
def test_damage_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(records.read(tmp_path / name))


def test_fields_are_checked_where_they_are_read():
    values = {"text": "x", "number": "3", "none": None, "list": ["a", 1], "float": 1.5, "yes": True}
    record = records.Record(values, "f.jsonl, line 7")
    assert record.text("text") == "x" and record.integer("number") == 3
    assert "none" not in record and "text" in record
    for read, name, message in [
        (record.text, "none", "there is no field 'none'; the record has text, number"),
        (record.text, "list", "is not a text"),
        (record.text, "yes", "is not a text"),
        (record.texts, "list", "is not a list of texts"),
        (record.texts, "text", "is not a list of texts"),
        (record.integer, "float", "is not an integer"),
        (record.integer, "yes", "is not an integer"),
        (record.inner, "text", "is not an object"),
        (record.inner_list, "list", "is not a list of objects"),
    ]:
        with pytest.raises(ValueError, match=f"^f.jsonl, line 7: .*{message}"):
            read(name)
