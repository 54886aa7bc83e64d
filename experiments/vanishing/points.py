"""The variants of Keel and of its training, and the runs of each preset."""

import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.sweeps import experiment, point

# What each variant changes of `configs/deep.py`, whose topology is Keel.
TOPOLOGIES = {
    "keel": {},
    "pre_ln": {"model.topology": "pre_ln"},
    "complete_p": {"model.topology": "complete_p"},
}
# Of the model: a bound on the branches' RMS (of 1, 1/2 and 2), an embedding that is as long as the
# stream that the outer norms leave, normed queries and keys, these together; and the paper's 0.02
# as it is.
_CAP = {"model.topology": "keel_capped"}
_UNIT = {"model.embedding_std": 1.0}
_QK_NORM = {"model.qk_norm": True}
IN_MODEL = {
    "keel_capped": _CAP,
    "cap_half": _CAP | {"model.branch_cap": 0.5},
    "cap_2": _CAP | {"model.branch_cap": 2.0},
    "unit_embedding": _UNIT,
    "qk_norm": _QK_NORM,
    "capped_unit_embedding": _CAP | _UNIT,
    "capped_qk_norm": _CAP | _QK_NORM,
    "all_three": _CAP | _UNIT | _QK_NORM,
    "small_init": {"model.init_std": 0.02},
    "wide": {
        "model.d_model": 64,
        "model.d_ffn": 192,
        "model.init_std": 0.02 * math.sqrt(1024 / 64),
    },
}
# Of the training: half of the run is warm-up; 30 times the decay, on every matrix; a second moment
# that forgets in 1000 steps; no clipping; another optimizer.
IN_TRAINING = {
    "long_warmup": {"optim.warmup_steps": 150},
    "decay": {"optim.weight_decay": 0.3},
    "beta2": {"optim.beta2": 0.999},
    "unclipped": {"optim.clip_norm": 0.0},
    "muon": {"optim.name": "muon"},
}
VARIANTS: Mapping[str, Mapping[str, object]] = TOPOLOGIES | IN_MODEL | IN_TRAINING
# Those whose branches are followed by an outer norm and bounded by no cap.
UNCAPPED = ("keel", "unit_embedding", "qk_norm", "small_init", "wide", *IN_TRAINING)
# Of these, the ones that begin with branches of the same size in a stream of the same width.
EXPLAINED = tuple(name for name in UNCAPPED if name not in ("small_init", "wide"))
CAPPED = tuple(name for name, options in IN_MODEL.items() if _CAP.items() <= options.items())
_PRIMARY = ("keel", "keel_capped")
_FIRST_LOOK = (*TOPOLOGIES, "keel_capped", "unit_embedding", "capped_unit_embedding")

# 0 and 1 were a pilot's, 10 and more are those of lr_robustness, 30 and more of branch_weight.
_FIRST_SEED = 40
_DEEP = {"train.num_steps": 300, "optim.warmup_steps": 60, "telemetry.every_steps": 10}


def series(variant: str, num_sublayers: int) -> str:
    """The name of a variant's runs at one depth."""
    return f"{variant}-L{num_sublayers}"


def parse_series(name: str) -> tuple[str, int]:
    """The inverse of `series`."""
    variant, depth = name.split("-")
    return variant, int(depth.removeprefix("L"))


def micro() -> experiment.Preset:
    """64 sub-layers, 32 wide, 150 steps: two cores, minutes."""
    options = {"train.num_steps": 150, "optim.warmup_steps": 30, "telemetry.every_steps": 10}
    points = _points(_FIRST_LOOK, 64, (3.2e-3, 1e-2, 3.2e-2), range(3), options)
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=9)


def deep() -> experiment.Preset:
    """Every variant at 64 and 256 sub-layers, three at 1024; 32 wide, 300 steps: two cores, hours.

    What decides most comes first, so that a part of it is worth something.
    """
    rates = (1e-3, 3.2e-3, 1e-2, 3.2e-2)
    points = _points(_PRIMARY, 256, rates, range(5), _DEEP)
    points += _points(tuple(v for v in VARIANTS if v not in _PRIMARY), 256, rates, range(3), _DEEP)
    points += _points(tuple(VARIANTS), 64, (*rates, 1e-1), range(3), _DEEP)
    points += _points((*_PRIMARY, "complete_p"), 1024, rates[:3], range(3), _DEEP)
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=10)


def small() -> experiment.Preset:
    """The topologies, caps and embeddings at 64 and 512 sub-layers, 128 wide: one accelerator."""
    options = {"telemetry.every_steps": 50, "optim.weight_decay": 0.01}
    scale = {"model.init_std": 0.02 * math.sqrt(1024 / 128)}
    points = []
    for num_sublayers in (64, 512):
        rates = (1e-3, 3e-3, 1e-2, 3e-2)
        file = "experiments/configs/small.py"
        points += _points(_FIRST_LOOK, num_sublayers, rates, range(3), options | scale, file)
    return experiment.Preset(points=points, embedded_vocab_size=1024, max_trials=8)


def paper() -> experiment.Preset:
    """The paper's 512 sub-layers, 1024 wide, at its rate and at one that is too large; one seed."""
    points = _points(
        ("keel", "keel_capped", "complete_p"),
        512,
        (6e-3, 2e-2),
        range(1),
        {"telemetry.every_steps": 50},
        "experiments/configs/keel_L512.py",
    )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {"micro": micro, "deep": deep, "small": small, "paper": paper}


def _points(
    variants: Sequence[str],
    num_sublayers: int,
    rates: Sequence[float],
    seeds: Iterable[int],
    overrides: Mapping[str, object],
    config_file: str = "experiments/configs/deep.py",
) -> list[point.Point]:
    return [
        each
        for variant in variants
        for each in point.grid(
            series(variant, num_sublayers),
            config_file,
            {"model.num_blocks": num_sublayers // 2, **overrides, **VARIANTS[variant]},
            rates,
            [_FIRST_SEED + seed for seed in seeds],
        )
    ]
