"""From the outcomes of the runs to the numbers of results.json and the figures."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.branch_weight import drawing, effects, inside, points
from experiments.branch_weight.points import Cell
from experiments.sweeps import comparison, experiment, merit, unigram
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib

# The cells that have names, by stream and weight.
NAMED = {
    "keel": (points.NORMED, points.INV_L),
    "complete_p": (points.PLAIN, points.INV_L),
    "pre_ln": (points.PLAIN, points.ONE),
}
PAIRS = (("keel", "complete_p"), ("keel", "pre_ln"), ("complete_p", "pre_ln"))

# An outcome, and its telemetry if there is any.
Run = tuple[outcome_lib.Outcome, inside.Records | None]


def analyse(
    outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str
) -> dict[str, Any]:
    """The table of cells, the effects of the factors, and the figures, depth by depth."""
    numbers = {}
    for depth in sorted({points.parse_series(o.point.series)[1] for o in outcomes}):
        members: dict[Cell, list[Run]] = {}
        for outcome in outcomes:
            cell, own_depth = points.parse_series(outcome.point.series)
            if own_depth == depth:
                members.setdefault(cell, []).append((outcome, inside.load(outcome)))
        cfg = point_lib.build_config([next(iter(members.values()))[0][0].point], data)
        unigram_nats = unigram.validation_loss(cfg)
        numbers[f"L{depth}"] = _analyse_depth(members, unigram_nats, out, f"L{depth}")
    return numbers


def _analyse_depth(
    members: Mapping[Cell, Sequence[Run]], unigram_nats: float, out: pathlib.Path, name: str
) -> dict:
    grid = sorted({outcome.point.peak_lr for runs in members.values() for outcome, _ in runs})
    losses = {
        cell: found
        for cell, runs in members.items()
        if (found := comparison.losses_by_rate([outcome for outcome, _ in runs]))
    }
    rows = {cell: merit.rows_by_seed(losses[cell], grid) for cell in losses}
    rows = {cell: by_seed for cell, by_seed in rows.items() if by_seed}
    if losses:
        drawing.losses_against_rate(losses, unigram_nats, out, f"loss_against_rate_{name}")
    if ends := _ends(members, unigram_nats):
        drawing.learned_against_cotangent(ends, out, f"cotangent_{name}")
    if profiles := _profiles(members):
        drawing.gradient_over_depth(profiles, out, f"gradient_over_depth_{name}")
    return {
        "unigram_eval_nats": unigram_nats,
        "grid": grid,
        "cells": {
            cell.name: comparison.table(losses[cell])
            | merit.summary(rows.get(cell, {}), unigram_nats)
            | {"telemetry": inside.medians(_described(members[cell]))}
            for cell in losses
        },
        "effects": effects.effects(rows, unigram_nats),
        "named": _named(rows, unigram_nats),
    }


def _named(rows: Mapping[Cell, Mapping[int, merit.Row]], unigram_nats: float) -> dict:
    """Pairs of the named cells, for each embedding and init (`merit.compare`)."""
    compared = {}
    for embedding in points.EMBEDDINGS:
        for init in points.INITS:
            own = {name: rows.get(Cell(*kind, embedding, init)) for name, kind in NAMED.items()}
            for first, second in PAIRS:
                if (one := own[first]) and (other := own[second]):
                    key = f"{first} over {second}, {embedding}, {init}"
                    compared[key] = merit.compare(one, other, unigram_nats)
    return compared


def _described(runs: Sequence[Run]) -> list[tuple[float, dict[str, float]]]:
    """(rate, what the telemetry says) of each run that has any."""
    return [
        (outcome.point.peak_lr, inside.describe(records))
        for outcome, records in runs
        if records is not None
    ]


def _ends(
    members: Mapping[Cell, Sequence[Run]], unigram_nats: float
) -> list[tuple[Cell, float, float]]:
    """(cell, cotangent ratio, nats below the line) of the runs that completed with telemetry."""
    ends = []
    for cell, runs in members.items():
        for outcome, records in runs:
            if records is None or (loss := outcome.eval_loss) is None:
                continue
            ratio = inside.describe(records)["cotangent_ratio"]
            # Nothing at the top: nothing arrives at the bottom either.
            ends.append((cell, 0.0 if math.isnan(ratio) else ratio, max(0.0, unigram_nats - loss)))
    return ends


def _profiles(
    members: Mapping[Cell, Sequence[Run]],
) -> dict[str, dict[float, tuple[np.ndarray, np.ndarray]]]:
    """Medians over seeds of `inside.cotangents`: named cells, unit embedding, scaled matrices."""
    profiles = {}
    for name, kind in NAMED.items():
        by_rate: dict[float, list] = {}
        for outcome, records in members.get(Cell(*kind, points.UNIT, points.WIDTH_SCALED), ()):
            if records is not None:
                by_rate.setdefault(outcome.point.peak_lr, []).append(inside.cotangents(records))
        if by_rate:
            profiles[name] = {
                rate: (found[0][0], np.median([ratios for _, ratios in found], axis=0))
                for rate, found in sorted(by_rate.items())
            }
    return profiles


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
