"""Causal attention within documents: one signature, several kernels; and rotary positions.

Dimension letters: B batch, T query time, S key time, N query heads, K key/value heads, H head
width.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from keel_jax import config, errors
from keel_jax.model.arrays import Array
from keel_jax.model.kernels import cudnn, reference, splash
from keel_jax.parallel import manual, ring, sharding

# Logical axes of queries, of keys and values, and of per-token arrays.
QUERY_AXES = ("batch", "time", "heads", "head_dim")
KEY_AXES = ("batch", "time", "kv_heads", "head_dim")
TOKEN_AXES = ("batch", "time")
# The mesh axis over which a sequence is split.
_RING_AXIS = "context"


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    kernel: str,
    query_index_BT: Int[Array, "B T"],
    key_index_BS: Int[Array, "B S"],
    query_segment_ids_BT: Int[Array, "B T"],
    key_segment_ids_BS: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """softmax(q k / sqrt(H)) v over the keys that a query may see; [B, T, N, H] in q's dtype.

    Key s is visible to query t if its index is not above the query's (causality; an unwritten
    cache slot counts as future) and both are in the same document. Scores and softmax are
    float32. Query head n reads key/value head n // (N / K).

    All kernels except the reference require self-attention: S = T, with equal query and key indices
    and segments. splash and cudnn ignore the index and take tokens in order; the ring takes them in
    any order.

    The result is named "attention" for `recompute`. splash and the ring give the same name to
    whatever else their backward passes need, so that they run only once if it is saved.

    Args:
      kernel: the result of `choose`, or "auto": the reference, for a model that is not on a mesh.
    """
    if kernel in ("auto", "reference"):
        a_BTNH = reference.attend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            query_index_BT=query_index_BT,
            key_index_BS=key_index_BS,
            query_segment_ids_BT=query_segment_ids_BT,
            key_segment_ids_BS=key_segment_ids_BS,
        )
        return checkpoint_name(a_BTNH, "attention")
    arguments = {
        "q": (q_BTNH, QUERY_AXES),
        "k": (k_BSKH, KEY_AXES),
        "v": (v_BSKH, KEY_AXES),
        "segments": (query_segment_ids_BT, TOKEN_AXES),
    }
    if kernel == "ring":
        function = functools.partial(ring.attend, ring=_ring())
        arguments["index"] = (query_index_BT, TOKEN_AXES)
    else:
        function = {"splash": splash.attend, "cudnn": cudnn.attend}[kernel]
    values, axes = zip(*arguments.values(), strict=True)
    a_BTNH = manual.over_mesh(function, axes, QUERY_AXES)(*values)
    return checkpoint_name(a_BTNH, "attention") if kernel == "cudnn" else a_BTNH


def choose(cfg: config.Config, mesh: jax.sharding.Mesh) -> str:
    """The kernel that `model.attention` means on this mesh: any value but "auto".

    It depends on the mesh's devices, which need not exist: a step for a TPU is compiled on any
    machine.

    Raises:
      UserError: these devices do not have the kernel, or it cannot compute this model.
    """
    platform = mesh.devices.flat[0].platform
    model, wanted, parts = cfg.model, cfg.model.attention, mesh.shape[_RING_AXIS]
    if wanted == "auto":
        if parts > 1:
            return "ring"
        return {"tpu": "splash", "gpu": _best_on_gpu(cfg)}.get(platform, "reference")
    needs = {"splash": "tpu", "cudnn": "gpu"}.get(wanted, platform)
    if platform != needs:
        raise errors.UserError(
            f"model.attention={wanted!r} runs on a {needs}, and the devices here are of platform "
            f'{platform!r}: set it to "auto", or to "reference", which runs everywhere.'
        )
    if wanted in ("splash", "cudnn") and parts > 1:
        raise errors.UserError(
            f"model.attention={wanted!r} reads whole sequences, and mesh.{_RING_AXIS}={parts} "
            f'splits them: set it to "auto" (the ring), or set mesh.{_RING_AXIS}=1.'
        )
    if wanted == "cudnn" and not _fits_cudnn(model, cudnn.MAX_HEAD_DIM_HOPPER):
        raise errors.UserError(
            f"model.attention='cudnn' needs model.compute_dtype={cudnn.DTYPE!r} and a "
            f"model.head_dim that is a multiple of {cudnn.HEAD_DIM_MULTIPLE} up to "
            f"{cudnn.MAX_HEAD_DIM_HOPPER}; they are {model.compute_dtype!r} and {model.head_dim}. "
            'Change them, or set model.attention to "auto".'
        )
    if wanted == "cudnn" and cfg.num_trials > 1:
        raise errors.UserError(
            f"model.attention='cudnn' cannot compute the {cfg.num_trials} trials of this run: JAX "
            'does not batch its bias. Set model.attention to "auto", or run one trial.'
        )
    return wanted


def resolve(cfg: config.Config, mesh: jax.sharding.Mesh) -> config.Config:
    """`cfg` with `model.attention` replaced by the name of its kernel on `mesh` (`choose`).

    Raises:
      UserError: as `choose`.
    """
    kernel = choose(cfg, mesh)
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, attention=kernel))


def check_order(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, seq_len: int) -> None:
    """Checks that the ring can distribute sequences of `seq_len` tokens on `mesh`.

    Raises:
      UserError: a sequence cannot be divided equally into two parts per device.
    """
    parts = 2 * mesh.shape[_RING_AXIS]
    if parts > 2 and seq_len % parts:
        raise errors.UserError(
            f"train.seq_len={seq_len} is not a multiple of {parts}: with mesh.{_RING_AXIS}="
            f"{parts // 2} each device holds two parts of every sequence (docs/attention.md)."
        )


def in_order_of(kernel: str, tree: Any) -> Any:
    """A tree of [B, T] arrays of consecutive tokens, in the order in which `kernel` shards them.

    All per-token arrays must pass through this function at the beginning of the step; sums over
    all tokens do not depend on the order. Only a ring over several devices has its own order,
    `ring.zigzag`.
    """
    if kernel != "ring" or _ring().size == 1:
        return tree
    zigzag = functools.partial(ring.zigzag, ring=_ring())
    return jax.tree.map(manual.over_mesh(zigzag, (TOKEN_AXES,), TOKEN_AXES), tree)


def _ring() -> ring.Ring:
    return ring.Ring(_RING_AXIS, sharding.mesh_sizes()[_RING_AXIS])


def _best_on_gpu(cfg: config.Config) -> str:
    fits = _fits_cudnn(cfg.model, cudnn.MAX_HEAD_DIM) and cfg.num_trials == 1
    return "cudnn" if fits else "reference"


def _fits_cudnn(model: config.ModelConfig, max_head_dim: int) -> bool:
    fits = model.head_dim % cudnn.HEAD_DIM_MULTIPLE == 0 and model.head_dim <= max_head_dim
    return fits and model.compute_dtype == cudnn.DTYPE


def positions_in_document(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each token's distance from the first token of its document in this window; int32 [B, T]."""
    index_BT = jnp.broadcast_to(jnp.arange(segment_ids_BT.shape[1]), segment_ids_BT.shape)
    begins_BT = jnp.pad(
        segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    start_BT = jax.lax.cummax(jnp.where(begins_BT, index_BT, 0), axis=1)
    return index_BT - start_BT


def rope_tables(
    positions_BT: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """(cos, sin) of the angles by which `rotate` rotates a head; float32 [B, T, H] each.

    Pair h, of H / 2, is rotated by position * theta^(-2h/H).
    """
    half = head_dim // 2
    frequency_h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BTh = positions_BT[:, :, None].astype(jnp.float32) * frequency_h[None, None]
    angle_BTH = jnp.concatenate([angle_BTh, angle_BTh], axis=-1)
    return jnp.cos(angle_BTH), jnp.sin(angle_BTH)


@jax.custom_vjp
def rotate(
    x_BTNH: Float[Array, "B T N H"], cos_BTH: Float[Array, "B T H"], sin_BTH: Float[Array, "B T H"]
) -> Float[Array, "B T N H"]:
    """Rotary position embedding (RoFormer, 2104.09864), pairs (h, h + H/2), in float32.

    x cos + (x R) sin, where R maps (a, b) to (-b, a); `cos_BTH` and `sin_BTH` are from
    `rope_tables`. Returns x's dtype. Its derivative is the inverse rotation.
    """
    return jax.lax.platform_dependent(
        x_BTNH, cos_BTH, sin_BTH, tpu=rotate_half_by_matmul, default=_rotate_half
    )


def _rotate_forward(x_BTNH, cos_BTH, sin_BTH):
    return rotate(x_BTNH, cos_BTH, sin_BTH), (cos_BTH, sin_BTH)


def _rotate_backward(saved, cotangent_BTNH):
    cos_BTH, sin_BTH = saved
    # Positions are integers, so the angles have no gradient.
    return rotate(cotangent_BTNH, cos_BTH, -sin_BTH), None, None


rotate.defvjp(_rotate_forward, _rotate_backward)


def _rotate_half(x_BTNH, cos_BTH, sin_BTH):
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    swapped_BTNH = jnp.concatenate([-second, first], axis=-1)
    return _combine(x_BTNH, swapped_BTNH, cos_BTH, sin_BTH)


def rotate_half_by_matmul(
    x_BTNH: Float[Array, "B T N H"], cos_BTH: Float[Array, "B T H"], sin_BTH: Float[Array, "B T H"]
) -> Float[Array, "B T N H"]:
    """`rotate` for TPUs, where swapping the halves of a head takes three passes over x.

    Both halves are in the same registers. The matrix unit swaps them in one pass, at the cost of
    H / D of a projection. R only moves and negates numbers, so the product is exact.
    """
    identity = np.eye(x_BTNH.shape[-1] // 2)
    r_HH = np.block([[np.zeros_like(identity), identity], [-identity, np.zeros_like(identity)]])
    swapped_BTNH = jnp.matmul(
        x_BTNH,
        jnp.asarray(r_HH, x_BTNH.dtype),
        # bf16 needs one pass of the matrix unit; float32 needs several.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return _combine(x_BTNH, swapped_BTNH, cos_BTH, sin_BTH)


def _combine(x_BTNH, swapped_BTNH, cos_BTH, sin_BTH):
    turned_BTNH = (
        x_BTNH.astype(jnp.float32) * cos_BTH[:, :, None] + swapped_BTNH * sin_BTH[:, :, None]
    )
    return turned_BTNH.astype(x_BTNH.dtype)
