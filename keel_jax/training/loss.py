"""Next-token cross-entropy that never holds the logits of all tokens.

Dimension letters: B batch, T time, D model, V vocabulary, C chunk of time.
"""

import jax
import jax.numpy as jnp

from keel_jax.model import layers, lm
from keel_jax.parallel import sharding


def cross_entropy_sums(
    h_BTD: jax.Array,
    w_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunk: int,
) -> dict[str, jax.Array]:
    """Sums over all tokens, float32 scalars: divide once, at the end.

    Returns "nats" = sum of weight * -log p(target), "weight" = sum of weights, "log_z_squared" =
    sum of weight * (log Z)^2, and "correct" = sum of weight over tokens whose most likely next
    token is the target.

    `chunk` positions of each row that a device holds (0: all) are multiplied with w [D, V] at a
    time and reduced; the backward pass computes their logits again. The time axis is split, not
    the batch, so that on several devices each works on its own rows.
    """
    parts = sharding.num_shards("loss_time", sharding.mesh_sizes())
    local_tokens = h_BTD.shape[1] // parts
    if not 0 < chunk < local_tokens:
        return _sums(h_BTD, w_DV, targets_BT, weights_BT)
    # A remainder is padded with tokens that weigh nothing.
    pad = -local_tokens % chunk
    chunks = [_chunked(x, pad, chunk, parts) for x in (h_BTD, targets_BT, weights_BT)]

    def add(sums, xs):
        h_BCD, targets_BC, weights_BC = xs
        here = jax.checkpoint(_sums, prevent_cse=False)(h_BCD, w_DV, targets_BC, weights_BC)
        return jax.tree.map(jnp.add, sums, here), None

    zeros = {name: jnp.zeros((), jnp.float32) for name in _NAMES}
    sums, _ = jax.lax.scan(add, zeros, tuple(chunks))
    return sums


_NAMES = ("nats", "weight", "log_z_squared", "correct")


def _sums(h_BCD, w_DV, targets_BC, weights_BC):
    h_BCD = sharding.constrain(h_BCD, layers.LOSS_AXES)
    logits_BCV = sharding.constrain(lm.logits(h_BCD, w_DV), ("batch", "loss_time", "vocab"))
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_logit_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    correct_BC = logits_BCV.argmax(axis=-1) == targets_BC
    sums = (
        weights_BC * (log_z_BC - target_logit_BC),
        weights_BC,
        weights_BC * jnp.square(log_z_BC),
        weights_BC * correct_BC,
    )
    return {name: value.sum() for name, value in zip(_NAMES, sums, strict=True)}


def _chunked(x, pad: int, chunk: int, parts: int):
    """[B, T, …] -> [chunks, B, parts * chunk, …], zeros at the end of each part of T / parts.

    A chunk holds as many positions of each part, the time that one device holds: all of them work
    on every chunk.
    """
    batch_size, num_tokens, *rest = x.shape
    x = x.reshape(batch_size, parts, num_tokens // parts, *rest)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, pad)) + ((0, 0),) * len(rest))
    x = x.reshape(batch_size, parts, -1, chunk, *rest)
    return jnp.moveaxis(x, 2, 0).reshape(-1, batch_size, parts * chunk, *rest)
