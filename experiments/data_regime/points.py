"""The runs of each preset: Keel and Pre-LN on more steps, and on more distinct tokens."""

from collections.abc import Sequence

from experiments.sweeps import experiment, point

TOPOLOGIES = ("keel", "pre_ln")
ALL = "all"


def series(topology: str, num_steps: int, num_tokens: int | None) -> str:
    """The name of the runs of one topology, length and number of distinct training tokens."""
    return f"{topology}-steps{num_steps}-tokens{num_tokens or ALL}"


def parse_series(name: str) -> tuple[str, int, int | None]:
    """The inverse of `series`."""
    topology, steps, tokens = name.split("-")
    tokens = tokens.removeprefix("tokens")
    return topology, int(steps.removeprefix("steps")), None if tokens == ALL else int(tokens)


def micro() -> experiment.Preset:
    """50 to 200 steps of 256 tokens; 200 steps on fewer distinct tokens: two cores, minutes."""
    regimes = [(50, None), (100, None), (200, None), (200, 2**11)]
    return experiment.Preset(
        points=_points("experiments/configs/micro.py", regimes, (3.2e-3, 1e-2), range(3)),
        embedded_vocab_size=384,
        max_trials=6,
    )


def small() -> experiment.Preset:
    """500 to 16 000 steps of 8192 tokens; 4000 on fewer distinct tokens: one accelerator."""
    regimes = [
        (500, None),
        (1000, None),
        (2000, None),
        (4000, None),
        (8000, None),
        (16000, None),
        (4000, 2**18),
        (4000, 2**20),
    ]
    return experiment.Preset(
        points=_points("experiments/configs/small.py", regimes, (1e-3, 3e-3, 1e-2), range(3)),
        embedded_vocab_size=1024,
        max_trials=9,
    )


def paper() -> experiment.Preset:
    """Table 4's two sizes of FineWeb-Edu at 512 sub-layers, over its grid of rates."""
    points = []
    for size, num_tokens, seq_len in (("10b", 10 * 10**9, 2048), ("40b", 40 * 10**9, 4096)):
        num_steps = -(-num_tokens // (256 * seq_len))
        for topology, prefix in zip(TOPOLOGIES, ("", "pre_ln_"), strict=True):
            points += point.grid(
                series(topology, num_steps, None),
                f"experiments/configs/{prefix}fineweb_edu_{size}.py",
                {},
                (1e-3, 1.5e-3, 3e-3, 4.5e-3),
                (0,),
            )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {"micro": micro, "small": small, "paper": paper}


def _points(
    config_file: str,
    regimes: Sequence[tuple[int, int | None]],
    rates: Sequence[float],
    seeds: Sequence[int],
) -> list[point.Point]:
    """Both topologies in each regime, (steps, distinct training tokens)."""
    return [
        each
        for num_steps, num_tokens in regimes
        for topology in TOPOLOGIES
        for each in point.grid(
            series(topology, num_steps, num_tokens),
            config_file,
            {
                "model.topology": topology,
                "train.num_steps": num_steps,
                # A fifth of every run, whatever its length.
                "optim.warmup_steps": num_steps // 5,
            },
            rates,
            seeds,
            num_tokens,
        )
    ]
