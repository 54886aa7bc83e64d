"""Laws of compressed files: they are known by their content, and damage is named."""

import pytest

from keel_jax import errors
from keel_jax.data.preparing import compression
from tests.data.preparing import corpora

LINES = corpora.jsonl(corpora.FORMAT_TEXTS)


@pytest.mark.parametrize("suffix", compression.SUFFIXES)
def test_a_file_is_decompressed_whatever_its_name(suffix, tmp_path):
    corpora.write_compressed(tmp_path / f"a{suffix}", LINES)
    (tmp_path / f"a{suffix}").rename(tmp_path / "a.jsonl")
    assert compression.compression(str(tmp_path / "a.jsonl")) == suffix
    read, whole = corpora.read([tmp_path / "a.jsonl"], unit_bytes=100)
    assert [document.text for document in read] == corpora.FORMAT_TEXTS
    assert len(whole.units) == 1


@pytest.mark.parametrize("suffix", compression.SUFFIXES)
def test_damage_is_an_error_that_names_the_file(suffix, tmp_path):
    path = tmp_path / f"a.jsonl{suffix}"
    corpora.write_compressed(path, LINES)
    content = path.read_bytes()
    for damaged in (
        content[:-5],
        content[: len(content) // 2],
        content[:60] + bytes(20) + content[80:],
        LINES,
        b"xx",
    ):
        path.write_bytes(damaged)
        with pytest.raises(errors.UserError, match=f"a.jsonl{suffix} is damaged"):
            corpora.read([path])


@pytest.mark.parametrize("suffix", compression.SUFFIXES)
def test_nothing_compressed_is_nothing(suffix, tmp_path):
    corpora.write_compressed(tmp_path / f"a.jsonl{suffix}", b"")
    assert compression.compression(str(tmp_path / f"a.jsonl{suffix}")) == suffix
    assert corpora.read([tmp_path / f"a.jsonl{suffix}"])[0] == []


def test_text_that_begins_as_bzip2_does_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("BZh9 is how bzip2 begins")
    assert compression.compression(str(tmp_path / "a.txt")) == ""
