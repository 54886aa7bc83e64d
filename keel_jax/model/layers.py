"""The two sub-layers of a block, attention and SwiGLU, each with its residual connection.

Parameters are float32 and declared in one line each: name, shape, logical axes, scale of the
initial values. Matrix multiplications read `model.compute_dtype`. Weights are two-dimensional
([D, N * H], not [D, N, H]): a trailing head axis of 64 would be padded to 128 lanes on a TPU.

Dimension letters: B batch, T time, D model, N query heads, K key/value heads, H head width, F ffn.
"""

from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import attention, residual, telemetry
from keel_jax.parallel import sharding

# Logical axes of the stream between the branches, of what a branch reads, and of what the logits
# are computed from; [B, T, D].
STREAM_AXES = ("batch", "stream_time", "stream")
BRANCH_AXES = ("batch", "time", "stream")
LOSS_AXES = ("batch", "loss_time", "stream")
# Of attention's output before its last product, and of the FFN's hidden layer; [B, T, …].
HEADS_AXES = ("batch", "time", "heads")
FFN_AXES = ("batch", "time", "ffn")


@flax.struct.dataclass
class Context:
    """What every block reads beside the stream; int32 [B, T] each."""

    # Position within the document, for RoPE.
    positions_BT: jax.Array
    # Document number; attention stays within one.
    segments_BT: jax.Array
    # Index among the keys, for causality.
    index_BT: jax.Array


@flax.struct.dataclass
class Cache:
    """Keys and values of all blocks, [N, B, S, K, H], in the compute dtype."""

    key: jax.Array
    value: jax.Array


class Attention(nn.Module):
    """Grouped-query self-attention as one sub-layer."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        constants: Mapping[str, jax.Array],
        context: Context,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache | None, dict | None]:
        """The stream after the sub-layer, the cache with this block's keys and values, telemetry.

        The last is None in a program without probes.
        """
        x_BTD = telemetry.probe(x_BTD, constants, residual.ATTENTION)
        m, topology = self.model, residual.topology(self.model)
        heads, kv_heads, scale = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim, m.init_std
        w_query = weight(self, "query", (m.d_model, heads), ("embed", "heads"), scale)
        w_key = weight(self, "key", (m.d_model, kv_heads), ("embed", "kv_heads"), scale)
        scale *= topology.init_scale
        w_value = weight(self, "value", (m.d_model, kv_heads), ("embed", "kv_heads"), scale)
        w_out = weight(self, "out", (heads, m.d_model), ("heads_row", "stream"), scale)
        gains = residual_gains(self, residual.ATTENTION)

        h_BTD = residual.branch_input(
            x_BTD, gains, constants, topology, residual.ATTENTION,
            epsilon=m.norm_epsilon, dtype=jnp.dtype(m.compute_dtype),
        )
        h_BTD = sharding.constrain(h_BTD, BRANCH_AXES)
        q_BTNH = split_heads(multiply(h_BTD, w_query), m.num_heads, attention.QUERY_AXES)
        k_BTKH = split_heads(multiply(h_BTD, w_key), m.num_kv_heads, attention.KEY_AXES)
        v_BTKH = split_heads(multiply(h_BTD, w_value), m.num_kv_heads, attention.KEY_AXES)
        if m.qk_norm or topology.qkv_norm:
            q_BTNH = self._head_norm("query_norm", q_BTNH)
            k_BTKH = self._head_norm("key_norm", k_BTKH)
        if topology.qkv_norm:
            v_BTKH = self._head_norm("value_norm", v_BTKH)
        q_BTNH = attention.rotate(q_BTNH, context.positions_BT, m.rope_theta)
        k_BTKH = attention.rotate(k_BTKH, context.positions_BT, m.rope_theta)

        if cache is None:
            kernel, k_BSKH, v_BSKH = m.attention, k_BTKH, v_BTKH
            key_index_BS, key_segments_BS = context.index_BT, context.segments_BT
        else:
            block = constants["block"]
            cache = Cache(
                key=_write(cache.key, block, context.index_BT, k_BTKH),
                value=_write(cache.value, block, context.index_BT, v_BTKH),
            )
            # Few queries, many keys: no kernel but the reference.
            kernel, k_BSKH, v_BSKH = "reference", cache.key[block], cache.value[block]
            key_index_BS = jnp.broadcast_to(jnp.arange(k_BSKH.shape[1]), k_BSKH.shape[:2])
            # A cache holds one document a row.
            key_segments_BS = jnp.broadcast_to(context.segments_BT[:, :1], k_BSKH.shape[:2])
        a_BTNH = attention.attend(
            q_BTNH, k_BSKH, v_BSKH,
            kernel=kernel,
            query_index_BT=context.index_BT,
            key_index_BS=key_index_BS,
            query_segments_BT=context.segments_BT,
            key_segments_BS=key_segments_BS,
        )
        a_BTE = sharding.constrain(a_BTNH.reshape(*a_BTNH.shape[:2], heads), HEADS_AXES)
        f_BTD = multiply(a_BTE, w_out)
        f_BTD = sharding.constrain(f_BTD, STREAM_AXES)
        y_BTD = residual.join(
            x_BTD, f_BTD, gains, constants, topology, residual.ATTENTION, epsilon=m.norm_epsilon
        )
        told = telemetry.observe(
            x_BTD, f_BTD, y_BTD, gains, constants, topology, residual.ATTENTION,
            epsilon=m.norm_epsilon,
        )
        return y_BTD, cache, told

    def _head_norm(self, name: str, x_BTNH: jax.Array) -> jax.Array:
        gain_H = norm_gain(self, name, self.model.head_dim, ("head_dim",))
        return residual.rms_norm(x_BTNH, gain_H, self.model.norm_epsilon).astype(x_BTNH.dtype)


class Ffn(nn.Module):
    """SwiGLU, down(silu(x gate) * (x up)) (2002.05202), as one sub-layer."""

    model: config.ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, constants: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict | None]:
        """The stream after the sub-layer, and telemetry, None in a program without probes."""
        x_BTD = telemetry.probe(x_BTD, constants, residual.FFN)
        m, topology = self.model, residual.topology(self.model)
        scale = m.init_std * topology.init_scale
        w_gate = weight(self, "gate", (m.d_model, m.d_ffn), ("embed", "ffn"), scale)
        w_up = weight(self, "up", (m.d_model, m.d_ffn), ("embed", "ffn"), scale)
        w_down = weight(self, "down", (m.d_ffn, m.d_model), ("ffn_row", "stream"), scale)
        gains = residual_gains(self, residual.FFN)

        h_BTD = residual.branch_input(
            x_BTD, gains, constants, topology, residual.FFN,
            epsilon=m.norm_epsilon, dtype=jnp.dtype(m.compute_dtype),
        )
        h_BTD = sharding.constrain(h_BTD, BRANCH_AXES)
        f_BTF = jax.nn.silu(multiply(h_BTD, w_gate)) * multiply(h_BTD, w_up)
        f_BTF = sharding.constrain(f_BTF, FFN_AXES)
        f_BTD = sharding.constrain(multiply(f_BTF, w_down), STREAM_AXES)
        y_BTD = residual.join(
            x_BTD, f_BTD, gains, constants, topology, residual.FFN, epsilon=m.norm_epsilon
        )
        told = telemetry.observe(
            x_BTD, f_BTD, y_BTD, gains, constants, topology, residual.FFN,
            epsilon=m.norm_epsilon,
        )
        return y_BTD, told


def check_activations(model: config.ModelConfig, mesh: jax.sharding.Mesh, batch_size, seq_len):
    """Whether `mesh` can split what the blocks compute on a batch [B, T], with its kernel.

    Raises:
      ValueError: a dimension is not a multiple of the devices that share it; both are named.
    """
    attention.check_order(mesh, seq_len)
    query_heads, key_heads = (model.num_heads, model.head_dim), (model.num_kv_heads, model.head_dim)
    shapes = {
        "attention's queries [B, T, N, H]": (attention.QUERY_AXES, query_heads),
        "attention's keys [B, T, K, H]": (attention.KEY_AXES, key_heads),
        "the stream [B, T, D]": (STREAM_AXES, (model.d_model,)),
        "the loss's input [B, T, D]": (LOSS_AXES, (model.d_model,)),
    }
    for name, (axes, last) in shapes.items():
        sharding.sharding(mesh, axes, (batch_size, seq_len, *last), name)


def weight(module: nn.Module, name: str, shape, axes, std: float) -> jax.Array:
    """A float32 matrix with N(0, std^2) initial values and logical axes.

    Its gradient is pinned to where it lies itself, so that it is reduce-scattered block by block.
    """
    init = nn.with_logical_partitioning(nn.initializers.normal(std), axes)
    return sharding.constrain(module.param(name, init, shape, jnp.float32), axes)


def norm_gain(module: nn.Module, name: str, size: int, axes=("norm",)) -> jax.Array:
    """A float32 gain vector, initially 1."""
    init = nn.with_logical_partitioning(nn.initializers.ones, axes)
    return module.param(name, init, (size,), jnp.float32)


def residual_gains(module: nn.Module, sublayer: int) -> dict[str, jax.Array]:
    """The vectors [D] that the topology's rule reads in this sub-layer, by name."""
    m, topology = module.model, residual.topology(module.model)
    names = [n for n in ("inner_norm", "outer_norm", "branch_norm") if topology.has(n, sublayer)]
    names += ["beta"] if topology.has_beta else []
    return {name: norm_gain(module, name, m.d_model) for name in names}


def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w with both in x's dtype."""
    return x @ w.astype(x.dtype)


def split_heads(x_BTE: jax.Array, num_heads: int, axes: tuple[str, ...]) -> jax.Array:
    """[B, T, heads * H] -> [B, T, heads, H], with logical axes `axes`."""
    x_BTNH = x_BTE.reshape(*x_BTE.shape[:2], num_heads, -1)
    return sharding.constrain(x_BTNH, axes)


def _write(cache_NBSKH, block, index_BT, new_BTKH):
    """The cache with `new` in the slots `index[b, 0]` onwards of row b of this block."""
    def write_row(row_SKH, start, new_TKH):
        return jax.lax.dynamic_update_slice(row_SKH, new_TKH, (start, 0, 0))

    rows_BSKH = jax.vmap(write_row)(cache_NBSKH[block], index_BT[:, 0], new_BTKH)
    return cache_NBSKH.at[block].set(rows_BSKH)
