"""Writing token shards: a work unit becomes one file per split and a sidecar describing them."""

import base64
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from keel_jax.data import index, shards, tokenizer
from keel_jax.data.preparing import atomic_files, corpus, documents, packing, sidecars
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files

_BATCH_BYTES = 1 << 20  # UTF-8 bytes of text tokenized in one call

# Token ids, int32, and the loss weight of each of them.
_Piece = tuple[np.ndarray, float]


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
        split: _ShardWriter(
            output / shards.shard_file(split, number), model, settings, temporary_suffix
        )
        for split in settings.splits
    }
    try:
        for document in corpus.read_documents(unit, tally, settings.layout):
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
        if settings.pack_tokens:
            sidecar["num_long_documents"] = sum(w.num_long_documents for w in writers.values())
    finally:
        for writer in writers.values():
            writer.close()
    path = output / sidecars.sidecar_file(number)
    files.write_json(path, index.seal(sidecar), temporary_suffix=temporary_suffix)
    return sidecar


class _ShardWriter:
    """Writes one split of one unit: its tokens and, once one differs from 1, its loss weights.

    Attributes:
        num_long_documents: so far, how many were longer than a window.
    """

    def __init__(
        self,
        path: epath.Path,
        model: tokenizer.Tokenizer,
        settings: preparation_options.ShardSettings,
        temporary_suffix: str,
    ):
        self._path = path
        self._model = model
        self._temporary_suffix = temporary_suffix
        self._window_tokens = settings.pack_tokens
        self._cuts = settings.long_documents == preparation_options.CUT
        self._packer: packing.Packer[list[_Piece]] | None = None
        if settings.pack_tokens:
            self._packer = packing.Packer(settings.pack_tokens)
        self._dtype = shards.token_dtype(model.vocab_size)
        self._end = np.array([model.eos_id], np.int32)
        self._pending: list[documents.Document] = []
        self._pending_bytes = 0
        self._files: dict[epath.Path, atomic_files.HashedFile] = {}
        self._weights: atomic_files.HashedFile | None = None
        self._counts = np.zeros(model.vocab_size, np.int64)
        self._num_tokens = self._num_targets = self._num_documents = self._num_bytes = 0
        self._num_padding_tokens = self.num_long_documents = 0
        # Sums of float16 numbers in float64: exact for a shard of any realistic size.
        self._num_loss_bytes = self._total_target_weight = 0.0

    def add(self, document: documents.Document) -> None:
        """Adds a document, which is tokenized and written in one batch with its neighbours."""
        self._pending.append(document)
        self._pending_bytes += sum(len(text.encode()) for text, _ in document.parts())
        if self._pending_bytes >= _BATCH_BYTES:
            self._write_pending()

    def finish(self) -> sidecars.SplitEntry:
        """Writes the rest, gives the files their final names and returns the sidecar's entry."""
        self._write_pending()
        if self._packer:
            self._write([piece for window in self._packer.finish() for piece in self._of(window)])
        for path, file in self._files.items():
            file.finish(path)
        token_file = self._files.get(self._path)
        entry: sidecars.SplitEntry = {
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
        if self._packer:
            entry["num_padding_tokens"] = self._num_padding_tokens
        return entry

    def close(self) -> None:
        """Removes temporary files that `finish` has not renamed."""
        for file in self._files.values():
            file.discard()

    def _write_pending(self) -> None:
        parts = [part for document in self._pending for part in document.parts()]
        ids = iter(self._model.encode_batch([text for text, _ in parts]))
        pieces: list[_Piece] = []
        for document in self._pending:
            example = [(next(ids), weight) for _, weight in document.parts()]
            texts = [text for text, _ in document.parts()]
            example.append((self._end, document.weight))  # learned with what it ends
            num_tokens = sum(len(tokens) for tokens, _ in example)
            if self._window_tokens and num_tokens > self._window_tokens:
                self.num_long_documents += 1
                example = _beginning(example, self._window_tokens) if self._cuts else []
                if not any(weight and len(tokens) for tokens, weight in example):
                    continue
                texts = [self._model.decode(tokens) for tokens, _ in example]
                num_tokens = self._window_tokens
            self._count(texts, [weight for _, weight in example])
            if self._packer:
                for window in self._packer.add(example, num_tokens):
                    pieces += self._of(window)
            else:
                pieces += example
        self._write(pieces)
        self._pending, self._pending_bytes = [], 0

    def _count(self, texts: Sequence[str], weights: Sequence[float]) -> None:
        """Counts a document and the bytes of its texts."""
        self._num_documents += 1
        for text, weight in zip(texts, weights, strict=False):  # the EOS has no text
            num_bytes = len(text.encode())
            self._num_bytes += num_bytes
            self._num_loss_bytes += num_bytes * float(shards.WEIGHT_DTYPE.type(weight))

    def _of(self, window: packing.Window[list[_Piece]]) -> list[_Piece]:
        """The pieces of a window; its padding is EOS, of which no target is learned."""
        self._num_padding_tokens += window.room
        padding = (np.repeat(self._end, window.room), 0.0)
        return [*(piece for example in window.examples for piece in example), padding]

    def _write(self, pieces: Sequence[_Piece]) -> None:
        if not pieces:
            return
        tokens = np.concatenate([tokens for tokens, _ in pieces])
        counts = np.array([len(tokens) for tokens, _ in pieces])
        weights = np.array([weight for _, weight in pieces], shards.WEIGHT_DTYPE)
        self._write_weights(counts, weights)
        self._file(self._path).write(tokens.astype(self._dtype).tobytes())
        self._counts += np.bincount(tokens, minlength=len(self._counts))
        self._num_tokens += len(tokens)

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


def _beginning(example: Sequence[_Piece], num_tokens: int) -> list[_Piece]:
    """The first tokens of an example that is longer, and an EOS, which is not learned.

    The EOS keeps what follows in the window apart; that the text ended there was never said.
    """
    kept, room = [], num_tokens - 1
    for tokens, weight in example[:-1]:
        kept.append((tokens[:room], weight))
        room -= len(kept[-1][0])
    end, _ = example[-1]
    return [*kept, (end, 0.0)]
