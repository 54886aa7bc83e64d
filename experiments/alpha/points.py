"""The runs of each preset: one series a variant."""

import math
from collections.abc import Mapping, Sequence

from experiments.sweeps import experiment, point

# The default: alpha = 2N, v2 first block, inner norm, float32 stream.
REFERENCE = "keel-2N"


def alphas(num_blocks: int) -> dict[str, float | None]:
    """Values of alpha by name; None is the topology's own, 2N."""
    return {
        "keel-1": 1.0,
        "keel-L_to_1_4": (2 * num_blocks) ** 0.25,
        "keel-sqrt_L": math.sqrt(2 * num_blocks),
        "keel-N": float(num_blocks),
        REFERENCE: None,
        "keel-4N": 4.0 * num_blocks,
    }


# The other choices, each alone.
VARIANTS = {
    "keel-v1": {"model.topology": "keel", "model.keel_first_block": "v1"},
    "keel-no_inner_norm": {"model.topology": "keel_no_inner_norm"},
    "keel-scaled_input": {"model.topology": "keel_scaled_input"},
    "keel-scaled_inner_norm": {"model.topology": "keel_scaled_inner_norm"},
    "keel-bf16_stream": {"model.topology": "keel", "model.stream_dtype": "bfloat16"},
    "pre_ln-branch_over_L": {"model.topology": "complete_p"},
    "pre_ln": {"model.topology": "pre_ln"},
}


def micro() -> experiment.Preset:
    """64 sub-layers, 32 wide: two cores, minutes."""
    points = _points(
        "experiments/configs/micro.py",
        32,
        (3.2e-3, 1e-2),
        range(3),
        {"train.num_steps": 150, "optim.warmup_steps": 30},
    )
    # The choices other than alpha are run at the larger rate alone.
    points = [each for each in points if each.series not in VARIANTS or each.peak_lr == 1e-2]
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=6)


def small() -> experiment.Preset:
    """64 and 512 sub-layers, 128 wide: one accelerator."""
    points = []
    for num_blocks in (32, 256):
        points += _points(
            "experiments/configs/small.py",
            num_blocks,
            (3e-3, 1e-2, 3e-2),
            range(3),
            {"model.num_blocks": num_blocks},
            f"-L{2 * num_blocks}",
        )
    return experiment.Preset(points=points, embedded_vocab_size=1024, max_trials=9)


def paper() -> experiment.Preset:
    """The paper's 512 sub-layers, 1024 wide, at its rate, one seed."""
    return experiment.Preset(
        points=_points("experiments/configs/keel_L512.py", 256, (6e-3,), (0,), {}), max_trials=1
    )


PRESETS = {"micro": micro, "small": small, "paper": paper}


def _points(
    config_file: str,
    num_blocks: int,
    rates: Sequence[float],
    seeds: Sequence[int],
    overrides: Mapping[str, object],
    suffix: str = "",
) -> list[point.Point]:
    points = []
    for name, alpha in alphas(num_blocks).items():
        own = {"model.topology": "keel", **({} if alpha is None else {"model.alpha": alpha})}
        points += point.grid(name + suffix, config_file, {**overrides, **own}, rates, seeds)
    for name, own in VARIANTS.items():
        points += point.grid(name + suffix, config_file, {**overrides, **own}, rates, seeds)
    return points
