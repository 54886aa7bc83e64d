"""Laws of the small files: whole or not at all, locally and remotely, and plain words."""

import errno
import io
import json
import os
import subprocess
import sys

import fsspec
import pytest
from etils import epath

from keel_jax.runtime import files


def _names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    for value in ({"text": "ü", "numbers": [1, 2.5, None]}, [1], "word"):
        files.write_json(path, value)
        assert files.read_json(path) == value
        assert path.read_text().endswith("\n")
    assert _names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(code, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": True})

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    message = "Input/output" if code == errno.EIO else f"No space left while writing {path}.*again"
    with pytest.raises(OSError, match=message) as caught:
        files.write_json(path, {"new": True})
    assert caught.value.errno == code
    assert files.read_json(path) == {"old": True} and _names(tmp_path) == ["a.json"]


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": True})

    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "flush_to_disk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"new": True})
    assert files.read_json(path) == {"old": True} and _names(tmp_path) == ["a.json"]


def test_a_value_that_is_no_json_touches_nothing(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": True})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})
    assert files.read_json(path) == {"old": True} and _names(tmp_path) == ["a.json"]


def test_the_unfinished_file_bears_the_callers_suffix(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "flush_to_disk", lambda file: seen.append(file.name))
    files.write_json(tmp_path / "a.json", 1, temporary_suffix=".tmp-7")
    files.write_json(tmp_path / "b.json", 1)
    names = [os.path.basename(name) for name in seen]
    assert names == ["a.json.tmp-7", f"b.json.tmp-{os.getpid()}"]
    assert _names(tmp_path) == ["a.json", "b.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe{}"])
def test_what_is_no_json_is_named(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not JSON .*; remove it or restore it"):
        files.read_json(path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    made = files.make_writable_directory(tmp_path / "a" / "b")
    assert made.is_dir() and _names(tmp_path / "a" / "b") == []
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below", "/proc/nothing"):
        with pytest.raises(ValueError, match=f"Cannot write to {path}: .*Choose another"):
            files.make_writable_directory(path)
        with pytest.raises(OSError):
            files.write_json(epath.Path(path) / "a.json", {})


def test_a_remote_directory_holds_the_same_files(monkeypatch):
    store = fsspec.filesystem("memory")
    directory = epath.Path("gs://keel_jax_test/files")
    monkeypatch.setattr(type(directory._backend), "_get_filesystem", lambda self, name: store)
    files.make_writable_directory(directory)
    path = directory / "a.json"
    assert files.read_json(path) is None
    for value in ({"step": 1}, {"step": 2}):
        files.write_json(path, value)
        assert files.read_json(path) == value
    assert _names(directory) == ["a.json"]


def test_bytes_without_a_descriptor_are_flushed():
    files.flush_to_disk(io.BytesIO(b"no file"))


def test_the_module_does_without_jax():
    code = "import sys; from keel_jax.runtime import files; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_files_are_indented_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1]})
    assert (tmp_path / "a.json").read_text() == json.dumps({"a": [1]}, indent=2) + "\n"


class _Bucket:
    """A file in a bucket: whole reads and writes alone."""

    def __init__(self):
        self.text = None

    def __str__(self):
        return "gs://bucket/metrics.jsonl"

    def exists(self):
        return self.text is not None

    def read_text(self):
        return self.text

    def write_text(self, text):
        self.text = text


def test_lines_are_added_where_files_cannot_be_appended_to(tmp_path):
    local = epath.Path(tmp_path) / "metrics.jsonl"
    for path in (local, _Bucket()):
        files.append_text(path, "one\n")
        files.append_text(path, "two\n")
        assert path.read_text() == "one\ntwo\n"


def test_a_bracket_in_a_directorys_name_is_no_pattern(tmp_path):
    directory = epath.Path(tmp_path / "a[1]")
    directory.mkdir()
    for name in ("b.tmp-1", "a.tmp-1", "c.bin"):
        (directory / name).write_text("")
    found = files.matching(directory, "*.tmp-*")
    assert [path.name for path in found] == ["a.tmp-1", "b.tmp-1"]
