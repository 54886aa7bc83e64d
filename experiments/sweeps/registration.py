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
from collections.abc import Iterable, Mapping, Sequence
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
        claims = [row.get("claim") for row in tables.get("prediction", ())]
        if twice := sorted({str(claim) for claim in claims if claims.count(claim) > 1}):
            raise TypeError(f"claimed twice: {twice}")
        return Registration(
            file.relative_to(root),
            tuple(Prediction(**row) for row in tables.get("prediction", ())),
            tuple(Power(**row) for row in tables.get("power", ())),
            hashlib.sha256(content).hexdigest(),
        )
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise errors.UserError(f"{file}: {error}") from error


def verify(registration: Registration, commits: Iterable[str | None]) -> dict:
    """The entry of results.json that says what was registered, and that it came before the runs.

    Args:
      commits: those that the runs were made by, as `keel_jax.runtime.versions` has them: None
        outside a checkout, and with "-dirty" at the end where the tree was changed.

    Raises:
      UserError: one of the commits has another file, or none.
    """
    file = registration.file.as_posix()
    unverified = set()
    for commit in sorted({str(commit) for commit in commits}):
        if commit.endswith("-dirty") or not results.has_commit(commit):
            unverified.add(commit)
        elif results.blob(commit, file) != results.blob_of(file):
            raise errors.UserError(
                f"{file} is not what it was at commit {commit[:12]}, by which runs of this preset "
                "were made: predictions cannot change after the first run. Restore the file of "
                "that commit, or run anew with other --runs."
            )
    return {
        "file": file,
        "sha256": registration.sha256,
        "power": [dataclasses.asdict(power) for power in registration.power],
        # Of a changed tree, of no checkout ("None"), or not in this clone: nothing was compared.
        "unverified_commits": sorted(unverified),
    }


def check(registration: Registration, numbers: Mapping, missing: Sequence[str]) -> dict[str, dict]:
    """Every prediction beside its number, by claim.

    While points are `missing`, all are undecided: what is there is not what was registered.
    """
    checks = {
        prediction.claim: _check(prediction, find(numbers, prediction.number))
        for prediction in registration.predictions
    }
    if missing:
        for row in checks.values():
            row |= {"verdict": "undecided", "holds": False, "num_missing": len(missing)}
    return checks


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


def find(numbers: Mapping, path: str) -> Mapping | None:
    """The interval at a path, "/" between keys; None where there is none, as without its runs."""
    value: Any = numbers
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
