"""From points to numbers and to the predictions held against them.

A point is one model of one seed: "name", "num_blocks", "seed", "kind" ("initial": as initialized;
"unit": with branches of the stream's size; "trained", with "step" and "peak_lr") and the vectors of
`measure.measure_flow`. "From block 0" means from the input of the third sub-layer to the top; below
it the embedding's scale enters.

Letters: N blocks, L = 2N sub-layers.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.gradient_flow import points, theory
from keel_jax import errors
from keel_jax.model import residual

# The first sub-layer of block 1, whose input is block 0's output.
BLOCK_1 = 2
_DIGITS = 4

Point = Mapping
# (kind, name, number of blocks, step) of a model.
_Key = tuple[str, str, int, int]


@dataclasses.dataclass(frozen=True)
class Check:
    """A prediction: `value` lies in [low, high]."""

    says: str
    value: float
    low: float
    high: float

    def to_json(self) -> dict:
        """The check as the report's table shows it."""
        return {
            "says": self.says,
            "value": rounded(self.value),
            "low": self.low,
            "high": self.high,
            "holds": bool(self.low <= self.value <= self.high),
        }


def numbers(measured: Sequence[Point], preset: points.Preset) -> dict:
    """{kind: {name: {L: {quantity: {"median", "low", "high"}}}}}, low and high over the seeds."""
    by_kind: dict = {}
    for (kind, name, num_blocks, step), group in group_by_model(measured).items():
        at_depth: dict = {}
        for quantity in ("path_gain", "gain", "predicted_path_gain"):
            values = [point[quantity][BLOCK_1] for point in group]
            at_depth[f"{quantity}_from_block_0"] = interval(values)
        at_depth["branch_gradient_rms"] = interval([mean_branch_gradient(p) for p in group])
        at_depth["top_stream_rms"] = interval([point["stream_rms"][-1] for point in group])
        if kind == "unit":
            at_depth["theory"] = rounded(theory_gain(name, num_blocks, preset)[BLOCK_1])
        label = f"{name} at step {step}" if kind == "trained" else name
        by_kind.setdefault(kind, {}).setdefault(label, {})[str(2 * num_blocks)] = at_depth
    return by_kind


def checks(by_kind: Mapping) -> dict:
    """The predictions of NOTES.md held against `numbers`; those of absent depths are left out."""
    return {
        key: check.to_json()
        for key, check in {
            **_unit_path_checks(by_kind),
            **_initial_path_checks(by_kind),
            **_branch_gradient_checks(by_kind),
        }.items()
    }


def _unit_path_checks(by_kind: Mapping) -> dict[str, Check]:
    """With branches of the stream's size, the path's gain is the closed form's."""
    predictions = {}
    for name, low, high in (("keel", 0.95, 1.05), ("keel, alpha = sqrt(L)", 0.9, 1.1)):
        depths = [int(depth) for depth in by_kind.get("unit", {}).get(name, {})]
        ratios = [
            _median(by_kind, "unit", name, depth) / _theory(by_kind, name, depth)
            for depth in depths
        ]
        worst = max(ratios, key=lambda ratio: abs(np.log(ratio)), default=None)
        if worst:
            says = "measured / theory, at the worst depth"
            predictions[f"unit path, {name}"] = Check(says, worst, low, high)
    for name, num_sublayers in (("keel, alpha = 10", 1024), ("deepnorm", 512), ("post_ln", 64)):
        if _has(by_kind, "unit", name, num_sublayers):
            value = np.log(_median(by_kind, "unit", name, num_sublayers))
            value /= np.log(_theory(by_kind, name, num_sublayers))
            says = f"ln measured / ln theory, L = {num_sublayers}"
            predictions[f"unit path, {name}"] = Check(says, value, 0.9, 1.1)
    return predictions


def _initial_path_checks(by_kind: Mapping) -> dict[str, Check]:
    """Pre-LN's path has a gain of 1; Post-LN's whole gradient does not vanish."""
    if not _has(by_kind, "initial", "pre_ln", 64):
        return {}
    return {
        "path, pre_ln": Check(
            "the path's gain as initialized, L = 64",
            _median(by_kind, "initial", "pre_ln", 64),
            0.999,
            1.001,
        ),
        "total, post_ln": Check(
            "the whole gradient's gain as initialized, L = 64: it does not vanish",
            _median(by_kind, "initial", "post_ln", 64, "gain_from_block_0"),
            0.1,
            np.inf,
        ),
    }


def _branch_gradient_checks(by_kind: Mapping) -> dict[str, Check]:
    """Keel's branches get gradients in proportion to 1 / alpha."""
    predictions = {}
    for deep, factor in ((512, 8), (1024, 16)):
        if _has(by_kind, "initial", "keel", 64) and _has(by_kind, "initial", "keel", deep):
            ratio = _median(by_kind, "initial", "keel", 64, "branch_gradient_rms")
            ratio /= _median(by_kind, "initial", "keel", deep, "branch_gradient_rms")
            says = f"RMS at L = 64 / RMS at L = {deep}: 1/alpha says {factor}"
            check = Check(says, ratio, 0.85 * factor, 1.15 * factor)
            predictions[f"branch gradients, keel, {deep}"] = check
    return predictions


def _has(by_kind: Mapping, kind: str, name: str, num_sublayers: int) -> bool:
    return str(num_sublayers) in by_kind.get(kind, {}).get(name, {})


def _median(
    by_kind: Mapping,
    kind: str,
    name: str,
    num_sublayers: int,
    quantity: str = "path_gain_from_block_0",
) -> float:
    return by_kind[kind][name][str(num_sublayers)][quantity]["median"]


def _theory(by_kind: Mapping, name: str, num_sublayers: int) -> float:
    return by_kind["unit"][name][str(num_sublayers)]["theory"]


def theory_gain(name: str, num_blocks: int, preset: points.Preset) -> np.ndarray:
    """The closed form's gain from each sub-layer to the top, [L]."""
    topology = residual.topology(points.model(name, num_blocks, preset))
    return theory.gain(theory.unit_branches(topology))


def interval(values: Sequence[float]) -> dict:
    """The median over the seeds, and the lowest and the highest."""
    return {
        "median": rounded(np.median(values)),
        "low": rounded(min(values)),
        "high": rounded(max(values)),
        "num_seeds": len(values),
    }


def scalars(measured: Sequence[Point]) -> list[dict]:
    """The points for results.json, with each vector's values at block 1 and at the top only."""
    kept = []
    for point in measured:
        vectors = {name: v for name, v in point.items() if isinstance(v, np.ndarray)}
        kept.append(
            {
                **{name: value for name, value in point.items() if name not in vectors},
                **{name: [rounded(v[BLOCK_1]), rounded(v[-1])] for name, v in vectors.items()},
            }
        )
    return kept


def group_by_model(measured: Sequence[Point]) -> dict[_Key, list[Point]]:
    """The points of all seeds by (kind, name, N, step).

    Raises:
      UserError: trained models of several peak rates would be taken for seeds.
    """
    groups: dict[_Key, list[Point]] = collections.defaultdict(list)
    for point in measured:
        key = (point["kind"], point["name"], point["num_blocks"], point.get("step", 0))
        groups[key].append(point)
    for key, group in groups.items():
        rates = {point.get("peak_lr") for point in group}
        if len(rates) > 1:
            raise errors.UserError(
                f"The trained models {key} are no seeds of one run: their peak rates are "
                f"{sorted(rates)}. Give work directories of one rate."
            )
    return groups


def mean_branch_gradient(point: Point) -> float:
    """Mean over the sub-layers from block 1 on of the branch weights' gradient RMS."""
    return float(np.mean(point["branch_gradient_rms"][BLOCK_1:]))


def rounded(value: float | np.floating) -> float:
    """To as many significant digits as a figure can show."""
    return float(f"{float(value):.{_DIGITS}g}")
