"""Results of several models side by side, as a table of text: before and after fine-tuning."""

from collections.abc import Mapping

# Numbers by name, and groups of them: {"loss_nats_per_token": 2.1, "tasks": {"arc": {"acc": 0.3}}}.
Result = Mapping[str, object]


def table(results: Mapping[str, Result]) -> str:
    """One row per number, one column per result; with two results, their difference as well.

    Rows are in the order in which names first come up, and names of groups are joined by a slash.
    What is no number has no row; a result that lacks a number has a dash.

    Args:
      results: by the headings of their columns.
    """
    flat = {heading: _flat(result) for heading, result in results.items()}
    names = list(dict.fromkeys(name for values in flat.values() for name in values))
    headings = ["", *flat, *(["change"] if len(flat) == 2 else [])]
    rows = [headings]
    for name in names:
        values = [found.get(name) for found in flat.values()]
        row = [name, *("-" if value is None else _text(value) for value in values)]
        if len(values) == 2:
            before, after = values
            row.append("-" if before is None or after is None else _signed(after - before))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)


def _flat(result: Result, prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + name] = value
    return numbers


def _text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+,}" if isinstance(value, int) else f"{value:+.4f}"
