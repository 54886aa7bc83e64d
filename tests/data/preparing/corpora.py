"""Small corpora for the tests of preparation, and what is compared of a directory."""

import bz2
import dataclasses
import gzip
import importlib
import itertools
import json
import lzma
import pathlib
import random

from keel_jax.data.preparing import corpus, documents, preparation, records, summary
from keel_jax.data.preparing import options as preparation_options

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi".split()
# For `random_texts`: a dozen work units, some validation documents in most of them.
OPTIONS = preparation_options.PreparationOptions(
    vocab_size=320, validation_fraction=0.2, unit_bytes=2000
)
# For a few documents of which none is held out.
TRAIN_ONLY = preparation_options.PreparationOptions(vocab_size=300, validation_fraction=0)
FORMAT_TEXTS = [f"Document {i}: " + "naïve text\n" * (i % 7) + "end" for i in range(200)]


def random_texts(count: int = 60, seed: int = 0) -> list[str]:
    """Texts of different lengths; each begins with its number."""
    generator = random.Random(seed)
    return [
        f"{i} " + " ".join(generator.choices(WORDS, k=generator.randrange(5, 60)))
        for i in range(count)
    ]


def jsonl(texts: list[str]) -> bytes:
    """The texts as JSON lines."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_jsonl(path: pathlib.Path, values: list) -> list[str]:
    """Writes one JSON value per line; returns the inputs of a preparation."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return [str(path)]


def write_compressed(path: pathlib.Path, content: bytes) -> None:
    """Writes a file compressed as its name says."""
    zstandard = importlib.import_module("zstandard")
    compress = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    }.get(path.suffix, bytes)
    path.write_bytes(compress(content))


def write_texts(path: pathlib.Path, texts: list[str] = FORMAT_TEXTS) -> pathlib.Path:
    """Writes `texts` in the format that the name says; returns the glob of the input."""
    lines = jsonl(texts)
    if path.name == "files":
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i:04d}.txt").write_bytes(text.encode())
        return path / "*.txt"
    if path.name.endswith(".jsonl"):
        path.write_bytes(lines)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif path.name.endswith(".zst"):
        zstandard = importlib.import_module("zstandard")
        half = len(lines) // 2  # two frames, cut anywhere
        compress = zstandard.ZstdCompressor().compress
        path.write_bytes(compress(lines[:half]) + compress(lines[half:]))
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


def read(
    inputs: list[pathlib.Path],
    *,
    unit_bytes: int = 0,
    input_format: str = "auto",
    tally: documents.Tally | None = None,
    **layout,
) -> tuple[list[documents.Document], corpus.Corpus]:
    """The documents of a corpus, and the corpus."""
    tally = tally or documents.Tally()
    whole = corpus.discover(
        [str(path) for path in inputs], input_format=input_format, unit_bytes=unit_bytes
    )
    layout = records.Layout(**layout)
    units = [corpus.read_documents(unit, tally, layout) for unit in whole.units]
    return list(itertools.chain.from_iterable(units)), whole


def prepare(
    inputs: list[str],
    output: pathlib.Path,
    options: preparation_options.PreparationOptions = OPTIONS,
    **changes,
) -> summary.Summary:
    """Prepares a token set with `options`, some of them changed."""
    return preparation.prepare_token_set(inputs, output, dataclasses.replace(options, **changes))


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """Every file of a directory, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def flip_bit(path: pathlib.Path, position: int = 0) -> None:
    """Damages a file without changing its size."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
