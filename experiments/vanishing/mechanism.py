"""What keeps the gradient from the bottom: what arrives there, beside what r and θ say.

Each sub-layer above block 0 is x' = LN(αx + F). With r = |F| / (α|x|), and θ the angle between F
and x, the norm's division multiplies what comes along the residual path, relative to the stream's
size, by 1 / sqrt(1 + 2 r cos θ + r^2), forwards and backwards. At right angles that is the factor
of Keel's paper (arXiv:2601.19895, §3). F's own derivative is not in it: a branch that is k x turns
nothing and loses nothing, as its derivative makes up for the division. A branch that is the same
for all tokens has no such derivative, and moves them all to where it points.

From the telemetry's mean squares over all tokens, so that the factor is rms(αx) / rms(αx + F) of
the whole batch; tokens of which less arrives weigh less in the measured ratio. All numbers are of
the sub-layers between the inputs of block 1 and of the last sub-layer.

Dimension letters: R records, N blocks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keel_jax.training import gradient_path

# Products and ratios below this are set to it; float32's squares end near it.
LEAST = 1e-15
# Where less than this arrives, or should, there is something to explain.
_SOMETHING_LOST = 0.5

Records = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Course:
    """One run, record by record; arrays are [R]. Records that are not finite are left out."""

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

    @property
    def is_lost(self) -> bool:
        """Whether the gradient was lost at the end: the last record's reach is below LOST."""
        return bool(self.reach[-1] < gradient_path.LOST)

    @property
    def was_lost(self) -> bool:
        """Whether it was in any record."""
        return bool((self.reach < gradient_path.LOST).any())

    def first_lost(self) -> int | None:
        """The first recorded step at which it was; None if none."""
        return int(self.step[(self.reach < gradient_path.LOST).argmax()]) if self.was_lost else None


def course(records: Records) -> Course | None:
    """From a run's records, [R, N, 2] each; None if none of them is finite."""
    ratio, cosine, branch_rms = (
        _between(records[name]) for name in ("branch_ratio", "branch_cosine", "branch_rms")
    )
    radial = ratio * cosine
    exponent = radial.sum(axis=1)
    relative_RN2 = records["cotangent_rms"] * records["stream_rms"]
    bottom, top = relative_RN2[:, 1, 0], relative_RN2[:, -1, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = Course(
            step=records["step"],
            reach=np.maximum(bottom / top, LEAST),
            path=_product(1 + 2 * radial + ratio**2),
            orthogonal=_product(1 + ratio**2),
            exponent=exponent,
            # `_between` begins with an attention sub-layer.
            attention_share=radial[:, ::2].sum(axis=1) / exponent,
            branch_rms=np.median(branch_rms, axis=1),
            position_cosine=records["position_cosine"][:, -1, -1],
        )
    # Without a cotangent at the top there is no ratio; a step that diverged has no numbers.
    is_finite = np.isfinite([bottom, top, radial.sum(axis=1), ratio.sum(axis=1)]).all(axis=0)
    is_finite &= top > 0
    if not is_finite.any():
        return None
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(Course)}
    return Course(**{name: value[is_finite] for name, value in values.items()})


def describe(run: Course) -> dict[str, float | None]:
    """A run in a few numbers, at the record where the least reaches the bottom, and at the end."""
    worst = int(run.reach.argmin())
    return {
        "least_reach": float(run.reach[worst]),
        "path_there": float(run.path[worst]),
        "orthogonal_path_there": float(run.orthogonal[worst]),
        "exponent_there": float(run.exponent[worst]),
        "attention_share_there": float(run.attention_share[worst]),
        "branch_rms_there": float(run.branch_rms[worst]),
        "position_cosine_there": float(run.position_cosine[worst]),
        "final_reach": float(run.reach[-1]),
        "final_position_cosine": float(run.position_cosine[-1]),
        "first_lost_step": run.first_lost(),
    }


def error_decades(run: Course, predictor: str) -> float | None:
    """By how much a product is off in a run, where it is worst: |log10 reach - log10 product|.

    Of two records: the one in which the least reaches the bottom, and the one for which the product
    says so. Thus a product that cries wolf is as wrong as one that says nothing.

    Args:
      predictor: "path" or "orthogonal", a field of `Course`.

    Returns:
      None if neither is below 0.5: then nothing is to be explained. Records in which the reach or
      the product is at LEAST say only that it is small, and are left out.
    """
    predicted = getattr(run, predictor)
    is_known = (run.reach > LEAST) & (predicted > LEAST)
    if not is_known.any():
        return None
    reach, predicted = run.reach[is_known], predicted[is_known]
    if min(reach.min(), predicted.min()) >= _SOMETHING_LOST:
        return None
    errors = np.abs(np.log10(reach) - np.log10(predicted))
    return float(max(errors[reach.argmin()], errors[predicted.argmin()]))


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
