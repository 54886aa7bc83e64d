"""The loss of the unigram model, which knows how frequent each token is and nothing of their order.

It is the absolute line of stagnation: a run whose loss stays on it has learned token frequencies
alone.

Dimension letters: S steps, V vocabulary.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from keel_jax import config
from keel_jax.data import loader, shards

# Tokens from the beginning of the training split whose frequencies are counted, at most: of 6.8
# million the entropy is known to 1e-4 nats, and more cost seconds.
_MAX_COUNTED = 2**26


def training_losses(cfg: config.Config) -> np.ndarray:
    """Loss of the unigram model on each training batch of a run [S], nats a token.

    The batches are the run's own, so that a difference from the run's losses is free of the
    batch's own difficulty, which at small batches moves the loss more than a plateau's depth.
    """
    train, [path] = cfg.train, cfg.data.paths
    return _training_losses(path, train.seq_len, train.batch_size, train.num_steps, cfg.seed)


def validation_loss(cfg: config.Config) -> float:
    """Loss of the unigram model on the batches of a run's validation, nats a token."""
    [path] = cfg.data.paths
    batches = loader.validation_batches(
        shards.open_set(path),
        seq_len=cfg.train.seq_len,
        batch_size=cfg.train.batch_size,
        num_batches=cfg.train.eval_num_batches or None,
    )
    nats, weight = np.sum(list(_nats_and_weights(path, batches)), axis=0)
    return float(nats / weight)


@functools.cache
def _training_losses(
    path: str, seq_len: int, batch_size: int, num_steps: int, seed: int
) -> np.ndarray:
    """[S]; cached, as runs of one seed and batch share it whatever their model."""
    batches = loader.train_batches(
        [shards.open_set(path)], seq_len=seq_len, batch_size=batch_size, seed=seed, num_threads=0
    )
    run = itertools.islice(batches, num_steps)
    nats, weights = np.transpose(list(_nats_and_weights(path, run)))
    return nats / weights


def _nats_and_weights(
    path: str, batches: Iterable[loader.Batch]
) -> Iterator[tuple[np.floating, np.floating]]:
    """The sum of the losses in nats, and the sum of the loss weights, of each batch."""
    log_p_V = _log_probabilities(path)
    for batch in batches:
        nats = -(log_p_V[batch["targets"]] * batch["loss_weights"]).sum()
        yield nats, batch["loss_weights"].sum()


@functools.cache
def _log_probabilities(path: str) -> np.ndarray:
    """log p(token) [V] in the training split, where an absent token counts as present once."""
    token_set = shards.open_set(path)
    split = token_set.split("train")
    tokens = split.tokens(0, min(split.num_tokens, _MAX_COUNTED))
    counts = np.maximum(np.bincount(tokens, minlength=token_set.vocab_size), 1.0)
    return np.log(counts / counts.sum())
