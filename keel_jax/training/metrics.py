"""The metrics of a run, with units in their names, computed from a step's sums."""

import math
from collections.abc import Mapping

import numpy as np

from keel_jax import config

# What every train step returns for a trial, apart from the recomputation plan's statistics.
_EVERY_STEP = frozenset(
    (
        *("nats", "weight", "correct", "log_z_squared"),
        *("grad_norm", "param_norm", "learning_rate", "diverged"),
    )
)


def loss_metrics(prefix: str, sums: dict[str, float], bytes_per_token: float) -> dict[str, float]:
    """Averages from `loss.cross_entropy_sums`; this is the only place that divides.

    Args:
      prefix: "train" or "eval".
      sums: of one trial, as Python floats.
      bytes_per_token: of the text that the tokens encode; bits per byte = nats per token / ln 2 /
        bytes per token.
    """
    weight = sums["weight"] or math.nan
    nats = sums["nats"] / weight
    return {
        f"{prefix}/loss_nats_per_token": nats,
        f"{prefix}/bits_per_byte": nats / math.log(2) / bytes_per_token,
        f"{prefix}/perplexity": math.exp(min(nats, 700.0)),
        f"{prefix}/accuracy": sums["correct"] / weight,
        f"{prefix}/log_z_rms": math.sqrt(sums["log_z_squared"] / weight),
    }


def block_statistics(sums: Mapping) -> dict[str, np.ndarray]:
    """A step's statistics per block (`depth.step_statistics`): vectors [N]."""
    return {name: value for name, value in sums.items() if np.ndim(value) == 1}


def step_statistics(sums: Mapping) -> dict[str, float]:
    """The same statistics as numbers: the largest entry of each vector, and scalars unchanged.

    Args:
      sums: of one trial, everything that its step returned.
    """
    blocks = block_statistics(sums)
    numbers = {name: sums[name] for name in sums.keys() - blocks.keys() - _EVERY_STEP}
    largest = {f"{name}_max": float(value.max()) for name, value in blocks.items()}
    return {f"train/{name}": value for name, value in (largest | numbers).items()}


def speed_metrics(
    cfg: config.Config, step_seconds: float, data_wait_fraction: float, peak_flops: float | None
) -> dict[str, float]:
    """Speed over the steps since the last line.

    Model FLOPs do not include recomputation (`ModelConfig.flops_per_token`). MFU divides by the
    chips' bf16 peak, with causal attention counted at half or, for `_full_attention`, in full; both
    are absent if the chip is not known.

    Args:
      peak_flops: FLOP/s of all devices together, or None.
    """
    tokens_per_second = cfg.train.tokens_per_step * cfg.num_trials / step_seconds
    flops = tokens_per_second * cfg.model.flops_per_token(cfg.train.seq_len)
    metrics = {
        "time/step_seconds": step_seconds,
        "time/tokens_per_second": tokens_per_second,
        "time/data_wait_fraction": data_wait_fraction,
        "time/model_flops_per_second": flops,
    }
    if peak_flops:
        full = tokens_per_second * cfg.model.flops_per_token(cfg.train.seq_len, causal=False)
        metrics["time/mfu"] = flops / peak_flops
        metrics["time/mfu_full_attention"] = full / peak_flops
    return metrics
