"""From ramps to tolerated learning rates, and what other thresholds would have said."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.frame import corpus, intervals
from experiments.frame import outcome as outcome_lib
from experiments.frame import point as point_lib
from experiments.lr_robustness import divergence

CRITERIA = ("stagnation", "spike", "degradation")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run: its loss, the unigram model's on the same batches, and its rate, each [S]."""

    loss: np.ndarray
    unigram: np.ndarray
    learning_rate: np.ndarray
    seed: int


@dataclasses.dataclass(frozen=True)
class Ramps:
    """The ramps of one topology and depth, and its run at its best fixed rate, if there is one."""

    ramps: tuple[Curve, ...]
    healthy: tuple[Curve, ...] = ()

    def tolerated(self, how: divergence.Thresholds) -> list[dict]:
        """Of each ramp: "seed", "rate" (the last before the onset), "criterion" and "step".

        A ramp without divergence tolerates its last rate at least; its criterion is None.
        """
        healthy, healthy_rate = self._healthy(how.window_steps)
        found = []
        for curve in self.ramps:
            passes = int(np.searchsorted(curve.learning_rate, healthy_rate))
            smooth = divergence.excess(curve.loss, curve.unigram, how.window_steps)
            onsets = divergence.onset(smooth, healthy, passes, how)
            first = onsets["first"]
            at = len(curve.loss) - 1 if first is None else max(0, first - 1)
            found.append({
                "seed": curve.seed,
                "rate": float(curve.learning_rate[at]),
                "criterion": next((c for c in CRITERIA if first is not None
                                   and onsets[c] == first), None),
                "step": at + 1,
            })
        return found

    def _healthy(self, window_steps: int) -> tuple[np.ndarray | None, float]:
        """The mean excess over seeds, and the peak of its rate."""
        if not self.healthy:
            return None, 0.0
        smooth = [divergence.excess(c.loss, c.unigram, window_steps) for c in self.healthy]
        return np.mean(smooth, axis=0), float(self.healthy[0].learning_rate.max())


def read(outcomes: Sequence[outcome_lib.Outcome], data: str) -> tuple[Curve, ...]:
    """The curves of runs that have a result."""
    curves = []
    for outcome in outcomes:
        if outcome.has_result:
            _, loss = outcome.curve()
            _, learning_rate = outcome.curve("train/learning_rate")
            unigram = corpus.unigram_losses(point_lib.build([outcome.point], data))
            curves.append(Curve(loss, unigram[: len(loss)], learning_rate, outcome.point.seed))
    return tuple(curves)


def variants(base: divergence.Thresholds) -> dict[str, divergence.Thresholds]:
    """The thresholds, each of them halved and doubled, and each criterion left out, by names."""
    found = {"as chosen": base}
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        for factor, word in ((0.5, "half"), (2, "twice")):
            changed = type(value)(max(1, value * factor) if isinstance(value, int)
                                  else value * factor)
            found[f"{field.name} {changed:g} ({word})"] = dataclasses.replace(
                base, **{field.name: changed}
            )
    for criterion in CRITERIA:
        found[f"without {criterion}"] = without(criterion, base)
    return found


def without(criterion: str, base: divergence.Thresholds) -> divergence.Thresholds:
    """`base` with one criterion that never fires."""
    never = -np.inf if criterion == "stagnation" else np.inf
    return dataclasses.replace(base, **{f"{criterion}_nats": never})


def summary(tolerated: list[dict]) -> dict:
    """Over seeds: the median rate and its range, the criteria that decided, how many never did."""
    rates = [row["rate"] for row in tolerated]
    criteria = [row["criterion"] for row in tolerated]
    return {
        "by_seed": tolerated,
        "median": float(np.median(rates)) if rates else None,
        "least": min(rates, default=None),
        "greatest": max(rates, default=None),
        "log10": intervals.mean([_log10(rate) for rate in rates]),
        "criteria": {str(name): criteria.count(name) for name in dict.fromkeys(criteria)},
        "num_never_diverged": criteria.count(None),
    }


def orderings(rates: dict[str, dict[int, float]]) -> dict:
    """Neighbours in the order of `rates`, a mapping topology -> seed -> rate.

    Returns:
      "keel > pre_ln" and so on: `intervals.ordering` of log10 rates, with "ratio", the geometric
      mean of the ratios; "verdict" of the chain.
    """
    names, found = list(rates), {}
    for first, second in zip(names, names[1:], strict=False):
        seeds = [seed for seed in rates[first] if seed in rates[second]]
        pair = [[_log10(rates[name][seed]) for seed in seeds] for name in (first, second)]
        row = intervals.ordering(*pair)
        ratio = None if row["mean"] is None else 10.0 ** row["mean"]
        found[f"{first} > {second}"] = row | {"ratio": ratio}
    return found | {"verdict": intervals.chain([row["verdict"] for row in found.values()])}


def _log10(rate: float) -> float:
    # A ramp's first rate is 0: a run that never was healthy tolerates less than any other.
    return float(np.log10(max(rate, 1e-6)))
