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

# The course of each run that completed with telemetry, by (rate, seed).
Courses = Mapping[tuple[float, int], mechanism.Course]


def analyse(
    outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str
) -> dict[str, Any]:
    """The variants side by side, what becomes of the gradient, and figures, depth by depth."""
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
        for group in (points.UNCAPPED, points.CAPPED)
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
            | _of_runs(courses.get(variant, {}), grid)
            for variant in losses
        },
        "pairs": _pairs(rows, unigram_nats),
        "mechanism": _mechanism(courses),
    }


def _courses(outcomes: Sequence[outcome_lib.Outcome]) -> Courses:
    """Of the runs that completed: one that diverged ends in a step that is no gradient's fault."""
    found = {}
    for outcome in outcomes:
        records = outcome.telemetry() if outcome.state == outcome_lib.DONE else None
        if records and "branch_cosine" in records and (run := mechanism.course(records)):
            found[outcome.point.peak_lr, outcome.point.seed] = run
    return found


def _pairs(rows: Mapping[str, Mapping[int, merit.Row]], unigram_nats: float) -> dict:
    """`merit.compare` of every variant and Keel, and of remedies and the other topologies.

    The primary number of each pair also has "p_holm", corrected for the number of pairs.
    """
    wanted = [(variant, _REFERENCE) for variant in rows if variant != _REFERENCE]
    wanted += [(variant, other) for other, variants in _MORE_PAIRS.items() for variant in variants]
    found = {
        f"{first} over {second}": merit.compare(rows[first], rows[second], unigram_nats)
        for first, second in wanted
        if first in rows and second in rows
    }
    corrected = intervals.holm([pair["nats_below"]["p"] for pair in found.values()])
    for pair, p in zip(found.values(), corrected, strict=True):
        pair["nats_below"]["p_holm"] = p
    return found


def _of_runs(runs: Courses, grid: Sequence[float]) -> dict:
    """What became of a variant's gradient: over its rates, and at each of them.

    "lost_rates": at how many of the rates it was lost in any record, an interval over the seeds
    that have a course at every rate of the grid.
    """
    seeds = {seed for _, seed in runs}
    whole = [seed for seed in sorted(seeds) if all((rate, seed) in runs for rate in grid)]
    lost = [sum(runs[rate, seed].was_lost for rate in grid) for seed in whole]
    return {
        "lost_rates": intervals.mean(lost),
        "telemetry": [
            {"rate": rate} | _medians([run for (own, _), run in runs.items() if own == rate])
            for rate in sorted({rate for rate, _ in runs})
        ],
        "error_decades": {
            predictor: _errors({"": runs}, predictor) for predictor in ("path", "orthogonal")
        },
    }


def _medians(runs: Sequence[mechanism.Course]) -> dict:
    """The median over the seeds of every number of `mechanism.describe`; None if one has none."""
    described = [mechanism.describe(run) for run in runs]
    columns = {name: [row[name] for row in described] for name in described[0]}
    return {
        name: None if None in values else float(np.median(values))
        for name, values in columns.items()
    }


def _errors(courses: Mapping[str, Courses], predictor: str) -> dict:
    """The root mean square over runs of `mechanism.error_decades`, an interval over seeds."""
    by_seed: dict[int, list[float]] = {}
    for runs in courses.values():
        for (_, seed), run in runs.items():
            if (error := mechanism.error_decades(run, predictor)) is not None:
                by_seed.setdefault(seed, []).append(error)
    return intervals.mean([float(np.sqrt(np.mean(np.square(row)))) for row in by_seed.values()])


def _mechanism(courses: Mapping[str, Courses]) -> dict:
    """What explains how much reaches the bottom, in the variants of `points.EXPLAINED`.

    "error_decades": of both products. "position_cosine": at the end of the runs whose gradient was
    lost then, and of those that kept it, each seed's mean. "first_lost": after which share of its
    steps a run that is lost at the end was lost for the first time, each seed's mean. "num_lost"
    and "num_kept": how many runs these are.
    """
    explained = {name: courses[name] for name in points.EXPLAINED if name in courses}
    lost: dict[int, list[mechanism.Course]] = {}
    kept: dict[int, list[mechanism.Course]] = {}
    for runs in explained.values():
        for (_, seed), run in runs.items():
            (lost if run.is_lost else kept).setdefault(seed, []).append(run)

    def mean(by_seed, number):
        return intervals.mean(
            [float(np.mean([number(run) for run in runs])) for runs in by_seed.values()]
        )

    return {
        "error_decades": {
            predictor: _errors(explained, predictor) for predictor in ("path", "orthogonal")
        },
        "position_cosine": {
            name: mean(by_seed, lambda run: run.position_cosine[-1])
            for name, by_seed in (("lost", lost), ("kept", kept))
        },
        "first_lost": mean(lost, lambda run: run.first_lost() / run.step[-1]),
        "num_lost": sum(map(len, lost.values())),
        "num_kept": sum(map(len, kept.values())),
    }


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
