"""Predictions that were written down before the runs, and what became of them.

They are in `experiments/NAME/predictions/PRESET.toml`:

    [[prediction]]
    claim = "At 256 sub-layers Keel learns more over the grid than Pre-LN, by 0.1 nats or more"
    number = "L256/keel_over_pre_ln/nats_below"     # where results.json has it; it is an interval
    at_least = 0.1                                  # and/or at_most

    [[power]]
    quantity = "nats_below, 4 seeds"
    deviation = 0.05        # expected standard deviation of the paired differences
    seeds = 4
    detects = 0.106         # the mean that is found in 80 % of cases (`intervals.detectable`)

A prediction holds if the whole interval is in the range, does not hold if the whole interval is
outside, and is undecided otherwise: a point estimate decides nothing. The file cannot change once a
run has been made: the analysis compares it with the file of the commits that the runs were made by.
"""

import dataclasses
import hashlib
import pathlib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.sweeps import results
from keel_jax import errors


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a number of results.json was expected to be."""

    claim: str
    # Path to an interval in the numbers; "/" separates keys.
    number: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self):
        if self.at_least is None and self.at_most is None:
            raise errors.UserError(f"{self.claim!r} predicts nothing: give at_least or at_most.")


@dataclasses.dataclass(frozen=True)
class Power:
    """What a comparison can find: paired t-test, 80 % power, two-sided 5 %."""

    quantity: str
    deviation: float
    seeds: int
    detects: float


@dataclasses.dataclass(frozen=True)
class Registration:
    """The content of one file."""

    file: pathlib.Path
    predictions: tuple[Prediction, ...]
    power: tuple[Power, ...]
    sha256: str


def load(experiment: str, preset: str, root: pathlib.Path = results.ROOT) -> Registration | None:
    """The predictions of a preset; None where there is no file.

    Raises:
      UserError: the file is not what this module describes.
    """
    file = root / "experiments" / experiment / "predictions" / f"{preset}.toml"
    if not file.exists():
        return None
    content = file.read_bytes()
    try:
        tables = tomllib.loads(content.decode())
        unknown = sorted(set(tables) - {"prediction", "power"})
        if unknown:
            raise TypeError(f"unknown tables {unknown}")
        return Registration(
            file.relative_to(root),
            tuple(Prediction(**row) for row in tables.get("prediction", ())),
            tuple(Power(**row) for row in tables.get("power", ())),
            hashlib.sha256(content).hexdigest(),
        )
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise errors.UserError(f"{file}: {error}") from error


def verify(registration: Registration, commits: Iterable[str]) -> dict:
    """The entry of results.json that says what was registered, and that it came before the runs.

    Args:
      commits: those that the runs were made by.

    Raises:
      UserError: one of the commits has another file, or none.
    """
    file = registration.file.as_posix()
    unknown = []
    for commit in sorted(set(commits)):
        if not results.has_commit(commit):
            unknown.append(commit)
        elif results.file_sha256(commit, file) != registration.sha256:
            raise errors.UserError(
                f"{file} is not what it was at commit {commit[:12]}, by which runs of this preset "
                "were made: predictions cannot change after the first run. Restore it (git "
                f"checkout {commit[:12]} -- {file}), or run anew with other --runs."
            )
    return {
        "file": file,
        "sha256": registration.sha256,
        # Not in this clone, so that the file was not compared with theirs.
        "unknown_commits": unknown,
    }


def check(registration: Registration, numbers: Mapping) -> dict[str, dict]:
    """Every prediction beside its number, by claim."""
    return {
        prediction.claim: _check(prediction, _find(numbers, prediction.number))
        for prediction in registration.predictions
    }


def _check(prediction: Prediction, found: Mapping | None) -> dict:
    row = {name: (found or {}).get(name) for name in ("mean", "low", "high")}
    inside, outside = [found is not None], []
    if (least := prediction.at_least) is not None:
        inside.append(row["low"] is not None and row["low"] >= least)
        outside.append(row["high"] is not None and row["high"] < least)
    if (most := prediction.at_most) is not None:
        inside.append(row["high"] is not None and row["high"] <= most)
        outside.append(row["low"] is not None and row["low"] > most)
    verdict = "holds" if all(inside) else "does not hold" if any(outside) else "undecided"
    return row | {
        "number": prediction.number,
        "at_least": prediction.at_least,
        "at_most": prediction.at_most,
        "verdict": verdict,
        "holds": verdict == "holds",
    }


def _find(numbers: Mapping, path: str) -> Mapping | None:
    """The interval at a path; None where a run is missing."""
    value: Any = numbers
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
