"""Laws of reading shards: files that are missing, cut, changed or foreign are errors.

`data.integrity` is tested here too. What the streams contain is tested where they are written, in
`preparing/test_preparation.py` and `preparing/test_shard_writing.py`.
"""

import hashlib
import json
import subprocess
import sys

import pytest

from keel_jax.data import shards
from tests.data.preparing import corpora


@pytest.fixture
def directory(tmp_path):
    values = [{"prompt": f"question {i}", "response": "some answer " * (i + 1)} for i in range(30)]
    inputs = corpora.write_jsonl(tmp_path / "a.jsonl", values)
    corpora.prepare(inputs, tmp_path / "set", vocab_size=300, unit_bytes=1000)
    return tmp_path / "set"


def test_missing_and_truncated_files_are_named_with_both_sizes(directory):
    for name in ("train-00001.bin", "train-00002.weights", "validation-00000.bin"):
        path = directory / name
        content = path.read_bytes()
        path.write_bytes(content[:-2])
        message = f"{name} has {len(content) - 2} bytes, but {len(content)} bytes were.*again"
        with pytest.raises(ValueError, match=message):
            shards.open_set(directory)
        path.unlink()
        with pytest.raises(ValueError, match=f"{name} is missing.*{len(content)} bytes"):
            shards.open_set(directory)
        path.write_bytes(content)
    shards.open_set(directory).verify()


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.weights"])
def test_a_flipped_bit_is_found_where_checksums_are_asked_for(name, directory):
    shards.open_set(directory, verify=True)
    content = bytearray((directory / name).read_bytes())
    written = hashlib.sha256(content).hexdigest()[:12]
    content[-1] ^= 1
    (directory / name).write_bytes(content)
    changed = hashlib.sha256(content).hexdigest()[:12]
    message = f"{name} has sha256 {changed}, but {written} was written.*same prepare command"
    with pytest.raises(ValueError, match=message):
        shards.open_set(directory, verify=True)
    with pytest.raises(ValueError, match=message):
        shards.open_set(directory).verify()  # opened without: only sizes were compared


def test_foreign_and_damaged_directories_are_errors(directory, tmp_path):
    with pytest.raises(ValueError, match="no token set at .*keel_jax.prepare"):
        shards.open_set(tmp_path / "nothing")
    index_path = directory / "index.json"
    index = json.loads(index_path.read_text())
    for text, message in (
        ("{", "damaged"),
        ("[]", "another program"),
        (json.dumps(index | {"format": "other"}), "format: 'other'"),
        (json.dumps(index | {"version": 99}), "version 99.*version 2"),
    ):
        index_path.write_text(text)
        with pytest.raises(ValueError, match=message):
            shards.open_set(directory)
    index_path.unlink()
    with pytest.raises(ValueError, match="unfinished.*same prepare command"):
        shards.open_set(directory)


def test_another_tokenizer_is_an_error(directory):
    (directory / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(ValueError, match="not the tokenizer that made these shards"):
        shards.open_set(directory)


def test_the_fingerprint_is_the_contents_not_the_places(directory, tmp_path):
    fingerprint = shards.open_set(directory).fingerprint
    moved = directory.rename(tmp_path / "moved")
    assert shards.open_set(moved).fingerprint == fingerprint
    index = json.loads((moved / "index.json").read_text())
    index["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    del index["sha256"]
    (moved / "index.json").write_text(json.dumps(index))
    assert shards.open_set(moved).fingerprint != fingerprint


def test_ranges_outside_the_stream_are_errors(directory):
    split = shards.open_set(directory).split("train")
    for start, stop in ((-1, 2), (3, 2), (0, split.num_tokens + 1)):
        with pytest.raises(ValueError, match=str(split.num_tokens)):
            split.tokens(start, stop)
    assert split.tokens(5, 5).shape == (0,)


def test_large_vocabularies_take_four_bytes():
    assert shards.token_dtype(1 << 16).itemsize == 2 and shards.token_dtype((1 << 16) + 1) == "<u4"


def test_preparing_and_reading_do_without_jax():
    code = (
        "import sys; from keel_jax.data import loader, shards;"
        "from keel_jax.data.preparing import preparation;"
        "sys.exit('jax' in sys.modules or 'grain' in sys.modules or 'pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
