"""The figures of learning-rate robustness."""

import pathlib

import numpy as np

from experiments.lr_robustness import divergence
from experiments.lr_robustness import ramps as ramps_lib
from experiments.sweeps import comparison, figures

# Smoothing of loss curves in figures, steps.
_WINDOW_STEPS = 10


def losses_against_rate(
    losses: dict[str, comparison.Losses], unigram_nats: float, out: pathlib.Path, stem: str
) -> None:
    """Final validation loss against the peak rate: the median over seeds, and their range."""
    figure, axes = figures.new()
    lines = [
        figures.draw(
            axes,
            list(rows),
            [list(row.values()) for row in rows.values()],
            figures.name(topology),
            color=figures.COLOURS.get(topology),
        )
        for topology, rows in losses.items()
    ]
    figures.unigram_line(axes, unigram_nats)
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss, nats/token")
    axes.legend()
    figures.save(figure, out, stem, {"lines": lines, "unigram_nats": unigram_nats})


def curves(
    found: dict[str, tuple[ramps_lib.Curve, ...]], rate: float, out: pathlib.Path, stem: str
) -> None:
    """Training loss above the unigram model's on the same batch, at one rate."""
    figure, axes = figures.new()
    lines = []
    for topology, runs in found.items():
        num_steps = max(len(run.loss) for run in runs)
        smooth = [divergence.excess(run.loss, run.unigram, _WINDOW_STEPS) for run in runs]
        at = np.arange(4, num_steps, 5)
        values = [[row[step] for row in smooth if step < len(row)] for step in at]
        lines.append(
            figures.draw(
                axes,
                (at + 1).tolist(),
                values,
                figures.name(topology),
                marker="",
                color=figures.COLOURS.get(topology),
            )
        )
    figures.unigram_line(axes)
    axes.set(
        xlabel="optimizer steps",
        ylabel="loss above the unigram model's, nats/token",
        title=f"peak learning rate {rate:g}",
    )
    axes.legend()
    figures.save(figure, out, stem, {"lines": lines, "rate": rate})


def ramps(
    found: dict[str, ramps_lib.Ramps],
    tolerated: dict[str, list[dict]],
    how: divergence.Thresholds,
    out: pathlib.Path,
    stem: str,
) -> None:
    """Loss above the unigram model's against the rate as it rises; a cross at each onset."""
    figure, axes = figures.new()
    lines = []
    for topology, runs in found.items():
        colour, label = figures.COLOURS.get(topology), figures.name(topology)
        for run, row in zip(runs.ramps, tolerated[topology], strict=True):
            smooth = divergence.excess(run.loss, run.unigram, how.window_steps)
            [line] = axes.plot(run.learning_rate, smooth, color=colour, linewidth=0.9, label=label)
            label, colour = None, line.get_color()
            if row["criterion"]:
                axes.plot(row["rate"], smooth[row["step"] - 1], "x", color=colour)
            lines.append(
                {
                    "topology": topology,
                    "seed": run.seed,
                    "tolerated": row,
                    "rate": run.learning_rate[::5],
                    "excess_nats": smooth[::5],
                }
            )
    figures.unigram_line(axes)
    axes.set(
        xlabel="learning rate, rising linearly with the steps",
        ylabel="loss above the unigram model's, nats/token",
    )
    axes.legend()
    figures.save(figure, out, stem, {"lines": lines})


def sensitivity(under: dict[str, dict[str, list[dict]]], out: pathlib.Path, stem: str) -> None:
    """The tolerated rate of every ramp, under each choice of thresholds."""
    figure, axes = figures.new(size=(7.0, 0.28 * len(under) + 1.2))
    rows, drawn = list(under), {}
    for number, topology in enumerate(under[rows[0]]):
        spots = [
            (row["rate"], place)
            for place, variant in enumerate(rows)
            for row in under[variant][topology]
        ]
        rates, places = np.array(spots).T
        axes.plot(
            rates,
            places + 0.15 * (number - 1),
            "o",
            markersize=3,
            color=figures.COLOURS.get(topology),
            label=figures.name(topology),
        )
        drawn[topology] = {v: [row["rate"] for row in under[v][topology]] for v in rows}
    axes.set(xscale="log", xlabel="tolerated learning rate")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(drawn))
    figures.save(figure, out, stem, {"tolerated_rate": drawn})
