"""The scores of benchmarks as a table and as a figure."""

import io
from collections.abc import Sequence

from matplotlib import figure
from matplotlib.backends import backend_agg

from keel_jax.tasks import results

_HEADER = ("task", "items", "shots", "metric", "score", "±", "chance")
_DPI = 120
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito, 2008


def table(found: Sequence[results.Result]) -> str:
    """A line for each metric of each benchmark, grouped by domain, and the averages."""
    rows: list[tuple[str, ...]] = [_HEADER]
    domain = ""
    for result in found:
        if result.domain != domain:
            domain = result.domain
            rows.append((f"{domain}:", *[""] * 6))
        for number, (name, mean) in enumerate(result.metrics.items()):
            is_first = not number
            rows.append(
                (
                    f"  {result.name}" if is_first else "",
                    f"{result.num_items:,}" if is_first else "",
                    str(result.num_shots) if is_first else "",
                    name,
                    f"{mean.value:.4f}",
                    "" if mean.stderr is None else f"{mean.stderr:.4f}",
                    f"{result.chance:.3f}" if is_first and result.chance else "",
                )
            )
    rows.append(("averages:", *[""] * 6))
    for name, average in results.averages(found).items():
        stderr = "" if average.stderr is None else f"{average.stderr:.4f}"
        of = f"{len(average.tasks)} task{'s' if len(average.tasks) > 1 else ''}"
        rows.append((f"  {name}", of, "", "", f"{average.value:.4f}", stderr, ""))
    lines = _aligned(rows)
    cut = [f"{result.name}: {result.num_cut}" for result in found if result.num_cut]
    if cut:
        lines.append(
            "Prompts longer than the model's window, of which only the end was read: "
            f"{', '.join(cut)}."
        )
    return "\n".join(lines)


def draw(found: Sequence[results.Result], title: str) -> bytes:
    """A PNG: each benchmark's headline with its standard error, and a mark at its chance level."""
    drawing = figure.Figure(figsize=(6.4, 1.2 + 0.3 * len(found)), layout="constrained")
    backend_agg.FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    domains = list(dict.fromkeys(result.domain for result in found))
    for domain, color in zip(domains, _COLORS, strict=False):
        places = [place for place, result in enumerate(found) if result.domain == domain]
        members = [found[place] for place in places]
        axes.barh(
            places,
            [member.headline.value for member in members],
            xerr=[member.headline.stderr or 0.0 for member in members],
            color=color,
            ecolor="#555555",
            label=domain,
        )
    axes.plot(
        [result.chance for result in found], range(len(found)), "k|", markersize=11, label="chance"
    )
    names = [f"{result.name} ({next(iter(result.metrics))})" for result in found]
    axes.set_yticks(range(len(found)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("score; error bars: one standard error")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _png(drawing)


def _png(drawing: figure.Figure) -> bytes:
    content = io.BytesIO()
    drawing.savefig(content, dpi=_DPI)
    return content.getvalue()


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    is_number = [False, True, True, False, True, True, True]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in rows
    ]
