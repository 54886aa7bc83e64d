"""The corpus that most tests of preparation read."""

import pytest

from tests.data.preparing import corpora


@pytest.fixture
def source(tmp_path):
    """The inputs of a preparation: one JSONL file of random texts."""
    texts = corpora.random_texts()
    return corpora.write_jsonl(tmp_path / "source.jsonl", [{"text": text} for text in texts])
