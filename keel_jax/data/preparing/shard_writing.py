"""Writing token shards: a work unit becomes one file per split and a sidecar describing them."""

import base64
import zlib

import numpy as np
from etils import epath

from keel_jax.data import index, shards, tokenizer
from keel_jax.data.preparing import atomic_files, corpus, documents, sidecars
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files

_BATCH_BYTES = 1 << 20  # UTF-8 bytes of text tokenized in one call


def write_unit(
    output: epath.Path,
    number: int,
    unit: corpus.WorkUnit,
    model: tokenizer.Tokenizer,
    settings: preparation_options.ShardSettings,
    *,
    max_bad_documents: int,
    temporary_suffix: str,
) -> sidecars.Sidecar:
    """Tokenizes a work unit into one file per split, then writes its sidecar and returns it.

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
        for document in corpus.read_documents(unit, tally, text_field=settings.text_field):
            is_validation = corpus.is_validation(document, settings.validation_fraction)
            split = preparation_options.VALIDATION if is_validation else preparation_options.TRAIN
            writers[split].add(document)
        sidecar: sidecars.Sidecar = {
            "digest": sidecars.unit_digest(unit, model.fingerprint, settings),
            "splits": {split: writer.finish() for split, writer in writers.items()},
            "num_bad_documents": tally.num_bad,
            "bad_examples": tally.examples,
            "bad_kinds": tally.kinds,
            "num_empty_documents": tally.num_empty,
        }
    finally:
        for writer in writers.values():
            writer.close()
    path = output / sidecars.sidecar_file(number)
    files.write_json(path, index.seal(sidecar), temporary_suffix=temporary_suffix)
    return sidecar


class _ShardWriter:
    """Writes one split of one unit: its tokens and, once one differs from 1, its loss weights."""

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
        # Sums of float16 numbers in float64: exact for a shard of any realistic size.
        self._num_loss_bytes = self._total_target_weight = 0.0

    def add(self, document: documents.Document) -> None:
        """Adds a document, which is tokenized and written in one batch with its neighbours."""
        self._pending.append(document)
        for text, weight in document.parts():
            num_bytes = len(text.encode())
            self._pending_bytes += num_bytes
            self._num_bytes += num_bytes
            self._num_loss_bytes += num_bytes * float(shards.WEIGHT_DTYPE.type(weight))
        self._num_documents += 1
        if self._pending_bytes >= _BATCH_BYTES:
            self._write_pending()

    def finish(self) -> sidecars.SplitEntry:
        """Writes the rest, gives the files their final names and returns the sidecar's entry."""
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
            # Summed when the index is written, for the split's entropy.
            "counts": base64.b64encode(
                zlib.compress(self._counts.astype("<i8").tobytes())
            ).decode(),
        }

    def close(self) -> None:
        """Removes temporary files that `finish` has not renamed."""
        for file in self._files.values():
            file.discard()

    def _write_pending(self) -> None:
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

    def _write_weights(self, counts: np.ndarray, weights: np.ndarray) -> None:
        """Writes weights[i] for each of the next counts[i] tokens, if one is or was not 1."""
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
