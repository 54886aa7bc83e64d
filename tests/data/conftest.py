"""A tokenizer trained on source code, and that code."""

import pathlib

import pytest

from keel_jax.data.preparing import embedded, tokenizer_training


@pytest.fixture(scope="session")
def sources():
    # Enough of real code for real whitespace pieces.
    files = [file.path for file in embedded.source_files()]
    # Bytes, so that \r\n stays what it is.
    return [pathlib.Path(path).read_bytes().decode() for path in files[:60]]


@pytest.fixture(scope="session")
def model_path(sources, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.model"
    tokenizer_training.train_tokenizer(sources, path, 2048)
    return path
