"""From losses without parts to numbers, verdicts and figures.

A found model is a mapping: "topology", "seed", "num_blocks", "step", "loss" (nats a token, whole),
"without_sublayer" [L], "without_sublayer_identity" [L] (NaN where there is no such thing),
"without_block" [N], "rotation_radians" [L], "greedy_blocks", "greedy_losses". Perplexity is
exp(loss); Delta PPL is that without a part minus the whole's.

Letters: N blocks, L = 2N sub-layers.
"""

import collections
import pathlib

import numpy as np
import scipy.stats

from experiments.layer_redundancy import removal
from experiments.sweeps import figures, intervals
from keel_jax import errors

# "The first few layers are critical" (App. A): so many blocks.
FIRST_BLOCKS = 2
# Of the blocks after them, the part that is called shallow.
_SHALLOW_FRACTION = 1 / 3
# A perplexity so many times the whole model's is what pruning may cost.
BUDGETS = (1.05, 1.1, 1.2, 1.5)
_DIGITS = 4


def measure(model: removal.Model, num_candidates: int) -> dict:
    """Everything that is found out about one model."""
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


def numbers(found: list[dict]) -> dict:
    """Of each topology, intervals over seeds; and the predictions of NOTES.md."""
    told = {}
    for name, group in _by_topology(found).items():
        summaries = [summary(model) for model in group]
        told[name] = {
            "num_sublayers": 2 * group[0]["num_blocks"],
            **{key: _rounded(intervals.mean([s[key] for s in summaries])) for key in summaries[0]},
            "delta_ppl_block": _median_over_seeds(group, delta_ppl_block),
            "delta_ppl_sublayer": _median_over_seeds(group, delta_ppl_sublayer),
            "rotation_radians": _median_over_seeds(group, lambda m: m["rotation_radians"]),
        }
    return told | {"checks": checks(found)}


def summary(model: dict) -> dict:
    """The scalars of one model."""
    delta_N = delta_ppl_block(model)
    later_N = delta_N[FIRST_BLOCKS:]
    num_shallow = max(1, round(_SHALLOW_FRACTION * len(later_N)))
    identity_L = ppl_delta(model, model["without_sublayer_identity"])
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


def removable(model: dict, budget: float) -> int:
    """Blocks that can go while the perplexity is at most `budget` times the whole model's."""
    within = np.array(model["greedy_losses"]) <= model["loss"] + np.log(budget)
    return int(np.argmin(within)) if not within.all() else len(within)


def checks(found: list[dict]) -> dict:
    """The predictions of NOTES.md: what was found, and whether it holds."""
    groups, told = _by_topology(found), {}
    for name, group in groups.items():
        most = [int(np.argmax(delta_ppl_block(model))) for model in group]
        told[f"first blocks, {name}"] = {
            "most_critical_block": most,
            "holds": all(block < FIRST_BLOCKS for block in most),
        }
        rising = intervals.mean([summary(m)["rank_correlation_with_depth"] for m in group])
        verdict = intervals.sign(rising)
        told[f"rises with depth, {name}"] = {
            **_rounded(rising),
            "verdict": verdict,
            "holds": verdict == "holds",
        }
    if set(groups) >= {"keel", "pre_ln"}:
        keel, pre_ln = (
            {model["seed"]: summary(model) for model in groups[name]} for name in ("keel", "pre_ln")
        )
        told["shallow blocks, keel above pre_ln"] = _compare(
            keel, pre_ln, "delta_ppl_shallow_blocks"
        )
        told["removable blocks, pre_ln above keel"] = _compare(pre_ln, keel, "removable_at_1.1")
    return told


def _compare(first: dict[int, dict], second: dict[int, dict], key: str) -> dict:
    """Whether `key` of the first ones is above the second ones', by the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    found = intervals.ordering(*([found[seed][key] for seed in seeds] for found in (first, second)))
    return {**_rounded(found), "holds": found["verdict"] == "holds"}


def delta_ppl_block(model: dict) -> np.ndarray:
    """Delta PPL of each block, [N]."""
    return ppl_delta(model, model["without_block"])


def delta_ppl_sublayer(model: dict) -> np.ndarray:
    """Delta PPL of each sub-layer's branch, [L]."""
    return ppl_delta(model, model["without_sublayer"])


def ppl_delta(model: dict, losses: np.ndarray) -> np.ndarray:
    """exp(loss without) - exp(loss of the whole)."""
    return np.exp(losses) - np.exp(model["loss"])


# --- Figures -------------------------------------------------------------------------------------


def draw(found: list[dict], out: pathlib.Path) -> None:
    """Every figure, into `out`/figures."""
    groups = _by_topology(found)
    symlog = {"value": "symlog", "linthresh": 0.1}
    panels = (
        ("block", "block", "ΔPPL without its branches", delta_ppl_block, symlog),
        ("sublayer", "sub-layer", "ΔPPL without its branch", delta_ppl_sublayer, symlog),
        (
            "rotation",
            "sub-layer",
            "angle between the streams before and after [rad]",
            lambda model: model["rotation_radians"],
            {"value": "log"},
        ),
    )
    for stem, x, y, read, scale in panels:
        canvas, axes = figures.new()
        data = []
        for name, group in groups.items():
            values = np.array([read(model) for model in group]).T
            data.append(figures.draw(axes, range(len(values)), values, figures.name(name)))
        axes.set(xlabel=x, ylabel=y)
        axes.set_yscale(**scale)
        axes.legend()
        figures.save(canvas, out, stem, data)
    _draw_greedy(groups, out)


def _draw_greedy(groups, out):
    """Perplexity against blocks removed, relative to the whole model's."""
    canvas, axes = figures.new()
    data = []
    for name, group in groups.items():
        ratios = [np.exp(np.array([0.0, *np.array(m["greedy_losses"]) - m["loss"]])) for m in group]
        longest = max(len(ratio) for ratio in ratios)
        # A model that has left the budget is not pruned on.
        values = [[r[k] for r in ratios if k < len(r)] for k in range(longest)]
        data.append(figures.draw(axes, range(longest), values, figures.name(name)))
    for budget in BUDGETS:
        axes.axhline(budget, color="0.8", linewidth=0.8)
    axes.set(
        xlabel="blocks removed, cheapest first",
        ylabel="PPL / PPL of the whole model",
        ylim=(0.95, max(BUDGETS) * 1.1),
    )
    axes.legend()
    figures.save(canvas, out, "greedy", data)


# --- Models --------------------------------------------------------------------------------------


def _by_topology(found: list[dict]) -> dict[str, list[dict]]:
    """The models of each topology, which are alike but for their seeds.

    Raises:
      UserError: they are not; with what they are.
    """
    groups = collections.defaultdict(list)
    for model in found:
        groups[model["topology"]].append(model)
    for topology, group in groups.items():
        kinds = {(m["num_blocks"], m["step"], m["peak_lr"]) for m in group}
        if len(kinds) > 1:
            raise errors.UserError(
                f"The {topology} models are no seeds of one run: their (blocks, steps, peak rates) "
                f"are {sorted(kinds, key=str)}. Give work directories of one kind."
            )
    return dict(groups)


def _median_over_seeds(group, read) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in np.median([read(m) for m in group], axis=0)]


def _rank_correlation(values: np.ndarray) -> float:
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(np.arange(len(values)), values).statistic)


def _rounded(found: dict) -> dict:
    return {
        key: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
        for key, value in found.items()
    }
