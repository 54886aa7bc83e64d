"""The norms of the residual connections, in float32; each over the last axis.

Dimension letters: D model.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from keel_jax.model.arrays import Array

# Far below the square of any vector in use, so that `unit` effectively divides by its length.
_LEAST_SQUARE = 1e-24


def rms_norm(
    x: Float[Array, "*B D"], gain: Float[Array, " D"] | None, epsilon: float
) -> Float[Array, "*B D"]:
    """gain * x / sqrt(mean(x^2) + epsilon) over the last axis, in float32 (arXiv:1910.07467).

    A gain of None stands for 1.
    """
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return x if gain is None else along_last(gain, x) * x


def along_last(gain: Float[Array, " D"], x: Float[Array, "*B D"]) -> Float[Array, "..."]:
    """Reshapes the vector to x's rank, for broadcasting."""
    return jax.lax.broadcast_to_rank(gain, x.ndim)


def unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / |x| over the last axis, in float32; 0 stays 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _LEAST_SQUARE)


def capped(x: Float[Array, "*B D"], cap: float) -> Float[Array, "*B D"]:
    """x min(1, cap / rms(x)) over the last axis, in float32; 0 stays 0."""
    x = x.astype(jnp.float32)
    square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jnp.minimum(1, cap * jax.lax.rsqrt(square + _LEAST_SQUARE))


def rms_norm_if(
    is_on: Bool[Array, ""], x: Float[Array, "*B D"], gain: Float[Array, " D"], epsilon: float
) -> Float[Array, "*B D"]:
    """`rms_norm` if `is_on`, else x; selects the factors and not the arrays."""
    x = x.astype(jnp.float32)
    rstd, gain = factors(is_on, x, gain, epsilon)
    return along_last(gain, x) * (x * rstd)


def factors(
    is_on: Bool[Array, ""], x: Float[Array, "*B D"], gain: Float[Array, " D"], epsilon: float
) -> tuple[Float[Array, "*B 1"], Float[Array, " D"]]:
    """(1 / sqrt(mean(x^2) + epsilon), gain) if the norm is on, ones if it is off."""
    rstd = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return jnp.where(is_on, rstd, 1), jnp.where(is_on, gain, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def norm_twice(
    z: Float[Array, "*B D"],
    outer_gain: Float[Array, " D"],
    is_on: Bool[Array, ""],
    inner_gain: Float[Array, " D"],
    epsilon: float,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
    """x = outer(z) and inner(x), two RMSNorms over the last axis whose sums depend only on z.

        r = 1 / sqrt(mean(z^2) + epsilon)                       x = outer_gain (r z)
        q = 1 / sqrt(r^2 mean((outer_gain z)^2) + epsilon)      h = inner_gain (q x)

    Both sums are computed in one pass over z, so h does not need a pass after x. The same holds for
    the backward pass: with dx, dh the cotangents and e = inner_gain dh,

        dx' = dx + q (e - q^2 x mean(x e)),    dz = r (outer_gain dx' - r z mean(x dx'))

    where mean(x dx') = mean(x dx) + epsilon q^2 (q mean(x e)), as q^2 mean(x^2) is
    1 - epsilon q^2. No gain divides anything, so each may be 0.

    Args:
      z: float32 [..., D].
      outer_gain, inner_gain: [D].
      is_on: a bool scalar; if it is False, x = z.
    """
    return _norm_twice_forward(z, outer_gain, is_on, inner_gain, epsilon)[0]


def _norm_twice_forward(z, outer_gain, is_on, inner_gain, epsilon):
    r, gain = factors(is_on, z, outer_gain, epsilon)
    outer = along_last(gain, z)
    q = jax.lax.rsqrt(r * r * jnp.mean((outer * z) ** 2, axis=-1, keepdims=True) + epsilon)
    x = outer * (z * r)
    # The gains are saved as they come, or a scan would stack their reshaped copies.
    return (x, along_last(inner_gain, z) * (x * q)), (z, r, gain, q, is_on, inner_gain)


def _norm_twice_backward(epsilon, saved, cotangents):
    (z, r, gain, q, is_on, inner_gain), (dx, dh) = saved, cotangents
    gain, inner_gain = along_last(gain, z), along_last(inner_gain, z)
    u = z * r
    x, e = gain * u, inner_gain * dh
    mean_xe = q * jnp.mean(x * e, axis=-1, keepdims=True)
    mean_xdx = jnp.mean(x * dx, axis=-1, keepdims=True) + epsilon * q * q * mean_xe
    # Both sums first, then everything that needs them: otherwise a TPU's compiler fuses the second
    # one with the gain's gradient and reads the arrays once more.
    mean_xe, mean_xdx = jax.lax.optimization_barrier((mean_xe, mean_xdx))
    d = dx + q * (e - x * q * mean_xe)
    dz = r * (gain * d - u * jnp.where(is_on, mean_xdx, 0))
    rows = tuple(range(z.ndim - 1))
    outer_gradient = jnp.where(is_on, jnp.sum(u * d, axis=rows), 0)
    return dz, outer_gradient, None, jnp.sum(x * q * dh, axis=rows)


norm_twice.defvjp(_norm_twice_forward, _norm_twice_backward)
