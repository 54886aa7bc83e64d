"""Figures of several depths side by side: losses against the rate, and the largest usable rates."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import comparison, figures


def losses_against_rate(
    losses: Mapping[int, Mapping[str, comparison.Losses]],
    unigram_nats: float,
    out: pathlib.Path,
    stem: str,
) -> None:
    """One panel a depth: final validation losses against the peak rate.

    Args:
      losses: by sub-layers, then by topology.
    """
    figure, panels = figures.new_row(len(losses), (3.1 * len(losses) + 1.6, 3.6), sharey=True)
    ended = (
        loss
        for by_topology in losses.values()
        for by_rate in by_topology.values()
        for row in by_rate.values()
        for loss in row.values()
    )
    top = figures.ceiling(ended, unigram_nats)
    drawn: dict[str, list] = {}
    for axes, (depth, by_topology) in zip(panels, losses.items(), strict=True):
        drawn[f"L{depth}"] = [
            figures.draw_over_seeds(
                axes,
                list(by_rate),
                [figures.cut(row.values(), top) for row in by_rate.values()],
                figures.display_name(topology),
                **figures.style_of(topology),
            )
            for topology, by_rate in by_topology.items()
        ]
        figures.draw_unigram_line(axes, unigram_nats)
        axes.set(xscale="log", xlabel="peak learning rate", title=f"{depth} sub-layers")
    panels[0].set(ylabel="final validation loss, nats/token", ylim=(None, top))
    figures.share_legend(figure, panels)
    figures.explain(
        figure,
        "Line: median over seeds; band: their range. Losses above the axis are drawn at its edge. "
        "An x marks rates at which some runs diverged.",
    )
    figures.save(figure, out, stem, {"lines": drawn, "unigram_nats": unigram_nats})


def usable_rates(
    edges: Mapping[int, Mapping[str, Mapping[str, Mapping]]],
    grids: Mapping[int, Sequence[float]],
    out: pathlib.Path,
    stem: str,
) -> None:
    """One panel a depth: the largest usable rate against what "usable" asks for.

    Args:
      edges: by sub-layers, topology and threshold: intervals of log10 rates (`merit.summary`).
      grids: by sub-layers, the rates that were tried.
    """
    figure, panels = figures.new_row(len(edges), (3.1 * len(edges) + 1.6, 3.6), sharey=True)
    drawn: dict[str, dict] = {}
    for axes, (depth, by_topology) in zip(panels, edges.items(), strict=True):
        grid = grids[depth]
        for topology, by_nats in by_topology.items():
            known = {float(nats): row for nats, row in by_nats.items() if row["mean"] is not None}
            thresholds = list(known)
            style = figures.style_of(topology)
            middle, low, high = (
                [_rate(row[name], end, grid) for row in known.values()]
                for name, end in (("mean", grid[0]), ("low", grid[0]), ("high", grid[-1]))
            )
            axes.plot(thresholds, middle, label=figures.display_name(topology), **style)
            if topology in figures.HEADLINE:
                axes.fill_between(thresholds, low, high, color=style["color"], alpha=0.15, lw=0)
            drawn.setdefault(f"L{depth}", {})[topology] = {
                "nats": thresholds,
                "rate": middle,
                "low": low,
                "high": high,
            }
        for rate in grid:
            axes.axhline(rate, color="0.9", linewidth=0.6, zorder=0)
        axes.set(yscale="log", xlabel="nats below the unigram line", title=f"{depth} sub-layers")
    panels[0].set(ylabel="largest usable learning rate")
    figures.share_legend(figure, panels)
    figures.explain(
        figure,
        "The largest rate at which runs end that far below the line, which is known to lie between "
        "two of the grid (grey). Bands: 95 % over seeds. Without a point: beyond the grid.",
    )
    figures.save(figure, out, stem, {"edges": drawn})


def _rate(log10_rate: float | None, without: float, grid: Sequence[float]) -> float:
    """The rate, within the grid, as beyond it nothing is known; `without` where there is no end."""
    return without if log10_rate is None else float(np.clip(10.0**log10_rate, grid[0], grid[-1]))
