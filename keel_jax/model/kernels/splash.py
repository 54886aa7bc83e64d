"""JAX's splash attention on a TPU: scores exist only block by block, in the core's VMEM.

What the kernel (jax.experimental.pallas.ops.tpu.splash_attention) requires, and how that is met:

- A length that its blocks divide, in multiples of 128: rows are padded at the end, with tokens
  in the future of all others.
- Scaled queries: it does not multiply by 1 / sqrt(H). Queries are scaled in their dtype, which is
  exact if H is a power of 4 (64, 256) and rounds them once more otherwise (128).
- Each query must see at least one key, or the softmax would divide by zero: causality includes the
  query itself.
- Any H is allowed: registers are 128 wide, and a narrower head fills a part of them.

Dimension letters: B batch, T time, N query heads, K key/value heads, H head width.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel_lib,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jaxtyping import Float, Int

from keel_jax.model.arrays import Array

# Registers are 128 wide.
_LANES = 128
# Maximum queries and keys per block: 512 x 512 float32 scores are 1 MiB, so a few of them and
# two buffers of every operand stay far below the 16 MiB that a kernel gets on a v5e by default.
# Otherwise a guess: larger blocks mean fewer steps, but more scores that are computed and masked.
_MAX_BLOCK = 512


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`attention.attend` of rows of tokens to themselves, in order; no [T, T] array exists.

    Args:
      interpret: run the kernel on any device, slowly, to check what it computes.
    """
    num_tokens, num_heads, width = q_BTNH.shape[1:]
    kernel = _kernel(padded(num_tokens), num_heads, interpret)

    def rows_first(x_BTNH):
        fill = ((0, 0), (0, padded(num_tokens) - num_tokens), (0, 0), (0, 0))
        return jnp.pad(x_BTNH, fill).swapaxes(1, 2)

    segment_ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, padded(num_tokens) - num_tokens)))
    o_BNTH: Array = jax.vmap(kernel)(  # pyright: ignore[reportAssignmentType]: no residuals
        rows_first(q_BTNH * jnp.asarray(width**-0.5, q_BTNH.dtype)),
        rows_first(k_BTKH),
        rows_first(v_BTKH),
        kernel_lib.SegmentIds(q=segment_ids_BT, kv=segment_ids_BT),
    )
    return o_BNTH.swapaxes(1, 2)[:, :num_tokens]


def padded(num_tokens: int) -> int:
    """The length to which rows are padded."""
    return -(-num_tokens // _LANES) * _LANES


def block_size(padded: int) -> int:
    """The largest multiple of 128, up to the limit, that divides `padded` (itself one)."""
    return max(size for size in range(_LANES, _MAX_BLOCK + 1, _LANES) if padded % size == 0)


def _kernel(padded: int, num_heads: int, interpret: bool):
    size = block_size(padded)
    mask = mask_lib.CausalMask((padded, padded))
    return kernel_lib.make_splash_mha_single_device(
        mask_lib.MultiHeadMask([mask] * num_heads),
        block_sizes=kernel_lib.BlockSizes(
            block_q=size,
            block_kv=size,
            block_kv_compute=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=size,
            # dq separately: together with dk and dv it would be written once per block of keys.
            block_q_dq=size,
            block_kv_dq=size,
        ),
        # Names its output and what else its backward pass needs; see `attention.attend`.
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
