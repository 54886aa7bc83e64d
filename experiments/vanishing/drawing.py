"""The figures: losses, what reaches the bottom beside what explains it, and runs step by step."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import comparison, figures
from experiments.vanishing import mechanism, points

# Drawn step by step.
COURSES = ("keel", "keel_capped")
_LABELS = {
    "cap_half": "cap 1/2",
    "cap_2": "cap 2",
    "unit_embedding": "embedding of unit RMS",
    "qk_norm": "queries and keys normed",
    "capped_unit_embedding": "capped, embedding of unit RMS",
    "capped_qk_norm": "capped, queries and keys normed",
    "all_three": "all three",
    "small_init": "matrices of 0.02",
    "wide": "64 wide",
    "long_warmup": "warm-up over half the run",
    "decay": "weight decay 0.3",
    "beta2": "β₂ = 0.999",
    "unclipped": "not clipped",
    "muon": "Muon",
}
# Of those that are no topologies, told apart by colour-blind readers as well (Okabe and Ito, 2008).
_PALETTE = ("#E69F00", "#009E73", "#CC79A7", "#000000", "#8C6D46", "#999999")
_GROUPS = {
    "topologies": ("keel", "pre_ln", "complete_p", "keel_capped"),
    "Keel, other remedies": (
        "keel",
        "unit_embedding",
        "qk_norm",
        "capped_unit_embedding",
        "capped_qk_norm",
        "all_three",
    ),
    "Keel, other sizes": ("keel", "cap_half", "cap_2", "small_init", "wide"),
    "Keel, trained otherwise": ("keel", *points.IN_TRAINING),
}


def losses_against_rate(
    losses: Mapping[str, comparison.Losses], unigram_nats: float, out: pathlib.Path, stem: str
) -> None:
    """One panel a group of variants, with Keel in each: final losses against the peak rate."""
    groups = {
        title: [variant for variant in group if variant in losses]
        for title, group in _GROUPS.items()
    }
    groups = {title: group for title, group in groups.items() if len(group) > 1} or {
        "all": list(losses)
    }
    figure, panels = figures.new_row(len(groups), (3.0 * len(groups), 4.6), sharey=True)
    ended = (loss for rows in losses.values() for row in rows.values() for loss in row.values())
    top = figures.ceiling(ended, unigram_nats)
    drawn = {}
    for axes, (title, group) in zip(panels, groups.items(), strict=True):
        palette = iter(_PALETTE)
        for variant in group:
            colour = figures.COLOURS.get(variant) or next(palette)
            drawn[variant] = figures.draw_over_seeds(
                axes,
                list(losses[variant]),
                [figures.cut(row.values(), top) for row in losses[variant].values()],
                _LABELS.get(variant, figures.display_name(variant)),
                color=colour,
            )
        figures.draw_unigram_line(axes, unigram_nats)
        figures.label_rates(axes, sorted({rate for variant in group for rate in losses[variant]}))
        axes.set_title(title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)
    panels[0].set(ylabel="final validation loss, nats/token", ylim=(None, top))
    figures.explain(
        figure,
        "Line: median over seeds; band: their range. Losses above the axis are drawn at its edge. "
        "x: some of these runs diverged.",
    )
    figures.save(figure, out, stem, {"lines": drawn, "unigram_nats": unigram_nats})


def reach_against_products(
    uncapped: Sequence[mechanism.Course],
    capped: Sequence[mechanism.Course],
    out: pathlib.Path,
    stem: str,
) -> None:
    """Every record: the gradient's share at the bottom against the paper's product, and ours."""
    figure, panels = figures.new_row(2, (7.6, 3.9), sharey=True)
    titles = {
        "orthogonal": "branches at right angles\n(the paper): $\\Pi\\,(1 + r^2)^{-1/2}$",
        "path": "with their angle:\n$\\Pi\\,(1 + 2 r\\cos\\theta + r^2)^{-1/2}$",
    }
    groups = {"without a cap": (uncapped, "keel"), "capped": (capped, "keel_capped")}
    drawn, least = {}, 1.0
    for axes, (predictor, title) in zip(panels, titles.items(), strict=True):
        for label, (runs, topology) in groups.items():
            if not runs:
                continue
            reach, predicted = mechanism.points(runs, predictor)
            least = min(least, reach.min(), predicted.min())
            style = {"color": figures.COLOURS[topology], "alpha": 0.4, "linewidths": 0}
            axes.scatter(predicted, reach, s=6, label=label, **style)
            drawn[f"{predictor}, {label}"] = {"predicted": predicted, "reach": reach}
        axes.set(xscale="log", yscale="log", xlabel="predicted", title=title)
    for axes in panels:
        limits = (least / 2, 3.0)
        axes.plot(limits, limits, color="0.5", linewidth=0.8, zorder=1)
        axes.set(xlim=limits, ylim=limits)
    panels[0].set(ylabel="measured: share of the gradient,\nblock 1 over the last sub-layer")
    figures.share_legend(figure, panels)
    figures.explain(
        figure,
        "A dot is one record of one run, of all variants with outer norms. Line: equality. Below "
        f"{mechanism.LEAST:g}: drawn there.",
    )
    figures.save(figure, out, stem, drawn)


# What is drawn of a course, and whether on a logarithmic axis.
_QUANTITIES = {
    "reach": ("share of the gradient at the bottom", True),
    "exponent": ("Σ r cos θ", False),
    "spread": ("1 - cosine between positions, top", True),
}


def courses(
    runs: Mapping[str, Mapping[tuple[float, int], mechanism.Course]],
    out: pathlib.Path,
    stem: str,
) -> None:
    """A row for each variant: what reaches the bottom, and the collapse of the positions."""
    size = (9.6, 2.5 * len(runs) + 0.4)
    figure, rows = figures.new_grid(len(runs), len(_QUANTITIES), size, sharey="col")
    drawn: dict[str, list] = {}
    for (variant, by_run), panels in zip(runs.items(), rows, strict=True):
        for (quantity, (label, is_log)), axes in zip(_QUANTITIES.items(), panels, strict=True):
            drawn[f"{variant}/{quantity}"] = _draw_courses(axes, by_run, quantity)
            axes.set(yscale="log" if is_log else "linear", xlabel="step")
            axes.set_title(f"{figures.display_name(variant)}: {label}", fontsize=8)
    figures.share_legend(figure, [axes for panels in rows for axes in panels])
    figures.explain(figure, "Lines: peak learning rates; median over seeds.")
    figures.save(figure, out, stem, drawn)


def _draw_courses(axes, by_run, quantity: str) -> list[dict]:
    """A line for each rate; returns what was drawn."""
    rates = sorted({rate for rate, _ in by_run})
    drawn = []
    for number, rate in enumerate(rates):
        members = [run for (own, _), run in by_run.items() if own == rate]
        # A record that is not finite is missing in its run.
        step = np.unique(np.concatenate([run.step for run in members]))
        lines = np.full((len(members), len(step)), np.nan)
        for line, run in zip(lines, members, strict=True):
            line[np.searchsorted(step, run.step)] = _values(run, quantity)
        median = np.nanmedian(lines, axis=0)
        axes.plot(step, median, color=figures.shade(number, len(rates)), label=f"{rate:g}")
        drawn.append({"rate": rate, "x": step, "y": median})
    return drawn


def _values(run: mechanism.Course, quantity: str) -> np.ndarray:
    if quantity == "spread":
        # Float32 tells no cosine from 1 that is nearer than its roundoff.
        return np.maximum(1 - run.position_cosine, 1e-7)
    return getattr(run, quantity)
