"""What the telemetry says of a run: branch, path, rotation, gradient over depth, and positions."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import outcome as outcome_lib
from keel_jax.training import gradient_path

# Sub-layers of a profile, at most.
_PROFILE = 33
# Cotangents below this, relative to the top, are drawn as this.
LEAST_RATIO = 1e-12

Records = Mapping[str, np.ndarray]


def load(outcome: outcome_lib.Outcome) -> Records | None:
    """The records of a run after its first step, [R, N, 2]; None if it has none."""
    records = outcome.telemetry()
    return records if records and "position_cosine" in records else None


def describe(records: Records) -> dict[str, float]:
    """A run in a few numbers.

    "branch_ratio": the median over the sub-layers, from block 1 on, of r, the branch as it is added
    over the stream, in the record where it is largest; "path": prod 1 / sqrt(1 + r^2) over the
    same sub-layers, the share of a gradient that a residual path with a norm after each sum passes
    on, where it is least; "rotation_radians": the sum of the angles by which sub-layers turn the
    stream, at the end; "cotangent_ratio": the stream's cotangent at the bottom over that at the
    top, at the end; "position_cosine": the mean cosine between the streams of two positions, at the
    last sub-layer and the end.
    """
    # Block 0 has the weight 1 in all normed cells.
    ratio_RN2 = records["branch_ratio"][:, 1:]
    path_R = np.exp(-0.5 * np.log1p(ratio_RN2**2).sum(axis=(1, 2)))
    return {
        "branch_ratio": float(np.median(ratio_RN2, axis=(1, 2)).max()),
        "path": float(path_R.min()),
        "rotation_radians": float(records["rotation_radians"][-1].sum()),
        "cotangent_ratio": gradient_path.cotangent_ratio(_last(records)),
        "position_cosine": float(records["position_cosine"][-1, -1, -1]),
    }


def medians(runs: Sequence[tuple[float, dict[str, float]]]) -> list[dict]:
    """The median over the seeds of every number, rate by rate, from (rate, `describe`) pairs."""
    rows = []
    for rate in sorted({rate for rate, _ in runs}):
        found = [numbers for own, numbers in runs if own == rate]
        median = {name: float(np.median([row[name] for row in found])) for name in found[0]}
        rows.append({"rate": rate} | median)
    return rows


def cotangents(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Sub-layers, from 0, and the stream's cotangent there over that at the top, at the end.

    At most 33 sub-layers, with the first and the last. NaN without a cotangent at the top.
    """
    cotangent_L = _last(records)["cotangent_rms"].reshape(-1)
    places = np.unique(np.linspace(0, len(cotangent_L) - 1, _PROFILE).round().astype(int))
    with np.errstate(divide="ignore", invalid="ignore"):
        return places, np.maximum(cotangent_L[places] / cotangent_L[-1], LEAST_RATIO)


def _last(records: Records) -> dict[str, np.ndarray]:
    return {name: values[-1] for name, values in records.items()}
