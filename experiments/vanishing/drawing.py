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
    "long_warmup": "half of it warm-up",
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
        axes.set(xscale="log", xlabel="peak learning rate", title=title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)
    panels[0].set(ylabel="final validation loss, nats/token", ylim=(None, top))
    figures.explain(
        figure,
        "Line: median over seeds; band: their range. Losses above the axis are drawn at its edge. "
        "x: some of these runs diverged.",
    )
    figures.save(figure, out, stem, {"lines": drawn, "unigram_nats": unigram_nats})


def reach_against_products(runs: Sequence[mechanism.Course], out: pathlib.Path, stem: str) -> None:
    """Every record: the gradient's share at the bottom against the paper's product, and ours."""
    figure, panels = figures.new_row(2, (7.6, 3.9), sharey=True)
    drawn = {}
    titles = {
        "orthogonal": "branches at right angles\n(the paper): $\\Pi\\,(1 + r^2)^{-1/2}$",
        "path": "with their angle:\n$\\Pi\\,(1 + 2 r\\cos\\theta + r^2)^{-1/2}$",
    }
    for axes, (predictor, title) in zip(panels, titles.items(), strict=True):
        reach, predicted = mechanism.points(runs, predictor)
        axes.plot([mechanism.LEAST, 1], [mechanism.LEAST, 1], color="0.5", linewidth=0.8)
        axes.scatter(predicted, reach, s=5, linewidths=0, alpha=0.4, color=figures.COLOURS["keel"])
        axes.set(xscale="log", yscale="log", xlabel="predicted", title=title)
        drawn[predictor] = {"predicted": predicted, "reach": reach}
    panels[0].set(ylabel="measured: share of the gradient,\nblock 1 over the last sub-layer")
    figures.explain(
        figure,
        "A dot is one record of one run, of all variants with outer norms. Line: equality. Below "
        f"{mechanism.LEAST:g}: drawn there.",
    )
    figures.save(figure, out, stem, drawn)


def courses(
    runs: Mapping[str, Mapping[tuple[float, int], mechanism.Course]],
    out: pathlib.Path,
    stem: str,
) -> None:
    """Step by step, rate by rate: what reaches the bottom, and the collapse of the positions."""
    quantities = {
        "reach": "share of the gradient at the bottom",
        "exponent": "$\\Sigma\\, r \\cos\\theta$",
        "spread": "1 - cosine between positions, at the top",
    }
    figure, panels = figures.new_row(
        len(quantities) * len(runs), (2.3 * len(quantities) * len(runs), 3.2)
    )
    drawn: dict[str, list] = {}
    remaining = iter(panels)
    for variant, by_run in runs.items():
        rates = sorted({rate for rate, _ in by_run})
        for quantity, label in quantities.items():
            axes = next(remaining)
            for number, rate in enumerate(rates):
                members = [run for (own, _), run in by_run.items() if own == rate]
                lines = [
                    1 - run.position_cosine if quantity == "spread" else getattr(run, quantity)
                    for run in members
                ]
                median = np.median(_to_common_length(lines), axis=0)
                step = members[0].step[: len(median)]
                floor = mechanism.LEAST if quantity != "exponent" else -np.inf
                axes.plot(
                    step,
                    np.maximum(median, floor),
                    color=figures.shade(number, len(rates)),
                    label=f"{rate:g}",
                )
                drawn.setdefault(f"{variant}/{quantity}", []).append(
                    {"rate": rate, "x": step, "y": median}
                )
            if quantity == "exponent":
                axes.set_yscale("symlog", linthresh=1.0)
            else:
                axes.set_yscale("log")
            axes.set_xlabel("step")
            axes.set_title(f"{figures.display_name(variant)}\n{label}", fontsize=8)
    figures.share_legend(figure, panels)
    figures.explain(figure, "Lines: peak learning rates; median over seeds.")
    figures.save(figure, out, stem, drawn)


def _to_common_length(lines: Sequence[np.ndarray]) -> np.ndarray:
    """Stacked, cut at the shortest: a run that diverged has fewer records."""
    length = min(map(len, lines))
    return np.stack([line[:length] for line in lines])
