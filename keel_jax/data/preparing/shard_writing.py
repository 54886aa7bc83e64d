"""Writing token shards: a work unit becomes one file a split and a sidecar that describes them."""

import base64
import dataclasses
import hashlib
import json
import zlib

import numpy as np
from absl import logging
from etils import epath

from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import atomic_files, corpus, documents
from keel_jax.runtime import files

TRAIN, VALIDATION = "train", "validation"
_BATCH_BYTES = 1 << 20  # text tokenized in one call


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a unit's tokens, beside its text and the tokenizer."""

    validation_fraction: float
    text_field: str

    @property
    def splits(self) -> tuple[str, ...]:
        return (TRAIN, VALIDATION) if self.validation_fraction > 0 else (TRAIN,)


def sidecar_file(number: int) -> str:
    return f"unit-{number:05d}.json"


def unit_digest(unit: corpus.WorkUnit, tokenizer_fingerprint: str, settings: Settings) -> str:
    """Identifies what a unit's shards are made from."""
    made_from = [shards.VERSION, unit.digest, tokenizer_fingerprint, dataclasses.asdict(settings)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def write_unit(
    output: epath.Path,
    number: int,
    unit: corpus.WorkUnit,
    model: tokenizer.Tokenizer,
    settings: Settings,
    *,
    max_bad_documents: int,
    temporary_suffix: str,
) -> dict:
    """Tokenizes a work unit into one file a split and, last, writes its sidecar; returns it.

    Raises:
        UserError: an unreadable input, or more bad documents than allowed.
        OSError: no space left, or the directory cannot be written.
    """
    tally = documents.Tally(max_bad=max_bad_documents)
    writers = {
        split: _ShardWriter(output / shards.shard_file(split, number), model, temporary_suffix)
        for split in settings.splits
    }
    try:
        for document in corpus.read(unit, tally, text_field=settings.text_field):
            is_validation = corpus.is_validation(document, settings.validation_fraction)
            writers[VALIDATION if is_validation else TRAIN].add(document)
        sidecar = {
            "digest": unit_digest(unit, model.fingerprint, settings),
            "splits": {split: writer.finish() for split, writer in writers.items()},
            "num_bad_documents": tally.num_bad,
            "bad_examples": tally.examples,
            "num_empty_documents": tally.num_empty,
        }
    finally:
        for writer in writers.values():
            writer.close()
    files.write_json(output / sidecar_file(number), sidecar, temporary_suffix=temporary_suffix)
    return sidecar


def read_sidecar(output: epath.Path, number: int, digest: str, *, is_own: bool) -> dict | None:
    """The sidecar of a unit that is whole and was made from the same; None if it is to be made.

    Of this host's own units every file is read and its checksum compared. What is damaged is
    logged, and its sidecar removed, lest another host count the unit as done. Of other hosts'
    units the sizes are compared.
    """
    path = output / sidecar_file(number)
    sidecar = atomic_files.read_record(path)
    if sidecar is None or sidecar.get("digest") != digest:
        return None
    for entry in sidecar["splits"].values():
        if not entry["num_tokens"]:
            continue
        itemsize = entry["num_bytes_on_disk"] // entry["num_tokens"]
        for name, num_bytes, sha256 in shard_of(entry).files(itemsize):
            wrong = shards.what_is_wrong(output / name, num_bytes, sha256 if is_own else "")
            if wrong:
                if is_own:
                    logging.warning("%s %s. It is made anew.", output / name, wrong)
                    path.unlink(missing_ok=True)
                return None
    return sidecar


def shard_of(entry: dict) -> shards.Shard:
    """What a sidecar says of one split, as the index keeps it."""
    names = [field.name for field in dataclasses.fields(shards.Shard)]
    return shards.Shard(**{name: entry[name] for name in names})


class _ShardWriter:
    """One split of one unit: tokens (and weights, once one differs from 1) to temporary files."""

    def __init__(self, path: epath.Path, model: tokenizer.Tokenizer, temporary_suffix: str):
        self._path = path
        self._model = model
        self._temporary_suffix = temporary_suffix
        self._dtype = shards.token_dtype(model.vocab_size)
        self._pending: list[documents.Document] = []
        self._pending_bytes = 0
        self._files: dict[epath.Path, atomic_files.HashedFile] = {}
        self._weights: atomic_files.HashedFile | None = None
        self._counts = np.zeros(model.vocab_size, np.int64)
        self._num_tokens = self._num_targets = self._num_documents = self._num_bytes = 0
        # Sums of float16 numbers in float64: exact for any shard of a real size.
        self._num_loss_bytes = self._total_target_weight = 0.0

    def add(self, document: documents.Document):
        """Takes a document; it is tokenized and written together with its neighbours."""
        self._pending.append(document)
        for text, weight in document.parts():
            num_bytes = len(text.encode())
            self._pending_bytes += num_bytes
            self._num_bytes += num_bytes
            self._num_loss_bytes += num_bytes * float(shards.WEIGHT_DTYPE.type(weight))
        self._num_documents += 1
        if self._pending_bytes >= _BATCH_BYTES:
            self._write_pending()

    def finish(self) -> dict:
        """Writes the rest, gives the files their names, returns the sidecar's entry."""
        self._write_pending()
        for path, file in self._files.items():
            file.finish(path)
        token_file = self._files.get(self._path)
        return {
            "file": self._path.name,
            "num_tokens": self._num_tokens,
            "num_documents": self._num_documents,
            "num_bytes": self._num_bytes,
            "num_loss_bytes": self._num_loss_bytes,
            "num_targets": self._num_targets,
            "total_target_weight": self._total_target_weight,
            "num_bytes_on_disk": self._num_tokens * self._dtype.itemsize,
            "sha256": token_file.sha256 if token_file else "",
            "weights_sha256": self._weights.sha256 if self._weights else "",
            # Frequencies of all ids, for the split's entropy: summed when the index is written.
            "counts": base64.b64encode(
                zlib.compress(self._counts.astype("<i8").tobytes())
            ).decode(),
        }

    def close(self):
        """Removes what did not get its name."""
        for file in self._files.values():
            file.discard()

    def _write_pending(self):
        if not self._pending:
            return
        parts = [part for document in self._pending for part in document.parts()]
        ids = iter(self._model.encode_batch([text for text, _ in parts]))
        end = np.array([self._model.eos_id], np.int32)
        pieces, counts, weights = [], [], []
        for document in self._pending:
            for _, weight in document.parts():
                pieces.append(next(ids))
                counts.append(len(pieces[-1]))
                weights.append(weight)
            pieces.append(end)  # the EOS that ends a response is learned with it
            counts.append(1)
            weights.append(document.weight)
        tokens = np.concatenate(pieces)
        self._write_weights(np.array(counts), np.array(weights, shards.WEIGHT_DTYPE))
        self._file(self._path).write(tokens.astype(self._dtype).tobytes())
        self._counts += np.bincount(tokens, minlength=len(self._counts))
        self._num_tokens += len(tokens)
        self._pending, self._pending_bytes = [], 0

    def _write_weights(self, counts: np.ndarray, weights: np.ndarray):
        """Weight weights[i] for the next counts[i] tokens."""
        self._num_targets += int(counts[weights > 0].sum())
        self._total_target_weight += float(counts @ weights.astype(np.float64))
        if not self._weights:
            if (weights == 1).all():
                return
            path = self._path.with_name(shards.weights_file(self._path.name))
            self._weights = self._file(path)
            self._weights.write(np.ones(self._num_tokens, shards.WEIGHT_DTYPE).tobytes())
        self._weights.write(np.repeat(weights, counts).tobytes())

    def _file(self, path: epath.Path) -> atomic_files.HashedFile:
        if path not in self._files:
            temporary = path.with_name(path.name + self._temporary_suffix)
            self._files[path] = atomic_files.HashedFile(temporary)
        return self._files[path]
