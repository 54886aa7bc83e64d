"""Laws of the files: on a full disk no set looks complete, and the work continues later."""

import errno

import pytest

from keel_jax.data import shards
from keel_jax.data.preparing import tokenizer_training
from keel_jax.runtime import files
from tests.data.preparing import corpora


@pytest.mark.parametrize("file", ["train-00001.bin", "tokenizer.model", "index.json", "unit-0000"])
def test_no_space_left_leaves_no_index_and_goes_on_later(file, source, tmp_path, monkeypatch):
    corpora.prepare(source, tmp_path / "whole")
    output = tmp_path / "out"
    flush = files.flush_to_disk

    def full(opened):
        if file in opened.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(opened)

    def full_train(texts, path, *args, **kwargs):
        if file in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return train(texts, path, *args, **kwargs)

    train = tokenizer_training.train_tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        patch.setattr(tokenizer_training, "train_tokenizer", full_train)
        with pytest.raises(OSError, match=f"No space left while writing .*{file}.*same command"):
            corpora.prepare(source, output)
    with pytest.raises(ValueError, match="unfinished"):
        shards.open_set(output)
    corpora.prepare(source, output)
    assert corpora.contents(output) == corpora.contents(tmp_path / "whole")


def test_a_repair_that_fails_takes_the_index_away(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    corpora.prepare(source, output)
    (output / "train-00001.bin").unlink()

    def full(opened):
        if "train-" in opened.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        with pytest.raises(OSError, match="No space left"):
            corpora.prepare(source, output)
    assert not (output / "index.json").exists()
