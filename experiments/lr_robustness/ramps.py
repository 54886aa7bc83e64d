"""From ramps to tolerated learning rates, under the chosen thresholds and under others."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.lr_robustness import divergence
from experiments.sweeps import intervals
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib
from experiments.sweeps import unigram as unigram_lib

CRITERIA = ("stagnation", "spike", "degradation")
# Fewest seeds that decide an ordering without an interval.
_FEWEST_ALONE = 3


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run: its loss, the unigram model's on the same batches, and its rate, each [S]."""

    loss: np.ndarray
    unigram: np.ndarray
    learning_rate: np.ndarray
    seed: int
    # Whether the driver stopped it; the loss may be finite where the gradient has overflowed.
    is_diverged: bool = False


@dataclasses.dataclass(frozen=True)
class Ramps:
    """The ramps of one topology and depth, and its run at its best fixed rate, if there is one."""

    ramps: tuple[Curve, ...]
    healthy: tuple[Curve, ...] = ()

    def tolerated(self, thresholds: divergence.Thresholds) -> list[dict]:
        """Of each ramp: "seed", "rate" (the last before the onset), "criterion" and "step".

        A ramp without divergence tolerates its last rate at least; its criterion is None.
        """
        healthy, healthy_rate = self._healthy_excess(thresholds.window_steps)
        tolerated = []
        for curve in self.ramps:
            passes = int(np.searchsorted(curve.learning_rate, healthy_rate))
            smooth = divergence.excess(curve.loss, curve.unigram, thresholds.window_steps)
            onsets = divergence.onset(smooth, healthy, passes, thresholds, curve.is_diverged)
            first = onsets["first"]
            at = len(curve.loss) - 1 if first is None else max(0, first - 1)
            tolerated.append(
                {
                    "seed": curve.seed,
                    "rate": float(curve.learning_rate[at]),
                    "criterion": next(
                        (c for c in CRITERIA if first is not None and onsets[c] == first), None
                    ),
                    "step": at + 1,
                }
            )
        return tolerated

    def _healthy_excess(self, window_steps: int) -> tuple[np.ndarray | None, float]:
        """The healthy runs' excess, the mean over seeds, and the peak of their rate."""
        if not self.healthy:
            return None, 0.0
        smooth = [divergence.excess(c.loss, c.unigram, window_steps) for c in self.healthy]
        return np.mean(smooth, axis=0), float(self.healthy[0].learning_rate.max())


def load_curves(outcomes: Sequence[outcome_lib.Outcome], data: str) -> tuple[Curve, ...]:
    """The curves of the runs that have a result."""
    curves = []
    for outcome in outcomes:
        if outcome.has_result:
            _, loss = outcome.curve()
            _, learning_rate = outcome.curve("train/learning_rate")
            cfg = point_lib.build_config([outcome.point], data)
            unigram = unigram_lib.training_losses(cfg)
            curves.append(
                Curve(
                    loss,
                    unigram[: len(loss)],
                    learning_rate,
                    outcome.point.seed,
                    is_diverged=outcome.state == outcome_lib.DIVERGED,
                )
            )
    return tuple(curves)


def variants(base: divergence.Thresholds) -> dict[str, divergence.Thresholds]:
    """`base`; with each threshold halved and doubled; and without each criterion: by names."""
    named = {"as chosen": base}
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        for factor, word in ((0.5, "half"), (2, "twice")):
            changed = type(value)(
                max(1, value * factor) if isinstance(value, int) else value * factor
            )
            named[f"{field.name} {changed:g} ({word})"] = dataclasses.replace(
                base, **{field.name: changed}
            )
    for criterion in CRITERIA:
        named[f"without {criterion}"] = without(criterion, base)
    return named


def without(criterion: str, base: divergence.Thresholds) -> divergence.Thresholds:
    """`base` with thresholds that one criterion never reaches."""
    never = -np.inf if criterion == "stagnation" else np.inf
    return dataclasses.replace(base, **{f"{criterion}_nats": never})


def summary(tolerated: Sequence[Mapping]) -> dict:
    """Over seeds: the median rate and its range, the deciding criteria, how many never diverged."""
    rates = [row["rate"] for row in tolerated]
    criteria = [row["criterion"] for row in tolerated]
    return {
        "by_seed": tolerated,
        "median": float(np.median(rates)) if rates else None,
        "least": min(rates, default=None),
        "greatest": max(rates, default=None),
        # Over the ramps that tolerate any rate: a ramp begins at 0.
        "log10": intervals.mean([np.log10(rate) for rate in rates if rate]),
        "criteria": {str(name): criteria.count(name) for name in dict.fromkeys(criteria)},
        "num_never_diverged": criteria.count(None),
    }


def orderings(rates: Mapping[str, Mapping[int, float | None]]) -> dict:
    """Compares neighbours in the order of `rates`, a mapping topology -> seed -> tolerated rate.

    A rate of None or 0 stands for a topology that tolerates none. It is below every other rate and
    has no logarithm, so its seed takes no part in the interval and is counted apart.

    Returns:
      For each pair, under "keel > pre_ln" and so on: `intervals.ordering` of the log10 rates over
      the seeds where both tolerate some, and "ratio", the geometric mean of the rates' ratios;
      "num_only_first" and "num_only_second", the seeds where only that one tolerates some; and the
      verdict of both together (`_verdict`). Under "verdict": that of the whole chain.
    """
    names, comparisons = list(rates), {}
    for first, second in zip(names, names[1:], strict=False):
        pairs = [
            (rates[first][seed] or None, rates[second][seed] or None)
            for seed in rates[first]
            if seed in rates[second]
        ]
        both = [(a, b) for a, b in pairs if a and b]
        row = intervals.ordering(*([float(np.log10(pair[i])) for pair in both] for i in (0, 1)))
        alone = [sum(bool(p[i]) and not p[1 - i] for p in pairs) for i in (0, 1)]
        comparisons[f"{first} > {second}"] = row | {
            "ratio": None if row["mean"] is None else 10.0 ** row["mean"],
            "num_only_first": alone[0],
            "num_only_second": alone[1],
            "verdict": _verdict(row["verdict"], len(both), *alone),
        }
    chain = intervals.chain([row["verdict"] for row in comparisons.values()])
    return comparisons | {"verdict": chain}


def _verdict(of_interval: str, num_both: int, only_first: int, only_second: int) -> str:
    """The verdict of the seeds in the interval and of those where only one tolerates some rate.

    The interval's, unless the other seeds contradict it. Where all seeds are of the other kind, the
    one that they agree on, if there are at least three.
    """
    if not only_first and not only_second:
        return of_interval
    alone = "undecided" if only_first and only_second else "holds" if only_first else "reversed"
    if num_both == 0:
        return alone if max(only_first, only_second) >= _FEWEST_ALONE else "undecided"
    return alone if alone == of_interval else "undecided"
