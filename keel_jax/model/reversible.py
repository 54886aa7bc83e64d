"""A scan over depth whose backward pass reconstructs the stream from above, without saving it.

A sub-layer of Keel's family maps z, the sum before an outer norm, to the sum before the next one,

    z' = alpha x + F(x),    x = gain r z,    r = 1 / rms(z) of each token

(outer norms are deferred by one sub-layer, `residual.deferred`; F is the branch with its inner
norm). Given z', it is inverted by fixed-point iteration, which contracts at Lip(F) / alpha, where
alpha = 2N; r, one number per token, is saved:

    x_0 = z' / alpha,    x_i = (z' - F(x_{i-1})) / alpha,    z = x_K / (gain r)

F is differentiated at x_{K-1}, so the K-th evaluation is the one that the derivative needs
anyway: K = 1 computes as much as recomputing each block.

The anchors, the z before every `anchor_blocks`-th block, are saved and exact. The reconstruction of
each stretch between two anchors starts from the upper one, so errors do not accumulate over
stretches; its lowest block is computed and differentiated from the lower anchor. At that point the
reconstruction is compared with a known z: their relative difference is the error of the stretch.
The largest last step of the iteration, |x_K - x_{K-1}| / |x_K|, is the error of the points at which
F was differentiated (both by RMS over all tokens). A stretch in which either is not below
`error_bound` is recomputed from its anchor.

This module is independent of the model: it handles two functions of a block's halves, and trees
stacked along depth.

Dimension letters: N blocks, A stretches, S sub-layers of a block, B batch, T time, D model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from keel_jax import config
from keel_jax.model import recompute
from keel_jax.model.arrays import Array
from keel_jax.runtime import named_scopes

# The errors of a stretch: at its anchor, and the largest last step of the iteration.
NUM_ERRORS = 2


class Sublayer(NamedTuple):
    """One residual connection, as a whole and in the parts that are needed to invert it.

    z, x and F are float32 [B, T, D]; `learned` is {"params", "gain"} of this sub-layer in this
    block, `inputs` are the block's, `context` is what all blocks read.
    """

    # (z, learned, inputs, context) -> z', as the forward pass computes it.
    whole: Callable
    # (z, gain, inputs) -> (x, r [B, T]): the outer norm below; r = 1 if there is none.
    norm: Callable
    # (x, r, gain, inputs) -> z.
    undo: Callable
    # (x, params, inputs, context) -> F(x).
    branch: Callable
    # inputs -> alpha.
    alpha: Callable


def scan(
    sublayers: tuple[Sublayer, ...],
    z_BTD: Float[Array, "B T D"],
    rows: tuple[Any, Any],
    context: Any,
    options: config.RecomputeConfig,
    probe_A2: Float[Array, "A 2"] | None = None,
) -> Float[Array, "B T D"]:
    """z after all blocks; the backward pass reconstructs the blocks' inputs.

    Args:
      rows: (learned, inputs), trees of arrays [N, …]; `learned` is a tuple with one entry per
        sub-layer, and only it has gradients.
      context: read by every block; it has no gradient.
      probe_A2: `probe(…)`, whose cotangent holds the stretches' errors, [A, 2].
    """
    num_blocks = len(jax.tree.leaves(rows)[0])
    depth = _Depth(
        sublayers,
        min(options.anchor_blocks, num_blocks),
        options.fixed_point_iterations,
        options.error_bound,
    )
    if probe_A2 is None:
        probe_A2 = probe(options, num_blocks)

    @jax.custom_vjp
    def run(z_BTD, learned, inputs, context, probe_A2):
        del probe_A2
        return depth.forward(z_BTD, (learned, inputs), context)[0]

    def forward(z_BTD, learned, inputs, context, probe_A2):
        del probe_A2
        z_BTD, kept = depth.forward(z_BTD, (learned, inputs), context)
        return z_BTD, (z_BTD, kept, (learned, inputs), context)

    def backward(saved, dz_BTD):
        dz_BTD, gradients, errors_A2 = depth.backward(dz_BTD, *saved)
        return dz_BTD, gradients, None, None, errors_A2

    run.defvjp(forward, backward)
    return run(z_BTD, *rows, context, probe_A2)


def num_stretches(options: config.RecomputeConfig, num_blocks: int) -> int:
    """A: all stretches have `anchor_blocks` blocks, except that the last one has the remainder."""
    return -(-num_blocks // options.anchor_blocks)


def probe(options: config.RecomputeConfig, num_blocks: int) -> Float[Array, "A 2"]:
    """The zeros [A, 2] whose cotangent is each stretch's (error at its anchor, last step)."""
    return jnp.zeros((num_stretches(options, num_blocks), NUM_ERRORS), jnp.float32)


def summary(
    errors_A2: Float[Array, "A 2"], options: config.RecomputeConfig, num_blocks: int
) -> dict:
    """The statistics in `probe`'s cotangent, by name.

    Returns:
      "reversal_error" and "reversal_step", float32 [N], each block with its stretch's numbers;
      "reversal_fallbacks", the number of stretches that were recomputed.
    """
    is_kept_A = jnp.all(errors_A2 < options.error_bound, axis=1)  # false for NaN
    errors_2N = jnp.repeat(errors_A2, options.anchor_blocks, axis=0)[:num_blocks].T
    return {
        "reversal_error": errors_2N[0],
        "reversal_step": errors_2N[1],
        "reversal_fallbacks": jnp.sum(~is_kept_A).astype(jnp.float32),
    }


def fallback_plan() -> config.RecomputeConfig:
    """How a stretch is recomputed: in segments, as its carries add to the memory of the anchors."""
    return config.RecomputeConfig(plan="segments")


@dataclasses.dataclass(frozen=True)
class _Depth:
    """The passes over all blocks, and over one stretch of them."""

    sublayers: tuple[Sublayer, ...]
    anchor_blocks: int
    fixed_point_iterations: int
    error_bound: float

    def forward(self, z_BTD, rows, context):
        """z after all blocks; and (anchor, r [blocks, S, B, T]) of the full stretches, stacked,
        and of the shorter last one, if there is one."""

        def stretch(z_BTD, rows):
            def block(z_BTD, row):
                learned, inputs = row
                return self._block(z_BTD, learned, inputs, context)

            after_BTD, r = jax.lax.scan(block, z_BTD, rows)
            return after_BTD, (z_BTD, r)

        whole, rest = self._stretches(rows)
        z_BTD, kept = jax.lax.scan(stretch, z_BTD, whole)
        kept_rest = None
        if rest is not None:
            z_BTD, kept_rest = stretch(z_BTD, rest)
        return z_BTD, (kept, kept_rest)

    def backward(self, dz_BTD, z_BTD, kept, rows, context):
        """The cotangent of the first z, the gradients of `learned`, and the errors [A, 2]."""
        whole, rest = self._stretches(rows)
        kept, kept_rest = kept
        if rest is not None:
            dz_BTD, last_gradients, last_errors = self._stretch(
                dz_BTD, z_BTD, kept_rest, rest, context
            )
            z_BTD = kept_rest[0]

        def stretch(carry, xs):
            (dz_BTD, top_BTD), (kept, rows) = carry, xs
            dz_BTD, gradients, errors = self._stretch(dz_BTD, top_BTD, kept, rows, context)
            anchor_BTD = kept[0]
            return (dz_BTD, anchor_BTD), (gradients, errors)

        (dz_BTD, _), (gradients, errors_A2) = jax.lax.scan(
            stretch, (dz_BTD, z_BTD), (kept, whole), reverse=True
        )
        gradients = jax.tree.map(lambda g: g.reshape(-1, *g.shape[2:]), gradients)
        if rest is not None:
            gradients = _joined(gradients, last_gradients)
            errors_A2 = _joined(errors_A2, last_errors[None])
        return dz_BTD, gradients, errors_A2

    def _stretch(self, dz_BTD, top_BTD, kept, rows, context):
        """The backward pass of one stretch, from the exact z above it.

        Returns:
          The cotangent of its anchor, its gradients [blocks, …], and its errors, [2].
        """
        anchor_BTD, r = kept
        first, others = (jax.tree.map(lambda x, p=part: x[p], rows) for part in (0, slice(1, None)))

        def block(z_BTD, learned):
            return self._block(z_BTD, learned, first[1], context)[0]

        exact_BTD, pull_first = jax.vjp(block, anchor_BTD, first[0])
        if len(r) == 1:
            dz_BTD, first_gradients = pull_first(dz_BTD)
            return dz_BTD, _stacked(first_gradients), jnp.zeros(NUM_ERRORS)

        def step(carry, xs):
            (z_BTD, dz_BTD, largest), (row, r) = carry, xs
            z_BTD, dz_BTD, gradients, last_step = self._undo_block(z_BTD, dz_BTD, row, r, context)
            return (z_BTD, dz_BTD, jnp.maximum(largest, last_step)), gradients

        begin = top_BTD, dz_BTD, jnp.zeros(())
        (found_BTD, reversed_BTD, last_step), reversed_gradients = jax.lax.scan(
            step, begin, (others, r[1:]), reverse=True
        )
        errors = jnp.stack([_relative(found_BTD - exact_BTD, exact_BTD), last_step])
        dz_BTD, gradients = jax.lax.cond(
            jnp.all(errors < self.error_bound),
            lambda: (reversed_BTD, reversed_gradients),
            lambda: self._recomputed(dz_BTD, exact_BTD, others, context),
        )
        dz_BTD, first_gradients = pull_first(dz_BTD)
        return dz_BTD, _joined(_stacked(first_gradients), gradients), errors

    @jax.named_scope(named_scopes.RARE_BRANCH)
    def _recomputed(self, dz_BTD, z_BTD, rows, context):
        """The exact cotangent of z below these blocks, and their gradients."""
        learned, inputs = rows

        def run(z_BTD, learned):
            def body(z_BTD, row):
                learned, inputs = row
                return self._block(z_BTD, learned, inputs, context)[0], None

            return recompute.scan(body, z_BTD, (learned, inputs), fallback_plan())[0]

        return jax.vjp(run, z_BTD, learned)[1](dz_BTD)

    def _block(self, z_BTD, learned, inputs, context):
        """z after the block, and r [S, B, T]."""
        kept = []
        for sublayer, own in zip(self.sublayers, learned, strict=True):
            kept.append(sublayer.norm(z_BTD, own["gain"], inputs)[1])
            z_BTD = sublayer.whole(z_BTD, own, inputs, context)
        return z_BTD, jnp.stack(kept)

    def _undo_block(self, z_BTD, dz_BTD, row, r_SBT, context):
        """z below the block, its cotangent, the gradients, and the largest last step."""
        learned, inputs = row
        gradients, steps = [], []
        for sublayer, own, r_BT in reversed(list(zip(self.sublayers, learned, r_SBT, strict=True))):
            z_BTD, dz_BTD, gradient, last_step = self._undo(
                sublayer, z_BTD, dz_BTD, own, r_BT, inputs, context
            )
            gradients.append(gradient)
            steps.append(last_step)
        return z_BTD, dz_BTD, tuple(reversed(gradients)), jnp.max(jnp.stack(steps))

    def _undo(self, sublayer: Sublayer, z_BTD, dz_BTD, learned, r_BT, inputs, context):
        """Inverts one sub-layer: K iterations for x, the last one differentiated; then its norm."""
        alpha, gain = sublayer.alpha(inputs), learned["gain"]

        def branch(x_BTD, params):
            return sublayer.branch(x_BTD, params, inputs, context)

        def better(_, x_BTD):
            return (z_BTD - branch(x_BTD, learned["params"])) / alpha

        x_BTD = z_BTD / alpha
        if self.fixed_point_iterations > 1:
            x_BTD = jax.lax.fori_loop(0, self.fixed_point_iterations - 1, better, x_BTD)
        f_BTD, pull = jax.vjp(branch, x_BTD, learned["params"])
        last_BTD = (z_BTD - f_BTD) / alpha
        last_step = _relative(last_BTD - x_BTD, last_BTD)
        dx_BTD, params_gradient = pull(dz_BTD)
        below_BTD = sublayer.undo(last_BTD, r_BT, gain, inputs)
        _, pull_norm = jax.vjp(lambda z, g: sublayer.norm(z, g, inputs)[0], below_BTD, gain)
        dz_BTD, gain_gradient = pull_norm(alpha * dz_BTD + dx_BTD)
        return below_BTD, dz_BTD, {"params": params_gradient, "gain": gain_gradient}, last_step

    def _stretches(self, rows):
        """`rows` as [A, blocks, …], and the remaining rows, or None."""
        size, num_blocks = self.anchor_blocks, len(jax.tree.leaves(rows)[0])
        count = num_blocks // size
        whole = jax.tree.map(lambda x: x[: count * size].reshape(count, size, *x.shape[1:]), rows)
        if count * size == num_blocks:
            return whole, None
        return whole, jax.tree.map(lambda x: x[count * size :], rows)


def _relative(difference_BTD, of_BTD) -> Array:
    """|difference| / |of| over all entries."""
    return jnp.sqrt(jnp.sum(jnp.square(difference_BTD)) / jnp.sum(jnp.square(of_BTD)))


def _stacked(tree):
    return jax.tree.map(lambda x: x[None], tree)


def _joined(one, other):
    return jax.tree.map(lambda *pair: jnp.concatenate(pair), one, other)
