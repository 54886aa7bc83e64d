"""Looks up rows of a table that is sharded along both dimensions, without gathering all of it.

The partitioner alone would gather a table sharded over `tensor` on every device for the lookup,
and sum its whole gradient on every device.

Dimension letters: B batch, T time, V vocabulary, D model; P parts of the width, d width of a part.
"""

import jax
import jax.numpy as jnp

from keel_jax.parallel import gathering, manual, sharding


def lookup_rows(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """table[tokens], [B, T, D] sharded as the stream; inside jit under `jax.set_mesh`.

    Each device gathers the whole width of its own vocabulary rows, looks up the tokens that are
    among them and takes zeros for the others. The devices that share a vocabulary then sum their
    results; each sum is one row plus zeros, so it is exact in any dtype. The gradient is the
    transpose: it is reduce-scattered to the table's sharding.

    Args:
      table_VD: with logical axes ("vocab", "table_embed").
      tokens_BT: int32, in [0, V), with logical axes ("batch", "time").
    """
    vocab_axes = sharding.RULES["vocab"]

    def local_rows(table_VD, tokens_BT):
        # Gathered as parts [P, V, d] and not along the width: a part narrower than a TPU's 128
        # lanes could not be scattered along the width, and its whole gradient would be summed on
        # every device.
        parts_PVd = gathering.gather_rows(table_VD[None], "table_embed")
        num_rows = parts_PVd.shape[1]
        table_VD = parts_PVd.swapaxes(0, 1).reshape(num_rows, -1)
        row_BT = tokens_BT - jax.lax.axis_index(vocab_axes) * num_rows
        is_own_BT = (0 <= row_BT) & (row_BT < num_rows)
        x_BTD = jnp.where(is_own_BT[..., None], table_VD[jnp.clip(row_BT, 0, num_rows - 1)], 0)
        return jax.lax.psum_scatter(x_BTD, vocab_axes, scatter_dimension=1, tiled=True)

    in_axes = ("vocab", "table_embed"), ("batch", "time")
    out_axes = ("batch", "stream_time", "stream")
    return manual.over_mesh(local_rows, in_axes, out_axes)(table_VD, tokens_BT)
