"""The figures: losses of every cell, and what is learned against the gradient that arrives."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.branch_weight import points
from experiments.branch_weight.points import Cell
from experiments.sweeps import comparison, figures

# Weights by colour, told apart by colour-blind readers as well (Okabe and Ito, 2008); a normed
# stream is a full line.
_COLOURS = dict(zip(points.WEIGHTS, ("#D55E00", "#E69F00", "#0072B2", "#009E73"), strict=True))
_WEIGHT_NAMES = dict(
    zip(points.WEIGHTS, ("F", "F / √L", "F / L", "a F / L, a learned"), strict=True)
)
_LINES = {points.NORMED: "-", points.PLAIN: "--"}
_EMBEDDING_NAMES = {points.UNIT: "embedding of unit RMS", points.SMALL: "embedding 0.02"}
_SCALE_NAMES = {points.CARRIED: "matrices carried over", points.LITERAL: "matrices 0.02"}
# Where smaller ratios are drawn: some are 0, which a logarithm does not show.
_LEAST_RATIO = 1e-12
# Above the unigram line a panel shows this share of what it shows below.
_SHARE_ABOVE = 0.15


def losses_against_rate(
    losses: Mapping[Cell, comparison.Losses], unigram_nats: float, out: pathlib.Path, stem: str
) -> None:
    """One panel for each embedding and scale: final validation losses against the peak rate."""
    kinds = list(dict.fromkeys((cell.scale, cell.embedding) for cell in losses))
    figure, panels = figures.new_row(len(kinds), (2.7 * len(kinds) + 2.2, 3.6), sharey=True)
    ended = [loss for rows in losses.values() for row in rows.values() for loss in row.values()]
    least = min((loss for loss in ended if loss is not None), default=unigram_nats)
    top = unigram_nats + max(0.05, _SHARE_ABOVE * (unigram_nats - least))
    drawn = {}
    for axes, kind in zip(panels, kinds, strict=True):
        for cell, by_rate in losses.items():
            if (cell.scale, cell.embedding) != kind:
                continue
            drawn[cell.name] = figures.draw_over_seeds(
                axes,
                list(by_rate),
                [[_cut(loss, top) for loss in row.values()] for row in by_rate.values()],
                f"{cell.stream}, {_WEIGHT_NAMES[cell.weight]}",
                color=_COLOURS[cell.weight],
                linestyle=_LINES[cell.stream],
            )
        figures.draw_unigram_line(axes, unigram_nats)
        scale, embedding = kind
        axes.set(
            xscale="log",
            xlabel="peak learning rate",
            title=f"{_EMBEDDING_NAMES[embedding]},\n{_SCALE_NAMES[scale]}",
        )
    panels[0].set(ylabel="final validation loss, nats/token", ylim=(None, top))
    figures.share_legend(figure, panels)
    figures.explain(
        figure,
        "Full lines: LN(x + w F), dashed: x + w F. Line: median over seeds; band: their range. "
        "Losses above the axis are drawn at its edge. x: some of these runs diverged.",
    )
    figures.save(figure, out, stem, {"lines": drawn, "unigram_nats": unigram_nats})


def learned_against_cotangent(
    runs: Sequence[tuple[Cell, float, float]], out: pathlib.Path, stem: str
) -> None:
    """Every run: nats below the unigram line against the cotangent at the bottom over the top.

    Args:
      runs: (cell, cotangent ratio, nats below the line).
    """
    figure, axes = figures.new()
    for stream, marker in zip(points.STREAMS, ("o", "x"), strict=True):
        for weight in points.WEIGHTS:
            members = [run for run in runs if (run[0].stream, run[0].weight) == (stream, weight)]
            axes.scatter(
                [max(ratio, _LEAST_RATIO) for _, ratio, _ in members],
                [nats for *_, nats in members],
                s=14,
                marker=marker,
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
    figures.explain(figure, f"One mark a run. Ratios below {_LEAST_RATIO:g} are drawn there.")
    figures.save(
        figure,
        out,
        stem,
        [{"cell": cell.name, "cotangent_ratio": ratio, "nats": nats} for cell, ratio, nats in runs],
    )


def _cut(loss: float | None, top: float) -> float | None:
    return None if loss is None else min(loss, top)
