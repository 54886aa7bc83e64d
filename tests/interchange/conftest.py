"""Tokenizers of both types, and a run's directory with its exported folder."""

import pathlib

import pytest

from keel_jax.data.preparing import embedded, tokenizer_training
from keel_jax.interchange import exporting
from tests.interchange import models


@pytest.fixture(scope="session")
def sources():
    """Texts of real code, their line ends as they are."""
    files = [file.path for file in embedded.source_files()]
    return [pathlib.Path(path).read_bytes().decode() for path in files[:24]]


@pytest.fixture(scope="session")
def tokenizer_paths(sources, tmp_path_factory):
    """Models of 700 pieces, by their type."""
    directory = tmp_path_factory.mktemp("tokenizers")
    for kind in ("bpe", "unigram"):
        tokenizer_training.train_tokenizer(sources, directory / kind, 700, kind)
    return {kind: directory / kind for kind in ("bpe", "unigram")}


@pytest.fixture(scope="session")
def workdir(tokenizer_paths, tmp_path_factory):
    """What a run of Keel leaves, with norms of queries and keys."""
    path = tmp_path_factory.mktemp("handed_over") / "run"
    path.mkdir()
    models.write_workdir(path, tokenizer_paths["bpe"], qk_norm=True)
    return path


@pytest.fixture(scope="session")
def folder(workdir, tmp_path_factory):
    """`workdir`, exported into several files."""
    output = tmp_path_factory.mktemp("exported") / "keel"
    exporting.export(workdir, output, max_shard_bytes=30_000)
    return output
