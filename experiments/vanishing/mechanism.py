"""What closes the path of the gradient: how much reaches the bottom, beside what r and θ say.

Each sub-layer above block 0 is x' = LN(αx + F), so that with r = |F| / (α|x|), and θ the angle
between F and x, it multiplies the cotangent of x, relative to the stream's size, by
1 / sqrt(1 + 2 r cos θ + r^2) (the norm's division), and by what the branch's own derivative does.
The first factor is known from the telemetry's means over the tokens; at right angles it is that of
Keel's paper (arXiv:2601.19895, §3). All numbers here are of the sub-layers between the inputs of
block 1 and of the last sub-layer.

Dimension letters: R records, N blocks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

# A product or a ratio below this is 0 for what follows: float32's squares end near it.
LEAST = 1e-15
# Below this a path counts as closed; with less than half of the gradient it begins to close.
CLOSED, CLOSING = 1e-3, 0.5

Records = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Course:
    """One run, record by record; arrays are [R]."""

    # Optimizer steps.
    step: np.ndarray
    # Cotangent times stream, by RMS, at the input of block 1 over that of the last sub-layer.
    reach: np.ndarray
    # prod 1 / sqrt(1 + 2 r cos θ + r^2), and the same with cos θ = 0.
    path: np.ndarray
    orthogonal: np.ndarray
    # Sum of r cos θ, and attention's share of it; median RMS of the branches.
    exponent: np.ndarray
    attention_share: np.ndarray
    branch_rms: np.ndarray
    # Mean cosine between two positions of the stream that enters the last sub-layer.
    position_cosine: np.ndarray

    def first_closed(self) -> int | None:
        """The first recorded step at which the path was closed; None if none."""
        is_closed = self.reach < CLOSED
        return int(self.step[is_closed.argmax()]) if is_closed.any() else None


def course(records: Records) -> Course:
    """From a run's records, [R, N, 2] each."""
    flat = {
        name: _between(records[name]) for name in ("branch_ratio", "branch_cosine", "branch_rms")
    }
    relative_RN2 = records["cotangent_rms"] * records["stream_rms"]
    radial = flat["branch_ratio"] * flat["branch_cosine"]
    exponent = radial.sum(axis=1)
    # `_between` begins with an attention sub-layer.
    attention = radial[:, ::2].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.nan_to_num(relative_RN2[:, 1, 0] / relative_RN2[:, -1, -1])
        share = attention / exponent
    return Course(
        step=records["step"],
        reach=np.maximum(reach, LEAST),
        path=_product(1 + 2 * radial + flat["branch_ratio"] ** 2),
        orthogonal=_product(1 + flat["branch_ratio"] ** 2),
        exponent=exponent,
        attention_share=share,
        branch_rms=np.median(flat["branch_rms"], axis=1),
        position_cosine=records["position_cosine"][:, -1, -1],
    )


def describe(run: Course) -> dict[str, float | None]:
    """A run in a few numbers, at the record where the least reaches the bottom, and at the end."""
    worst = int(run.reach.argmin())
    first = run.first_closed()
    return {
        "least_reach": float(run.reach[worst]),
        "path_there": float(run.path[worst]),
        "orthogonal_path_there": float(run.orthogonal[worst]),
        "exponent_there": float(run.exponent[worst]),
        "attention_share_there": float(run.attention_share[worst]),
        "branch_rms_there": float(run.branch_rms[worst]),
        "position_cosine_there": float(run.position_cosine[worst]),
        "final_reach": float(run.reach[-1]),
        "first_closed_step": first,
    }


def fit(runs: Sequence[Course], predictor: str) -> dict[str, float] | None:
    """How well a product explains what reaches the bottom, where less than half of it does.

    Args:
      predictor: "path" or "orthogonal", a field of `Course`.

    Returns:
      "slope": of the line through the origin of log reach over log predictor, by least squares;
      "error_decades": the root mean square of log10 reach - log10 predictor. None without a record
      of a closing path.
    """
    reach, predicted = points(runs, predictor)
    is_closing = (reach < CLOSING) & (reach > LEAST)
    if not is_closing.any():
        return None
    y, x = np.log10(reach[is_closing]), np.log10(predicted[is_closing])
    return {
        "slope": float(x @ y / (x @ x)),
        "error_decades": float(np.sqrt(np.mean((y - x) ** 2))),
    }


def points(runs: Sequence[Course], predictor: str) -> tuple[np.ndarray, np.ndarray]:
    """What reaches the bottom, and what a product says of it, in every record of all runs."""
    return (
        np.concatenate([run.reach for run in runs]),
        np.concatenate([getattr(run, predictor) for run in runs]),
    )


def _between(values_RN2: np.ndarray) -> np.ndarray:
    """The sub-layers from block 1 to the last but one, [R, 2 N - 3]."""
    return values_RN2[:, 1:].reshape(len(values_RN2), -1)[:, :-1]


def _product(square: np.ndarray) -> np.ndarray:
    """prod 1 / sqrt(square) over the sub-layers, [R]."""
    return np.maximum(np.exp(-0.5 * np.log(square).sum(axis=1)), LEAST)
