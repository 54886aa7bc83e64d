"""From the losses of models without their parts to numbers, and to predictions held against them.

A measured model is a mapping: "topology", "seed", "peak_lr", "num_blocks", "step", "loss" (of the
whole model, nats a token), "without_sublayer" [L], "without_sublayer_identity" [L] (NaN where the
topology has no identity), "without_block" [N], "rotation_radians" [L], "greedy_blocks" and
"greedy_losses". Perplexity (PPL) is exp(loss); Delta PPL is the perplexity without a part minus
that of the whole model.

Letters: N blocks, L = 2N sub-layers.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.layer_redundancy import removal
from experiments.sweeps import intervals
from keel_jax import errors

# Blocks that count as the first in "the first few layers are critical" (App. A).
FIRST_BLOCKS = 2
# Fraction of the blocks after them that counts as shallow, and as deep.
_SHALLOW_FRACTION = 1 / 3
# What pruning may cost: the perplexity as a multiple of the whole model's.
BUDGETS = (1.05, 1.1, 1.2, 1.5)
_DIGITS = 4

# See the head of this module.
Measured = Mapping


def measure(model: removal.Model, num_candidates: int) -> dict:
    """Everything that is measured of one model."""
    whole = model.loss(np.zeros((model.num_blocks, 2), bool))
    without_block = removal.without_each_block(model)
    blocks, losses = removal.greedy(
        model, without_block, num_candidates, whole + np.log(max(BUDGETS))
    )
    identity = np.full(2 * model.num_blocks, np.nan)
    if removal.has_identity(model):
        identity = removal.without_each_sublayer(model, removal.IDENTITY)
    return {
        "topology": model.cfg.model.topology,
        "seed": model.seed,
        "peak_lr": model.peak_lr,
        "num_blocks": model.num_blocks,
        "step": model.step,
        "loss": whole,
        "without_sublayer": removal.without_each_sublayer(model),
        "without_sublayer_identity": identity,
        "without_block": without_block,
        "rotation_radians": model.rotation_radians(),
        "greedy_blocks": blocks,
        "greedy_losses": losses,
    }


def numbers(measured: Sequence[Measured]) -> dict:
    """Intervals over seeds for each topology, and the predictions of NOTES.md."""
    by_name = {}
    for name, group in by_topology(measured).items():
        summaries = [summary(model) for model in group]
        by_name[name] = {
            "num_sublayers": 2 * group[0]["num_blocks"],
            **{key: _rounded(intervals.mean([s[key] for s in summaries])) for key in summaries[0]},
            "delta_ppl_block": _median_over_seeds(group, delta_ppl_block),
            "delta_ppl_sublayer": _median_over_seeds(group, delta_ppl_sublayer),
            "rotation_radians": _median_over_seeds(group, lambda m: m["rotation_radians"]),
        }
    return by_name | {"checks": checks(measured)}


def summary(model: Measured) -> dict:
    """The scalars of one model."""
    delta_N = delta_ppl_block(model)
    later_N = delta_N[FIRST_BLOCKS:]
    num_shallow = max(1, round(_SHALLOW_FRACTION * len(later_N)))
    identity_L = delta_ppl(model, model["without_sublayer_identity"])
    return {
        "ppl": float(np.exp(model["loss"])),
        "delta_ppl_first_blocks": float(delta_N[:FIRST_BLOCKS].mean()),
        "delta_ppl_shallow_blocks": float(later_N[:num_shallow].mean()),
        "delta_ppl_deep_blocks": float(later_N[-num_shallow:].mean()),
        # Spearman's rank correlation of Delta PPL with depth, after the first blocks.
        "rank_correlation_with_depth": _rank_correlation(later_N),
        "delta_ppl_median_sublayer": float(np.median(delta_ppl_sublayer(model))),
        "delta_ppl_median_sublayer_identity": float(np.median(identity_L)),
        "delta_ppl_attention": float(np.median(delta_ppl_sublayer(model)[0::2])),
        "delta_ppl_ffn": float(np.median(delta_ppl_sublayer(model)[1::2])),
        "similarity_median": float(np.median(np.cos(model["rotation_radians"]))),
        **{f"removable_at_{budget:g}": removable(model, budget) for budget in BUDGETS},
    }


def removable(model: Measured, budget: float) -> int:
    """How many blocks can go at a perplexity of at most `budget` times the whole model's."""
    within = np.array(model["greedy_losses"]) <= model["loss"] + np.log(budget)
    return int(np.argmin(within)) if not within.all() else len(within)


def checks(measured: Sequence[Measured]) -> dict:
    """The predictions of NOTES.md: what was measured, and whether they hold."""
    groups, predictions = by_topology(measured), {}
    for name, group in groups.items():
        most = [int(np.argmax(delta_ppl_block(model))) for model in group]
        predictions[f"first blocks, {name}"] = {
            "most_critical_block": most,
            "holds": all(block < FIRST_BLOCKS for block in most),
        }
        rising = intervals.mean([summary(m)["rank_correlation_with_depth"] for m in group])
        verdict = intervals.sign(rising)
        predictions[f"rises with depth, {name}"] = {
            **_rounded(rising),
            "verdict": verdict,
            "holds": verdict == "holds",
        }
    if set(groups) >= {"keel", "pre_ln"}:
        keel, pre_ln = (
            {model["seed"]: summary(model) for model in groups[name]} for name in ("keel", "pre_ln")
        )
        predictions["shallow blocks, keel above pre_ln"] = _compare(
            keel, pre_ln, "delta_ppl_shallow_blocks"
        )
        predictions["removable blocks, pre_ln above keel"] = _compare(
            pre_ln, keel, "removable_at_1.1"
        )
    return predictions


def _compare(first: dict[int, dict], second: dict[int, dict], key: str) -> dict:
    """Whether `key` of the first models is above that of the second, over the seeds of both."""
    seeds = sorted(first.keys() & second.keys())
    ordering = intervals.ordering(
        [first[seed][key] for seed in seeds], [second[seed][key] for seed in seeds]
    )
    return {**_rounded(ordering), "holds": ordering["verdict"] == "holds"}


def delta_ppl_block(model: Measured) -> np.ndarray:
    """Delta PPL of each block, [N]."""
    return delta_ppl(model, model["without_block"])


def delta_ppl_sublayer(model: Measured) -> np.ndarray:
    """Delta PPL of each sub-layer's branch, [L]."""
    return delta_ppl(model, model["without_sublayer"])


def delta_ppl(model: Measured, losses: np.ndarray) -> np.ndarray:
    """exp(loss without a part) - exp(loss of the whole model), for an array of losses."""
    return np.exp(losses) - np.exp(model["loss"])


def by_topology(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The models of each topology, which differ in their seeds alone.

    Raises:
      UserError: they differ in depth, steps or peak rate.
    """
    groups: dict[str, list[Measured]] = collections.defaultdict(list)
    for model in measured:
        groups[model["topology"]].append(model)
    for topology, group in groups.items():
        kinds = {(m["num_blocks"], m["step"], m["peak_lr"]) for m in group}
        if len(kinds) > 1:
            raise errors.UserError(
                f"The {topology} models are no seeds of one run: their (blocks, steps, peak rates) "
                f"are {sorted(kinds, key=str)}. Give work directories of one kind."
            )
    return dict(groups)


def _median_over_seeds(
    group: Sequence[Measured], value_of: Callable[[Measured], np.ndarray]
) -> list[float]:
    medians = np.median([value_of(model) for model in group], axis=0)
    return [float(f"{value:.{_DIGITS}g}") for value in medians]


def _rank_correlation(values: np.ndarray) -> float:
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    result: Any = scipy.stats.spearmanr(np.arange(len(values)), values)
    return float(result.statistic)


def _rounded(interval: Mapping) -> dict:
    return {
        key: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
        for key, value in interval.items()
    }
