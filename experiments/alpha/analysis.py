"""From the outcomes of the runs to the numbers of results.json and the figures."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.alpha import points
from experiments.sweeps import checks, comparison, experiment, figures, unigram
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


def _checks(numbers: dict) -> dict:
    """The predictions of NOTES.md, which are about micro."""
    over = numbers["advantage_over_reference"]
    at = {
        series: {row["rate"]: row["mean"] for row in table["by_rate"]}
        for series, table in numbers["series"].items()
    }
    unigram_nats = numbers["unigram_eval_nats"]
    best = [min(at[series].values()) for series in ("keel-N", points.REFERENCE, "keel-4N")]
    predictions = {
        f"1 at 1e-2: {series} above the unigram line, nats": checks.within(
            at[series][1e-2] - unigram_nats, -0.1, 0.1
        )
        for series in ("keel-1", "keel-L_to_1_4")
    }
    predictions |= {
        "1 at 1e-2: sqrt(L) worse than 2N": checks.has_verdict(
            over["keel-sqrt_L"]["at 0.01"], "reversed"
        ),
        "2 N, 2N, 4N at their best rates: spread, nats": checks.within(
            max(best) - min(best), 0, 0.1
        ),
    }
    predictions |= {
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
    return predictions | {
        "6 at 1e-2: a branch over L better than Pre-LN, nats": checks.within(better, 0.0)
    }


def _compare(
    outcomes: Sequence[outcome_lib.Outcome], suffix: str, out: pathlib.Path, data: str
) -> dict:
    """The numbers of one depth; draws its figure."""
    losses = {
        series.removesuffix(suffix): rows
        for series, rows in comparison.losses_by_series(outcomes).items()
    }
    unigram_nats = unigram.validation_loss(point_lib.build_config([outcomes[0].point], data))
    reference = losses.get(points.REFERENCE, {})
    _draw(losses, unigram_nats, out, f"losses{suffix}")
    return {
        "unigram_eval_nats": unigram_nats,
        "series": {series: comparison.table(rows) for series, rows in losses.items()},
        # Nats a token by which the variant is better than the reference.
        "advantage_over_reference": {
            series: {"at_best": comparison.advantage(rows, reference)}
            | {f"at {rate:g}": comparison.advantage(rows, reference, rate) for rate in rows}
            for series, rows in losses.items()
            if series != points.REFERENCE
        },
    }


def _draw(
    losses: Mapping[str, comparison.Losses], unigram_nats: float, out: pathlib.Path, stem: str
) -> None:
    """Draws a row a variant and a colour a rate: every seed as a point, their mean as a bar."""
    figure, axes = figures.new(size=(7.0, 0.28 * len(losses) + 1.2))
    rates = sorted({rate for rows in losses.values() for rate in rows})
    for number, rate in enumerate(rates):
        label = f"rate {rate:g}"
        for row, rows in enumerate(losses.values()):
            values = [value for value in rows.get(rate, {}).values() if value is not None]
            y = row + 0.22 * (number - (len(rates) - 1) / 2)
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
    axes.axvline(unigram_nats, color="0.5", linewidth=0.8, linestyle=":", label="unigram model")
    axes.set(xlabel="validation loss, nats/token")
    axes.set_yticks(range(len(losses)), list(losses))
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(rates) + 1)
    figures.save(figure, out, stem, {"losses": losses, "unigram_nats": unigram_nats})


def _suffix(series: str) -> str:
    """The depth at the end of a series' name, "-L64", if it has one."""
    head, dash, tail = series.rpartition("-")
    return f"-{tail}" if head and dash and tail[:1] == "L" and tail[1:].isdecimal() else ""


EXPERIMENT = experiment.of_sweep(points.PRESETS, analyse)
