"""The figures of learning-rate robustness."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.lr_robustness import divergence
from experiments.lr_robustness import ramps as ramps_lib
from experiments.sweeps import comparison, figures

# Smoothing of loss curves in figures, steps.
_WINDOW_STEPS = 10


def losses_against_rate(
    losses: Mapping[str, comparison.Losses], unigram_nats: float, out: pathlib.Path, stem: str
) -> None:
    """Final validation loss against the peak rate: the median over seeds, and their range."""
    figure, axes = figures.new()
    lines = [
        figures.draw_over_seeds(
            axes,
            list(rows),
            [list(row.values()) for row in rows.values()],
            figures.display_name(topology),
            color=figures.COLOURS.get(topology),
        )
        for topology, rows in losses.items()
    ]
    figures.draw_unigram_line(axes, unigram_nats)
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss, nats/token")
    axes.legend()
    figures.save(figure, out, stem, {"lines": lines, "unigram_nats": unigram_nats})


def loss_curves(
    curves: Mapping[str, Sequence[ramps_lib.Curve]], rate: float, out: pathlib.Path, stem: str
) -> None:
    """Training loss minus the unigram model's on the same batch, at one rate."""
    figure, axes = figures.new()
    lines = []
    for topology, runs in curves.items():
        num_steps = max(len(run.loss) for run in runs)
        smooth = [divergence.excess(run.loss, run.unigram, _WINDOW_STEPS) for run in runs]
        at = np.arange(4, num_steps, 5)
        values = [[row[step] for row in smooth if step < len(row)] for step in at]
        lines.append(
            figures.draw_over_seeds(
                axes,
                (at + 1).tolist(),
                values,
                figures.display_name(topology),
                marker="",
                color=figures.COLOURS.get(topology),
            )
        )
    figures.draw_unigram_line(axes)
    axes.set(
        xlabel="optimizer steps",
        ylabel="loss above the unigram model's, nats/token",
        title=f"peak learning rate {rate:g}",
    )
    axes.legend()
    figures.save(figure, out, stem, {"lines": lines, "rate": rate})


def ramps(
    curves: Mapping[str, ramps_lib.Ramps],
    tolerated: Mapping[str, list[dict]],
    thresholds: divergence.Thresholds,
    out: pathlib.Path,
    stem: str,
) -> None:
    """Loss minus the unigram model's against the rising rate, with a cross at each onset."""
    figure, axes = figures.new()
    lines = []
    for topology, runs in curves.items():
        colour, label = figures.COLOURS.get(topology), figures.display_name(topology)
        for run, row in zip(runs.ramps, tolerated[topology], strict=True):
            smooth = divergence.excess(run.loss, run.unigram, thresholds.window_steps)
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
    figures.draw_unigram_line(axes)
    axes.set(
        xlabel="learning rate, rising linearly with the steps",
        ylabel="loss above the unigram model's, nats/token",
    )
    axes.legend()
    figures.save(figure, out, stem, {"lines": lines})


def sensitivity(
    under: Mapping[str, Mapping[str, list[dict]]], out: pathlib.Path, stem: str
) -> None:
    """The tolerated rate of every ramp under each variant of the thresholds."""
    figure, axes = figures.new(size=(7.0, 0.28 * len(under) + 1.2))
    rows, drawn = list(under), {}
    for number, topology in enumerate(under[rows[0]]):
        dots = [
            (tolerated["rate"], y)
            for y, variant in enumerate(rows)
            for tolerated in under[variant][topology]
        ]
        rates, heights = np.array(dots).T
        axes.plot(
            rates,
            heights + 0.15 * (number - 1),
            "o",
            markersize=3,
            color=figures.COLOURS.get(topology),
            label=figures.display_name(topology),
        )
        drawn[topology] = {
            variant: [tolerated["rate"] for tolerated in under[variant][topology]]
            for variant in rows
        }
    axes.set(xscale="log", xlabel="tolerated learning rate")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(drawn))
    figures.save(figure, out, stem, {"tolerated_rate": drawn})
