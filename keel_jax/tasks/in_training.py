"""Benchmarks that are scored while a run trains: the option section `tasks`."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from keel_jax import config, errors
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.inference import requests, scoring
from keel_jax.tasks import catalogue, loading, results, task
from keel_jax.training import state as state_lib

# Rows between two looks for a stop request, in batches.
_NUM_BATCHES_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A benchmark, and the rows of its items one after another."""

    loaded: loading.Loaded
    rows: tuple[requests.Row, ...]
    # Rows of each item.
    num_rows: tuple[int, ...]


class Examination:
    """The benchmarks of a run, read and tokenized before it begins to train."""

    def __init__(
        self, cfg: config.Config, mesh: jax.sharding.Mesh, tokenizer: tokenizer_lib.Tokenizer
    ):
        """Args:
          cfg: of the run, resolved for `mesh`.

        Raises:
          UserError: unknown benchmarks, missing or damaged files, answers that do not fit into the
            windows, benchmarks whose answers are generated, or a mesh that splits sequences.
        """
        self._cfg, self._mesh = cfg, mesh
        self._asked = [
            _ask(declared, cfg, tokenizer) for declared in catalogue.named([*cfg.tasks.names])
        ]
        # Programs are compiled when they are first used; what cannot be is known now.
        self._scorer = scoring.Scorer(cfg, mesh, None, cfg.tasks.batch_size)

    def __call__(
        self, params: Any, stop_asked: Callable[[], bool] = lambda: False
    ) -> list[dict[str, float]] | None:
        """The metrics of each trial, by name; None if a stop request came first.

        Args:
          params: of the run, with a leading axis if it has several trials.
        """
        rows = []
        # Slicing a trial's weights off and reading scores are transfers.
        with jax.transfer_guard("allow"):
            for trial in range(self._cfg.num_trials):
                own = state_lib.trial_of(params, trial, self._cfg.num_trials)
                metrics = self._metrics(self._scorer.of(own), stop_asked)
                if metrics is None:
                    return None
                rows.append(metrics)
        return rows

    def _metrics(
        self, scorer: scoring.Scorer, stop_asked: Callable[[], bool]
    ) -> dict[str, float] | None:
        found = []
        for asked in self._asked:
            scores = []
            size = scorer.batch_size * _NUM_BATCHES_AT_ONCE
            for first in range(0, len(asked.rows), size):
                if stop_asked():
                    return None
                scores += scorer(asked.rows[first : first + size])
            found.append(_result(asked, scores))
        metrics = {}
        for result in found:
            for name, mean in result.metrics.items():
                metrics[f"tasks/{result.name}/{name}"] = mean.value
            headline = next(iter(result.metrics))
            for subject, (value, _) in result.subjects.items():
                metrics[f"tasks/{result.name}/{headline}/{subject}"] = value
        metrics["tasks/average"] = results.averages(found)["all"].value
        return metrics


def make(
    cfg: config.Config, mesh: jax.sharding.Mesh, tokenizer_file: epath.PathLike
) -> Examination | None:
    """The examination of a run, or None if it names no benchmarks; errors as of `Examination`."""
    if not cfg.tasks.names:
        return None
    return Examination(cfg, mesh, tokenizer_lib.Tokenizer.load(tokenizer_file))


def _ask(declared: task.Task, cfg: config.Config, tokenizer: tokenizer_lib.Tokenizer) -> _Asked:
    if not isinstance(declared, task.Likelihood):
        raise errors.UserError(
            f"tasks.names has {declared.name}, whose answers are generated: score it on the "
            "checkpoints, with python -m keel_jax.evaluate --tasks, and leave it out here."
        )
    loaded = loading.load(declared, pathlib.Path(cfg.tasks.data), limit=cfg.tasks.limit or None)
    per_item = [
        requests.of_pairs(
            tokenizer, declared.pairs(entry.item, entry.prompt), cfg.train.seq_len, entry.item.where
        )
        for entry in loaded.items
    ]
    return _Asked(loaded, tuple(row for rows in per_item for row in rows), _lengths(per_item))


def _lengths(lists: Sequence[Sequence[Any]]) -> tuple[int, ...]:
    return tuple(len(each) for each in lists)


def _result(asked: _Asked, scores: Sequence[scoring.Score]) -> results.Result:
    declared = asked.loaded.task
    assert isinstance(declared, task.Likelihood)
    entries = [entry.item for entry in asked.loaded.items]
    grades, num_cut, rest = [], 0, iter(scores)
    for item, num_rows in zip(entries, asked.num_rows, strict=True):
        own = [next(rest) for _ in range(num_rows)]
        grades.append(declared.grade(item, own))
        num_cut += any(score.num_cut for score in own)
    return results.summarize(
        declared,
        asked.loaded.num_shots,
        grades,
        [declared.chance(item) for item in entries],
        [item.subject for item in entries],
        num_cut,
    )
