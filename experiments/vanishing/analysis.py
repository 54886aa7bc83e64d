"""From the outcomes of the runs to the numbers of results.json and the figures."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sweeps import comparison, experiment, intervals, merit, unigram
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from experiments.vanishing import drawing, mechanism, points

# Every variant is compared with the first, some with the others.
_REFERENCE = "keel"
_MORE_PAIRS = {
    "pre_ln": ("keel_capped", "all_three"),
    "complete_p": ("keel_capped", "capped_unit_embedding", "all_three"),
}

# The course of each run that has telemetry, by (rate, seed).
Courses = Mapping[tuple[float, int], mechanism.Course]


def analyse(
    outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str
) -> dict[str, Any]:
    """The variants side by side, what explains the path, and the figures, depth by depth."""
    numbers = {}
    for depth in sorted({points.parse_series(o.point.series)[1] for o in outcomes}):
        members: dict[str, list[outcome_lib.Outcome]] = {}
        for outcome in outcomes:
            variant, own_depth = points.parse_series(outcome.point.series)
            if own_depth == depth:
                members.setdefault(variant, []).append(outcome)
        cfg = point_lib.build_config([next(iter(members.values()))[0].point], data)
        numbers[f"L{depth}"] = _analyse_depth(
            members, unigram.validation_loss(cfg), out, f"L{depth}"
        )
    return numbers


def _analyse_depth(
    members: Mapping[str, Sequence[outcome_lib.Outcome]],
    unigram_nats: float,
    out: pathlib.Path,
    name: str,
) -> dict:
    losses = {
        variant: found
        for variant, outcomes in members.items()
        if (found := comparison.losses_by_rate(outcomes))
    }
    grid = sorted({outcome.point.peak_lr for group in members.values() for outcome in group})
    rows = {variant: merit.rows_by_seed(by_rate, grid) for variant, by_rate in losses.items()}
    rows = {variant: by_seed for variant, by_seed in rows.items() if by_seed}
    courses = {variant: _courses(outcomes) for variant, outcomes in members.items()}
    courses = {variant: runs for variant, runs in courses.items() if runs}
    if losses:
        drawing.losses_against_rate(losses, unigram_nats, out, f"loss_against_rate_{name}")
    uncapped, capped = (
        [run for variant in group for run in courses.get(variant, {}).values()]
        for group in (points.OPEN_ENDED, points.CAPPED)
    )
    if uncapped or capped:
        drawing.reach_against_products(uncapped, capped, out, f"reach_{name}")
    drawn = {variant: courses[variant] for variant in drawing.COURSES if variant in courses}
    if drawn:
        drawing.courses(drawn, out, f"courses_{name}")
    return {
        "unigram_eval_nats": unigram_nats,
        "grid": grid,
        "variants": {
            variant: comparison.table(losses[variant])
            | merit.summary(rows.get(variant, {}), unigram_nats)
            | _of_paths(courses.get(variant, {}))
            for variant in losses
        },
        "pairs": _pairs(rows, unigram_nats),
        "mechanism": _mechanism(courses),
    }


def _courses(outcomes: Sequence[outcome_lib.Outcome]) -> Courses:
    return {
        (outcome.point.peak_lr, outcome.point.seed): mechanism.course(records)
        for outcome in outcomes
        if (records := outcome.telemetry()) and "branch_cosine" in records
    }


def _pairs(rows: Mapping[str, Mapping[int, merit.Row]], unigram_nats: float) -> dict:
    """`merit.compare` of every variant and Keel, and of remedies and the other topologies."""
    wanted = [(variant, _REFERENCE) for variant in rows if variant != _REFERENCE]
    wanted += [(variant, other) for other, variants in _MORE_PAIRS.items() for variant in variants]
    return {
        f"{first} over {second}": merit.compare(rows[first], rows[second], unigram_nats)
        for first, second in wanted
        if first in rows and second in rows
    }


def _of_paths(runs: Courses) -> dict:
    """What became of the path in a variant's runs: over its rates, and at each of them."""
    if not runs:
        return {}
    least = {}
    for (_, seed), run in runs.items():
        least[seed] = min(least.get(seed, 0.0), float(np.log10(run.reach[-1])))
    return {
        # Of each seed, at the rate where it is least.
        "log10_final_reach": intervals.mean(list(least.values())),
        "num_closed": sum(bool(run.reach[-1] < mechanism.CLOSED) for run in runs.values()),
        "by_rate_telemetry": [
            {"rate": rate} | _medians([run for (own, _), run in runs.items() if own == rate])
            for rate in sorted({rate for rate, _ in runs})
        ],
    }


def _medians(runs: Sequence[mechanism.Course]) -> dict:
    """The median over the seeds of every number of `mechanism.describe`; None if one has none."""
    described = [mechanism.describe(run) for run in runs]
    columns = {name: [row[name] for row in described] for name in described[0]}
    return {
        name: None if None in values else float(np.median(values))
        for name, values in columns.items()
    }


def _mechanism(courses: Mapping[str, Courses]) -> dict:
    """What explains how much reaches the bottom, in the variants without a cap, seed by seed.

    "path" and "orthogonal": `mechanism.fit`, each number an interval over seeds.
    "position_cosine_closed": the least of it at the end of a run whose path is closed.
    "first_closed": at what share of the run's steps its path was closed for the first time.
    """
    by_seed: dict[int, list[mechanism.Course]] = {}
    for variant in points.OPEN_ENDED:
        for (_, seed), run in courses.get(variant, {}).items():
            by_seed.setdefault(seed, []).append(run)
    found: dict[str, Any] = {}
    for predictor in ("path", "orthogonal"):
        fits = [fit for runs in by_seed.values() if (fit := mechanism.fit(runs, predictor))]
        found[predictor] = {
            name: intervals.mean([fit[name] for fit in fits]) for name in ("slope", "error_decades")
        }
    closed = [
        [run for run in runs if run.reach[-1] < mechanism.CLOSED] for runs in by_seed.values()
    ]
    found["position_cosine_closed"] = intervals.mean(
        [min(float(run.position_cosine[-1]) for run in runs) for runs in closed if runs]
    )
    found["first_closed"] = intervals.mean(
        [
            float(np.mean([(run.first_closed() or 0) / run.step[-1] for run in runs]))
            for runs in closed
            if runs
        ]
    )
    found["num_closed"] = sum(map(len, closed))
    return found


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
