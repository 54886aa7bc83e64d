"""Attention with explicit scores and mask, on any device: what the other kernels must match.

Dimension letters: B batch, T query time, S key time, N query heads, K key/value heads, H head
width.
"""

import jax
from jaxtyping import Float, Int

from keel_jax.model.arrays import Array


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    query_index_BT: Int[Array, "B T"],
    key_index_BS: Int[Array, "B S"],
    query_segment_ids_BT: Int[Array, "B T"],
    key_segment_ids_BS: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """`attention.attend`, holding [B, N, T, S] scores."""
    causal_BTS = key_index_BS[:, None, :] <= query_index_BT[:, :, None]
    same_document_BTS = query_segment_ids_BT[:, :, None] == key_segment_ids_BS[:, None, :]
    mask_B1TS = (causal_BTS & same_document_BTS)[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation="xla"
    )
