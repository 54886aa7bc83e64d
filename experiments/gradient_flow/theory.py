"""What a gradient is multiplied by on the residual path, in closed form.

Through x' = LN(alpha x + F) the path, no gradient through F, has the factor alpha rms(x) / rms(z)
with z = alpha x + F: LN divides by rms(z), and takes out the radial part, which a gradient has lost
in the norm before. With an x of RMS 1 and an F of the same size, at a right angle to it, that is
alpha / sqrt(alpha^2 + 1) (arXiv:2601.19895, §3). Without an outer norm it is alpha.

Dimension letters: N blocks, L = 2N sub-layers.
"""

import numpy as np

from keel_jax.model import residual


def unit_branches(topology: residual.Topology) -> np.ndarray:
    """The factor of each sub-layer where |F| = |x|; float64 [L]."""
    return _factors(topology, np.ones_like(topology.alpha), np.ones_like(topology.alpha))


def from_sizes(
    topology: residual.Topology, stream_rms_N2: np.ndarray, branch_rms_N2: np.ndarray
) -> np.ndarray:
    """The factor of each sub-layer where stream and branch have these sizes; float64 [L]."""
    return _factors(topology, stream_rms_N2, branch_rms_N2)


def gain(factors_L: np.ndarray) -> np.ndarray:
    """The product of each sub-layer's factor and of all above it; [L]."""
    return np.exp(np.cumsum(np.log(factors_L)[::-1])[::-1])


def _factors(topology, stream_rms_N2, branch_rms_N2):
    alpha_N2, scale_N2 = (np.asarray(x, np.float64)
                          for x in (topology.alpha, topology.branch_scale))
    stream_N2, branch_N2 = (np.asarray(x, np.float64) for x in (stream_rms_N2, branch_rms_N2))
    sum_N2 = np.hypot(alpha_N2 * stream_N2, scale_N2 * branch_N2)
    return np.where(topology.outer_norm, alpha_N2 / sum_N2, alpha_N2).reshape(-1)
