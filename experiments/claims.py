"""What the paper claims beside what the results say: the first page of `experiments.report`."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping, Sequence

from experiments import result_sets as result_sets_lib
from experiments.sweeps import registration

FILE = pathlib.Path(__file__).parent / "claims.toml"
SUPPORTS, CONTRADICTS, UNDECIDED, NOT_RUN = "supports it", "contradicts it", "undecided", "not run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A number of one experiment at one preset that speaks of a claim."""

    experiment: str
    preset: str
    # Depth, width and length, for the reader.
    size: str
    # Path in the numbers of results.json; "/" separates keys.
    number: str
    # The claim's range.
    at_least: float | None = None
    at_most: float | None = None
    # The number is that of the opposite, and is shown with the other sign.
    is_reversed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, what the paper reports for it, and our evidence."""

    text: str
    paper: str
    # What the evidence's numbers measure, with their unit.
    quantity: str
    evidence: tuple[Evidence, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What one piece of evidence says."""

    evidence: Evidence
    # One of the constants above.
    verdict: str
    # The middle and the interval; None where nothing was run.
    middle: float | None = None
    low: float | None = None
    high: float | None = None
    num_seeds: int | None = None
    # The interval is of 95 %; otherwise the range of the seeds.
    is_confidence: bool = True


def load(file: pathlib.Path = FILE) -> list[Claim]:
    """The claims of a file such as claims.toml, in order."""
    rows = tomllib.loads(file.read_text())["claim"]
    return [
        Claim(**{**row, "evidence": tuple(Evidence(**each) for each in row["evidence"])})
        for row in rows
    ]


def findings(claim: Claim, result_sets: Sequence[result_sets_lib.ResultSet]) -> list[Finding]:
    """What each piece of evidence says, in order."""
    numbers = {each.key: each.values["numbers"] for each in result_sets}
    return [_finding(each, numbers.get((each.experiment, each.preset))) for each in claim.evidence]


def _finding(evidence: Evidence, numbers: Mapping | None) -> Finding:
    row = registration.find(numbers or {}, evidence.number)
    if row is None:
        return Finding(evidence=evidence, verdict=NOT_RUN)
    middle, low, high = (row.get(name) for name in ("mean", "low", "high"))
    is_confidence = "mean" in row
    if not is_confidence:
        middle = row["median"]
    if evidence.is_reversed:
        middle, low, high = (None if x is None else -x for x in (middle, high, low))
    # With a run missing, what is there is not what was planned.
    is_whole = not (numbers or {}).get("missing")
    return Finding(
        evidence=evidence,
        verdict=_verdict(evidence, low, high) if is_whole else UNDECIDED,
        middle=middle,
        low=low,
        high=high,
        num_seeds=row.get("num_seeds"),
        is_confidence=is_confidence,
    )


def _verdict(evidence: Evidence, low: float | None, high: float | None) -> str:
    """Of an interval; a side without an end is open."""
    least, most = evidence.at_least, evidence.at_most
    if least is None and most is None:
        least = 0.0
    supports = [low is not None or high is not None]
    contradicts = []
    if least is not None:
        supports.append(low is not None and low > least)
        contradicts.append(high is not None and high < least)
    if most is not None:
        supports.append(high is not None and high < most)
        contradicts.append(low is not None and low > most)
    return SUPPORTS if all(supports) else CONTRADICTS if any(contradicts) else UNDECIDED
