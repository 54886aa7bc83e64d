"""Figures: each a PNG, an SVG and a PDF beside the JSON that it was drawn from."""

import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib

from experiments.sweeps import results
from keel_jax.runtime import files

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  the backend must be chosen first

# One colour per topology in all figures, told apart by colour-blind readers as well (Okabe and Ito,
# 2008); others take the next one of matplotlib's.
COLOURS = {
    "keel": "#0072B2",
    "pre_ln": "#D55E00",
    "post_ln": "#000000",
    "deepnorm": "#009E73",
    "hybridnorm": "#CC79A7",
    "mix_ln": "#E69F00",
    "complete_p": "#56B4E9",
    "pre_ln_gpt2": "#8C6D46",
    "keel_capped": "#332288",
}
# Drawn in full; the others, where there are many, thinner.
HEADLINE = ("keel", "pre_ln", "complete_p")
DISPLAY_NAMES = {
    "keel": "Keel",
    "pre_ln": "Pre-LN",
    "post_ln": "Post-LN",
    "deepnorm": "DeepNorm",
    "hybridnorm": "HybridNorm",
    "mix_ln": "Mix-LN",
    "complete_p": "Pre-LN, branch / L",
    "pre_ln_gpt2": "Pre-LN, GPT-2's initialization",
    "keel_capped": "Keel, capped",
}
# What a panel of losses shows above the unigram line, as a share of what it shows below; in nats.
_SHARE_ABOVE, _LEAST_ABOVE = 0.15, 0.05
# Identifiers in an SVG are hashes with this salt, so that the same data give the same file.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "keel_jax",
    "svg.fonttype": "path",
    # TrueType: letters of a paper's figure can be searched, and edited.
    "pdf.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "font.size": 9,
}
_DPI = 110
# Of an explanation's font.
_LETTERS_PER_INCH = 18
# What a PDF would say of when and with what it was made.
_PDF_ENTRIES = ("Creator", "Producer", "CreationDate")


def new(size: tuple[float, float] = (6.0, 3.8)) -> tuple[figure_lib.Figure, axes_lib.Axes]:
    """A figure in the experiments' style, with one panel; `size` in inches."""
    with matplotlib.rc_context(_STYLE):
        return pyplot.subplots(figsize=size, layout="constrained")


def new_row(
    num_panels: int, size: tuple[float, float], *, sharey: bool = False
) -> tuple[figure_lib.Figure, Sequence[axes_lib.Axes]]:
    """A figure in the experiments' style, with panels side by side; `size` in inches."""
    figure, [panels] = new_grid(1, num_panels, size, sharey=sharey)
    return figure, panels


def new_grid(
    num_rows: int, num_columns: int, size: tuple[float, float], *, sharey: bool | str = False
) -> tuple[figure_lib.Figure, Sequence[Sequence[axes_lib.Axes]]]:
    """A figure in the experiments' style, with rows of panels; `size` in inches.

    Args:
      sharey: as in `matplotlib.pyplot.subplots`: True, or "row" or "col" for each of these.
    """
    with matplotlib.rc_context(_STYLE):
        figure, grid = pyplot.subplots(
            num_rows, num_columns, figsize=size, layout="constrained", sharey=sharey, squeeze=False
        )
    return figure, [list(row) for row in grid]


def save(figure: figure_lib.Figure, out: pathlib.Path, stem: str, data: Mapping | Sequence) -> None:
    """Writes `out`/figures/`stem`.png, .svg and .pdf, and .json with `data`, what was drawn.

    The same figure gives the same bytes, as it holds no date and no random identifiers.
    """
    directory = files.make_writable_directory(pathlib.Path(out) / "figures")
    with matplotlib.rc_context(_STYLE):
        figure.savefig(directory / f"{stem}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(directory / f"{stem}.pdf", metadata=dict.fromkeys(_PDF_ENTRIES))
        figure.savefig(directory / f"{stem}.png", dpi=_DPI, metadata={"Software": None})
    files.write_json(directory / f"{stem}.json", results.plain(data))
    pyplot.close(figure)


def display_name(topology: str) -> str:
    """The topology's name as the papers write it."""
    return DISPLAY_NAMES.get(topology, topology)


def style_of(topology: str) -> dict[str, Any]:
    """How a topology's line is drawn where there are many."""
    is_headline = topology in HEADLINE
    return {
        "color": COLOURS.get(topology),
        "linewidth": 1.8 if is_headline else 0.9,
        "alpha": 1.0 if is_headline else 0.8,
        "zorder": 3 if is_headline else 2,
    }


def shade(number: int, count: int) -> Any:
    """The colour of one of `count` lines in an order, from bright to dark."""
    return matplotlib.colormaps["viridis_r"](0.15 + 0.8 * number / max(1, count - 1))


def share_legend(figure: figure_lib.Figure, panels: Sequence[axes_lib.Axes]) -> None:
    """One legend beside all panels, of what is in any of them."""
    handles: dict[str, Any] = {}
    for axes in np.atleast_1d(np.asarray(panels, object)):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)


def explain(figure: figure_lib.Figure, text: str) -> None:
    """Lines below the panels that say what is drawn, as long as the figure is wide."""
    width = int(_LETTERS_PER_INCH * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), fontsize=7, color="0.35")


def label_rates(axes: axes_lib.Axes, rates: Sequence[float]) -> None:
    """A logarithmic axis of learning rates, with a tick at each of them and nowhere else."""
    axes.set(xscale="log", xlabel="peak learning rate")
    axes.set_xticks(
        rates, [f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-") for rate in rates]
    )
    axes.tick_params(axis="x", labelsize=7)
    axes.minorticks_off()


def draw_over_seeds(
    axes: axes_lib.Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float | None]] | np.ndarray,
    label: str,
    **style: Any,
) -> dict:
    """Draws the median of `values` [X, seeds] against `x` [X], and their range as a band.

    Where some of a point's values are None or not finite, the point is of the others and is crossed
    out; where all are, nothing is drawn. Returns what was drawn, for `save`.
    """
    band = np.array([_range(row) for row in values], float).reshape(-1, 3)
    low, median, high = band.T
    lacking = np.array([len(row) - len(_finite(row)) for row in values], int)
    [line] = axes.plot(x, median, label=label, **{"marker": "o", "markersize": 3, **style})
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    is_crossed = lacking > 0
    axes.plot(np.array(x, float)[is_crossed], median[is_crossed], "x", color=line.get_color())
    return {
        "label": label,
        "x": list(x),
        "low": low,
        "median": median,
        "high": high,
        "num_not_finished": lacking,
    }


def ceiling(losses: Iterable[float | None], unigram_nats: float) -> float:
    """The largest loss that a panel shows: a share of what is below the unigram line, above it.

    A run that spiked would flatten all others; what is higher is drawn there (`cut`).
    """
    least = min((loss for loss in losses if loss is not None), default=unigram_nats)
    return unigram_nats + max(_LEAST_ABOVE, _SHARE_ABOVE * (unigram_nats - least))


def cut(losses: Iterable[float | None], top: float) -> list[float | None]:
    """The losses, `top` at most."""
    return [None if loss is None else min(loss, top) for loss in losses]


def draw_unigram_line(axes: axes_lib.Axes, nats: float = 0.0) -> None:
    """Draws the loss of a run that has learned token frequencies alone."""
    axes.axhline(nats, color="0.5", linewidth=0.8, linestyle="--", label="unigram model")


def draw_best_losses(
    x: Sequence[int],
    losses: Mapping[str, Sequence[Sequence[float]]],
    unigram_nats: float,
    xlabel: str,
    out: pathlib.Path,
    stem: str,
) -> None:
    """Draws and saves each topology's losses at its best rate, [X, seeds], against `x`."""
    figure, axes = new()
    lines = [
        draw_over_seeds(axes, x, values, display_name(topology), color=COLOURS[topology])
        for topology, values in losses.items()
    ]
    draw_unigram_line(axes, unigram_nats)
    axes.set(xscale="log", xlabel=xlabel, ylabel="validation loss at the best rate, nats/token")
    axes.set_xticks(x, [str(value) for value in x])
    axes.minorticks_off()
    axes.legend()
    save(figure, out, stem, {"lines": lines, "unigram_nats": unigram_nats})


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and np.isfinite(value)]


def _range(values: Sequence[float | None]) -> tuple[float, float, float]:
    """Least, median and greatest of the finite values; NaN if there is none."""
    finite = _finite(values)
    if not finite:
        return np.nan, np.nan, np.nan
    return float(min(finite)), float(np.median(finite)), float(max(finite))
