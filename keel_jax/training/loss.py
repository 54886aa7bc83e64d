"""Next-token cross-entropy, and scores of single tokens, that never hold the logits of all tokens.

Every device works on its own tokens and its own part of the vocabulary. The logits' matrix is
gathered once for all chunks, and its gradient is summed over them in float32 and scattered once.

Dimension letters: B batch, T time, D model, V vocabulary, C chunk of time.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from keel_jax.model import layers, lm
from keel_jax.model.arrays import Array
from keel_jax.parallel import gathering, manual, sharding


def cross_entropy_sums(
    h_BTD: Float[Array, "B T D"],
    w_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    weights_BT: Float[Array, "B T"],
    *,
    chunk: int,
) -> dict[str, Float[Array, ""]]:
    """Sums over all tokens, float32 scalars, to be divided once, at the end.

    Returns "nats" = sum of weight * -log p(target), "weight" = sum of weights, "log_z_squared" =
    sum of weight * (log Z)^2, and "correct" = sum of weight over tokens whose most likely next
    token is the target.

    Each device multiplies `chunk` positions of its rows (0: all) with w [D, V] at a time and
    reduces them; the backward pass recomputes their logits.

    Args:
      h_BTD: in the compute dtype, with logical axes `layers.LOSS_AXES`.
      w_DV: float32, with logical axes ("table_embed", "vocab").
      targets_BT: int32.
      weights_BT: float32, 0 for tokens that do not count.
    """
    if not sharding.has_several_devices():
        sums = _chunked_sums(h_BTD, w_DV, targets_BT, weights_BT, chunk, ())
        return dict(zip(_NAMES, sums, strict=True))
    sizes = sharding.mesh_sizes()
    vocab_axes = tuple(axis for axis in sharding.RULES["vocab"] if sizes[axis] > 1)
    token_axes = sharding.RULES["batch"] + sharding.RULES["loss_time"]

    def local_sums(h_BTD, w_DV, targets_BT, weights_BT):
        w_DV = gathering.gather_rows(w_DV.astype(h_BTD.dtype), "table_embed")
        # In float32, so that the chunks' gradients are summed in it; the values do not change.
        w_DV = w_DV.astype(jnp.float32)
        sums = _chunked_sums(h_BTD, w_DV, targets_BT, weights_BT, chunk, vocab_axes)
        return jax.lax.psum(sums, token_axes)

    tokens = layers.LOSS_AXES[:-1]
    in_axes = layers.LOSS_AXES, ("table_embed", "vocab"), tokens, tokens
    shared_out = manual.over_mesh(local_sums, in_axes, ((),) * len(_NAMES))
    return dict(zip(_NAMES, shared_out(h_BTD, w_DV, targets_BT, weights_BT), strict=True))


def token_scores(
    h_BTD: Float[Array, "B T D"],
    w_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    chunk: int,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """log p(target) of each token in nats, float32, and whether no other token is more likely.

    Arguments as in `cross_entropy_sums`; there is no backward pass.
    """
    if not sharding.has_several_devices():
        return _chunked_scores(h_BTD, w_DV, targets_BT, chunk, ())
    sizes = sharding.mesh_sizes()
    vocab_axes = tuple(axis for axis in sharding.RULES["vocab"] if sizes[axis] > 1)

    def local_scores(h_BTD, w_DV, targets_BT):
        w_DV = gathering.gather_rows(w_DV.astype(h_BTD.dtype), "table_embed")
        return _chunked_scores(h_BTD, w_DV.astype(jnp.float32), targets_BT, chunk, vocab_axes)

    tokens = layers.LOSS_AXES[:-1]
    in_axes = layers.LOSS_AXES, ("table_embed", "vocab"), tokens
    return manual.over_mesh(local_scores, in_axes, (tokens, tokens))(h_BTD, w_DV, targets_BT)


def _chunked_scores(h_BTD, w_DV, targets_BT, chunk, vocab_axes):
    """`token_scores` of this device's tokens, chunk by chunk."""
    batch_size, num_tokens = targets_BT.shape

    def scores(h_BCD, targets_BC):
        log_z_BC, target_logit_BC, is_first_BC = _of_tokens(h_BCD, w_DV, targets_BC, vocab_axes)
        return target_logit_BC - log_z_BC, is_first_BC

    if not 0 < chunk < num_tokens:
        return scores(h_BTD, targets_BT)
    chunks = [_chunked(x, -num_tokens % chunk, chunk) for x in (h_BTD, targets_BT)]
    log_p_BT, is_first_BT = (
        jnp.moveaxis(x, 0, 1).reshape(batch_size, -1)[:, :num_tokens]
        for x in jax.lax.map(lambda xs: scores(*xs), tuple(chunks))
    )
    return log_p_BT, is_first_BT


_NAMES = ("nats", "weight", "log_z_squared", "correct")


def _chunked_sums(h_BTD, w_DV, targets_BT, weights_BT, chunk, vocab_axes):
    """The sums named in `_NAMES` over this device's tokens, chunk by chunk."""
    num_tokens = h_BTD.shape[1]
    sums = functools.partial(_sums, vocab_axes=vocab_axes)
    if not 0 < chunk < num_tokens:
        return sums(h_BTD, w_DV, targets_BT, weights_BT)
    # A remainder is padded with tokens of weight 0.
    pad = -num_tokens % chunk
    chunks = [_chunked(x, pad, chunk) for x in (h_BTD, targets_BT, weights_BT)]

    def add(total, xs):
        h_BCD, targets_BC, weights_BC = xs
        here = jax.checkpoint(sums, prevent_cse=False)(h_BCD, w_DV, targets_BC, weights_BC)
        return jax.tree.map(jnp.add, total, here), None

    zeros = tuple(jnp.zeros((), jnp.float32) for _ in _NAMES)
    return jax.lax.scan(add, zeros, tuple(chunks))[0]


def _sums(h_BCD, w_DV, targets_BC, weights_BC, *, vocab_axes):
    """The sums; V is this device's part of the vocabulary along the mesh axes `vocab_axes`."""
    log_z_BC, target_logit_BC, correct_BC = _of_tokens(h_BCD, w_DV, targets_BC, vocab_axes)
    return (
        (weights_BC * (log_z_BC - target_logit_BC)).sum(),
        weights_BC.sum(),
        (weights_BC * jnp.square(log_z_BC)).sum(),
        (weights_BC * correct_BC).sum(),
    )


def _of_tokens(h_BCD, w_DV, targets_BC, vocab_axes):
    """log Z, the target's logit, and whether that is the (first of the) largest; [B, C] each."""
    logits_BCV = lm.logits(h_BCD, w_DV)
    first = jax.lax.axis_index(vocab_axes) * w_DV.shape[1] if vocab_axes else 0
    log_z_BC = _log_sum_exp(logits_BCV, vocab_axes)
    target_logit_BC = _at(logits_BCV, targets_BC - first, vocab_axes)
    return log_z_BC, target_logit_BC, _first_of_largest(logits_BCV, first, vocab_axes) == targets_BC


def _log_sum_exp(x_BCV, axes):
    if not axes:
        return jax.nn.logsumexp(x_BCV, axis=-1)
    largest_BC = jax.lax.pmax(jax.lax.stop_gradient(x_BCV).max(axis=-1), axes)
    sum_BC = jnp.exp(x_BCV - largest_BC[..., None]).sum(axis=-1)
    return jnp.log(jax.lax.psum(sum_BC, axes)) + largest_BC


def _at(x_BCV, index_BC, axes):
    """x[index], from the device that has it."""
    if not axes:
        return jnp.take_along_axis(x_BCV, index_BC[..., None], axis=-1)[..., 0]
    size = x_BCV.shape[-1]
    here_BC = jnp.take_along_axis(x_BCV, jnp.clip(index_BC, 0, size - 1)[..., None], axis=-1)
    is_here_BC = (0 <= index_BC) & (index_BC < size)
    return jax.lax.psum(jnp.where(is_here_BC, here_BC[..., 0], 0), axes)


def _first_of_largest(x_BCV, first, axes):
    """argmax over all parts of the vocabulary, of which this one starts at `first`."""
    x_BCV = jax.lax.stop_gradient(x_BCV)
    index_BC = x_BCV.argmax(axis=-1) + first
    if not axes:
        return index_BC
    largest_BC = x_BCV.max(axis=-1)
    is_largest_BC = largest_BC == jax.lax.pmax(largest_BC, axes)
    return jax.lax.pmin(jnp.where(is_largest_BC, index_BC, jnp.iinfo(index_BC.dtype).max), axes)


def _chunked(x_BT, pad: int, chunk: int):
    """[B, T, …] -> [chunks, B, chunk, …], zeros at the end."""
    batch_size, _, *rest = x_BT.shape
    x_BT = jnp.pad(x_BT, ((0, 0), (0, pad)) + ((0, 0),) * len(rest))
    return jnp.moveaxis(x_BT.reshape(batch_size, -1, chunk, *rest), 1, 0)
