"""What a model scored: means over items with standard errors, and means over benchmarks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keel_jax.tasks import catalogue, task


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over items."""

    value: float
    # Of the mean: the sample's standard deviation over √n. None of one item.
    stderr: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one benchmark.

    Attributes:
      metrics: by name, the first one is the headline.
      chance: what guessing scores, by the first metric; 0 where nothing can be guessed.
      num_cut: items whose prompt was too long, so that its beginning was not read.
      subjects: the first metric and the number of items of each subject.
    """

    name: str
    domain: str
    num_items: int
    num_shots: int
    metrics: Mapping[str, Mean]
    chance: float
    num_cut: int
    subjects: Mapping[str, tuple[float, int]]

    @property
    def headline(self) -> Mean:
        return next(iter(self.metrics.values()))


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean of benchmarks' headlines, each counting once, as the paper averages."""

    value: float
    stderr: float | None
    tasks: tuple[str, ...]


def mean(values: Sequence[float]) -> Mean:
    array = np.asarray(values, np.float64)
    stderr = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Mean(float(array.mean()), stderr)


def summarize(
    declared: task.Task,
    num_shots: int,
    grades: Sequence[Mapping[str, float]],
    chances: Sequence[float],
    subjects: Sequence[str],
    num_cut: int,
) -> Result:
    """The result from the grades of all items, in order."""
    metrics = {name: mean([grade[name] for grade in grades]) for name in grades[0]}
    headline = next(iter(metrics))
    by_subject: dict[str, list[float]] = {}
    for subject, grade in zip(subjects, grades, strict=True):
        by_subject.setdefault(subject, []).append(grade[headline])
    return Result(
        name=declared.name,
        domain=declared.domain,
        num_items=len(grades),
        num_shots=num_shots + declared.num_described,
        metrics=metrics,
        chance=float(np.mean(chances)),
        num_cut=num_cut,
        subjects={
            subject: (float(np.mean(values)), len(values))
            for subject, values in by_subject.items()
            if subject
        },
    )


def averages(results: Sequence[Result]) -> dict[str, Average]:
    """By domain, over all of them ("all"), and of each complete group."""
    found = {}
    for domain in task.DOMAINS:
        members = [result for result in results if result.domain == domain]
        if members:
            found[domain] = _average(members)
    names = {result.name for result in results}
    for group, wanted in catalogue.GROUPS.items():
        if names >= {*wanted}:
            found[group] = _average([result for result in results if result.name in wanted])
    if results:
        found["all"] = _average(results)
    return found


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """What `--json` holds under "tasks" and "averages"."""
    return {
        "tasks": {result.name: dataclasses.asdict(result) for result in results},
        "averages": {
            name: dataclasses.asdict(average) for name, average in averages(results).items()
        },
    }


def headlines(found: Mapping[str, Any]) -> dict[str, float]:
    """Of what `as_json` made: each benchmark's first metric, and the averages."""
    scores = {}
    for name, result in found["tasks"].items():
        metric, mean = next(iter(result["metrics"].items()))
        scores[f"{name} ({metric})"] = mean["value"]
    for name, average in found["averages"].items():
        scores[f"average: {name}"] = average["value"]
    return scores


def _average(members: Sequence[Result]) -> Average:
    errors = [member.headline.stderr for member in members]
    known = [error for error in errors if error is not None]
    return Average(
        float(np.mean([member.headline.value for member in members])),
        math.sqrt(sum(error**2 for error in known)) / len(members)
        if len(known) == len(errors)
        else None,
        tuple(member.name for member in members),
    )
