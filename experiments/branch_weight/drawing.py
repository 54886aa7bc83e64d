"""The figures: losses of every cell, what is learned against the gradient, gradients over depth."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.branch_weight import inside, points
from experiments.branch_weight.points import Cell
from experiments.sweeps import comparison, figures

# Weights by colour, told apart by colour-blind readers as well (Okabe and Ito, 2008).
_COLOURS = dict(zip(points.WEIGHTS, ("#D55E00", "#E69F00", "#0072B2", "#009E73"), strict=True))
_WEIGHT_NAMES = dict(
    zip(points.WEIGHTS, ("F", "F / √L", "F / L", "a F / L, a learned"), strict=True)
)
_LINES = {points.NORMED: "-", points.PLAIN: "--"}
_MARKERS = {points.NORMED: "o", points.PLAIN: "+"}
_EMBEDDING_NAMES = {points.UNIT: "embedding of unit RMS", points.SMALL: "embedding 0.02"}
_INIT_NAMES = {points.WIDTH_SCALED: "matrices scaled to the width", points.FIXED: "matrices 0.02"}


def losses_against_rate(
    losses: Mapping[Cell, comparison.Losses], unigram_nats: float, out: pathlib.Path, stem: str
) -> None:
    """One panel for each embedding and init: final validation losses against the peak rate."""
    kinds = list(dict.fromkeys((cell.init, cell.embedding) for cell in losses))
    figure, panels = figures.new_row(len(kinds), (2.7 * len(kinds) + 2.2, 3.6), sharey=True)
    ended = (loss for rows in losses.values() for row in rows.values() for loss in row.values())
    top = figures.ceiling(ended, unigram_nats)
    drawn = {}
    for axes, kind in zip(panels, kinds, strict=True):
        for cell, by_rate in losses.items():
            if (cell.init, cell.embedding) != kind:
                continue
            drawn[cell.name] = figures.draw_over_seeds(
                axes,
                list(by_rate),
                [figures.cut(row.values(), top) for row in by_rate.values()],
                f"{cell.stream}, {_WEIGHT_NAMES[cell.weight]}",
                color=_COLOURS[cell.weight],
                linestyle=_LINES[cell.stream],
            )
        figures.draw_unigram_line(axes, unigram_nats)
        init, embedding = kind
        figures.label_rates(axes, sorted({rate for rows in losses.values() for rate in rows}))
        axes.set_title(f"{_EMBEDDING_NAMES[embedding]},\n{_INIT_NAMES[init]}")
    panels[0].set(ylabel="final validation loss, nats/token", ylim=(None, top))
    figures.share_legend(figure, panels)
    figures.explain(
        figure,
        "Solid: LN(x + w F), dashed: x + w F. Line: median over seeds; band: their range. "
        "Losses above the axis are drawn at its edge. x: some of these runs diverged.",
    )
    figures.save(figure, out, stem, {"lines": drawn, "unigram_nats": unigram_nats})


def learned_against_cotangent(
    runs: Sequence[tuple[Cell, float, float]], out: pathlib.Path, stem: str
) -> None:
    """Every run that ended: nats below the unigram line against the cotangent, bottom over top.

    Args:
      runs: (cell, cotangent ratio, nats below the line).
    """
    figure, axes = figures.new((7.2, 3.8))
    for stream in points.STREAMS:
        for weight in points.WEIGHTS:
            members = [run for run in runs if (run[0].stream, run[0].weight) == (stream, weight)]
            axes.scatter(
                [max(ratio, inside.LEAST_RATIO) for _, ratio, _ in members],
                [nats for *_, nats in members],
                s=14,
                marker=_MARKERS[stream],
                linewidths=0.8,
                color=_COLOURS[weight],
                label=f"{stream}, {_WEIGHT_NAMES[weight]}",
            )
    axes.set(
        xscale="log",
        xlabel="cotangent of the stream, bottom over top, at the end of the run",
        ylabel="nats below the unigram line",
    )
    figures.share_legend(figure, [axes])
    figures.explain(
        figure,
        f"A mark is a run that did not diverge. Ratios below {inside.LEAST_RATIO:g}: drawn there.",
    )
    named = [
        {"cell": cell.name, "cotangent_ratio": ratio, "nats": nats} for cell, ratio, nats in runs
    ]
    figures.save(figure, out, stem, named)


def gradient_over_depth(
    profiles: Mapping[str, Mapping[float, tuple[np.ndarray, np.ndarray]]],
    out: pathlib.Path,
    stem: str,
) -> None:
    """One panel a cell, one line a rate: the stream's cotangent over that at the top.

    Args:
      profiles: by topology, then by rate: sub-layers and ratios (`inside.cotangents`).
    """
    figure, panels = figures.new_row(len(profiles), (2.7 * len(profiles) + 1.8, 3.4), sharey=True)
    drawn: dict[str, list] = {}
    for axes, (title, by_rate) in zip(panels, profiles.items(), strict=True):
        for number, (rate, (sublayers, ratios)) in enumerate(by_rate.items()):
            # From bright to dark with the rate.
            colour = figures.shade(number, len(by_rate))
            axes.plot(sublayers, ratios, color=colour, label=f"{rate:g}")
            drawn.setdefault(title, []).append({"rate": rate, "x": sublayers, "y": ratios})
        axes.set(yscale="log", xlabel="sub-layer", title=figures.display_name(title))
    panels[0].set(ylabel="cotangent over that at the top")
    figures.share_legend(figure, panels)
    figures.explain(figure, "Lines: peak learning rates; median over seeds, at the end of the run.")
    figures.save(figure, out, stem, drawn)
