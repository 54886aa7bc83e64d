"""Inputs for attention kernels, and what each must compute on them.

Dimension letters as in keel_jax/model/attention.py.
"""

import jax
import jax.numpy as jnp  # numpy learns bfloat16 from jax
import numpy as np

from keel_jax.model import attention

# Of values and gradients, on the scale of the array. Float32: sums in another order, of products
# that float32 holds to 6e-8. bfloat16: probabilities, outputs and gradients are rounded to 2^-9,
# at different places in different kernels.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def inputs(shape, kv_heads: int, dtype="float32", seed: int = 0):
    """(q, k, v, segments, weights): random arrays, documents of random lengths; numpy.

    The loss of the tests is the sum of weights * output.
    """
    rng = np.random.default_rng(seed)
    batch_size, num_tokens, _, width = shape
    kv_shape = (batch_size, num_tokens, kv_heads, width)
    q, k, v = (rng.normal(size=size).astype(dtype) for size in (shape, kv_shape, kv_shape))
    segments = np.cumsum(rng.random((batch_size, num_tokens)) < 0.1, axis=1).astype(np.int32)
    return q, k, v, segments, rng.normal(size=shape).astype(np.float32)


def run(kernel: str, q, k, v, segments, weights, index=None):
    """The output and the gradients of q, k and v, on the ambient mesh; numpy, float32."""
    index = np.arange(q.shape[1]) if index is None else index
    index = jnp.broadcast_to(index, segments.shape)

    def loss(q, k, v):
        o = attention.attend(
            q,
            k,
            v,
            kernel=kernel,
            query_index_BT=index,
            key_index_BS=index,
            query_segment_ids_BT=segments,
            key_segment_ids_BS=segments,
        )
        return (o.astype(jnp.float32) * weights).sum(), o

    gradients, output = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (output, *gradients)]


def assert_equal(found, expected, dtype):
    for name, one, other in zip(("o", "dq", "dk", "dv"), found, expected, strict=True):
        atol = TOLERANCE[dtype] * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)


def assert_masked(kernel: str, num_tokens: int, seen: int):
    """Gradients of one token's output reach its document's past, and are 0 anywhere else."""
    q, k, v, segments, weights = inputs((1, num_tokens, 4, 8), 2)
    segments = (np.arange(num_tokens) * 3 // num_tokens)[None].astype(np.int32)
    weights = weights * (np.arange(num_tokens) == seen)[None, :, None, None]
    past = (segments[0] == segments[0, seen]) & (np.arange(num_tokens) <= seen)
    assert 1 < past.sum() < seen  # part of a document, and another one before it
    _, dq, dk, dv = run(kernel, q, k, v, segments, weights)
    reached = [np.abs(gradient).sum(axis=(0, 2, 3)) > 0 for gradient in (dq, dk, dv)]
    np.testing.assert_array_equal(reached[0], np.arange(num_tokens) == seen)
    np.testing.assert_array_equal(reached[1], past)
    np.testing.assert_array_equal(reached[2], past)
