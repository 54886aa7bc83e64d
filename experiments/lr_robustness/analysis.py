"""From the runs to results.json's numbers and the figures."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

from experiments.lr_robustness import divergence, drawing, fixed, points, ramps
from experiments.sweeps import checks, comparison, corpus
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
# An aggressive rate whose loss curves are shown (the paper's Fig. 1a): the nearest one that is run.
AGGRESSIVE_RATE = 3.2e-2

Outcomes = Sequence[outcome_lib.Outcome]


def analyse(outcomes: Outcomes, out: pathlib.Path, data: str) -> dict:
    """The numbers of results.json, depth by depth; draws the figures."""
    numbers = {"paper_max_rate": PAPER}
    depths = {points.parse(o.point.series)[1] for o in outcomes}
    for depth in sorted(depths):
        here = [o for o in outcomes if points.parse(o.point.series)[1] == depth]
        numbers[f"L{depth}"] = _depth(here, out, data, f"L{depth}")
    if {"fixed", "ramp"} <= set(numbers.get("L64", {})) and outcome_lib.all_done(outcomes):
        numbers["checks"] = _checks(**numbers["L64"])
    return numbers


def _checks(fixed: dict, ramp: dict) -> dict:
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
    told = {
        "1 ramp: Keel > Pre-LN > Post-LN": checks.verdict(ramp["ordering"]),
        "1 ramp: Pre-LN over Post-LN": checks.verdict(ramp["ordering"]["pre_ln > post_ln"]),
        "1 ramp: ratio of Pre-LN to Post-LN": checks.within(ratios["pre_ln > post_ln"], 2.0),
        "1 ramp: ratio of Keel to Pre-LN": checks.within(ratios["keel > pre_ln"], 0.7, 2.0),
        "2 fixed, 1e-2: Keel below Pre-LN, nats": checks.within(over["at 0.01"]["mean"], 0.2),
        "2 fixed, 1e-2: Post-LN above the unigram line, nats": checks.within(
            post_ln - fixed["unigram_eval_nats"], -0.05, 0.05
        ),
        "3 fixed: Post-LN's largest stable rate": checks.within(max(stable["post_ln"]), 0, 5.6e-3),
        "3 fixed: Keel's largest stable rate": checks.within(min(stable["keel"]), 3.2e-2),
        "4 fixed: Keel below Pre-LN, each at its best rate": checks.verdict(over["at_best"]),
    }
    if "complete_p" not in fixed["topologies"]:
        return told
    added = fixed["topologies"]["complete_p"]["largest_stable_rate"].values()
    return told | {
        "added, fixed: Pre-LN with a branch over L below Keel at best, nats": checks.within(
            fixed["complete_p_over_keel"]["at_best"]["mean"], 0.0
        ),
        "added, fixed: its largest stable rate": checks.within(
            min(rate or 0.0 for rate in added), min(stable["keel"])
        ),
    }


def _depth(outcomes: Outcomes, out: pathlib.Path, data: str, name: str) -> dict:
    by_protocol = {
        protocol: _by_topology([o for o in outcomes if points.parse(o.point.series)[2] == protocol])
        for protocol in (points.FIXED, points.RAMP)
    }
    numbers, losses = {}, {}
    if by_protocol[points.FIXED]:
        losses = {t: comparison.losses(found) for t, found in by_protocol[points.FIXED].items()}
        numbers["fixed"] = _fixed(losses, by_protocol[points.FIXED], out, data, name)
    found = {
        topology: ramps.Ramps(
            ramps.read(outcomes_, data),
            ramps.read(
                _at_best(by_protocol[points.FIXED].get(topology, []), losses, topology), data
            ),
        )
        for topology, outcomes_ in by_protocol[points.RAMP].items()
    }
    found = {topology: curves for topology, curves in found.items() if curves.ramps}
    if found:
        numbers["ramp"] = _ramps(found, out, name)
    return numbers


def _fixed(losses, outcomes, out, data, name) -> dict:
    cfg = point_lib.build([next(iter(outcomes.values()))[0].point], data)
    unigram = corpus.unigram_validation_loss(cfg)
    uniform = math.log(shards.open_set(data).vocab_size)
    rates = sorted({o.point.peak_lr for found in outcomes.values() for o in found})
    by_topology = {t: fixed.summary(rows, rates, unigram, uniform) for t, rows in losses.items()}
    rate = min(rates, key=lambda rate: abs(math.log(rate / AGGRESSIVE_RATE)))
    aggressive = {
        topology: ramps.read([o for o in found if o.point.peak_lr == rate], data)
        for topology, found in outcomes.items()
    }
    aggressive = {topology: runs for topology, runs in aggressive.items() if runs}
    if any(losses.values()):
        drawing.losses_against_rate(losses, unigram, out, f"loss_against_rate_{name}")
    if aggressive:
        drawing.curves(aggressive, rate, out, f"curves_{name}")
    claimed = {t: by_topology[t]["largest_stable_rate"] for t in CLAIM if t in by_topology}
    numbers = {
        "unigram_eval_nats": unigram,
        "uniform_nats": uniform,
        "topologies": by_topology,
        "aggressive_rate": rate,
        "largest_stable_rate_ordering": ramps.orderings(claimed),
    }
    # Nats a token by which the first one's loss is the lower one.
    for first, second in (("keel", "pre_ln"), ("complete_p", "keel")):
        if {first, second} <= set(losses):
            pair = losses[first], losses[second]
            numbers[f"{first}_over_{second}"] = {"at_best": comparison.advantage(*pair)} | {
                f"at {rate:g}": comparison.advantage(*pair, rate) for rate in losses[first]
            }
    return numbers


def _ramps(found: dict[str, ramps.Ramps], out: pathlib.Path, name: str) -> dict:
    num_steps = max(len(c.loss) for r in found.values() for c in r.ramps)
    base = divergence.Thresholds.of_run(num_steps)
    tolerated = {topology: r.tolerated(base) for topology, r in found.items()}
    under = {
        variant: {topology: r.tolerated(how) for topology, r in found.items()}
        for variant, how in ramps.variants(base).items()
    }
    if "pre_ln" in found and found["pre_ln"].healthy:
        # Not among what was chosen before the runs: beside its own healthy run, the topology whose
        # healthy run is the best has the furthest to fall.
        beside = found["pre_ln"].healthy
        under["Pre-LN's healthy run for all"] = {
            topology: dataclasses.replace(r, healthy=beside).tolerated(base)
            for topology, r in found.items()
        }
    drawing.ramps(found, tolerated, base, out, f"ramps_{name}")
    drawing.sensitivity(under, out, f"thresholds_{name}")
    return {
        "thresholds": vars(base),
        "slope_per_step": float(next(iter(found.values())).ramps[0].learning_rate[1]),
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


def _ordering(tolerated: dict[str, list[dict]]) -> dict:
    return ramps.orderings(
        {t: {row["seed"]: row["rate"] for row in tolerated[t]} for t in CLAIM if t in tolerated}
    )


def _by_topology(outcomes: Outcomes) -> dict[str, list[outcome_lib.Outcome]]:
    found: dict[str, list[outcome_lib.Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(points.parse(outcome.point.series)[0], []).append(outcome)
    return found


def _at_best(outcomes: Outcomes, losses, topology: str) -> list[outcome_lib.Outcome]:
    """The runs at the best fixed rate, in the order of their seeds."""
    best = comparison.best_rate(losses[topology]) if outcomes else None
    return [o for o in outcomes if o.point.peak_lr == best and o.state == outcome_lib.DONE]
