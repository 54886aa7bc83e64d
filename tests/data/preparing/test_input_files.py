"""Laws of the input: literal paths are no patterns, and a format is known or asked for."""

import json

import pytest

from keel_jax import errors
from keel_jax.data.preparing import compression, formats, input_files
from tests.data.preparing import corpora

LINES = corpora.jsonl(corpora.FORMAT_TEXTS[:5])


def _find(*patterns, input_format="auto"):
    return input_files.find([str(pattern) for pattern in patterns], input_format)


@pytest.mark.parametrize("name", ["x[1].txt", "what?.txt", "a*b.txt", "[!a].txt"])
def test_what_exists_is_taken_by_its_literal_name(name, tmp_path):
    for other in (name, "x1.txt", "whats.txt", "aXb.txt", "b.txt"):
        (tmp_path / other).write_text("text")
    [file] = _find(tmp_path / name)
    assert file.path == str(tmp_path / name)


def test_a_pattern_begins_where_literal_directories_end(tmp_path):
    directory = tmp_path / "runs[1]" / "a*"
    (directory / "deep").mkdir(parents=True)
    (tmp_path / "runs1").mkdir()
    for path in (directory / "x.txt", directory / "deep/y.txt", tmp_path / "runs1/z.txt"):
        path.write_text("text")
    assert [file.path for file in _find(directory / "*.txt")] == [str(directory / "x.txt")]
    assert [file.path for file in _find(directory / "**")] == [
        str(directory / "deep/y.txt"),
        str(directory / "x.txt"),
    ]
    # A directory of that name does not exist: it is a pattern.
    assert [file.path for file in _find(tmp_path / "runs[12]/*.txt")] == [
        str(tmp_path / "runs1/z.txt")
    ]
    with pytest.raises(errors.UserError, match=r"a\*' matches no file: it is a directory, give"):
        _find(directory)
    with pytest.raises(errors.UserError, match=r"x\[2\].txt' matches no file\.$"):
        _find(tmp_path / "x[2].txt")


def test_the_same_file_by_two_names_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert len(_find(tmp_path / "a.txt", tmp_path / "*.txt", tmp_path / "." / "a*")) == 1


@pytest.mark.parametrize("compressed", ["", *compression.SUFFIXES])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "jsonl") for name in ("a.jsonl", "a.ndjson", "a.json", "A.JSONL", "b.c.jsonl")),
        *((name, "text") for name in ("a.txt", "a.md", "a.py", "x.jsonl.txt")),
    ],
)
def test_a_format_is_known_by_name(name, expected, compressed, tmp_path):
    path = tmp_path / f"{name}{compressed}"
    corpora.write_compressed(path, b'{"text": "a"}\n' if expected == "jsonl" else b"text")
    [file] = _find(path)
    assert file.format == expected
    [document] = next(iter(corpora.read([path])))
    assert document.text == ("a" if expected == "jsonl" else "text")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.dat"], r"1 files .*: 1 with \.dat, such as .*a\.dat\. .*--input_format"),
        (["README", "a.txt", "b.csv"], r"2 files .*1 without a suffix.*README; 1 with \.csv"),
        (["a.dat.gz"], r"1 with \.dat, such as .*a\.dat\.gz"),
    ],
)
def test_an_unknown_name_is_asked_about(names, message, tmp_path):
    for name in names:
        corpora.write_compressed(tmp_path / name, LINES if "dat" in name else b"text")
    with pytest.raises(errors.UserError, match=message) as refusal:
        _find(tmp_path / "*")
    assert ("looks like jsonl" in str(refusal.value)) == ("dat" in names[0])
    found = _find(tmp_path / "*", input_format="text")
    assert {file.format for file in found} == {"text"} and len(found) == len(names)


def test_an_empty_file_is_of_any_format(tmp_path):
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert len(_find(tmp_path / "*")) == 2
    assert len(corpora.read([tmp_path / "*"])[0]) == 5


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_json_lines_in_a_text_file_are_asked_about(name, tmp_path):
    corpora.write_compressed(tmp_path / name, b"\xef\xbb\xbf" + LINES)
    with pytest.raises(errors.UserError, match="looks like jsonl: .*--input_format=jsonl or"):
        _find(tmp_path / name)
    assert len(corpora.read([tmp_path / name], input_format="jsonl")[0]) == 5
    assert len(corpora.read([tmp_path / name], input_format="text")[0]) == 1


@pytest.mark.parametrize("text", ["{\n", "{}\n{}\n", "[1]\n", '{"a": 1} and so on', "{" * 70_000])
def test_text_that_only_begins_as_json_is_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    assert _find(tmp_path / "a.txt")[0].format == "text"
    assert formats.other_format_of(str(tmp_path / "a.txt")) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES.decode().encode("utf-16"), "is in UTF-16, not UTF-8: convert it with iconv"),
        (LINES.decode().encode("utf-16-le"), "is in UTF-16, not UTF-8"),
        (LINES.decode().encode("utf-32"), "is in UTF-32, not UTF-8"),
        (json.dumps([{"text": "a"}]).encode(), r"is one JSON array.*jq -c '\.\[\]'"),
        (json.dumps([{"text": "a"}], indent=1).encode(), "is one JSON array"),
        (json.dumps([{"text": "a" * 100_000}]).encode(), "is one JSON array"),
        (json.dumps({"text": "a"}, indent=1).encode(), "a JSON object over several lines"),
        (b"PAR1....PAR1", "looks like a Parquet file"),
    ],
)
def test_a_file_that_does_not_hold_json_lines_is_an_error_that_says_what_it_is(
    content, message, tmp_path
):
    for name in ("a.jsonl", "a.json", "a.jsonl.bz2"):
        corpora.write_compressed(tmp_path / name, content)
        with pytest.raises(errors.UserError, match=message):
            corpora.read([tmp_path / name])
