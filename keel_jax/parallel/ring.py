"""Ring attention: exact attention over a sequence that is sharded over devices.

Each device holds T of the tokens, their queries, keys and values, and adds one block of keys after
another to its running softmax while the blocks are sent around the ring (Liu et al., 2310.01889):

    m' = max(m, max s),  l' = l e^(m - m') + sum e^(s - m'),  o' = o e^(m - m') + e^(s - m') v

and in the end o / l. In the backward pass the blocks are sent around the ring again, and the
gradients of keys and values are sent with them until they are back on their own device
(FlashAttention's equations, 2205.14135):

    p = e^(s - lse),  dv += p do,  ds = p (do v - delta),  dq += ds k,  dk += ds q,  delta = do o

so neither the saved nor the temporary memory per device grows with the ring. Within a block,
queries and keys are processed in chunks: only the scores of one chunk of queries and one of keys
exist at a time. A chunk of keys that is entirely in the future of a chunk of queries is skipped.

Each token has its index in the sequence, so tokens may be on the devices in any order. In
consecutive order the last device would skip almost nothing and the first almost everything;
`zigzag` gives each device a part from both ends.

Dimension letters: B batch, T time on this device, N query heads, K key/value heads, G query heads
per key/value head, H head width; C chunks, t and s a chunk's queries and keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from keel_jax import errors

# Maximum queries and keys per chunk. 512 x 512 float32 scores of 16 heads are 16 MiB per row, and
# a skipped chunk is at most 1/8 of a device's 4096 tokens. A guess: not measured on a TPU.
MAX_CHUNK = 512
# Score of invisible keys: finite, as inf - inf is NaN; its exponential is 0.
_HIDDEN = -0.7 * float(np.finfo(np.float32).max)
# The index of a padded key: later than every query.
_AFTER_ALL = np.iinfo(np.int32).max


class Ring(NamedTuple):
    """The devices of a ring: a mesh axis within shard_map; with size 1, only this device."""

    axis: str
    size: int

    def send_on(self, tree: Any) -> Any:
        """Sends the tree to the next device of the ring; returns that of the previous one."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.lax.ppermute(tree, self.axis, pairs)


class _Tokens(NamedTuple):
    """The arrays that decide which tokens are visible; int32 [C, B, t] each."""

    index: jax.Array
    segments: jax.Array


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    index_BT: jax.Array,
    *,
    ring: Ring,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the ring's tokens; this device's [B, T, N, H], in q's dtype.

    Token s is visible to token t if index[s] <= index[t] and both are in the same segment. Scores,
    softmax and sums are float32; the matrix multiplications have inputs in the inputs' dtype.

    Args:
      segment_ids_BT: int32.
      index_BT: int32, each token's place in the whole sequence; in any order.
      ring: the axis over which the sequence is sharded.
    """
    batch_size, num_tokens, num_heads, width = q_BTNH.shape
    kv_heads = k_BTKH.shape[2]
    # At least two chunks, and an even number: with `zigzag` each is within one of the two parts.
    num_chunks = 2 * -(-num_tokens // (2 * MAX_CHUNK))
    size = -(-num_tokens // num_chunks)
    chunked = functools.partial(_chunked, num_chunks=num_chunks, size=size)

    q_BTKGH = q_BTNH.reshape(batch_size, num_tokens, kv_heads, -1, width)
    queries = chunked(q_BTKGH), _Tokens(chunked(index_BT, fill=-1), chunked(segment_ids_BT))
    keys = _Tokens(chunked(index_BT, fill=_AFTER_ALL), chunked(segment_ids_BT))
    o_CBtKGH: jax.Array = _attend(ring, *queries, (chunked(k_BTKH), chunked(v_BTKH)), keys)
    o_BTKGH = jnp.moveaxis(o_CBtKGH, 0, 1).reshape(batch_size, -1, kv_heads, *q_BTKGH.shape[3:])
    return o_BTKGH[:, :num_tokens].reshape(q_BTNH.shape)


def zigzag(x_BT: jax.Array, *, ring: Ring) -> jax.Array:
    """Converts consecutive tokens per device to the zigzag order; this device's [B, T].

    Of 2 R parts of the sequence, device i of R gets parts i and 2 R - 1 - i instead of 2 i and
    2 i + 1, so that all devices have equal work at every turn of the ring.

    Raises:
      UserError: the sequence does not have 2 R equal parts.
    """
    size, num_tokens = ring.size, x_BT.shape[1]
    if num_tokens % 2:
        raise errors.UserError(
            f"A sequence of {num_tokens * size} tokens does not have 2 x {size} equal parts for "
            f"the {size} devices along {ring.axis!r}: choose a multiple of {2 * size}."
        )

    def holder(part):
        return part if part < size else 2 * size - 1 - part

    # The first halves are sent to distinct devices, and so are the second halves.
    first, second = (
        jax.lax.ppermute(half, ring.axis, [(i, holder(2 * i + late)) for i in range(size)])
        for late, half in enumerate(jnp.split(x_BT, 2, axis=1))
    )
    # Device i's early part, i, is a first half if i is even.
    is_even = jax.lax.axis_index(ring.axis) % 2 == 0
    early, late = jnp.where(is_even, first, second), jnp.where(is_even, second, first)
    return jnp.concatenate([early, late], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring, q_CBtKGH, queries, kv, keys):
    """Chunks in, chunks out: [C, B, t, K, G, H] in q's dtype."""
    return _forward(ring, q_CBtKGH, queries, kv, keys)[0]


def _forward(ring, q_CBtKGH, queries, kv, keys):
    def turn(carry, _):
        sums, kv, keys = carry
        # The next block is received while this one is computed.
        incoming = ring.send_on((kv, keys))
        return (_add_block(sums, q_CBtKGH, queries, kv, keys), *incoming), None

    num_chunks, batch_size, size, kv_heads, group, width = q_CBtKGH.shape
    shape = (num_chunks, batch_size, kv_heads, group, size)
    sums = (
        jnp.full(shape, _HIDDEN, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, width), jnp.float32),
    )
    carry = (sums, kv, keys)
    if ring.size > 1:
        carry, _ = jax.lax.scan(turn, carry, length=ring.size - 1)
    last, *block = carry
    m_CBKGt, l_CBKGt, o_CBKGtH = _add_block(last, q_CBtKGH, queries, *block)
    # Padding queries see no key: their output is 0, not 0 / 0.
    l_CBKGt = jnp.where(l_CBKGt == 0, 1.0, l_CBKGt)
    o_CBKGtH = o_CBKGtH / l_CBKGt[..., None]
    o_CBtKGH = jnp.moveaxis(o_CBKGtH, -2, 2).astype(q_CBtKGH.dtype)
    lse_CBKGt = m_CBKGt + jnp.log(l_CBKGt)
    # If recomputation saves what has this name, the forward pass of the ring runs only once.
    o_CBtKGH, lse_CBKGt = checkpoint_name((o_CBtKGH, lse_CBKGt), "attention")
    return o_CBtKGH, (q_CBtKGH, queries, kv, keys, o_CBtKGH, lse_CBKGt)


def _add_block(sums, q_CBtKGH, queries, kv, keys):
    """The running (maximum, denominator, numerator) of all queries with one block of keys added."""

    def add_to_query_chunk(xs):
        sums, q, query = xs

        def add_key_chunk(sums, key_chunk):
            return jax.lax.cond(
                _any_visible(query, key_chunk[1]),
                _add_chunk,
                lambda sums, *_: sums,
                sums,
                q,
                query,
                *key_chunk,
            ), None

        return jax.lax.scan(add_key_chunk, sums, (kv, keys))[0]

    return jax.lax.map(add_to_query_chunk, (sums, q_CBtKGH, queries))


def _add_chunk(sums, q_BtKGH, query, kv, key):
    """The sums of one chunk of queries with one chunk of keys added."""
    m_BKGt, l_BKGt, o_BKGtH = sums
    k_BsKH, v_BsKH = kv
    visible = _visible(query, key)
    s_BKGts = jnp.where(visible, _scores(q_BtKGH, k_BsKH), _HIDDEN)
    new_BKGt = jnp.maximum(m_BKGt, s_BKGts.max(axis=-1))
    # If all keys are hidden, their scores equal the maximum: p is set to 0 by the mask.
    p_BKGts = jnp.where(visible, jnp.exp(s_BKGts - new_BKGt[..., None]), 0.0)
    kept_BKGt = jnp.exp(m_BKGt - new_BKGt)
    values_BKGtH = jnp.einsum(
        "BKGts,BsKH->BKGtH",
        p_BKGts.astype(v_BsKH.dtype),
        v_BsKH,
        preferred_element_type=jnp.float32,
    )
    return (
        new_BKGt,
        l_BKGt * kept_BKGt + p_BKGts.sum(axis=-1),
        o_BKGtH * kept_BKGt[..., None] + values_BKGtH,
    )


def _backward(ring, residuals, do_CBtKGH):
    q_CBtKGH, queries, kv, keys, o_CBtKGH, lse_CBKGt = residuals
    delta_CBtKG = (do_CBtKGH.astype(jnp.float32) * o_CBtKGH.astype(jnp.float32)).sum(axis=-1)
    by_query = (q_CBtKGH, queries, do_CBtKGH, lse_CBKGt, jnp.moveaxis(delta_CBtKG, 2, -1))

    def turn(carry, _):
        dq, dkv, kv, keys = carry
        # The keys' accumulated gradients are received while this block's part is computed.
        dkv, incoming = ring.send_on(dkv), ring.send_on((kv, keys))
        dq, part = _block_gradients(dq, by_query, kv, keys)
        return (dq, jax.tree.map(jnp.add, dkv, part), *incoming), None

    dq = jnp.zeros(q_CBtKGH.shape, jnp.float32)
    if ring.size == 1:
        dq, dkv = _block_gradients(dq, by_query, kv, keys)
    else:
        incoming = ring.send_on((kv, keys))
        carry = (*_block_gradients(dq, by_query, kv, keys), *incoming)
        (dq, dkv, _, _), _ = jax.lax.scan(turn, carry, length=ring.size - 1)
        dkv = ring.send_on(dkv)
    dkv = jax.tree.map(lambda gradient, x: gradient.astype(x.dtype), dkv, kv)
    return dq.astype(q_CBtKGH.dtype), None, dkv, None


def _block_gradients(dq_CBtKGH, by_query, kv, keys):
    """dq with one block's part added, and that block's own (dk, dv); float32."""

    def add_key_chunk(dq, key_chunk):
        def add_query_chunk(dkv, xs):
            dq, by_query = xs
            return jax.lax.cond(
                _any_visible(by_query[1], key_chunk[1]),
                _chunk_gradients,
                lambda dkv, dq, *_: (dkv, dq),
                dkv,
                dq,
                by_query,
                *key_chunk,
            )

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), key_chunk[0])
        dkv, dq = jax.lax.scan(add_query_chunk, zeros, (dq, by_query))
        return dq, dkv

    return jax.lax.scan(add_key_chunk, dq_CBtKGH, (kv, keys))


def _chunk_gradients(dkv, dq_BtKGH, by_query, kv, key):
    """(dk, dv) and dq with the part of one chunk of queries and one of keys added."""
    q_BtKGH, query, do_BtKGH, lse_BKGt, delta_BKGt = by_query
    k_BsKH, v_BsKH = kv
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    s_BKGts = _scores(q_BtKGH, k_BsKH)
    p_BKGts = jnp.where(_visible(query, key), jnp.exp(s_BKGts - lse_BKGt[..., None]), 0.0)
    dp_BKGts = einsum("BtKGH,BsKH->BKGts", do_BtKGH, v_BsKH)
    ds_BKGts = p_BKGts * (dp_BKGts - delta_BKGt[..., None]) * q_BtKGH.shape[-1] ** -0.5
    p_BKGts, ds_BKGts = p_BKGts.astype(v_BsKH.dtype), ds_BKGts.astype(q_BtKGH.dtype)
    dk_BsKH, dv_BsKH = dkv
    dk_BsKH += einsum("BKGts,BtKGH->BsKH", ds_BKGts, q_BtKGH)
    dv_BsKH += einsum("BKGts,BtKGH->BsKH", p_BKGts, do_BtKGH)
    return (dk_BsKH, dv_BsKH), dq_BtKGH + einsum("BKGts,BsKH->BtKGH", ds_BKGts, k_BsKH)


_attend.defvjp(_forward, _backward)


def _scores(q_BtKGH, k_BsKH):
    scores = jnp.einsum("BtKGH,BsKH->BKGts", q_BtKGH, k_BsKH, preferred_element_type=jnp.float32)
    return scores * q_BtKGH.shape[-1] ** -0.5


def _visible(query: _Tokens, key: _Tokens):
    """Whether key s is visible to query t, [B, 1, 1, t, s]."""
    past = key.index[:, None, :] <= query.index[:, :, None]
    same = key.segments[:, None, :] == query.segments[:, :, None]
    return (past & same)[:, None, None]


def _any_visible(query: _Tokens, key: _Tokens):
    """Whether some key of the chunk is not in the future of all its queries.

    This depends only on the index. With several trials the documents differ between trials but the
    index does not, so the decision is the same for all. If vmap batched it, the conditional would
    become a select, for which both branches are computed.
    """
    return key.index.min() <= query.index.max()


def _chunked(x_BT, num_chunks: int, size: int, fill: int = 0):
    """[B, T, …] -> [C, B, t, …], padded with `fill` at the end."""
    pad = num_chunks * size - x_BT.shape[1]
    widths = ((0, 0), (0, pad)) + ((0, 0),) * (x_BT.ndim - 2)
    x_BT = jnp.pad(x_BT, widths, constant_values=fill)
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], num_chunks, size, *x_BT.shape[2:]), 1, 0)
