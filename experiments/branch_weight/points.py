"""The cells of the factorial and the runs of each preset: stream x weight x embedding x init.

A cell is one choice of each factor. Keel is normed, with the weight 1/L; Pre-LN is plain, with the
weight 1; CompleteP is plain, with the weight 1/L. Keel's block 0 has the weight 1 whatever the
others have (`residual.topologies`), and so have all normed cells.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from experiments.sweeps import experiment, point

# Whether a norm follows the sum: LN(x + w F(LN x)), or x + w F(LN x) with a final norm.
STREAMS = NORMED, PLAIN = ("normed", "plain")
# w, the weight of the branch: 1, 1/sqrt(L), 1/L, or a/L with a learned a that begins at 1.
WEIGHTS = ONE, INV_SQRT_L, INV_L, LEARNED = ("1", "inv_sqrt_L", "inv_L", "learned")
# Standard deviation of the embedding's initial values: 1, or the paper's 0.02.
EMBEDDINGS = UNIT, SMALL = ("unit", "small")
# Of all other matrices: the paper's 0.02 carried over to the width (`configs/deep.py`), or 0.02.
INITS = WIDTH_SCALED, FIXED = ("width_scaled", "fixed")
_PAPER_STD, _PAPER_WIDTH = 0.02, 1024

# The first seed: 0 and 1 were a pilot's, 10 and more are those of lr_robustness.
_FIRST_SEED = 30


@dataclasses.dataclass(frozen=True)
class Cell:
    """One choice of each factor."""

    stream: str
    weight: str
    embedding: str
    init: str

    @property
    def name(self) -> str:
        """As in "normed-inv_L-unit-width_scaled"."""
        return "-".join(dataclasses.astuple(self))

    def series(self, num_sublayers: int) -> str:
        """The name of its runs at one depth."""
        return f"{self.name}-L{num_sublayers}"

    def options(self, num_sublayers: int, width: int) -> dict[str, object]:
        """What it sets in a config."""
        scaled = _PAPER_STD * math.sqrt(_PAPER_WIDTH / width)
        return {
            "model.num_blocks": num_sublayers // 2,
            "model.embedding_std": 1.0 if self.embedding == UNIT else _PAPER_STD,
            "model.init_std": scaled if self.init == WIDTH_SCALED else _PAPER_STD,
            **self._rule(num_sublayers),
        }

    def _rule(self, num_sublayers: int) -> dict[str, object]:
        """The topology and its weight; LN(x + w F) is LN(x / w + F), whose alpha is 1 / w."""
        topology = {"model.topology": "keel" if self.stream == NORMED else "complete_p"}
        if self.weight == LEARNED:
            return topology | {"model.learned_branch": True}
        if self.weight == INV_L:
            return topology
        weight = 1.0 if self.weight == ONE else num_sublayers**-0.5
        if self.stream == NORMED:
            return topology | {"model.alpha": 1 / weight}
        return topology | {"model.branch_scale": weight}


CELLS = tuple(Cell(*choice) for choice in itertools.product(STREAMS, WEIGHTS, EMBEDDINGS, INITS))
# Where all of them are too many: every combination of weights 1 and 1/L, and the other two weights
# with the embedding and the init of most of the project's runs.
_FEW_CELLS = tuple(
    cell
    for cell in CELLS
    if cell.weight in (ONE, INV_L) or (cell.embedding, cell.init) == (UNIT, WIDTH_SCALED)
)


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
        range(2),
        {"train.num_steps": 150, "optim.warmup_steps": 30, "telemetry.every_steps": 50},
    )
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=6)


def deep() -> experiment.Preset:
    """20 cells at 256 sub-layers and all 32 at 64, 32 wide, 300 steps: two cores, hours.

    What decides most comes first, so that a part of it is worth something.
    """
    rates = (1e-3, 3.2e-3, 1e-2, 3.2e-2)
    # Four records, of which the second is near the end of the warm-up, when rates are largest.
    options = {"train.num_steps": 300, "optim.warmup_steps": 60, "telemetry.every_steps": 75}
    points = _points(_FEW_CELLS, 256, rates, range(4), options)
    points += _points(CELLS, 64, rates, range(4), options)
    return experiment.Preset(points=points, embedded_vocab_size=384, max_trials=8)


def small() -> experiment.Preset:
    """All cells at 64 sub-layers and 20 of them at 512, 128 wide: one accelerator."""
    points = []
    for cells, num_sublayers in ((CELLS, 64), (_FEW_CELLS, 512)):
        points += _points(
            cells,
            num_sublayers,
            (1e-3, 3e-3, 1e-2, 3e-2),
            range(3),
            {"telemetry.every_steps": 500, "optim.weight_decay": 0.01},
            "experiments/configs/small.py",
            128,
        )
    return experiment.Preset(points=points, embedded_vocab_size=1024, max_trials=8)


def paper() -> experiment.Preset:
    """The paper's 512 sub-layers, 1024 wide, where both inits are one, at its rate, one seed."""
    cells = [cell for cell in CELLS if cell.init == WIDTH_SCALED]
    points = _points(
        cells, 512, (6e-3,), range(1), {}, "experiments/configs/keel_L512.py", _PAPER_WIDTH
    )
    return experiment.Preset(points=points, max_trials=1)


PRESETS = {"micro": micro, "deep": deep, "small": small, "paper": paper}


def _points(
    cells: Sequence[Cell],
    num_sublayers: int,
    rates: Sequence[float],
    seeds: Iterable[int],
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
            [_FIRST_SEED + seed for seed in seeds],
        )
    ]
