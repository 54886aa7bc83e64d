"""Laws of the shared tokenizer: one for all hosts, or the one that is given."""

import pathlib
import subprocess
import sys

import pytest

from keel_jax.data import shards
from tests.data.preparing import corpora

ROOT = pathlib.Path(__file__).parents[3]


def test_the_second_host_waits_for_the_first_but_not_for_ever(source, tmp_path):
    with pytest.raises(TimeoutError, match="Host 0 made no tokenizer"):
        corpora.prepare(source, tmp_path / "out", host_index=1, host_count=2, host_wait_seconds=0.1)
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.data.preparing import corpora
print(corpora.prepare({source!r}, {str(tmp_path / "out")!r}, host_index=1, host_count=2,
      host_wait_seconds=60).state)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    mine = corpora.prepare(source, tmp_path / "out", host_index=0, host_count=2)
    states = {mine.state, other.communicate(timeout=60)[0].strip()}
    assert "done" in states
    corpora.prepare(source, tmp_path / "one")
    assert corpora.contents(tmp_path / "one") == corpora.contents(tmp_path / "out")


def test_a_given_tokenizer_is_used(source, tmp_path):
    corpora.prepare(source, tmp_path / "one")
    model = tmp_path / "one" / "tokenizer.model"
    corpora.prepare(source, tmp_path / "two", tokenizer_model=model, vocab_size=None)
    assert (
        shards.open_set(tmp_path / "one").fingerprint
        == shards.open_set(tmp_path / "two").fingerprint
    )
