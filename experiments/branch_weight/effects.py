"""What each factor does: differences between cells that differ in that factor alone, by seed.

A contrast exchanges one choice for another in every pair of cells that fits its condition, and
averages the gains of `nats_below` (`sweeps.merit`). Seeds are the samples of its interval; cells
are not, as the experiment has all of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.branch_weight import points
from experiments.branch_weight.points import Cell
from experiments.sweeps import intervals, merit


@dataclasses.dataclass(frozen=True)
class Contrast:
    """`choice` against `other`, two choices of `factor`, in the cells where `where` fits."""

    factor: str
    choice: str
    other: str
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in "normed vs plain, weight 1"."""
        conditions = [f"{factor} {choice}" for factor, choice in self.where.items()]
        return ", ".join([f"{self.choice} vs {self.other}", *conditions])

    def pairs(self, cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
        """The pairs of `cells` that fit, the one with the choice first."""
        pairs = [
            (cell, dataclasses.replace(cell, **{self.factor: self.other}))
            for cell in cells
            if getattr(cell, self.factor) == self.choice
            and all(getattr(cell, factor) == choice for factor, choice in self.where.items())
        ]
        return [(cell, other) for cell, other in pairs if other in cells]


# The norm of the stream, at each weight, and by what the stream begins with; the weight, with and
# without the norm; the embedding and the init, likewise.
CONTRASTS = (
    *(
        Contrast("stream", points.NORMED, points.PLAIN, {"weight": weight})
        for weight in points.WEIGHTS
    ),
    *(
        Contrast(
            "stream", points.NORMED, points.PLAIN, {"weight": points.INV_L, "embedding": embedding}
        )
        for embedding in points.EMBEDDINGS
    ),
    *(
        Contrast("weight", choice, other, {"stream": stream})
        for choice, other in (
            (points.INV_L, points.ONE),
            (points.INV_L, points.INV_SQRT_L),
            (points.LEARNED, points.INV_L),
        )
        for stream in points.STREAMS
    ),
    *(
        Contrast("embedding", points.UNIT, points.SMALL, {"stream": stream})
        for stream in points.STREAMS
    ),
    *(
        Contrast("init", points.WIDTH_SCALED, points.FIXED, {"stream": stream})
        for stream in points.STREAMS
    ),
)


def effects(
    rows: Mapping[Cell, Mapping[int, merit.Row]], unigram_nats: float
) -> dict[str, Mapping]:
    """Every contrast that has cells, by name: an interval in nats, "p", and "num_pairs" of cells.

    "p_holm" is corrected for the number of contrasts. They are not independent of one another.

    Args:
      rows: the losses of each cell, by seed and rate (`merit.rows_by_seed`).
    """
    below = {
        cell: {seed: merit.nats_below(row, unigram_nats) for seed, row in by_seed.items()}
        for cell, by_seed in rows.items()
    }
    found = {}
    for contrast in CONTRASTS:
        if pairs := contrast.pairs(list(rows)):
            gains = _gains(pairs, below)
            found[contrast.name] = intervals.mean(gains) | {
                "p": intervals.p_value(gains),
                "num_pairs": len(pairs),
            }
    corrected = intervals.holm([row["p"] for row in found.values()])
    return {
        name: row | {"p_holm": p} for (name, row), p in zip(found.items(), corrected, strict=True)
    }


def _gains(
    pairs: Sequence[tuple[Cell, Cell]], below: Mapping[Cell, Mapping[int, float]]
) -> list[float]:
    """The mean gain over the pairs, of each seed that all their cells have."""
    cells = [cell for pair in pairs for cell in pair]
    seeds = sorted(set.intersection(*(set(below[cell]) for cell in cells)))
    return [float(np.mean([below[a][seed] - below[b][seed] for a, b in pairs])) for seed in seeds]
