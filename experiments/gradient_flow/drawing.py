"""The figures of gradient flow.

Letters: N blocks, L = 2N sub-layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib

from experiments.gradient_flow import analysis, points
from experiments.sweeps import figures

# Smaller values look alike in a heat map.
_LEAST_DRAWN = 1e-12

# A figure, and what it was drawn from.
_Drawn = tuple[figure_lib.Figure, dict | list]


def draw_all(measured: Sequence[analysis.Point], preset: points.Preset) -> dict[str, _Drawn]:
    """Every figure by the stem of its file's name, and what it was drawn from."""
    drawn = {
        "path_over_depth": _path_over_depth(measured, preset),
        "path_profile": _path_profiles(measured, preset),
        "forward": _heat_maps(
            measured,
            preset,
            {"stream_rms": "RMS of the stream", "branch_rms": "RMS of the branch's output"},
        ),
        "backward": _heat_maps(
            measured,
            preset,
            {
                "gain": "gain of the whole gradient to the top",
                "branch_gradient_rms": "RMS of the gradient of out and down",
            },
        ),
        "branch_gradients": _branch_gradients(measured),
    }
    if any(point["kind"] == "trained" for point in measured):
        drawn["trained"] = _trained(measured)
    return drawn


def _path_over_depth(measured: Sequence[analysis.Point], preset: points.Preset) -> _Drawn:
    """The residual path's gain from block 0, unit branches, against L; lines: theory."""
    figure, axes = figures.new()
    data = []
    for number, name in enumerate(points.OVER_DEPTH):
        # Without a norm on the path its gain is 1, whatever the size of branches.
        kind = "initial" if name == "pre_ln" else "unit"
        lengths, values = _by_depth(
            measured, kind, name, lambda point: point["path_gain"][analysis.BLOCK_1]
        )
        color = f"C{number}"
        drawn = figures.draw_over_seeds(axes, lengths, values, name, linestyle="none", color=color)
        expected = [
            analysis.theory_gain(name, length // 2, preset)[analysis.BLOCK_1] for length in lengths
        ]
        axes.plot(lengths, expected, linewidth=1, color=color)
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
    return figure, data


def _path_profiles(measured: Sequence[analysis.Point], preset: points.Preset) -> _Drawn:
    """The residual path's gain from each sub-layer, as initialized; dotted: from sizes alone."""
    figure, axes = figures.new()
    data = []
    for number, name in enumerate(points.OVER_DEPTH):
        group = _initial(measured, name, preset.num_blocks)
        color = f"C{number}"
        drawn = _profile(axes, group, "path_gain", name, color=color)
        predicted = np.median(
            [point["predicted_path_gain"][analysis.BLOCK_1 :] for point in group], axis=0
        )
        axes.plot(drawn["x"], predicted, ":", color=color)
        data.append({**drawn, "predicted": predicted})
    axes.set(
        yscale="log",
        xlabel="sub-layer",
        ylabel="gain of the residual path to the top",
        title=f"As initialized, {2 * preset.num_blocks} sub-layers; dotted: from sizes alone",
    )
    axes.legend(fontsize=8)
    return figure, data


def _profile(
    axes: axes_lib.Axes, group: Sequence[analysis.Point], quantity: str, label: str, **style: Any
) -> dict:
    """One quantity over depth from block 1 on, median and range over the seeds."""
    values = np.array([point[quantity][analysis.BLOCK_1 :] for point in group]).T
    depth = range(analysis.BLOCK_1, analysis.BLOCK_1 + len(values))
    return figures.draw_over_seeds(axes, depth, values, label, marker="", **style)


def _heat_maps(
    measured: Sequence[analysis.Point], preset: points.Preset, titles: Mapping[str, str]
) -> _Drawn:
    """Every topology a row, every sub-layer a column; the logarithm of medians over seeds.

    Args:
      titles: of each panel, by the quantity that it shows.
    """
    figure, panels = figures.new_row(len(titles), (11, 6.2), sharey=True)
    data: dict = {"names": list(points.NAMES)}
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        rows = np.array(
            [
                np.median(
                    [point[quantity] for point in _initial(measured, name, preset.num_blocks)],
                    axis=0,
                )
                for name in points.NAMES
            ]
        )
        mesh = axes.imshow(
            np.log10(np.maximum(rows, _LEAST_DRAWN)), aspect="auto", interpolation="nearest"
        )
        figure.colorbar(mesh, ax=axes, pad=0.01, label="log10")
        axes.set(xlabel="sub-layer", title=title)
        data[quantity] = [[analysis.rounded(value) for value in row] for row in rows]
    panels[0].set_yticks(range(len(points.NAMES)), points.NAMES, fontsize=8)
    return figure, data


def _branch_gradients(measured: Sequence[analysis.Point]) -> _Drawn:
    """RMS of the gradients of out and down over blocks 1.., against L."""
    figure, axes = figures.new()
    data = []
    for number, name in enumerate(points.OVER_DEPTH):
        lengths, values = _by_depth(measured, "initial", name, analysis.mean_branch_gradient)
        data.append(figures.draw_over_seeds(axes, lengths, values, name, color=f"C{number}"))
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
    return figure, data


def _trained(measured: Sequence[analysis.Point]) -> _Drawn:
    """Path gain and whole gain over depth, before and after training."""
    figure, panels = figures.new_row(2, (11, 4))
    groups = {
        key: group
        for key, group in analysis.group_by_model(measured).items()
        if key[0] == "trained"
    }
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
    return figure, data


def _initial(
    measured: Sequence[analysis.Point], name: str, num_blocks: int
) -> list[analysis.Point]:
    """The points of one model as initialized."""
    return analysis.group_by_model(measured)["initial", name, num_blocks, 0]


def _by_depth(
    measured: Sequence[analysis.Point],
    kind: str,
    name: str,
    value_of: Callable[[analysis.Point], float],
) -> tuple[list[int], list[list[float]]]:
    """The depths L of a model, and a value of each point at each depth."""
    groups = {
        key[2]: group
        for key, group in analysis.group_by_model(measured).items()
        if key[:2] == (kind, name)
    }
    lengths = [2 * num_blocks for num_blocks in sorted(groups)]
    return lengths, [[value_of(p) for p in groups[n]] for n in sorted(groups)]
