"""The models that are trained and then measured without their parts, and how much is measured."""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.sweeps import experiment, point

TOPOLOGIES = ("keel", "pre_ln")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a removal is measured on."""

    # Windows of the validation split, each as long as the run's.
    num_sequences: int
    # How many blocks the greedy search tries at each step: those whose removal alone costs least.
    num_candidates: int


SIZES = {
    "micro": Sizes(num_sequences=64, num_candidates=4),
    "small": Sizes(num_sequences=64, num_candidates=8),
    "paper": Sizes(num_sequences=64, num_candidates=8),
}


def micro() -> experiment.Preset:
    """64 sub-layers, 32 wide, 800 steps: both topologies are at their best at this rate."""
    overrides = {"train.num_steps": 800, "train.log_every_steps": 10}
    return _preset("experiments/configs/micro.py", 32, 1e-2, range(3), overrides, 384)


def small() -> experiment.Preset:
    """128 sub-layers, 128 wide."""
    return _preset("experiments/configs/small.py", 64, 6e-3, range(3), {}, 1024)


def paper() -> experiment.Preset:
    """The paper's 512 sub-layers, 1024 wide; one seed."""
    points = []
    for topology in TOPOLOGIES:
        points += point.grid(
            f"{topology}-L512", f"experiments/configs/{topology}_L512.py", {}, (6e-3,), (0,)
        )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {"micro": micro, "small": small, "paper": paper}


def _preset(
    config_file: str,
    num_blocks: int,
    peak_lr: float,
    seeds: Sequence[int],
    overrides: Mapping[str, object],
    vocab_size: int,
) -> experiment.Preset:
    points = []
    for topology in TOPOLOGIES:
        points += point.grid(
            f"{topology}-L{2 * num_blocks}",
            config_file,
            {"model.topology": topology, "model.num_blocks": num_blocks, **overrides},
            (peak_lr,),
            seeds,
        )
    return experiment.Preset(points=points, embedded_vocab_size=vocab_size)
