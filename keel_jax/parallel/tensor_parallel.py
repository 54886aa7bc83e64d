"""Products of activations with weights that are sharded over devices: ZeRO and Megatron.

A weight is sharded along its rows (ZeRO-3: over the devices that see different tokens) and along
heads or FFN (Megatron's `tensor`). `column_parallel` maps the stream into a branch,
`row_parallel` maps back:

    column   w: cast, its rows gathered    x: gathered along time over `tensor`
    row      w: cast, its rows gathered    the product: summed over `tensor`, scattered along time

and the backward passes are the transposes: a weight's gradient is reduce-scattered to the weight's
sharding, in the compute dtype.

Heads that fill a TPU's registers are multiplied as heads, [B, T, N, H]: the weight is reshaped and
not the activation, which has its own layout in attention. With activations flattened to
[B, T, N H], the compiler first copied the gradients of queries and values to another layout.
Narrower heads would be padded in memory, so they are flattened (docs/performance.md has both).

Dimension letters: B batch, T time, D model, F ffn or heads N x H.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from keel_jax.parallel import gathering, manual, sharding

_STREAM_AXES = ("batch", "stream_time", "stream")
# Lanes of a TPU's register.
LANES = 128


def column_parallel(
    x_BTD: jax.Array,
    weights_DF: Sequence[jax.Array],
    axes: Sequence[str],
    head_dim: int | None = None,
) -> tuple[jax.Array, ...]:
    """x @ w for each w, in x's dtype, [B, T, F] with F's logical axis as given.

    Args:
      x_BTD: sharded as the stream between the branches.
      weights_DF: float32, with logical axes ("embed", axis).
      axes: each weight's axis: "heads", "kv_heads" or "ffn".
      head_dim: H, for results [B, T, F / H, H].
    """
    split = () if head_dim is None else ("head_dim",)
    out_axes = tuple(("batch", "time", axis, *split) for axis in axes)

    def product(x_BTD, w_DF):
        if head_dim is None:
            return x_BTD @ w_DF
        if head_dim % LANES:
            return (x_BTD @ w_DF).reshape(*x_BTD.shape[:2], -1, head_dim)
        return jnp.einsum("BTD,DNH->BTNH", x_BTD, w_DF.reshape(len(w_DF), -1, head_dim))

    def local(x_BTD, *weights_DF):
        if tensor_axes := _tensor_axes():
            x_BTD = jax.lax.all_gather(x_BTD, tensor_axes, axis=1, tiled=True)
        return tuple(product(x_BTD, _gathered(w_DF, x_BTD.dtype)) for w_DF in weights_DF)

    if not _is_split_evenly(x_BTD):
        results = (product(x_BTD, w_DF.astype(x_BTD.dtype)) for w_DF in weights_DF)
        return tuple(map(sharding.constrain, results, out_axes))
    in_axes = (_STREAM_AXES, *(("embed", axis) for axis in axes))
    return manual.over_mesh(local, in_axes, out_axes)(x_BTD, *weights_DF)


def row_parallel(x_BTF: jax.Array, w_FD: jax.Array, axis: str) -> jax.Array:
    """x @ w in x's dtype, [B, T, D], sharded as the stream between the branches.

    Args:
      x_BTF: with logical axes ("batch", "time", axis); or heads, [B, T, N, H].
      w_FD: float32, with logical axes (axis + "_row", "stream").
      axis: "heads" or "ffn".
    """
    split = () if x_BTF.ndim == 3 else ("head_dim",)
    x_axes = "batch", "time", axis, *split

    def product(x_BTF, w_FD):
        if not split or x_BTF.shape[-1] % LANES:
            return x_BTF.reshape(*x_BTF.shape[:2], -1) @ w_FD
        return jnp.einsum("BTNH,NHD->BTD", x_BTF, w_FD.reshape(*x_BTF.shape[2:], -1))

    def local(x_BTF, w_FD):
        part_BTD = product(x_BTF, _gathered(w_FD, x_BTF.dtype))
        if not (tensor_axes := _tensor_axes()):
            return part_BTD
        return jax.lax.psum_scatter(part_BTD, tensor_axes, scatter_dimension=1, tiled=True)

    if not _is_split_evenly(x_BTF):
        return product(sharding.constrain(x_BTF, x_axes), w_FD.astype(x_BTF.dtype))
    in_axes = x_axes, (f"{axis}_row", "stream")
    return manual.over_mesh(local, in_axes, _STREAM_AXES)(x_BTF, w_FD)


def _gathered(w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """All rows of a sharded weight, in `dtype`."""
    return gathering.gather_rows(w.astype(dtype), "embed")


def _is_split_evenly(x_BT: jax.Array) -> bool:
    """Whether there are several devices, which can hold equal parts of these tokens.

    If they cannot, as with the few tokens of decoding, the partitioner chooses the sharding.
    """
    sizes = sharding.mesh_sizes()
    return sharding.has_several_devices() and not any(
        size % sharding.num_shards(axis, sizes)
        for axis, size in zip(("batch", "stream_time"), x_BT.shape, strict=False)
    )


def _tensor_axes() -> tuple[str, ...]:
    """The axes of `tensor` with several devices.

    A collective over one device would send nothing, but still constrain the layouts around it.
    """
    sizes = sharding.mesh_sizes()
    return tuple(axis for axis in sharding.RULES["ffn"] if sizes[axis] > 1)
