"""Rows of a table that is split along both of its dimensions, without making it whole anywhere.

Left to the partitioner, a table split over `tensor` is gathered on every device for the lookup,
and its gradient summed whole on every device.

Dimension letters: B batch, T time, V vocabulary, D model; P parts of the width, d one of them.
"""

import jax
import jax.numpy as jnp

from keel_jax.parallel import gathering, manual, sharding


def rows(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """table[tokens], [B, T, D] split as the stream; inside jit under `jax.set_mesh`.

    Each device gathers the width of its own vocabulary rows, looks up the tokens that are among
    them, and the devices of one vocabulary exchange sums of one row and zeros, exact in any dtype.
    The gradient goes the same way back: it is reduce-scattered to where the table lies.

    Args:
      table_VD: with logical axes ("vocab", "table_embed").
      tokens_BT: int32, in [0, V), with logical axes ("batch", "time").
    """
    vocab_axes = sharding.RULES["vocab"]

    def local_rows(table_VD, tokens_BT):
        # Part by part, not side by side: a part narrower than a TPU's 128 lanes could not be
        # scattered along the width, and its gradient would be summed whole on every device.
        parts_PVd = gathering.rows(table_VD[None], "table_embed")
        num_rows = parts_PVd.shape[1]
        table_VD = parts_PVd.swapaxes(0, 1).reshape(num_rows, -1)
        row_BT = tokens_BT - jax.lax.axis_index(vocab_axes) * num_rows
        here_BT = (0 <= row_BT) & (row_BT < num_rows)
        x_BTD = jnp.where(here_BT[..., None], table_VD[jnp.clip(row_BT, 0, num_rows - 1)], 0)
        return jax.lax.psum_scatter(x_BTD, vocab_axes, scatter_dimension=1, tiled=True)

    in_axes = ("vocab", "table_embed"), ("batch", "time")
    out_axes = ("batch", "stream_time", "stream")
    return manual.over_mesh(local_rows, in_axes, out_axes)(table_VD, tokens_BT)
