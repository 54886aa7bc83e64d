"""What a gradient is multiplied by on the residual path, in closed form.

The path is the gradient that passes no branch. Through x' = LN(alpha x + F) it is multiplied by
alpha / rms(z), with z = alpha x + F, times the norm's gain: LN divides by rms(z), and removes the
radial part, which the gradient has lost already in the norm above. For x of RMS 1 and F of the same
size at a right angle to it, that is alpha / sqrt(alpha^2 + 1) (arXiv:2601.19895, §3). Without an
outer norm it is alpha.

Dimension letters: N blocks, L = 2N sub-layers.
"""

import numpy as np

from keel_jax.model import residual


def unit_branches(topology: residual.Topology) -> np.ndarray:
    """The factor of each sub-layer where |F| = |x|; float64 [L]."""
    ones_N2 = np.ones_like(topology.alpha)
    return from_sizes(topology, ones_N2, ones_N2, ones_N2)


def from_sizes(
    topology: residual.Topology,
    stream_rms_N2: np.ndarray,
    branch_rms_N2: np.ndarray,
    outer_gain_rms_N2: np.ndarray,
) -> np.ndarray:
    """The factor of each sub-layer where stream, branch and outer gain have these sizes; [L]."""
    alpha_N2, scale_N2, stream_N2, branch_N2, gain_N2 = (
        np.asarray(x, np.float64)
        for x in (
            topology.alpha,
            topology.branch_scale,
            stream_rms_N2,
            branch_rms_N2,
            outer_gain_rms_N2,
        )
    )
    sum_N2 = np.hypot(alpha_N2 * stream_N2, scale_N2 * branch_N2)
    return np.where(topology.outer_norm, gain_N2 * alpha_N2 / sum_N2, alpha_N2).reshape(-1)


def gain(factors_L: np.ndarray) -> np.ndarray:
    """The product of each sub-layer's factor and those of all sub-layers above it; [L]."""
    return np.exp(np.cumsum(np.log(factors_L)[::-1])[::-1])
