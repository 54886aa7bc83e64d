"""The figures of layer redundancy."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.layer_redundancy import analysis
from experiments.sweeps import figures


def draw_all(measured: Sequence[analysis.Measured], out: pathlib.Path) -> None:
    """Draws every figure into `out`/figures."""
    groups = analysis.by_topology(measured)
    symlog = {"value": "symlog", "linthresh": 0.1}
    panels = (
        ("block", "block", "ΔPPL without its branches", analysis.delta_ppl_block, symlog),
        ("sublayer", "sub-layer", "ΔPPL without its branch", analysis.delta_ppl_sublayer, symlog),
        (
            "rotation",
            "sub-layer",
            "angle between the streams before and after [rad]",
            lambda model: model["rotation_radians"],
            {"value": "log"},
        ),
    )
    for stem, x, y, value_of, scale in panels:
        figure, axes = figures.new()
        data = []
        for topology, group in groups.items():
            values = np.array([value_of(model) for model in group]).T
            label = figures.display_name(topology)
            data.append(figures.draw_over_seeds(axes, range(len(values)), values, label))
        axes.set(xlabel=x, ylabel=y)
        axes.set_yscale(**scale)
        axes.legend()
        figures.save(figure, out, stem, data)
    _draw_greedy(groups, out)


def _draw_greedy(groups: Mapping[str, Sequence[analysis.Measured]], out: pathlib.Path) -> None:
    """Perplexity against blocks removed, relative to the whole model's."""
    figure, axes = figures.new()
    data = []
    for topology, group in groups.items():
        ratios = [np.exp(np.array([0.0, *np.array(m["greedy_losses"]) - m["loss"]])) for m in group]
        longest = max(len(ratio) for ratio in ratios)
        # The search ends, earlier for one model than for another, where the budget is exceeded.
        values = [[r[k] for r in ratios if k < len(r)] for k in range(longest)]
        label = figures.display_name(topology)
        data.append(figures.draw_over_seeds(axes, range(longest), values, label))
    for budget in analysis.BUDGETS:
        axes.axhline(budget, color="0.8", linewidth=0.8)
    axes.set(
        xlabel="blocks removed, cheapest first",
        ylabel="PPL / PPL of the whole model",
        ylim=(0.95, max(analysis.BUDGETS) * 1.1),
    )
    axes.legend()
    figures.save(figure, out, "greedy", data)
