"""From the runs to results.json's numbers and the figure."""

import pathlib
from collections.abc import Sequence

from experiments.alpha import points
from experiments.frame import comparison, corpus, figures
from experiments.frame import outcome as outcome_lib
from experiments.frame import point as point_lib


def analyse(outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str) -> dict:
    """Every variant's losses, and its advantage over the reference, depth by depth."""
    suffixes = dict.fromkeys(_suffix(outcome.point.series) for outcome in outcomes)
    return {
        suffix.removeprefix("-") or "losses": _compare(
            [o for o in outcomes if _suffix(o.point.series) == suffix], suffix, out, data
        )
        for suffix in suffixes
    }


def _compare(outcomes, suffix: str, out: pathlib.Path, data: str) -> dict:
    found = {series.removesuffix(suffix): losses
             for series, losses in comparison.by_series(outcomes).items()}
    unigram = corpus.unigram_validation_loss(point_lib.build([outcomes[0].point], data))
    reference = found.get(points.REFERENCE, {})
    _draw(found, unigram, out, f"losses{suffix}")
    return {
        "unigram_eval_nats": unigram,
        "series": {series: comparison.table(losses) for series, losses in found.items()},
        # Nats a token by which the variant is better than the reference.
        "advantage_over_reference": {
            series: {"at_best": comparison.advantage(losses, reference)} | {
                f"at {rate:g}": comparison.advantage(losses, reference, rate) for rate in losses
            }
            for series, losses in found.items() if series != points.REFERENCE
        },
    }


def _draw(found: dict, unigram: float, out: pathlib.Path, stem: str):
    """A row a variant, a colour a rate; every seed a point, their mean a bar."""
    figure, axes = figures.new(size=(7.0, 0.28 * len(found) + 1.2))
    rates = sorted({rate for losses in found.values() for rate in losses})
    for number, rate in enumerate(rates):
        label = f"rate {rate:g}"
        for place, losses in enumerate(found.values()):
            values = [value for value in losses.get(rate, {}).values() if value is not None]
            y = place + 0.22 * (number - (len(rates) - 1) / 2)
            axes.plot(values, [y] * len(values), "o", markersize=3, color=f"C{number}",
                      label=label if values else None)
            if values:
                axes.plot([sum(values) / len(values)], [y], "|", markersize=9, color=f"C{number}")
                label = None
    axes.axvline(unigram, color="0.5", linewidth=0.8, linestyle=":", label="unigram model")
    axes.set(xlabel="validation loss, nats/token")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(rates) + 1)
    figures.save(figure, out, stem, {"losses": found, "unigram_nats": unigram})


def _suffix(series: str) -> str:
    """The depth at the end of a series' name, "-L64", if it has one."""
    head, dash, tail = series.rpartition("-")
    return f"-{tail}" if head and dash and tail[:1] == "L" and tail[1:].isdecimal() else ""
