"""What the telemetry says of a run's end: branch, path, rotation, gradient, and the positions."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import outcome as outcome_lib
from keel_jax.training import gradient_path, telemetry_records


def describe(outcome: outcome_lib.Outcome) -> dict[str, float] | None:
    """The last record of a run in a few numbers; None if it has none.

    "branch_ratio": the median over the sub-layers of r, the branch as it is added over the stream;
    "path": prod 1 / sqrt(1 + r^2), the share of a gradient that a residual path with norms would
    pass on; "rotation_radians": the sum of the angles by which sub-layers turn the stream;
    "cotangent_ratio": the stream's cotangent at the bottom over that at the top;
    "position_cosine": the mean cosine between the streams of two positions, at the last sub-layer.
    """
    if outcome.workdir is None:
        return None
    records = telemetry_records.load(outcome.workdir)
    if not records or "position_cosine" not in records:
        return None
    last = {name: values[-1].astype(float) for name, values in records.items() if name != "step"}
    ratio_N2 = last["branch_ratio"]
    # Block 0 has rules of its own (Keel), and an embedding of any size below it.
    above_N2 = ratio_N2[1:] if len(ratio_N2) > 1 else ratio_N2
    return {
        "branch_ratio": float(np.median(above_N2)),
        "path": float(np.exp(-0.5 * np.log1p(above_N2**2).sum())),
        "rotation_radians": float(last["rotation_radians"].sum()),
        "cotangent_ratio": gradient_path.cotangent_ratio(last),
        "position_cosine": float(last["position_cosine"][-1, -1]),
    }


def medians(runs: Sequence[outcome_lib.Outcome]) -> list[dict]:
    """The median over the seeds of every statistic, rate by rate."""
    rates = sorted({run.point.peak_lr for run in runs})
    rows = []
    for rate in rates:
        described = [describe(run) for run in runs if run.point.peak_lr == rate]
        rows.append({"rate": rate} | _median([row for row in described if row]))
    return rows


def _median(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = rows[0] if rows else ()
    return {name: float(np.median([row[name] for row in rows])) for name in names}
