"""From the outcomes of the runs to the numbers of results.json and the figures."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.lr_robustness import (
    depth_figures,
    divergence,
    drawing,
    fixed,
    learning,
    points,
    ramps,
)
from experiments.sweeps import checks, comparison, experiment, merit, unigram
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from keel_jax.data import shards

# Table 1 of arXiv:2601.19895, v2.
PAPER = {
    "L64": {
        "post_ln": 3.0e-4,
        "deepnorm": 3.5e-4,
        "hybridnorm": 4.9e-4,
        "mix_ln": 8.6e-4,
        "pre_ln": 7.65e-3,
        "keel": 1.01e-2,
    },
    "L512": {
        "post_ln": 2.8e-4,
        "deepnorm": 3.5e-4,
        "hybridnorm": 3.5e-4,
        "mix_ln": 3.5e-4,
        "pre_ln": 4.67e-3,
        "keel": 6.31e-3,
    },
}
# The claim, in its order.
CLAIM = ("keel", "pre_ln", "post_ln")
# What is compared at each depth: a positive number says that the first is better.
PAIRS = (
    *(("keel", other) for other in (*points.TABLE_1[1:], *points.CONTROLS)),
    *((control, "pre_ln") for control in points.CONTROLS),
    ("pre_ln", "post_ln"),
)

Outcomes = Sequence[outcome_lib.Outcome]


def analyse(outcomes: Outcomes, out: pathlib.Path, data: str) -> dict:
    """The numbers of results.json, depth by depth; draws the figures."""
    numbers: dict[str, Any] = {"paper_max_rate": PAPER}
    depths = sorted({points.parse_series(o.point.series)[1] for o in outcomes})
    for depth in depths:
        at_depth = [o for o in outcomes if points.parse_series(o.point.series)[1] == depth]
        numbers[f"L{depth}"] = _analyse_depth(at_depth, out, data, f"L{depth}")
    _draw_depths({depth: numbers[f"L{depth}"] for depth in depths}, outcomes, out)
    if len([depth for depth in depths if "fixed" in numbers[f"L{depth}"]]) > 1:
        numbers["advantage_slope"] = _slopes(numbers, outcomes)
    if {"fixed", "ramp"} <= set(numbers.get("L64", {})) and outcome_lib.all_done(outcomes):
        numbers["checks"] = _checks(numbers["L64"]["fixed"], numbers["L64"]["ramp"])
    return numbers


def _draw_depths(numbers: Mapping[int, Mapping], outcomes: Outcomes, out: pathlib.Path) -> None:
    """The figures with a panel for each depth that has runs at fixed rates."""
    at_fixed_rates = {depth: row["fixed"] for depth, row in numbers.items() if "fixed" in row}
    if len(at_fixed_rates) < 2:
        return
    losses = {
        depth: {
            topology: comparison.losses_by_rate(runs)
            for topology, runs in _by_topology(outcomes, points.FIXED, depth).items()
        }
        for depth in at_fixed_rates
    }
    unigram_nats = next(iter(at_fixed_rates.values()))["unigram_eval_nats"]
    depth_figures.losses_against_rate(losses, unigram_nats, out, "loss_against_rate")
    edges = {
        depth: {t: row["log10_edge"] for t, row in fixed_rates["topologies"].items()}
        for depth, fixed_rates in at_fixed_rates.items()
    }
    grids = {depth: fixed_rates["grid"] for depth, fixed_rates in at_fixed_rates.items()}
    depth_figures.usable_rates(edges, grids, out, "usable_rates")


def _slopes(numbers: Mapping[str, Any], outcomes: Outcomes) -> dict:
    """How the advantage of each pair grows with depth (`merit.slope_over_depth`), by pair.

    At the fixed rates of each depth's grid, over the depths that have both topologies.
    """
    rows: dict[int, dict[str, Mapping[int, merit.Row]]] = {}
    for name, of_depth in numbers.items():
        if name.startswith("L") and "fixed" in of_depth:
            depth, grid = int(name.removeprefix("L")), of_depth["fixed"]["grid"]
            rows[depth] = {
                topology: merit.rows_by_seed(comparison.losses_by_rate(runs), grid)
                for topology, runs in _by_topology(outcomes, points.FIXED, depth).items()
            }
    unigram_nats = next(iter(numbers[f"L{depth}"]["fixed"]["unigram_eval_nats"] for depth in rows))
    slopes = {}
    for first, second in PAIRS:
        by_depth = {
            depth: (of_depth[first], of_depth[second])
            for depth, of_depth in rows.items()
            if {first, second} <= set(of_depth)
        }
        if len(by_depth) > 1:
            slopes[f"{first} over {second}"] = merit.slope_over_depth(by_depth, unigram_nats)
    return slopes


def _checks(fixed: Mapping, ramp: Mapping) -> dict:
    """The predictions of NOTES.md, at 64 sub-layers."""
    over = fixed["keel_over_pre_ln"]
    stable = {
        t: [rate or 0.0 for rate in fixed["topologies"][t]["largest_stable_rate"].values()]
        for t in CLAIM
    }
    [post_ln] = [
        row["mean"] for row in fixed["topologies"]["post_ln"]["by_rate"] if row["rate"] == 1e-2
    ]
    ratios = {
        pair: ramp["ordering"][pair]["ratio"] for pair in ("keel > pre_ln", "pre_ln > post_ln")
    }
    predictions = {
        "1 ramp: Keel > Pre-LN > Post-LN": checks.has_verdict(ramp["ordering"]),
        "1 ramp: Pre-LN over Post-LN": checks.has_verdict(ramp["ordering"]["pre_ln > post_ln"]),
        "1 ramp: ratio of Pre-LN to Post-LN": checks.within(ratios["pre_ln > post_ln"], 2.0),
        "1 ramp: ratio of Keel to Pre-LN": checks.within(ratios["keel > pre_ln"], 0.7, 2.0),
        "2 fixed, 1e-2: Keel below Pre-LN, nats": checks.within(over["at 0.01"]["mean"], 0.2),
        "2 fixed, 1e-2: Post-LN above the unigram line, nats": checks.within(
            post_ln - fixed["unigram_eval_nats"], -0.05, 0.05
        ),
        "3 fixed: Post-LN's largest stable rate": checks.within(max(stable["post_ln"]), 0, 5.6e-3),
        "3 fixed: Keel's largest stable rate": checks.within(min(stable["keel"]), 3.2e-2),
        "4 fixed: Keel below Pre-LN, each at its best rate": checks.has_verdict(over["at_best"]),
    }
    if "complete_p" not in fixed["topologies"]:
        return predictions
    added = fixed["topologies"]["complete_p"]["largest_stable_rate"].values()
    return predictions | {
        "added, fixed: Pre-LN with a branch over L below Keel at best, nats": checks.within(
            fixed["complete_p_over_keel"]["at_best"]["mean"], 0.0
        ),
        "added, fixed: its largest stable rate": checks.within(
            min(rate or 0.0 for rate in added), min(stable["keel"])
        ),
    }


def _analyse_depth(outcomes: Outcomes, out: pathlib.Path, data: str, name: str) -> dict:
    """The numbers of one depth, named "L64" and so on, by protocol."""
    at_fixed_rates = _by_topology(outcomes, points.FIXED)
    over_long_runs = _by_topology(outcomes, points.LONG)
    without_clipping = _by_topology(outcomes, points.UNCLIPPED)
    on_ramps = _by_topology(outcomes, points.RAMP)
    numbers, losses = {}, {}
    if at_fixed_rates:
        losses = {t: comparison.losses_by_rate(runs) for t, runs in at_fixed_rates.items()}
        numbers["fixed"] = _analyse_fixed(losses, at_fixed_rates, out, data, name)
        if on_ramps:
            numbers["fixed"] |= _advantages(losses)
    if over_long_runs:
        longer = {t: comparison.losses_by_rate(runs) for t, runs in over_long_runs.items()}
        numbers["long"] = _analyse_fixed(longer, over_long_runs, out, data, f"{name}_long")
        unigram_nats = numbers["long"]["unigram_eval_nats"]
        numbers["advantage_growth"] = _advantage_growth(losses, longer, unigram_nats)
    if without_clipping:
        numbers["unclipped"] = {
            "losses": {
                t: comparison.table(comparison.losses_by_rate(runs))
                for t, runs in without_clipping.items()
            },
            "spikes": {t: learning.spikes(runs) for t, runs in without_clipping.items()},
        }
    curves = {
        topology: ramps.Ramps(
            ramps.load_curves(runs, data),
            ramps.load_curves(_at_best(at_fixed_rates.get(topology, []), losses, topology), data),
        )
        for topology, runs in on_ramps.items()
    }
    curves = {topology: each for topology, each in curves.items() if each.ramps}
    if curves:
        numbers["ramp"] = _analyse_ramps(curves, out, name)
    return numbers


def _analyse_fixed(
    losses: Mapping[str, comparison.Losses],
    outcomes: Mapping[str, Outcomes],
    out: pathlib.Path,
    data: str,
    name: str,
) -> dict:
    """The numbers of the runs at fixed rates, by topology; draws their figures."""
    cfg = point_lib.build_config([next(iter(outcomes.values()))[0].point], data)
    unigram_nats = unigram.validation_loss(cfg)
    uniform_nats = math.log(shards.open_set(data).vocab_size)
    # The rates that were planned for all topologies. Some have others between them, which are in
    # the figures and tables and in no comparison.
    planned = [{o.point.peak_lr for o in runs} for runs in outcomes.values()]
    grid = sorted(set.intersection(*planned))
    rows = {t: merit.rows_by_seed(losses[t], grid) for t in losses}
    by_topology = {
        t: comparison.table(losses[t])
        | fixed.summary(losses[t], grid, unigram_nats, uniform_nats)
        | merit.summary(rows[t], unigram_nats)
        for t in losses
    }
    rate = min(grid, key=lambda rate: abs(math.log(rate / points.AGGRESSIVE_RATE)))
    aggressive = {
        topology: ramps.load_curves(_at_rate(runs, rate), data)
        for topology, runs in outcomes.items()
    }
    aggressive = {topology: runs for topology, runs in aggressive.items() if runs}
    if any(losses.values()):
        drawing.losses_against_rate(losses, unigram_nats, out, f"loss_against_rate_{name}")
    if aggressive:
        drawing.loss_curves(aggressive, rate, out, f"curves_{name}")
    claimed = {t: by_topology[t]["largest_stable_rate"] for t in CLAIM if t in by_topology}
    steps = {t: learning.steps_until_below(runs, rows[t], data) for t, runs in outcomes.items()}
    numbers = {
        "unigram_eval_nats": unigram_nats,
        "uniform_nats": uniform_nats,
        "grid": grid,
        "pairs": {
            f"{first} over {second}": merit.compare(
                rows[first], rows[second], unigram_nats, (steps[first], steps[second])
            )
            for first, second in PAIRS
            if first in rows and second in rows
        },
        "spikes": {t: learning.spikes(_at_rate(runs, rate)) for t, runs in outcomes.items()},
        "topologies": by_topology,
        "aggressive_rate": rate,
        "largest_stable_rate_ordering": ramps.orderings(claimed),
    }
    return numbers


def _advantage_growth(
    losses: Mapping[str, comparison.Losses],
    longer: Mapping[str, comparison.Losses],
    unigram_nats: float,
) -> dict:
    """By how much each pair's advantage of `nats_below` is larger after the longer runs, by pair.

    On the rates that both lengths have, paired by seed.
    """
    grid = sorted(
        set.intersection(*(set(rows) for each in (losses, longer) for rows in each.values()))
    )
    if not grid:
        return {}
    short_rows, long_rows = (
        {t: merit.rows_by_seed(rows, grid) for t, rows in each.items()} for each in (losses, longer)
    )
    return {
        f"{first} over {second}": merit.growth(
            (short_rows[first], short_rows[second]),
            (long_rows[first], long_rows[second]),
            unigram_nats,
        )
        for first, second in PAIRS
        if {first, second} <= set(short_rows) & set(long_rows)
    }


def _advantages(losses: Mapping[str, comparison.Losses]) -> dict:
    """Nats a token by which the loss of the first is the lower one, for micro's predictions."""
    numbers = {}
    for first, second in (("keel", "pre_ln"), ("complete_p", "keel")):
        if {first, second} <= set(losses):
            pair = losses[first], losses[second]
            numbers[f"{first}_over_{second}"] = {"at_best": comparison.advantage(*pair)} | {
                f"at {rate:g}": comparison.advantage(*pair, rate) for rate in losses[first]
            }
    return numbers


def _analyse_ramps(curves: Mapping[str, ramps.Ramps], out: pathlib.Path, name: str) -> dict:
    """The tolerated rates by topology, under the chosen thresholds and others; draws figures."""
    num_steps = max(len(ramp.loss) for each in curves.values() for ramp in each.ramps)
    base = divergence.Thresholds.of_run(num_steps)
    tolerated = {topology: each.tolerated(base) for topology, each in curves.items()}
    under = {
        variant: {topology: each.tolerated(thresholds) for topology, each in curves.items()}
        for variant, thresholds in ramps.variants(base).items()
    }
    if "pre_ln" in curves and curves["pre_ln"].healthy:
        # Added after the runs. Measured against its own healthy run, the topology whose healthy run
        # is the best has the furthest to fall; here all are measured against one.
        beside = curves["pre_ln"].healthy
        under["Pre-LN's healthy run for all"] = {
            topology: dataclasses.replace(each, healthy=beside).tolerated(base)
            for topology, each in curves.items()
        }
    drawing.ramps(curves, tolerated, base, out, f"ramps_{name}")
    drawing.sensitivity(under, out, f"thresholds_{name}")
    return {
        "thresholds": vars(base),
        "slope_per_step": float(next(iter(curves.values())).ramps[0].learning_rate[1]),
        "topologies": {t: ramps.summary(rows) for t, rows in tolerated.items()},
        "ordering": _ordering(tolerated),
        "under_other_thresholds": {
            variant: {
                "median": {t: ramps.summary(rows)["median"] for t, rows in rows_of.items()},
                "verdict": _ordering(rows_of)["verdict"],
            }
            for variant, rows_of in under.items()
        },
    }


def _ordering(tolerated: Mapping[str, list[dict]]) -> dict:
    """Whether the rates are in the order of the claim."""
    return ramps.orderings(
        {t: {row["seed"]: row["rate"] for row in tolerated[t]} for t in CLAIM if t in tolerated}
    )


def _by_topology(
    outcomes: Outcomes, protocol: str, depth: int | None = None
) -> dict[str, list[outcome_lib.Outcome]]:
    """The outcomes of one protocol, at one depth or at all."""
    groups: dict[str, list[outcome_lib.Outcome]] = {}
    for outcome in outcomes:
        topology, own_depth, own_protocol = points.parse_series(outcome.point.series)
        if own_protocol == protocol and depth in (None, own_depth):
            groups.setdefault(topology, []).append(outcome)
    return groups


def _at_rate(outcomes: Outcomes, rate: float) -> list[outcome_lib.Outcome]:
    return [o for o in outcomes if o.point.peak_lr == rate]


def _at_best(
    outcomes: Outcomes, losses: Mapping[str, comparison.Losses], topology: str
) -> list[outcome_lib.Outcome]:
    """The runs at the best fixed rate, in the order of their seeds."""
    best = comparison.best_rate(losses[topology]) if outcomes else None
    return [o for o in outcomes if o.point.peak_lr == best and o.state == outcome_lib.DONE]


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
