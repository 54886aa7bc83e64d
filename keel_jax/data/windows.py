"""Which windows of a split hold a target: the others, whole within a prompt, are not drawn.

A batch of such windows has no loss: its average is 0 / 0, and its step moves the weights by their
decay alone.
"""

import functools

import numpy as np
from absl import logging

from keel_jax.data import shards

_TOKENS_AT_ONCE = 1 << 22  # 16 MiB of weights as float32


@functools.lru_cache(maxsize=64)  # asked for at every validation
def with_targets(
    token_split: shards.TokenSplit, seq_len: int, is_last_moved: bool
) -> np.ndarray | None:
    """The windows that hold a target of weight above 0, int64 [n], in order; None: all of them.

    Window w has the targets [w T + 1, (w + 1) T + 1) of the stream, T = `seq_len`.

    Args:
        is_last_moved: whether the last window is moved back to end with the stream, or is cut off
            there.
    """
    num_targets = token_split.num_tokens - 1
    if token_split.num_targets == num_targets:
        return None
    num_windows = -(-num_targets // seq_len)
    is_kept = np.zeros(num_windows, bool)
    at_once = max(1, _TOKENS_AT_ONCE // seq_len)
    for first in range(0, num_windows, at_once):
        last = min(first + at_once, num_windows)
        weights = np.zeros((last - first) * seq_len, np.float32)
        start, stop = first * seq_len + 1, min(last * seq_len, num_targets) + 1
        weights[: stop - start] = token_split.loss_weights(start, stop)
        is_kept[first:last] = (weights.reshape(last - first, seq_len) > 0).any(axis=1)
    if is_last_moved:
        start = max(token_split.num_tokens - seq_len, 0)
        is_kept[-1] = (token_split.loss_weights(start, token_split.num_tokens) > 0).any()
    if is_kept.all():
        return None
    kept = np.flatnonzero(is_kept)
    logging.warning(
        "Split %r: %d of %d windows of %d tokens hold no target, since prompts are longer, and are "
        "left out.",
        token_split.name,
        num_windows - len(kept),
        num_windows,
        seq_len,
    )
    return kept
