"""Causal attention within documents: one signature for every kernel, and rotary positions.

Dimension letters: B batch, T query time, S key time, N query heads, K key/value heads, H head
width.
"""

import jax
import jax.numpy as jnp


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    query_index_BT: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys that a query may see; [B, T, N, H] in q's dtype.

    Key s is visible to a query if s <= its index (causality; an unwritten cache slot lies in the
    future) and both are in the same document. Scores and softmax are float32. Query head n reads
    key/value head n // (N / K).
    """
    key_index_S = jnp.arange(k_BSKH.shape[1])
    causal_BTS = key_index_S <= query_index_BT[:, :, None]
    same_document_BTS = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    mask_B1TS = (causal_BTS & same_document_BTS)[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation="xla"
    )


def positions_in_document(segments_BT: jax.Array) -> jax.Array:
    """Each token's distance from the first token of its document in this window; int32 [B, T]."""
    index_BT = jnp.broadcast_to(jnp.arange(segments_BT.shape[1]), segments_BT.shape)
    begins_BT = jnp.pad(
        segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    start_BT = jax.lax.cummax(jnp.where(begins_BT, index_BT, 0), axis=1)
    return index_BT - start_BT


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (RoFormer, 2104.09864), pairs (h, h + H/2), in float32.

    Pair h turns by position * theta^(-2h/H). Returns x's dtype.
    """
    half = x_BTNH.shape[-1] // 2
    frequency_h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_h
    cos, sin = jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
