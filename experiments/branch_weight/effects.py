"""What each factor does: differences between cells that are alike in everything else, seed by seed.

A contrast exchanges one choice for another in every cell that fits its condition, and averages the
gains of `nats_below` (`sweeps.merit`). Seeds are the samples of its interval; cells are not, as the
experiment has all of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.branch_weight import points
from experiments.branch_weight.points import Cell
from experiments.sweeps import intervals, merit


@dataclasses.dataclass(frozen=True)
class Contrast:
    """`choice` in place of `other`, two choices of `factor`, in the cells where `where` fits."""

    factor: str
    choice: str
    other: str
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in "normed over plain, weight 1"."""
        conditions = [f"{factor} {choice}" for factor, choice in self.where.items()]
        return ", ".join([f"{self.choice} over {self.other}", *conditions])

    def pairs(self, cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
        """The cells with the choice that fit, each with the one of the other choice."""
        return [
            (cell, dataclasses.replace(cell, **{self.factor: self.other}))
            for cell in cells
            if getattr(cell, self.factor) == self.choice
            and all(getattr(cell, factor) == choice for factor, choice in self.where.items())
        ]


# The norm of the stream, at each weight; the weight, with and without the norm; and the rest.
CONTRASTS = (
    Contrast("stream", points.NORMED, points.PLAIN),
    *(
        Contrast("stream", points.NORMED, points.PLAIN, {"weight": weight})
        for weight in points.WEIGHTS
    ),
    *(
        Contrast("weight", choice, other, {"stream": stream})
        for choice, other in (
            (points.OVER_SQRT_L, points.ONE),
            (points.OVER_L, points.ONE),
            (points.OVER_L, points.OVER_SQRT_L),
            (points.LEARNED, points.OVER_L),
        )
        for stream in points.STREAMS
    ),
    *(
        Contrast("embedding", points.UNIT, points.SMALL, {"stream": stream})
        for stream in points.STREAMS
    ),
    *(
        Contrast("scale", points.CARRIED, points.LITERAL, {"stream": stream})
        for stream in points.STREAMS
    ),
)


def effects(
    rows: Mapping[Cell, Mapping[int, merit.Row]], unigram_nats: float
) -> dict[str, Mapping]:
    """Every contrast that has cells, by name: an interval in nats, "p", "p_holm" and "verdict".

    Args:
      rows: the losses of each cell, by seed and rate (`merit.rows_by_seed`).
    """
    below = {
        cell: {seed: merit.nats_below(row, unigram_nats) for seed, row in by_seed.items()}
        for cell, by_seed in rows.items()
    }
    found = {}
    for contrast in CONTRASTS:
        if pairs := [pair for pair in contrast.pairs(list(rows)) if pair[1] in rows]:
            gains = _gains(pairs, below)
            found[contrast.name] = intervals.mean(gains) | {"p": intervals.p_value(gains)}
    corrected = intervals.holm([row["p"] for row in found.values()])
    return {
        name: row | {"p_holm": p, "num_contrasts": len(found), "verdict": _verdict(row, p)}
        for (name, row), p in zip(found.items(), corrected, strict=True)
    }


def _gains(
    pairs: Sequence[tuple[Cell, Cell]], below: Mapping[Cell, Mapping[int, float]]
) -> list[float]:
    """The mean gain over the pairs, of each seed that all their cells have."""
    cells = [cell for pair in pairs for cell in pair]
    seeds = sorted(set.intersection(*(set(below[cell]) for cell in cells)))
    return [float(np.mean([below[a][seed] - below[b][seed] for a, b in pairs])) for seed in seeds]


def _verdict(row: Mapping, p_holm: float) -> str:
    """The sign of the interval, where it remains after the correction for their number."""
    return intervals.sign(row) if p_holm < 1 - intervals.CONFIDENCE else "undecided"
