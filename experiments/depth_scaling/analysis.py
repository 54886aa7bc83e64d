"""From the outcomes of the runs to the numbers of results.json and the figure."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.depth_scaling import points
from experiments.sweeps import checks, comparison, experiment, figures, merit, unigram
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib

# Average of the paper's benchmarks by sub-layers (Table 3), and deep against wide at 3 B (Table 5),
# arXiv:2601.19895.
PAPER = {
    "score_by_sublayers": {
        "L64": {"pre_ln": 37.9, "keel": 39.6},
        "L128": {"pre_ln": 45.3, "keel": 46.5},
        "L512": {"pre_ln": 54.3, "keel": 58.1},
        "L1024": {"pre_ln": 57.9, "keel": 60.9},
    },
    "deep_pre_ln": 52.3,
    "wide_pre_ln": 52.2,
    "deep_keel": 55.5,
}
# Small models solve no benchmark: the accuracy of their next-token predictions stands for a task.
_ACCURACY = "eval/accuracy"


def analyse(outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str) -> dict:
    """Tables by shape, Keel's advantage at each, what depth brings, deep against wide."""
    losses = comparison.losses_by_series(outcomes)
    accuracies = comparison.losses_by_series(outcomes, _ACCURACY)
    shapes = sorted({points.parse_series(outcome.point.series)[1:] for outcome in outcomes})
    width = min(d_model for _, d_model in shapes)
    depths = [depth for depth, d_model in shapes if d_model == width]
    cfg = point_lib.build_config([outcomes[0].point], data)
    unigram_nats = unigram.validation_loss(cfg)
    best = {
        t: [comparison.best_row(losses.get(points.series(t, depth, width), {})) for depth in depths]
        for t in points.TOPOLOGIES
    }
    figures.draw_best_losses(
        depths, best, unigram_nats, f"sub-layers, {width} wide", out, "loss_against_depth"
    )
    numbers = {
        "paper": PAPER,
        "unigram_eval_nats": unigram_nats,
        "series": {
            series: {
                "loss_nats_per_token": comparison.table(losses[series]),
                "accuracy": _at(accuracies[series], comparison.best_rate(losses[series])),
            }
            for series in losses
        },
        "keel_over_pre_ln_nats": {
            f"L{depth}-d{d_model}": _advantage(
                losses, ("keel", depth, d_model), ("pre_ln", depth, d_model)
            )
            for depth, d_model in shapes
        },
        # Nats a token by which the deepest is better than the shallowest of one width.
        "depth_gain_nats": {
            t: _advantage(losses, (t, depths[-1], width), (t, depths[0], width))
            for t in points.TOPOLOGIES
        },
        # How Keel's advantage grows with each doubling of the depth.
        "advantage_slope": _slope(losses, depths, width, unigram_nats),
        "wide_over_deep_nats": _wide_over_deep(losses, shapes, width),
    }
    is_micro = depths == [16, 64, 128] and width == 32 and outcome_lib.all_done(outcomes)
    return numbers | ({"checks": _checks(numbers)} if is_micro else {})


def _checks(numbers: dict) -> dict:
    """The predictions of NOTES.md, which are about micro."""
    over = {name: row["mean"] for name, row in numbers["keel_over_pre_ln_nats"].items()}
    gain, wide = numbers["depth_gain_nats"], numbers["wide_over_deep_nats"]
    accuracy = {series: row["accuracy"]["mean"] for series, row in numbers["series"].items()}
    agree = [
        (accuracy[f"keel-{shape}"] > accuracy[f"pre_ln-{shape}"]) == (over[shape] > 0)
        for shape in over
    ]
    return {
        "1 Keel below Pre-LN at 64 sub-layers, nats": checks.within(over["L64-d32"], 0.2),
        "1 Keel below Pre-LN at 128 sub-layers, nats": checks.within(over["L128-d32"], 0.2),
        "1 the advantage at 64 less that at 16, nats": checks.within(
            over["L64-d32"] - over["L16-d32"], 0.0
        ),
        "2 Pre-LN is worse at 128 sub-layers than at 16": checks.has_verdict(
            gain["pre_ln"], "reversed"
        ),
        "2 Keel's gain from 16 to 128 sub-layers, nats": checks.within(
            gain["keel"]["mean"], -0.2, 0.2
        ),
        "3 wide Pre-LN below deep": checks.has_verdict(wide["pre_ln L16-d64 over L64-d32"]),
        "3 wide Keel below deep, nats": checks.within(
            wide["keel L16-d64 over L64-d32"]["mean"], -0.15, 0.15
        ),
        "4 shapes in which accuracy orders as the loss does": checks.within(
            float(sum(agree)), float(len(agree))
        ),
    }


def _slope(
    losses: Mapping[str, comparison.Losses],
    depths: Sequence[int],
    width: int,
    unigram_nats: float,
) -> dict | None:
    """`merit.slope_over_depth` of Keel over Pre-LN at one width; None of fewer than two depths."""
    by_depth = {}
    for depth in depths:
        pair = [losses.get(points.series(t, depth, width), {}) for t in points.TOPOLOGIES]
        if grid := sorted(set(pair[0]) & set(pair[1])):
            by_depth[depth] = tuple(merit.rows_by_seed(rows, grid) for rows in pair)
    return merit.slope_over_depth(by_depth, unigram_nats) if len(by_depth) > 1 else None


def _wide_over_deep(
    losses: Mapping[str, comparison.Losses], shapes: Sequence[tuple[int, int]], width: int
) -> dict:
    """How much lower the loss of the wide model is than that of the deep one of as many weights.

    A block's weights grow as the square of the width, so the wide model of twice the width has a
    quarter of the depth.
    """
    return {
        f"{t} L{depth}-d{d_model} over L{depth * factor}-d{width}": _advantage(
            losses, (t, depth, d_model), (t, depth * factor, width)
        )
        for depth, d_model in shapes
        if d_model > width
        for factor in [(d_model // width) ** 2]
        if (depth * factor, width) in shapes
        for t in points.TOPOLOGIES
    }


def _advantage(
    losses: Mapping[str, comparison.Losses],
    own: tuple[str, int, int],
    other: tuple[str, int, int],
) -> dict | None:
    """`comparison.advantage` of two series, each given by topology, sub-layers and width."""
    return comparison.advantage(
        losses.get(points.series(*own), {}), losses.get(points.series(*other), {})
    )


def _at(metric: comparison.Losses, rate: float | None) -> dict | None:
    """The mean of a metric over seeds, at a rate."""
    return comparison.mean(metric[rate]) | {"rate": rate} if rate else None


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
