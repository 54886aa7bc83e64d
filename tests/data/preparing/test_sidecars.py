"""Laws of the sidecars: a unit is done if its shards are intact and made from the same."""

import dataclasses
import errno

import pytest

from keel_jax.data import shards
from keel_jax.data.preparing import corpus, sidecars
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files
from tests.data.preparing import corpora


def test_what_is_damaged_is_rebuilt(source, tmp_path):
    output = tmp_path / "out"
    corpora.prepare(source, output)
    before = corpora.contents(output)
    index = before["index.json"]
    sha256 = index.index(b'"sha256": "') + len(b'"sha256": "')
    for damage in (
        lambda: corpora.flip_bit(output / "train-00001.bin"),
        lambda: corpora.flip_bit(output / "index.json", sha256),
        lambda: (output / "train-00001.bin").unlink(),
        lambda: (output / "train-00002.bin").write_bytes(b"x"),
        lambda: (output / "index.json").write_text("{"),
        lambda: (output / "tokenizer.model").unlink(),
        lambda: (output / "unit-00000.json").write_text('{"digest"'),
    ):
        damage()
        assert corpora.prepare(source, output).state == "done"
        assert corpora.contents(output) == before
    shards.open_set(output, verify=True)


@pytest.mark.parametrize("has_index", [True, False])
def test_of_two_hosts_the_owner_finds_the_flipped_byte(has_index, source, tmp_path, caplog):
    output = tmp_path / "out"
    for host_index in (0, 1):
        corpora.prepare(source, output, host_index=host_index, host_count=2)
    before = corpora.contents(output)
    corpora.flip_bit(output / "train-00001.bin")
    if not has_index:
        (output / "index.json").unlink()
    corpora.prepare(source, output, host_index=0, host_count=2)
    assert "train-00001.bin" not in caplog.text
    summary = corpora.prepare(source, output, host_index=1, host_count=2)
    assert "train-00001.bin has sha256" in caplog.text and "rebuilt" in caplog.text
    assert summary.state == "done" and summary.num_units_reused == summary.num_units // 2 - 1
    assert corpora.contents(output) == before


def test_a_host_that_fails_at_its_repair_counts_as_not_done(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    for host_index in (0, 1):
        corpora.prepare(source, output, host_index=host_index, host_count=2)
    before = corpora.contents(output)
    corpora.flip_bit(output / "train-00001.bin")

    def full(opened):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        with pytest.raises(OSError, match="No space left"):
            corpora.prepare(source, output, host_index=1, host_count=2)
    assert corpora.prepare(source, output, host_index=0, host_count=2).state == "share done"
    assert not (output / "index.json").exists()
    assert corpora.prepare(source, output, host_index=1, host_count=2).state == "done"
    assert corpora.contents(output) == before


def test_settings_are_in_the_units_digest(source):
    unit = corpus.discover(source).units[0]
    settings = preparation_options.ShardSettings(0.1, "text")
    digests = {
        sidecars.unit_digest(unit, "a", settings),
        sidecars.unit_digest(unit, "b", settings),
        sidecars.unit_digest(unit, "a", preparation_options.ShardSettings(0.2, "text")),
        sidecars.unit_digest(unit, "a", preparation_options.ShardSettings(0.1, "body")),
        *(
            sidecars.unit_digest(unit, "a", dataclasses.replace(settings, **changes))
            for changes in (
                {"chat_template": "turns"},
                {"chat_template": "alpaca"},
                {"pack_tokens": 8},
                {"pack_tokens": 9},
                {"pack_tokens": 9, "long_documents": "cut"},
            )
        ),
    }
    assert len(digests) == 9
