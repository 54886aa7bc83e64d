"""The tokens of an experiment, and the loss of the model that knows their frequencies alone.

The unigram loss is the absolute line of stagnation: a run that stands on it has learned which
tokens are frequent and nothing of their order.
"""

import functools
import hashlib
import itertools
import os
import pathlib
import shutil

import numpy as np

from keel_jax import config, errors, prepare
from keel_jax.data import loader, shards
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.runtime import files

# Tokens from the beginning of the training split whose frequencies are counted, at most: of 6.8
# million the entropy is known to 1e-4 nats, and more cost seconds.
_MAX_COUNTED = 2**26
# Held out of the embedded corpus: some 30 of its 600 files.
_VALIDATION_FRACTION = 0.05


def ensure_stdlib(path: pathlib.Path, vocab_size: int) -> None:
    """Prepares the embedded corpus in `path`; if it is there already, nothing is done."""
    with prepare.progress() as on_progress:
        options = preparation_options.PreparationOptions(
            vocab_size=vocab_size, validation_fraction=_VALIDATION_FRACTION
        )
        preparation.prepare_token_set(["stdlib"], str(path), options, on_progress=on_progress)


def first_tokens(path: str, num_tokens: int | None) -> str:
    """A set whose training split is the first `num_tokens` of another's; the rest is the same.

    It lies beside the other one, named by what that one holds, and is made once. None: the other
    one itself.

    Raises:
      UserError: there are not so many.
    """
    if num_tokens is None:
        return path
    source, token_set = pathlib.Path(path), shards.open_set(path)
    held = token_set.fingerprint[:8]
    output = source.with_name(f"{source.name}_{held}_first{num_tokens}")
    if (output / shards.INDEX_FILE).exists():
        return str(output)
    split = token_set.split("train")
    if num_tokens > split.num_tokens:
        raise errors.UserError(
            f"{path} has {split.num_tokens} training tokens, {num_tokens} are wanted."
        )
    # The stream's first EOS is in no file. Loss weights are left out: plain text has none.
    tokens = split.tokens(1, num_tokens).astype(shards.token_dtype(token_set.vocab_size))
    unfinished = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    held_out = [name for name, _, _ in token_set.split("validation").files()]
    for name in (shards.TOKENIZER_FILE, *held_out):
        shutil.copy(source / name, unfinished / name)
    name = shards.shard_file("train", 0)
    (unfinished / name).write_bytes(tokens.tobytes())
    entry = _entry(token_set, tokens, name)
    splits = token_set.index["splits"] | {"train": entry}
    files.write_json(unfinished / shards.INDEX_FILE, token_set.index | {"splits": splits})
    try:
        unfinished.replace(output)
    except OSError:  # another shard of the sweep was first
        shutil.rmtree(unfinished)
    return str(output)


def _entry(token_set: shards.TokenSet, tokens: np.ndarray, file: str) -> dict:
    """The index's entry of a training split of `tokens`, which follow the leading EOS."""
    split = token_set.split("train")
    counts = np.bincount(tokens, minlength=token_set.vocab_size)
    counts[token_set.eos_id] += 1
    shares = counts[counts > 0] / counts.sum()
    bits = float(-(shares * np.log2(shares)).sum())
    # Of text in the same proportion; exact bytes would have to be decoded.
    num_bytes = round(split.bytes_per_token * len(tokens))
    return {
        "num_tokens": len(tokens) + 1,
        "num_documents": int((tokens == token_set.eos_id).sum()) or 1,
        "num_bytes": num_bytes,
        "num_loss_bytes": float(num_bytes),
        "num_targets": len(tokens),
        "total_target_weight": float(len(tokens)),
        "unigram_entropy_bits_per_token": bits,
        "unigram_entropy_bits_per_byte": bits * (len(tokens) + 1) / num_bytes,
        "shards": [
            {
                "file": file,
                "num_tokens": len(tokens),
                "weights_sha256": "",
                "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
            }
        ],
    }


@functools.cache
def _log_probabilities(path: str) -> np.ndarray:
    """log p(token) [V] in the training split; never seen ones count as seen once."""
    token_set = shards.open_set(path)
    split = token_set.split("train")
    tokens = split.tokens(0, min(split.num_tokens, _MAX_COUNTED))
    counts = np.maximum(np.bincount(tokens, minlength=token_set.vocab_size), 1.0)
    return np.log(counts / counts.sum())


def unigram_losses(cfg: config.Config) -> np.ndarray:
    """Loss of the unigram model on each training batch of a run [S], nats a token.

    The same batches as the run's, so that a difference from the run's losses is free of the
    batch's own difficulty, which at small batches moves the loss more than a plateau's depth.
    """
    train = cfg.train
    return _training_losses(
        cfg.data.path, train.seq_len, train.batch_size, train.num_steps, cfg.seed
    )


def unigram_validation_loss(cfg: config.Config) -> float:
    """The same on the batches of a run's validation."""
    batches = loader.validation_batches(
        shards.open_set(cfg.data.path),
        seq_len=cfg.train.seq_len,
        batch_size=cfg.train.batch_size,
        num_batches=cfg.train.eval_num_batches or None,
    )
    nats, weight = np.sum(list(_sums(cfg.data.path, batches)), axis=0)
    return float(nats / weight)


@functools.cache
def _training_losses(
    path: str, seq_len: int, batch_size: int, num_steps: int, seed: int
) -> np.ndarray:
    """[S]; runs of one seed and batch share it, whatever their model."""
    batches = loader.train_batches(
        [shards.open_set(path)], seq_len=seq_len, batch_size=batch_size, seed=seed, num_threads=0
    )
    nats, weights = np.transpose(list(_sums(path, itertools.islice(batches, num_steps))))
    return nats / weights


def _sums(path: str, batches):
    """(nats, weight) of each batch."""
    log_p = _log_probabilities(path)
    for batch in batches:
        nats = -(log_p[batch["targets"]] * batch["loss_weights"]).sum()
        yield nats, batch["loss_weights"].sum()
