"""The runs of each preset: Keel and Pre-LN, deeper at one width, and wide instead of deep."""

from collections.abc import Mapping, Sequence

from experiments.sweeps import experiment, point

TOPOLOGIES = ("keel", "pre_ln")

# arXiv:2601.19895, Table 3: sub-layers, peak rate of Keel and of Pre-LN.
_PAPER_RATES = {64: (9e-3, 9e-3), 128: (9e-3, 9e-3), 512: (6e-3, 6e-3), 1024: (4.5e-3, 3e-3)}


def series(topology: str, num_sublayers: int, d_model: int) -> str:
    """The name of the runs of one topology and shape."""
    return f"{topology}-L{num_sublayers}-d{d_model}"


def parse_series(name: str) -> tuple[str, int, int]:
    """The inverse of `series`."""
    topology, depth, width = name.split("-")
    return topology, int(depth[1:]), int(width[1:])


def micro() -> experiment.Preset:
    """16, 64 and 128 sub-layers, 32 wide, and 16 of 64: two cores, minutes."""
    shapes = [(8, 32, 96), (32, 32, 96), (64, 32, 96), (8, 64, 192)]
    overrides = {"train.num_steps": 150, "optim.warmup_steps": 30}
    return experiment.Preset(
        points=_points("experiments/configs/micro.py", shapes, (3.2e-3, 1e-2), range(3), overrides),
        embedded_vocab_size=384,
        max_trials=6,
    )


def small() -> experiment.Preset:
    """64 to 512 sub-layers, 128 wide, and 64 of 256: one accelerator."""
    shapes = [(32, 128, 384), (64, 128, 384), (128, 128, 384), (256, 128, 384), (32, 256, 768)]
    return experiment.Preset(
        points=_points("experiments/configs/small.py", shapes, (1e-3, 3e-3, 1e-2), range(3), {}),
        embedded_vocab_size=1024,
        max_trials=9,
    )


def paper() -> experiment.Preset:
    """Table 3 at the paper's rates, and Table 5 with wide Keel, which the paper lacks."""
    points = []
    for num_sublayers, rates in _PAPER_RATES.items():
        for topology, rate in zip(TOPOLOGIES, rates, strict=True):
            points += point.grid(
                series(topology, num_sublayers, 1024),
                f"experiments/configs/{topology}_L{num_sublayers}.py",
                {},
                (rate,),
                (0,),
            )
    for topology, file in zip(TOPOLOGIES, ("wide", "pre_ln_wide"), strict=True):
        points += point.grid(
            series(topology, 128, 2048),
            f"experiments/configs/{file}.py",
            {},
            (1.5e-3, 3e-3, 6e-3),
            (0,),
        )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {"micro": micro, "small": small, "paper": paper}


def _points(
    config_file: str,
    sizes: Sequence[tuple[int, int, int]],
    rates: Sequence[float],
    seeds: Sequence[int],
    overrides: Mapping[str, object],
) -> list[point.Point]:
    """Both topologies at each size, (blocks, width, FFN width)."""
    return [
        each
        for num_blocks, d_model, d_ffn in sizes
        for topology in TOPOLOGIES
        for each in point.grid(
            series(topology, 2 * num_blocks, d_model),
            config_file,
            {
                "model.topology": topology,
                "model.num_blocks": num_blocks,
                "model.d_model": d_model,
                "model.d_ffn": d_ffn,
                **overrides,
            },
            rates,
            seeds,
        )
    ]
