"""Figures of telemetry: heat maps of depth against step, and profiles over depth; PNG bytes.

Statistics are grouped in families: "stream_rms" is a family by itself, "param_rms/attention/query"
belongs to "param_rms". A family gets one heat map and one profile. Figures are made without pyplot,
and so without global state or windows: Agg draws them.

Letters: R records, N blocks, L = 2N sub-layers.
"""

import io
import typing
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import colors, figure, ticker

# Maximum number of columns of a heat map; of more records, evenly spaced ones are shown.
_COLUMNS = 600
_DPI = 100
_COLORS = matplotlib.colormaps["viridis"].with_extremes(bad="red")


class Family(typing.NamedTuple):
    """The title of a family of statistics, and how it is drawn."""

    title: str
    is_log: bool


# Only with the recomputation plan "reversible".
REVERSIBLE = ("reversal_error", "reversal_step")
FAMILIES = {
    "stream_rms": Family("RMS of the stream that enters each sub-layer", True),
    "branch_rms": Family("RMS of the branch's output", True),
    "branch_ratio": Family("|a| b · branch / (α · stream), by RMS", True),
    "branch_cosine": Family("cosine between the branch and the stream, over all tokens", False),
    "rotation_radians": Family("angle by which a sub-layer turns the stream [rad]", True),
    "position_cosine": Family("mean cosine between the stream at two positions of a row", False),
    "effective_alpha": Family("effective α = α · γ_out(l-1) / γ_in(l)", True),
    "cotangent_rms": Family("RMS of the stream's cotangent (summed loss)", True),
    "gradient_rms": Family("RMS of the gradient (mean loss, before clipping)", True),
    "update_rms": Family("RMS of what the step adds to the parameters", True),
    "param_rms": Family("RMS of the parameters", True),
    "reversal_error": Family("relative error of the reconstructed stream at the anchors", True),
    "reversal_step": Family("largest last step of the reconstruction, relative", True),
    "adam_below_epsilon": Family("share of Adam's √v̂ below ε", False),
}


def families(records: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of each family that was recorded: by name within it, [R, N] or [R, N, 2]."""
    by_family: dict[str, dict[str, np.ndarray]] = {name: {} for name in FAMILIES}
    for name, values in records.items():
        family, _, member = name.partition("/")
        if family in by_family:
            by_family[family][member] = values
    return {family: members for family, members in by_family.items() if members}


def images(records: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Every family's heat map and profile as PNG, by its TensorBoard tag."""
    drawn = {}
    for family in families(records):
        drawn[f"depth/{family}/heat_map"] = png(heat_map(records, family))
        drawn[f"depth/{family}/profile"] = png(profile(records, family))
    return drawn


def heat_map(records: Mapping[str, np.ndarray], family: str) -> figure.Figure:
    """Depth increases upwards, records are columns; red where a number is not finite."""
    members = families(records)[family]
    columns = np.unique(np.linspace(0, len(records["step"]) - 1, _COLUMNS).astype(int))
    steps = records["step"][columns]
    # [R, N, 2] -> [L, R]: sub-layers in order; members are stacked.
    rows = [values[columns].reshape(len(columns), -1).T for values in members.values()]
    height = 3.2 if len(members) == 1 else 1.2 + 0.55 * len(members)
    canvas, axes = _figure(7.5, height)
    mesh = axes.imshow(
        np.ma.masked_invalid(np.concatenate(rows)),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=_COLORS,
        norm=_norm(rows, FAMILIES[family].is_log),
    )
    canvas.colorbar(mesh, ax=axes, pad=0.01)
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).astype(int))
    axes.set_xticks(ticks, [str(step) for step in steps[ticks]])
    axes.set(xlabel="step", title=FAMILIES[family].title)
    if len(members) == 1:
        axes.set_ylabel("sub-layer" if rows[0].shape[0] > _num_blocks(members) else "block")
    else:
        edges = np.cumsum([0] + [len(part) for part in rows])
        axes.set_yticks((edges[:-1] + edges[1:] - 1) / 2, list(members))
        axes.hlines(edges[1:-1] - 0.5, -0.5, len(steps) - 0.5, colors="white", linewidth=0.8)
    return canvas


def profile(records: Mapping[str, np.ndarray], family: str) -> figure.Figure:
    """The first, the middle and the last record over depth."""
    members = families(records)[family]
    shown = sorted({0, (len(records["step"]) - 1) // 2, len(records["step"]) - 1})
    if len(members) == 1:
        canvas, axes = _figure(7.5, 3.0)
        [values] = members.values()
        for index, shade in zip(shown, ("0.65", "tab:blue", "tab:red"), strict=False):
            label = f"step {records['step'][index]}"
            if values.ndim == 2:
                axes.plot(values[index], color=shade, label=label)
                continue
            for sublayer, (name, style) in enumerate((("attention", "-"), ("FFN", "--"))):
                depth = 2 * np.arange(values.shape[1]) + sublayer
                axes.plot(
                    depth, values[index, :, sublayer], style, color=shade, label=f"{label}, {name}"
                )
        panels = [axes]
        axes.set_xlabel("sub-layer" if values.ndim == 3 else "block")
    else:
        canvas = figure.Figure(figsize=(10.5, 3.4), layout="constrained")
        panels = canvas.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for panel, index in zip(panels, shown, strict=True):
            for number, (name, values) in enumerate(members.items()):
                style = "-" if number < 10 else "--"
                panel.plot(values[index], style, color=f"C{number % 10}", label=name, linewidth=1)
            panel.set(title=f"step {records['step'][index]}", xlabel="block")
    for panel in panels:
        if not FAMILIES[family].is_log:
            panel.set_ylim(-0.02, 1.02)  # a fraction
        elif any(len(_positive(values[shown])) for values in members.values()):
            panel.set_yscale("log", nonpositive="mask")
    panels[0].set_ylabel(family)
    panels[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    canvas.suptitle(FAMILIES[family].title, fontsize=11)
    return canvas


def curves(rows: Sequence[Mapping], names: Sequence[str], titles: Sequence[str]) -> figure.Figure:
    """Columns of metrics.jsonl over the steps, one panel each; rows with null are gaps."""
    canvas = figure.Figure(figsize=(10.5, 2.8), layout="constrained")
    panels = canvas.subplots(1, len(names), squeeze=False)[0]
    for panel, name, title in zip(panels, names, titles, strict=True):
        having = [row for row in rows if name in row]
        values = [np.nan if row[name] is None else row[name] for row in having]
        panel.plot([row["step"] for row in having], values, marker="." if len(values) < 40 else "")
        panel.set(xlabel="step", title=title)
        panel.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    return canvas


def png(canvas: figure.Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    content = io.BytesIO()
    canvas.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def _figure(width: float, height: float):
    canvas = figure.Figure(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots()


def _num_blocks(members: Mapping[str, np.ndarray]) -> int:
    return next(iter(members.values())).shape[1]


def _positive(values: np.ndarray) -> np.ndarray:
    """The values that a logarithmic scale can show: positive and finite."""
    return values[np.isfinite(values) & (values > 0)]


def _norm(parts: Sequence[np.ndarray], is_log: bool) -> colors.Normalize:
    """Logarithmic, from the smallest to the largest positive finite number; or [0, 1]."""
    positive = np.concatenate([_positive(part) for part in parts])
    if not is_log or not len(positive):
        return colors.Normalize(0, 1)
    low, high = positive.min(), positive.max()
    return colors.LogNorm(low, max(high, low * 1.001), clip=True)
