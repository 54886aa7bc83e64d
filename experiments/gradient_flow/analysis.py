"""From points to numbers, verdicts and figures.

A point is one model of one seed: "name", "num_blocks", "seed", "kind" ("initial": as initialized;
"unit": branches of the stream's size; "trained", with "step") and the vectors of `measure.look`.
"From block 0" means from the input of the third sub-layer to the top: what lies below is the
embedding's scale.

Letters: N blocks, L = 2N sub-layers.
"""

import collections
import dataclasses

import numpy as np
from matplotlib import figure

from experiments.gradient_flow import points, theory
from experiments.sweeps import figures as figures_lib
from keel_jax import errors
from keel_jax.model import residual

# The first sub-layer of block 1, whose input is block 0's output.
_BLOCK_1 = 2
_DIGITS = 4
# Below it a heat map shows no more.
_LEAST_DRAWN = 1e-12


@dataclasses.dataclass(frozen=True)
class Check:
    """A prediction: `value` lies in [low, high]."""

    says: str
    value: float
    low: float
    high: float

    def to_json(self) -> dict:
        return {
            "says": self.says,
            "value": _rounded(self.value),
            "low": self.low,
            "high": self.high,
            "holds": bool(self.low <= self.value <= self.high),
        }


def numbers(found: list[dict], preset: points.Preset) -> dict:
    """{kind: {name: {L: {quantity: {"median", "low", "high"}}}}}, low and high over the seeds."""
    told: dict = {}
    for (kind, name, num_blocks, step), group in _groups(found).items():
        at_depth = {}
        for quantity in ("path_gain", "gain", "predicted_path_gain"):
            values = [point[quantity][_BLOCK_1] for point in group]
            at_depth[f"{quantity}_from_block_0"] = interval(values)
        at_depth["branch_gradient_rms"] = interval([_branch_gradient(point) for point in group])
        at_depth["top_stream_rms"] = interval([point["stream_rms"][-1] for point in group])
        if kind == "unit":
            at_depth["theory"] = _rounded(theory_gain(name, num_blocks, preset)[_BLOCK_1])
        label = f"{name} at step {step}" if kind == "trained" else name
        told.setdefault(kind, {}).setdefault(label, {})[str(2 * num_blocks)] = at_depth
    return told


def checks(told: dict) -> dict:
    """The predictions of NOTES.md, with what was found; a preset without a depth leaves it out."""

    def at(kind, name, num_sublayers, quantity="path_gain_from_block_0"):
        here = told.get(kind, {}).get(name, {}).get(str(num_sublayers))
        return here and (here[quantity]["median"] if quantity != "theory" else here["theory"])

    def depths(kind, name):
        return [int(depth) for depth in told.get(kind, {}).get(name, {})]

    found = {}

    def check(key, says, value, low, high):
        found[key] = Check(says, value, low, high).to_json()

    for name, low, high in (("keel", 0.95, 1.05), ("keel, alpha = sqrt(L)", 0.9, 1.1)):
        ratios = [at("unit", name, d) / at("unit", name, d, "theory") for d in depths("unit", name)]
        worst = max(ratios, key=lambda ratio: abs(np.log(ratio)), default=None)
        if worst:
            check(f"unit path, {name}", "measured / theory, at the worst depth", worst, low, high)
    for name, num_sublayers in (("keel, alpha = 10", 1024), ("deepnorm", 512), ("post_ln", 64)):
        if at("unit", name, num_sublayers):
            value = np.log(at("unit", name, num_sublayers))
            value /= np.log(at("unit", name, num_sublayers, "theory"))
            check(
                f"unit path, {name}",
                f"ln measured / ln theory, L = {num_sublayers}",
                value,
                0.9,
                1.1,
            )
    if at("initial", "pre_ln", 64):
        check(
            "path, pre_ln",
            "the path's gain as initialized, L = 64",
            at("initial", "pre_ln", 64),
            0.999,
            1.001,
        )
        check(
            "total, post_ln",
            "the whole gradient's gain as initialized, L = 64: it does not vanish",
            at("initial", "post_ln", 64, "gain_from_block_0"),
            0.1,
            np.inf,
        )
    for deep, factor in ((512, 8), (1024, 16)):
        shallow = at("initial", "keel", 64, "branch_gradient_rms")
        if shallow and at("initial", "keel", deep):
            ratio = shallow / at("initial", "keel", deep, "branch_gradient_rms")
            check(
                f"branch gradients, keel, {deep}",
                f"RMS at L = 64 / RMS at L = {deep}: 1/alpha says {factor}",
                ratio,
                0.85 * factor,
                1.15 * factor,
            )
    return found


def theory_gain(name: str, num_blocks: int, preset: points.Preset) -> np.ndarray:
    """The closed form's gain from each sub-layer to the top, [L]."""
    topology = residual.topology(points.model(name, num_blocks, preset))
    return theory.gain(theory.unit_branches(topology))


def interval(values) -> dict:
    """The median, and the lowest and highest of the seeds."""
    return {
        "median": _rounded(np.median(values)),
        "low": _rounded(min(values)),
        "high": _rounded(max(values)),
        "num_seeds": len(values),
    }


def scalars(found: list[dict]) -> list[dict]:
    """The points with each vector's value at block 1 and at the top only, for results.json."""
    kept = []
    for point in found:
        vectors = {name: v for name, v in point.items() if isinstance(v, np.ndarray)}
        kept.append(
            {
                **{name: value for name, value in point.items() if name not in vectors},
                **{name: [_rounded(v[_BLOCK_1]), _rounded(v[-1])] for name, v in vectors.items()},
            }
        )
    return kept


# --- Figures -------------------------------------------------------------------------------------


def figures(
    found: list[dict], preset: points.Preset
) -> dict[str, tuple[figure.Figure, dict | list]]:
    """Every figure by its file's stem, and what it was drawn from."""
    drawn = {
        "path_over_depth": _over_depth(found, preset),
        "path_profile": _profiles(found, preset),
        "forward": _maps(
            found,
            preset,
            ("stream_rms", "branch_rms"),
            ("RMS of the stream", "RMS of the branch's output"),
        ),
        "backward": _maps(
            found,
            preset,
            ("gain", "branch_gradient_rms"),
            ("gain of the whole gradient to the top", "RMS of the gradient of out and down"),
        ),
        "branch_gradients": _branch_gradients(found),
    }
    if any(point["kind"] == "trained" for point in found):
        drawn["trained"] = _trained(found)
    return drawn


def _over_depth(found, preset):
    """The residual path's gain from block 0, unit branches, against L; lines: theory."""
    canvas, axes = figures_lib.new()
    data = []
    for color, name in enumerate(points.OVER_DEPTH):
        # Without a norm on the path its gain is 1, whatever the size of branches.
        kind = "initial" if name == "pre_ln" else "unit"
        lengths, values = _over(found, kind, name, lambda point: point["path_gain"][_BLOCK_1])
        style = {"color": f"C{color}"}
        drawn = figures_lib.draw(axes, lengths, values, name, linestyle="none", **style)
        expected = [theory_gain(name, n // 2, preset)[_BLOCK_1] for n in lengths]
        axes.plot(lengths, expected, linewidth=1, **style)
        data.append({**drawn, "theory": expected})
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="sub-layers L",
        ylim=(1e-11, 5),
        ylabel="gain of the residual path, block 0 to top",
        title="Branches of the stream's size; lines: closed forms",
    )
    axes.legend(fontsize=8)
    return canvas, data


def _profiles(found, preset):
    """The residual path's gain from each sub-layer, as initialized; dotted: from sizes alone."""
    canvas, axes = figures_lib.new()
    data = []
    for color, name in enumerate(points.OVER_DEPTH):
        group = _at(found, "initial", name, preset.num_blocks)
        style = {"color": f"C{color}"}
        drawn = _profile(axes, group, "path_gain", name, **style)
        predicted = np.median([point["predicted_path_gain"][_BLOCK_1:] for point in group], axis=0)
        axes.plot(drawn["x"], predicted, ":", **style)
        data.append({**drawn, "predicted": predicted})
    axes.set(
        yscale="log",
        xlabel="sub-layer",
        ylabel="gain of the residual path to the top",
        title=f"As initialized, {2 * preset.num_blocks} sub-layers; dotted: from sizes alone",
    )
    axes.legend(fontsize=8)
    return canvas, data


def _profile(axes, group, quantity: str, label: str, **style) -> dict:
    """One quantity over depth from block 1 on, median and range over the seeds."""
    values = np.array([point[quantity][_BLOCK_1:] for point in group]).T
    depth = range(_BLOCK_1, _BLOCK_1 + len(values))
    return figures_lib.draw(axes, depth, values, label, marker="", **style)


def _maps(found, preset, quantities, titles):
    """Every topology a row, every sub-layer a column; medians over seeds, by the logarithm."""
    canvas, panels = figures_lib.new(1, len(quantities), size=(11, 6.2), sharey=True)
    data: dict = {"names": list(points.NAMES)}
    for axes, quantity, title in zip(panels, quantities, titles, strict=True):
        rows = np.array(
            [
                np.median(
                    [point[quantity] for point in _at(found, "initial", name, preset.num_blocks)],
                    axis=0,
                )
                for name in points.NAMES
            ]
        )
        mesh = axes.imshow(
            np.log10(np.maximum(rows, _LEAST_DRAWN)), aspect="auto", interpolation="nearest"
        )
        canvas.colorbar(mesh, ax=axes, pad=0.01, label="log10")
        axes.set(xlabel="sub-layer", title=title)
        data[quantity] = [[_rounded(value) for value in row] for row in rows]
    panels[0].set_yticks(range(len(points.NAMES)), points.NAMES, fontsize=8)
    return canvas, data


def _branch_gradients(found):
    """RMS of the gradients of out and down over blocks 1.., against L."""
    canvas, axes = figures_lib.new()
    data = []
    for color, name in enumerate(points.OVER_DEPTH):
        lengths, values = _over(found, "initial", name, _branch_gradient)
        data.append(figures_lib.draw(axes, lengths, values, name, color=f"C{color}"))
        if name == "keel":
            x = np.array(lengths, float)
            axes.plot(x, data[-1]["median"][0] * x[0] / x, "k:", label="1 / L")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="sub-layers L",
        title="As initialized",
        ylabel="RMS of branch-weight gradients, blocks 1..",
    )
    axes.legend(fontsize=8)
    return canvas, data


def _trained(found):
    """Path and whole gain over depth, before and after training."""
    canvas, panels = figures_lib.new(1, 2, size=(11, 4))
    groups = {key: group for key, group in _groups(found).items() if key[0] == "trained"}
    data = {}
    for axes, quantity, title in zip(
        panels, ("path_gain", "gain"), ("residual path", "whole gradient"), strict=True
    ):
        data[quantity] = [
            _profile(axes, group, quantity, f"{name}, step {step}")
            for (_, name, _, step), group in groups.items()
        ]
        axes.set(yscale="log", xlabel="sub-layer", ylabel="gain to the top", title=title)
    panels[0].legend(fontsize=8)
    return canvas, data


# --- Points --------------------------------------------------------------------------------------


def _groups(found: list[dict]) -> dict[tuple, list[dict]]:
    """The points of all seeds by (kind, name, N, step).

    Raises:
      UserError: trained ones of several peak rates would be taken for seeds.
    """
    groups = collections.defaultdict(list)
    for point in found:
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


def _at(found, kind, name, num_blocks) -> list[dict]:
    return _groups(found)[kind, name, num_blocks, 0]


def _over(found, kind, name, read) -> tuple[list[int], list[list[float]]]:
    """The depths L of a model, and what `read` finds in the points of each."""
    groups = {key[2]: group for key, group in _groups(found).items() if key[:2] == (kind, name)}
    return [2 * n for n in sorted(groups)], [[read(p) for p in groups[n]] for n in sorted(groups)]


def _branch_gradient(point: dict) -> float:
    """Mean over sub-layers from block 1 on: one block's weights, not the norm over all."""
    return float(np.mean(point["branch_gradient_rms"][_BLOCK_1:]))


def _rounded(value) -> float:
    """To as many significant digits as a figure can show."""
    return float(f"{float(value):.{_DIGITS}g}")
