"""cuDNN's flash attention on an NVIDIA GPU, through `jax.nn.dot_product_attention`.

It requires 16-bit inputs, H a multiple of 8, and an even T if a bias is trained. It has its own
causal mask. Through JAX, documents can only be separated by a bias that is added to the scores,
[B, 1, T, T] in the inputs' dtype, 0 within a document and -2^41 across, whose e^ is exactly 0; the
backward pass writes a gradient of the same size that nothing reads. So memory grows with T^2, by
4 B T^2 bytes for all heads together; the reference holds several times N B T^2. Under vmap
(trials) JAX's batching rule takes a bias of one head for one of all heads, and fails.

Dimension letters: B batch, T time, N query heads, K key/value heads, H head width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from keel_jax.model.arrays import Array

# Of H. Up to 256 from compute capability 9.0 (Hopper) on.
HEAD_DIM_MULTIPLE = 8
MAX_HEAD_DIM = 128
MAX_HEAD_DIM_HOPPER = 256
DTYPE = "bfloat16"


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """`attention.attend` of rows of tokens to themselves, in order."""
    num_tokens = q_BTNH.shape[1]
    odd = num_tokens % 2

    def even(x_BTNH):
        return jnp.pad(x_BTNH, ((0, 0), (0, odd), (0, 0), (0, 0)))

    # The padding token is in the future of all others.
    segment_ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, odd)))
    same_document_B1TT = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None]
    o_BTNH = jax.nn.dot_product_attention(
        even(q_BTNH),
        even(k_BTKH),
        even(v_BTKH),
        mask=same_document_B1TT,
        is_causal=True,
        implementation="cudnn",
    )
    return o_BTNH[:, :num_tokens]
