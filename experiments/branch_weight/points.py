"""The cells of the factorial, and the runs of each preset: stream x weight x embedding x scale.

A cell is one choice of each factor. Keel is normed, with the weight 1/L; Pre-LN is plain, with the
weight 1; CompleteP is plain, with the weight 1/L.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from experiments.sweeps import experiment, point

# Whether a norm follows the sum: LN(x + w F(LN x)), or x + w F(LN x) with a final norm.
STREAMS = NORMED, PLAIN = ("normed", "plain")
# w, the weight of the branch: 1, 1/sqrt(L), 1/L, or a/L with a learned a that begins at 1.
WEIGHTS = ONE, OVER_SQRT_L, OVER_L, LEARNED = ("1", "over_sqrt_L", "over_L", "learned")
# Standard deviation of the embedding's initial values: 1, or the paper's 0.02.
EMBEDDINGS = UNIT, SMALL = ("unit", "small")
# Of the other matrices: the paper's 0.02 carried over to the width (`configs/deep.py`), or 0.02.
SCALES = CARRIED, LITERAL = ("carried", "literal")
_PAPER_STD, _PAPER_WIDTH = 0.02, 1024

# The first seed: 0 and 1 were a pilot's, 10 and more are those of lr_robustness.
_FIRST_SEED = 30


@dataclasses.dataclass(frozen=True)
class Cell:
    """One choice of each factor."""

    stream: str
    weight: str
    embedding: str
    scale: str

    @property
    def name(self) -> str:
        """As in "normed-over_L-unit-carried"."""
        return "-".join(dataclasses.astuple(self))

    def series(self, num_sublayers: int) -> str:
        """The name of its runs at one depth."""
        return f"{self.name}-L{num_sublayers}"

    def options(self, num_sublayers: int, width: int) -> dict[str, object]:
        """What it sets in a config."""
        carried = _PAPER_STD * math.sqrt(_PAPER_WIDTH / width)
        return {
            "model.num_blocks": num_sublayers // 2,
            "model.embedding_std": 1.0 if self.embedding == UNIT else _PAPER_STD,
            "model.init_std": carried if self.scale == CARRIED else _PAPER_STD,
            **self._rule(num_sublayers),
        }

    def _rule(self, num_sublayers: int) -> dict[str, object]:
        """The topology and its weight; LN(x + w F) is LN(x / w + F), whose alpha is 1 / w."""
        topology = {"model.topology": "keel" if self.stream == NORMED else "complete_p"}
        if self.weight == LEARNED:
            return topology | {"model.learned_branch": True}
        if self.weight == OVER_L:
            return topology
        weight = 1.0 if self.weight == ONE else num_sublayers**-0.5
        if self.stream == NORMED:
            return topology | {"model.alpha": 1 / weight}
        return topology | {"model.branch_scale": weight}


CELLS = tuple(Cell(*choice) for choice in itertools.product(STREAMS, WEIGHTS, EMBEDDINGS, SCALES))
_CARRIED_CELLS = tuple(cell for cell in CELLS if cell.scale == CARRIED)


def parse_series(name: str) -> tuple[Cell, int]:
    """The inverse of `Cell.series`."""
    *choice, depth = name.split("-")
    return Cell(*choice), int(depth.removeprefix("L"))


def micro() -> experiment.Preset:
    """All cells at 64 sub-layers, 32 wide, 150 steps: two cores, minutes."""
    points = _points(
        CELLS,
        64,
        (3.2e-3, 1e-2, 3.2e-2),
        2,
        {"train.num_steps": 150, "optim.warmup_steps": 30, "telemetry.every_steps": 50},
    )
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=6)


def deep() -> experiment.Preset:
    """All cells at 64 sub-layers, those of the carried scale at 256, 600 steps: two cores, hours.

    What decides most comes first, so that a part of it is worth something.
    """
    telemetry = {"telemetry.every_steps": 100}
    points = _points(_CARRIED_CELLS, 256, (3.2e-3, 1e-2, 3.2e-2), 3, telemetry)
    points += _points(CELLS, 64, (1e-3, 3.2e-3, 1e-2, 3.2e-2), 3, telemetry)
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=6)


def small() -> experiment.Preset:
    """All cells at 64 sub-layers, those of the carried scale at 512, 128 wide: one accelerator."""
    points = []
    for cells, num_sublayers in ((CELLS, 64), (_CARRIED_CELLS, 512)):
        points += _points(
            cells,
            num_sublayers,
            (1e-3, 3e-3, 1e-2, 3e-2),
            3,
            {"telemetry.every_steps": 500},
            "experiments/configs/small.py",
            128,
        )
    return experiment.Preset(points=points, embedded_vocab_size=1024, max_trials=8)


def paper() -> experiment.Preset:
    """The paper's 512 sub-layers, 1024 wide, where both scales are one, at its rate, one seed."""
    points = _points(
        _CARRIED_CELLS, 512, (6e-3,), 1, {}, "experiments/configs/keel_L512.py", _PAPER_WIDTH
    )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {"micro": micro, "deep": deep, "small": small, "paper": paper}


def _points(
    cells: Sequence[Cell],
    num_sublayers: int,
    rates: Sequence[float],
    num_seeds: int,
    overrides: dict[str, object],
    config_file: str = "experiments/configs/deep.py",
    width: int = 32,
) -> list[point.Point]:
    return [
        each
        for cell in cells
        for each in point.grid(
            cell.series(num_sublayers),
            config_file,
            {**cell.options(num_sublayers, width), **overrides},
            rates,
            range(_FIRST_SEED, _FIRST_SEED + num_seeds),
        )
    ]
