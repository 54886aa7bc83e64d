"""A sweep is data: points, each a config file, a few overrides, a learning rate and a seed."""

import dataclasses
import hashlib
import json
import pathlib
import re
import runpy
from collections.abc import Mapping, Sequence

from keel_jax import config, errors

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Point:
    """One run. Points of one series differ in learning rate and seed alone."""

    # Names what the points of a series have in common, as in "keel-64".
    series: str
    # Config file, relative to the root of the repository.
    config: str
    # Options that differ from it, by their dotted names.
    overrides: Mapping[str, object]
    peak_lr: float
    seed: int
    # Distinct training tokens: the first so many of the sweep's data; None: all of them.
    num_train_tokens: int | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[\w.+-]+", self.series):
            raise errors.UserError(
                f"series={self.series!r}: it names directories; use a-z, 0-9, -, _."
            )
        mistaken = {"optim.peak_lr", "seed", "trials.peak_lr", "trials.seed"} & set(self.overrides)
        if mistaken:
            raise errors.UserError(
                f"{self.series}: {sorted(mistaken)} among the overrides; a point's learning rate "
                "and seed are its own fields, so that they can be trials of one program."
            )

    @property
    def name(self) -> str:
        """Unique within a sweep; names files."""
        return f"{self.series}_lr{self.peak_lr:.3g}_seed{self.seed}"


def grid(
    series: str,
    config_file: str,
    overrides: Mapping[str, object],
    peak_lr: Sequence[float],
    seeds: Sequence[int],
    num_train_tokens: int | None = None,
) -> list[Point]:
    """The points of one series: learning rates x seeds."""
    return [
        Point(series, config_file, dict(overrides), lr, seed, num_train_tokens)
        for lr in peak_lr
        for seed in seeds
    ]


def group_by_series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each series, in order.

    Raises:
      UserError: two points have one name, or a series holds points of different options.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.series, []).append(point)
    for series, members in groups.items():
        different = {
            (p.config, json.dumps(dict(p.overrides), sort_keys=True), p.num_train_tokens)
            for p in members
        }
        if len(different) > 1:
            raise errors.UserError(
                f"Series {series!r} holds points of {len(different)} different sets of options: "
                "points that differ in more than learning rate and seed need a series of their own."
            )
        names = [point.name for point in members]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise errors.UserError(f"The sweep has the point {twice} twice.")
    return groups


def changed_options(points: Sequence[Point]) -> dict[str, object]:
    """What the points of one series, run as trials of one program, change in their config file."""
    trials: dict[str, object] = {"optim.peak_lr": points[0].peak_lr, "seed": points[0].seed}
    if len(points) > 1:
        trials = {
            "trials.peak_lr": tuple(point.peak_lr for point in points),
            "trials.seed": tuple(point.seed for point in points),
        }
    return {**points[0].overrides, **trials}


def build_config(points: Sequence[Point], data_path: str) -> config.Config:
    """The config of the one program that runs `points`, all of one series.

    Raises:
      UserError: an unknown option, or a value that an option cannot have.
    """
    values = runpy.run_path(str(ROOT / points[0].config))["get_config"]().to_dict()
    changed = {**changed_options(points), "data.path": config.join_paths([data_path])}
    for name, value in changed.items():
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return config.from_config_dict(values)


def driver_flags(points: Sequence[Point], data_path: str, workdir: pathlib.Path) -> list[str]:
    """The same config as flags of `python -m keel_jax.train` and of the launchers."""
    changed = {**changed_options(points), "data.path": config.join_paths([data_path])}
    return [
        f"--config={points[0].config}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in changed.items()),
    ]


def digest(cfg: config.Config, data_fingerprint: str) -> str:
    """Identifies a run by what decides its results.

    These are the options of `config.results_options` and the data, which are known by their
    fingerprint and not by their place. So a finished run stays finished when an option that changes
    no results is set otherwise, and when the framework gains an option that is at its default.
    """
    text = json.dumps([config.results_options(cfg), data_fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
