"""From the outcomes of the runs to the numbers of results.json and the figure."""

import pathlib
from collections.abc import Sequence

from experiments.data_regime import points
from experiments.sweeps import checks, comparison, experiment, figures, unigram
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from keel_jax.data import shards

# Average of six benchmarks, arXiv:2601.19895, Table 4: FineWeb-Edu, 512 sub-layers.
PAPER = {"10B": {"pre_ln": 60.3, "keel": 61.5}, "40B": {"pre_ln": 66.7, "keel": 68.2}}


def analyse(outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str) -> dict:
    """Tables by regime, Keel's advantage in each, and from where on it holds."""
    losses = comparison.losses_by_series(outcomes)
    regimes = list(dict.fromkeys(points.parse_series(o.point.series)[1:] for o in outcomes))
    cfg = point_lib.build_config([outcomes[0].point], data)
    unigram_nats = unigram.validation_loss(cfg)
    num_tokens = shards.open_set(data).split("train").num_tokens
    advantages = {
        f"steps{steps}-tokens{tokens or points.ALL}": comparison.advantage(
            losses.get(points.series("keel", steps, tokens), {}),
            losses.get(points.series("pre_ln", steps, tokens), {}),
        )
        for steps, tokens in regimes
    }
    lengths = sorted(steps for steps, tokens in regimes if tokens is None)
    verdicts = {
        steps: (advantages[f"steps{steps}-tokens{points.ALL}"] or {}).get("verdict")
        for steps in lengths
    }
    best = {
        t: [comparison.best_row(losses.get(points.series(t, steps, None), {})) for steps in lengths]
        for t in points.TOPOLOGIES
    }
    figures.draw_best_losses(
        lengths,
        best,
        unigram_nats,
        "optimizer steps of a run, on all the tokens that there are",
        out,
        "loss_against_steps",
    )
    numbers = {
        "paper": PAPER,
        "unigram_eval_nats": unigram_nats,
        "tokens_per_step": cfg.train.tokens_per_step,
        # How often a run reads each of its distinct tokens; below 1, none is read twice.
        "epochs": {
            f"steps{steps}-tokens{tokens or points.ALL}": steps
            * cfg.train.tokens_per_step
            / (tokens or num_tokens)
            for steps, tokens in regimes
        },
        "series": {series: comparison.table(rows) for series, rows in losses.items()},
        "keel_over_pre_ln_nats": advantages,
        "keel_is_better_from_steps": crossover(verdicts),
    }
    is_micro = lengths == [50, 100, 200] and outcome_lib.all_done(outcomes)
    return numbers | ({"checks": _checks(numbers)} if is_micro else {})


def _checks(numbers: dict) -> dict:
    """The predictions of NOTES.md, which are about micro."""
    over = numbers["keel_over_pre_ln_nats"]
    mean = {regime: row["mean"] for regime, row in over.items()}
    unlearned = min(
        numbers["series"][f"{t}-steps50-tokensall"]["at_best"]["mean"] for t in points.TOPOLOGIES
    )
    return {
        "1 at 50 steps: the lower one above the unigram line, nats": checks.within(
            unlearned - numbers["unigram_eval_nats"], -0.05
        ),
        "1 at 50 steps: Keel below Pre-LN, nats": checks.within(
            mean["steps50-tokensall"], -0.1, 0.1
        ),
        "2 at 200 steps: Keel below Pre-LN": checks.has_verdict(over["steps200-tokensall"]),
        "2 the advantage at 200 steps less that at 100, nats": checks.within(
            mean["steps200-tokensall"] - mean["steps100-tokensall"], 0.0
        ),
        "3 on 2048 distinct tokens: Keel below Pre-LN, nats": checks.within(
            mean["steps200-tokens2048"], high=0.1
        ),
    }


def crossover(verdicts: dict[int, str | None]) -> int | None:
    """The fewest steps from which on Keel's advantage holds at every length, if any."""
    fewest = None
    for steps in sorted(verdicts, reverse=True):
        if verdicts[steps] != "holds":
            break
        fewest = steps
    return fewest


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
