"""Laws of the sources: the same documents from every format and cut; bad ones counted by place."""

import gzip
import importlib
import json
import sys

import pytest

from keel_jax.data.preparing import corpus, documents, formats, stdlib

TEXTS = [f"Document {i}: " + "naïve text\n" * (i % 7) + "end" for i in range(200)]


def _read(inputs, *, unit_bytes=0, tally=None, **options):
    tally = tally or documents.Tally()
    plan = corpus.plan([str(path) for path in inputs], unit_bytes=unit_bytes)
    read = []
    for unit in plan.units:
        read.extend(corpus.read(unit, tally, **options))
    return read, plan


def _jsonl(texts=TEXTS):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _write(path, texts=TEXTS):
    if path.name == "files":
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i:04d}.txt").write_bytes(text.encode())
        return path / "*.txt"
    if path.name.endswith(".jsonl"):
        path.write_bytes(_jsonl(texts))
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(_jsonl(texts)))
    elif path.name.endswith(".zst"):
        zstandard = importlib.import_module("zstandard")
        half = len(_jsonl(texts)) // 2  # two frames, cut anywhere
        compress = zstandard.ZstdCompressor().compress
        path.write_bytes(compress(_jsonl(texts)[:half]) + compress(_jsonl(texts)[half:]))
    elif path.name.endswith(".parquet"):
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=17)
    else:
        module = importlib.import_module("array_record.python.array_record_module")
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for i, text in enumerate(texts):  # both kinds of record
            writer.write(text.encode() if i % 2 else json.dumps({"text": text}).encode())
        writer.close()
    return path


@pytest.mark.parametrize(
    "name", ["files", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.array_record"]
)
def test_every_format_gives_the_same_documents_however_it_is_cut(name, tmp_path):
    path = _write(tmp_path / name)
    for unit_bytes in (0, 1, 300, 4001):
        read, plan = _read([path], unit_bytes=unit_bytes)
        assert [document.text for document in read] == TEXTS
        assert sum(unit.num_bytes for unit in plan.units) <= plan.num_bytes
    if name not in ("a.jsonl.gz", "a.jsonl.zst"):
        assert len(_read([path], unit_bytes=300)[1].units) > 5


def test_jsonl_ranges_give_each_line_once_for_every_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": "bb"}\r\n{"text": "ccc"}')
    for unit_bytes in range(1, path.stat().st_size + 2):
        read, _ = _read([path], unit_bytes=unit_bytes)
        assert [document.text for document in read] == ["a", "bb", "ccc"], unit_bytes


def test_prompt_and_response(tmp_path):
    values = [
        {"prompt": "Q", "response": "A"},
        {"prompt": "Q", "response": "B", "weight": 0.5},
        {"prompt": "", "response": "C"},
        {"prompt": "Q", "response": ""},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, values)))
    tally = documents.Tally()
    read, _ = _read([path], tally=tally)
    assert [document.parts() for document in read] == [
        (("Q", 0.0), ("A", 1.0)),
        (("Q", 0.0), ("B", 0.5)),
        (("C", 1.0),),
    ]
    assert tally.num_empty == 1


BAD_LINES = [
    (b"{nonsense", "not JSON"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'["text"]', "JSON list"),
    (b'{"txt": "a"}', "neither 'text'"),
    (b'{"text": 7}', "a int, not a string"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b'{"prompt": "a", "response": "b", "weight": -1}', "weight -1"),
    (b'{"prompt": "a", "response": "b", "weight": NaN}', "weight nan"),
    (b'{"prompt": "a", "response": "b", "weight": 1e6}', "weight 1000000.0"),
    (b'{"prompt": "a", "response": "b", "weight": true}', "weight True"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize("unit_bytes", [0, 60])
@pytest.mark.parametrize("line, reason", BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_bad_lines_are_counted_with_their_place(line, reason, unit_bytes, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(TEXTS[:3]) + line + b"\n" + _jsonl(TEXTS[3:6]))
    tally = documents.Tally()
    read, _ = _read([path], tally=tally, unit_bytes=unit_bytes)
    assert [document.text for document in read] == TEXTS[:6]
    assert tally.num_bad == 1
    assert tally.examples[0].startswith(f"{path}, line 4: ") and reason in tally.examples[0]


def test_the_limit_of_bad_documents_stops(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"bad\n" * 20)
    with pytest.raises(ValueError, match="4 bad documents.*max_bad_documents=3.*line 1"):
        _read([path], tally=documents.Tally(max_bad=3))


def test_a_text_file_that_is_not_utf8_is_one_bad_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo \xff three")
    (tmp_path / "c.txt").write_bytes(b"")
    tally = documents.Tally()
    read, _ = _read([tmp_path / "*.txt"], tally=tally)
    assert [document.text for document in read] == ["good"]
    assert (tally.num_bad, tally.num_empty) == (1, 1)
    assert "b.txt, line 2: invalid UTF-8 (byte 0xff" in tally.examples[0]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.array_record"])
def test_a_cut_off_file_is_an_error_that_names_it(name, tmp_path):
    path = _write(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=name):
        _read([path])


def test_text_field_and_missing_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a", "text": "b"}')
    read, _ = _read([path], text_field="body")
    assert read == [documents.Document("a")]
    with pytest.raises(ValueError, match=r"no column 'body'.*\['text'\]"):
        _read([_write(tmp_path / "a.parquet")], text_field="body")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        _read([path])


def test_inputs_that_give_nothing_are_errors(tmp_path):
    with pytest.raises(ValueError, match="matches no file"):
        corpus.plan([str(tmp_path / "*.txt")])
    with pytest.raises(ValueError, match="is a directory"):
        corpus.plan([str(tmp_path)])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="empty: the 1 files"):
        corpus.plan([str(tmp_path / "*.txt")])
    with pytest.raises(ValueError, match="stands alone"):
        corpus.plan(["stdlib", "x"])
    with pytest.raises(ValueError, match="'csv'.*'auto', 'text'"):
        corpus.plan(["stdlib"], input_format="csv")
    with pytest.raises(ValueError, match="no input"):
        corpus.plan([])


def test_a_changed_file_changes_the_digest(tmp_path):
    path = _write(tmp_path / "a.jsonl")
    before = corpus.plan([str(path)]).digest
    assert corpus.plan([str(path)]).digest == before
    path.write_bytes(path.read_bytes().replace(b"end", b"END"))
    assert corpus.plan([str(path)]).digest != before


def test_the_split_goes_by_content_alone(tmp_path):
    def held_out(read):
        return {document.text for document in read if corpus.is_validation(document, 0.2)}

    in_files = held_out(_read([_write(tmp_path / "files")])[0])
    assert in_files == held_out(reversed(_read([_write(tmp_path / "a.jsonl")])[0]))
    # 200 documents: 20 % is 40, with a deviation of 5.7.
    assert 20 <= len(in_files) <= 60
    assert in_files <= {
        text for text in TEXTS if corpus.is_validation(documents.Document(text), 0.3)
    }


def test_the_tokenizers_sample_is_bounded_and_leaves_validation_out(tmp_path):
    plan = corpus.plan([str(_write(tmp_path / "a.jsonl"))], unit_bytes=200)
    texts = list(corpus.sample_training_texts(plan, num_bytes=10**9, validation_fraction=0.2))
    training = [text for text in TEXTS if not corpus.is_validation(documents.Document(text), 0.2)]
    assert sorted(texts) == sorted(training)
    part = list(corpus.sample_training_texts(plan, num_bytes=1000, validation_fraction=0.2))
    assert set(part) < set(training)
    assert 1000 <= sum(len(text.encode()) for text in part) < 1200
    assert part == list(corpus.sample_training_texts(plan, num_bytes=1000, validation_fraction=0.2))


def test_stdlib_is_source_without_tests_tables_and_twins():
    files = stdlib.source_files()
    paths = [file.relative_path for file in files]
    assert paths == sorted(paths) and "argparse.py" in paths
    assert len({file.sha256 for file in files}) == len(files)
    for left_out in ("/test/", "/tests/", "/idle_test/", "/encodings/", "/site-packages/"):
        assert not any(left_out in f"/{path}" for path in paths)
    assert 5_000_000 < sum(file.num_bytes for file in files) < 40_000_000
    plan = corpus.plan(["stdlib"])
    assert plan.description["num_bytes"] == plan.num_bytes
    assert plan.description["python_version"].startswith("3.")


def test_every_format_has_a_reader():
    assert set(corpus.INPUT_FORMATS) == {"auto", *formats.READERS}
