"""From the runs to results.json's numbers and the figure."""

import pathlib
from collections.abc import Sequence

from experiments.alpha import points
from experiments.sweeps import checks, comparison, corpus, figures
from experiments.sweeps import outcome as outcome_lib
from experiments.sweeps import point as point_lib


def analyse(outcomes: Sequence[outcome_lib.Outcome], out: pathlib.Path, data: str) -> dict:
    """Every variant's losses, and its advantage over the reference, depth by depth."""
    suffixes = dict.fromkeys(_suffix(outcome.point.series) for outcome in outcomes)
    numbers = {
        suffix.removeprefix("-") or "losses": _compare(
            [o for o in outcomes if _suffix(o.point.series) == suffix], suffix, out, data
        )
        for suffix in suffixes
    }
    is_micro = "losses" in numbers and outcome_lib.all_done(outcomes)
    return numbers | ({"checks": _checks(numbers["losses"])} if is_micro else {})


def _checks(found: dict) -> dict:
    """The predictions of NOTES.md, which are of micro."""
    over = found["advantage_over_reference"]
    at = {
        series: {row["rate"]: row["mean"] for row in told["by_rate"]}
        for series, told in found["series"].items()
    }
    unigram = found["unigram_eval_nats"]
    kin = [min(at[series].values()) for series in ("keel-N", points.REFERENCE, "keel-4N")]
    told = {
        f"1 at 1e-2: {series} above the unigram line, nats": checks.within(
            at[series][1e-2] - unigram, -0.1, 0.1
        )
        for series in ("keel-1", "keel-L_to_1_4")
    }
    told |= {
        "1 at 1e-2: sqrt(L) worse than 2N": checks.verdict(
            over["keel-sqrt_L"]["at 0.01"], "reversed"
        ),
        "2 N, 2N, 4N at their best rates: spread, nats": checks.within(max(kin) - min(kin), 0, 0.1),
    }
    told |= {
        f"{number} at 1e-2: {series} better than the reference, nats": checks.within(
            over[series]["at 0.01"]["mean"], low, high
        )
        for number, series, low, high in (
            (3, "keel-v1", -0.1, 0.1),
            (4, "keel-no_inner_norm", -0.15, 0.15),
            (4, "keel-scaled_input", -0.1, 0.1),
            (4, "keel-scaled_inner_norm", -0.1, 0.1),
            (5, "keel-bf16_stream", -0.3, -0.02),
            (6, "pre_ln-branch_over_L", -0.15, 0.15),
        )
    }
    better = at["pre_ln"][1e-2] - at["pre_ln-branch_over_L"][1e-2]
    return told | {
        "6 at 1e-2: a branch over L better than Pre-LN, nats": checks.within(better, 0.0)
    }


def _compare(outcomes, suffix: str, out: pathlib.Path, data: str) -> dict:
    found = {
        series.removesuffix(suffix): losses
        for series, losses in comparison.by_series(outcomes).items()
    }
    unigram = corpus.unigram_validation_loss(point_lib.build([outcomes[0].point], data))
    reference = found.get(points.REFERENCE, {})
    _draw(found, unigram, out, f"losses{suffix}")
    return {
        "unigram_eval_nats": unigram,
        "series": {series: comparison.table(losses) for series, losses in found.items()},
        # Nats a token by which the variant is better than the reference.
        "advantage_over_reference": {
            series: {"at_best": comparison.advantage(losses, reference)}
            | {f"at {rate:g}": comparison.advantage(losses, reference, rate) for rate in losses}
            for series, losses in found.items()
            if series != points.REFERENCE
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
            axes.plot(
                values,
                [y] * len(values),
                "o",
                markersize=3,
                color=f"C{number}",
                label=label if values else None,
            )
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
