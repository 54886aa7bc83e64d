"""The runs of each preset: ramps and fixed learning rates, topology by topology."""

import math
import types
from collections.abc import Mapping, Sequence

from experiments.sweeps import experiment, point
from keel_jax import config

# The paper's Table 1 (arXiv:2601.19895).
TABLE_1 = ("keel", "pre_ln", "post_ln", "deepnorm", "hybridnorm", "mix_ln")
SUBLAYERS = (64, 512)
# Controls: what else than Keel's equation could explain the difference to Pre-LN. Its branches are
# divided by L (complete_p), or their last matrices begin smaller, as in GPT-2.
CONTROLS = ("complete_p", "pre_ln_gpt2")
# Fixed rates; the same over a longer run; without clipping; and the paper's ramps.
FIXED, LONG, UNCLIPPED, RAMP = "fixed", "long", "unclipped", "ramp"

# The grid at depth, over which losses are averaged (`sweeps.merit`), and the rate of the paper's
# Fig. 1a: an aggressive one, at which curves are shown and spikes are counted.
GRID = (1e-3, 3.2e-3, 1e-2, 3.2e-2, 1e-1)
GRID_1024 = GRID[:3]
GRID_GPU = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
AGGRESSIVE_RATE = 3.2e-2
# With two more between the grid's, where the losses at 64 sub-layers are lowest.
_GRID_64 = (1e-3, 3.2e-3, 5.6e-3, 1e-2, 1.8e-2, 3.2e-2, 1e-1)
# Of the long runs, four times as long as those of `configs/deep.py`, and the rates about the best.
_LONG = {"train.num_steps": 2400, "optim.warmup_steps": 240}
GRID_LONG = (3.2e-3, 1e-2, 3.2e-2)
# Twice as wide as `configs/deep.py`, with the scale at initialization carried over from 1024.
_WIDTH_64 = {
    "model.d_model": 64,
    "model.d_ffn": 192,
    "model.init_std": 0.02 * math.sqrt(1024 / 64),
}
# The first seed: 0 and 1 were a pilot's.
_FIRST_SEED = 10
# Options of what is no topology of its own.
_VARIANTS = {"pre_ln_gpt2": {"model.topology": "pre_ln", "model.output_init": "over_sqrt_depth"}}


def series(topology: str, num_sublayers: int, protocol: str) -> str:
    """The name of the runs of one topology, depth and protocol."""
    return f"{topology}-L{num_sublayers}-{protocol}"


def parse_series(name: str) -> tuple[str, int, str]:
    """The inverse of `series`."""
    topology, depth, protocol = name.split("-")
    return topology, int(depth.removeprefix("L")), protocol


def micro() -> experiment.Preset:
    """64 sub-layers, 32 wide: two cores, minutes."""
    rates = (1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2, 1.8e-2, 3.2e-2, 5.6e-2, 1e-1)
    points = []
    for topology in ("keel", "pre_ln", "post_ln"):
        points += _fixed(topology, 64, "experiments/configs/micro.py", rates, range(3), {})
        # 3.3e-4 a step: the paper's ramp in less than a fifteenth of its steps, to twice its peak.
        points += _ramp(
            topology,
            64,
            "experiments/configs/micro.py",
            1e-1,
            range(4),
            {"train.num_steps": 300},
        )
    # Whether it is the small branch alone that helps: added after the results of `alpha`.
    points += _fixed("complete_p", 64, "experiments/configs/micro.py", rates, range(3), {})
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=14)


def deep() -> experiment.Preset:
    """Keel, Pre-LN and Pre-LN with its branch over L at 64, 256 and 1024 sub-layers, 32 wide, 600
    steps: two cores, hours.

    What decides most comes first, so that a part of it is worth something.
    """
    points = []
    for depth, rates in ((256, GRID), (64, _GRID_64)):
        for topology in ("keel", "pre_ln"):
            points += _at_depth(topology, depth, rates, 4)
    for topology in ("keel", "pre_ln"):
        points += _at_depth(topology, 1024, GRID_1024, 3)
    for depth in (64, 256):
        points += _at_depth("complete_p", depth, GRID, 3)
    return _preset_at_depth(points)


def controls() -> experiment.Preset:
    """The rest of the paper's Table 1 and of the controls, without clipping too, and more of 1024.

    It begins with the runs of `deep`, which are not trained again where that has been run.
    """
    points = list(deep().points)
    for depth in (64, 256):
        for topology in (*CONTROLS[1:], *TABLE_1[2:]):
            points += _at_depth(topology, depth, GRID, 3)
    for topology in ("keel", "pre_ln", "complete_p"):
        points += _at_depth(topology, 1024, (*GRID_1024, AGGRESSIVE_RATE), 3)
    for depth in (64, 256):
        for topology in ("keel", "pre_ln", "post_ln"):
            points += _at_depth(topology, depth, (AGGRESSIVE_RATE,), 3, UNCLIPPED)
    return _preset_at_depth(list({point.name: point for point in points}.values()))


def overnight() -> experiment.Preset:
    """64 to 512 sub-layers, 64 wide, and two lengths of a run: two cores, hours.

    Whether the differences of `deep` are there at twice the width, and whether they last.
    """
    points = []
    for topology in ("keel", "pre_ln"):
        points += _at_depth(topology, 256, GRID_LONG, 3, FIXED, _WIDTH_64)
        points += _at_depth(topology, 256, GRID_LONG, 3, LONG, _WIDTH_64)
    for topology in ("keel", "pre_ln", "complete_p"):
        points += _at_depth(topology, 64, GRID, 3, FIXED, _WIDTH_64)
        points += _at_depth(topology, 64, GRID_LONG, 3, LONG, _WIDTH_64)
    for topology in ("keel", "pre_ln"):
        points += _at_depth(topology, 128, GRID_LONG, 3, FIXED, _WIDTH_64)
        points += _at_depth(topology, 512, GRID_1024, 3, FIXED, _WIDTH_64)
    return _preset_at_depth(points)


def gpu() -> experiment.Preset:
    """256 and 1024 sub-layers, 64 wide, 16 x 128 tokens: minutes of one large GPU.

    It is sized for eight minutes of an H200 by a guess: that a step is a matter of launches and not
    of sizes, and takes 0.3 s at 1024 sub-layers. So all 24 runs of a topology and depth are trials
    of one program. A checkpoint of them takes gigabytes, so there is none on the way.
    """
    batch = {
        "train.batch_size": 16,
        "train.seq_len": 128,
        "train.eval_num_batches": 16,
        "train.checkpoint_every_steps": 0,
    }
    points = []
    for num_sublayers, num_steps in ((256, 600), (1024, 200)):
        length = {"train.num_steps": num_steps, "optim.warmup_steps": num_steps // 10}
        for topology in ("keel", "pre_ln"):
            options = _WIDTH_64 | batch | length
            points += _at_depth(topology, num_sublayers, GRID_GPU, 4, FIXED, options)
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=24)


def small() -> experiment.Preset:
    """Every topology at 64 sub-layers and the paper's six at 512, 128 wide: one accelerator."""
    rates = (3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 5e-2)
    config_file = "experiments/configs/small.py"
    points = []
    for num_sublayers in SUBLAYERS:
        for topology in config.TOPOLOGIES if num_sublayers == 64 else TABLE_1:
            points += _fixed(topology, num_sublayers, config_file, rates, range(3), {})
            points += _ramp(
                topology,
                num_sublayers,
                config_file,
                5e-2,
                range(3),
                {"train.num_steps": 5000},
            )
    return experiment.Preset(points=points, embedded_vocab_size=1024, max_trials=8)


def paper() -> experiment.Preset:
    """The paper's shapes and its ramp, one seed; at 512 sub-layers for a slice of chips."""
    points = []
    for num_sublayers in SUBLAYERS:
        for topology in TABLE_1:
            points += _ramp(
                topology,
                num_sublayers,
                f"experiments/configs/keel_L{num_sublayers}.py",
                5e-2,
                (0,),
                # The files set the cosine's end to 0; a ramp has none, so it must be the default.
                {"train.num_steps": 5000, "train.num_tokens": 0, "optim.final_lr_fraction": 0.1},
            )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {
    "micro": micro,
    "deep": deep,
    "controls": controls,
    "overnight": overnight,
    "gpu": gpu,
    "small": small,
    "paper": paper,
}


def _preset_at_depth(points: Sequence[point.Point]) -> experiment.Preset:
    # More trials in a program save little, and at 1024 sub-layers 4 of them need 1.3 GB.
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=6)


def _at_depth(
    topology: str,
    num_sublayers: int,
    rates: Sequence[float],
    num_seeds: int,
    protocol: str = FIXED,
    more: Mapping[str, object] = types.MappingProxyType({}),
) -> list[point.Point]:
    overrides = {UNCLIPPED: {"optim.clip_norm": 0.0}, LONG: _LONG}.get(protocol, {}) | dict(more)
    return point.grid(
        series(topology, num_sublayers, protocol),
        "experiments/configs/deep.py",
        {**options_of(topology), "model.num_blocks": num_sublayers // 2, **overrides},
        rates,
        range(_FIRST_SEED, _FIRST_SEED + num_seeds),
    )


def options_of(topology: str) -> dict[str, object]:
    """The options of a topology, or of a variant of one."""
    return dict(_VARIANTS.get(topology, {"model.topology": topology}))


def _fixed(
    topology: str,
    num_sublayers: int,
    config_file: str,
    rates: Sequence[float],
    seeds: Sequence[int],
    overrides: Mapping[str, object],
) -> list[point.Point]:
    return point.grid(
        series(topology, num_sublayers, FIXED),
        config_file,
        {"model.topology": topology, "model.num_blocks": num_sublayers // 2, **overrides},
        rates,
        seeds,
    )


def _ramp(
    topology: str,
    num_sublayers: int,
    config_file: str,
    peak_lr: float,
    seeds: Sequence[int],
    overrides: Mapping[str, object],
) -> list[point.Point]:
    return point.grid(
        series(topology, num_sublayers, RAMP),
        config_file,
        {
            "model.topology": topology,
            "model.num_blocks": num_sublayers // 2,
            "optim.schedule": "linear_ramp",
            "train.log_every_steps": 1,
            **overrides,
        },
        (peak_lr,),
        seeds,
    )
