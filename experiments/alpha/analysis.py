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
    figure, axes = figures.new(size=(7.0, 4.4))
    lines = []
    for number, (series, losses) in enumerate(found.items()):
        style = "-" if series in points.alphas(1) else "--"
        lines.append(figures.draw(
            axes, list(losses), [list(row.values()) for row in losses.values()], series,
            linestyle=style, color=f"C{number % 10}",
        ))
    axes.axhline(unigram, color="0.5", linewidth=0.8, linestyle=":", label="unigram model")
    axes.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss, nats/token")
    axes.legend(fontsize=7, ncols=2)
    figures.save(figure, out, f"losses{suffix}", {"lines": lines, "unigram_nats": unigram})
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


def _suffix(series: str) -> str:
    """The depth at the end of a series' name, "-L64", if it has one."""
    head, dash, tail = series.rpartition("-")
    return f"-{tail}" if head and dash and tail[:1] == "L" and tail[1:].isdecimal() else ""
