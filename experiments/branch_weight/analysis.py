"""From the outcomes of the runs to the numbers of results.json and the figures."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.branch_weight import drawing, effects, inside, points
from experiments.branch_weight.points import Cell
from experiments.sweeps import comparison, experiment, merit, unigram
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib

# The cells that have names: Keel, and its two neighbours in the table.
KEEL = (points.NORMED, points.OVER_L)
COMPLETE_P = (points.PLAIN, points.OVER_L)
PRE_LN = (points.PLAIN, points.ONE)

Outcomes = Sequence[outcome_lib.Outcome]


def analyse(outcomes: Outcomes, out: pathlib.Path, data: str) -> dict:
    """The table of cells, the effects of the factors, and the figures, depth by depth."""
    numbers: dict[str, Any] = {}
    depths = sorted({points.parse_series(o.point.series)[1] for o in outcomes})
    for depth in depths:
        members: dict[Cell, list[outcome_lib.Outcome]] = {}
        for outcome in outcomes:
            cell, own_depth = points.parse_series(outcome.point.series)
            if own_depth == depth:
                members.setdefault(cell, []).append(outcome)
        cfg = point_lib.build_config([next(iter(members.values()))[0].point], data)
        unigram_nats = unigram.validation_loss(cfg)
        numbers[f"L{depth}"] = _analyse_depth(members, unigram_nats, out, f"L{depth}")
    return numbers


def _analyse_depth(
    members: Mapping[Cell, Outcomes], unigram_nats: float, out: pathlib.Path, name: str
) -> dict:
    losses = {cell: comparison.losses_by_rate(runs) for cell, runs in members.items()}
    losses = {cell: rows for cell, rows in losses.items() if rows}
    grid = sorted({o.point.peak_lr for runs in members.values() for o in runs})
    rows = {cell: merit.rows_by_seed(losses[cell], grid) for cell in losses}
    rows = {cell: by_seed for cell, by_seed in rows.items() if by_seed}
    drawing.losses_against_rate(losses, unigram_nats, out, f"loss_against_rate_{name}")
    if ends := _ends(members, unigram_nats):
        drawing.learned_against_cotangent(ends, out, f"cotangent_{name}")
    return {
        "unigram_eval_nats": unigram_nats,
        "grid": grid,
        "cells": {
            cell.name: comparison.table(losses[cell])
            | merit.summary(rows.get(cell, {}), unigram_nats)
            | {"telemetry": inside.medians(members[cell])}
            for cell in losses
        },
        "effects": effects.effects(rows, unigram_nats),
        "named": _named(rows, unigram_nats),
    }


def _named(rows: Mapping[Cell, Mapping[int, merit.Row]], unigram_nats: float) -> dict:
    """Keel beside CompleteP and Pre-LN, for each embedding and scale (`merit.compare`)."""
    compared = {}
    for embedding in points.EMBEDDINGS:
        for scale in points.SCALES:
            keel, complete_p, pre_ln = (
                rows.get(Cell(*kind, embedding, scale)) for kind in (KEEL, COMPLETE_P, PRE_LN)
            )
            own = {"keel over complete_p": (keel, complete_p), "keel over pre_ln": (keel, pre_ln)}
            for pair, (first, second) in own.items():
                if first and second:
                    key = f"{pair}, {embedding}, {scale}"
                    compared[key] = merit.compare(first, second, unigram_nats)
    return compared


def _ends(members: Mapping[Cell, Outcomes], unigram_nats: float) -> list[tuple[Cell, float, float]]:
    """(cell, cotangent ratio, nats below the line) of the runs that completed with telemetry."""
    ends = []
    for cell, runs in members.items():
        for run in runs:
            found = inside.describe(run)
            if found and run.eval_loss is not None and not math.isnan(found["cotangent_ratio"]):
                below = max(0.0, unigram_nats - run.eval_loss)
                ends.append((cell, found["cotangent_ratio"], below))
    return ends


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
