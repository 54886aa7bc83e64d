"""Scores benchmarks by a model; what has been scored before is not scored again."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from keel_jax import errors
from keel_jax.inference import model as model_lib
from keel_jax.inference import requests, scoring
from keel_jax.model import sampling
from keel_jax.runtime import distributed, files
from keel_jax.tasks import confinement, items, kept, loading, results, task

# What is lost by a kill: so many batches at most.
_NUM_BATCHES_AT_ONCE = 8
_KS = (1, 10, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How answers are asked for.

    Attributes:
      batch_size: rows at a time.
      num_samples: generated answers an item; with several, they are drawn.
      temperature: of drawn answers (Chen et al. 2021: 0.8 for pass@100, 0.2 for pass@1).
      seed: of drawn answers.
      num_tokens: the most that a generated answer may have; None: each benchmark's own number.
      may_run_code: whether programs that the model wrote may be run, confined.
      may_run_as_root: whether that may be done by root.
    """

    batch_size: int = 16
    num_samples: int = 1
    temperature: float = 0.8
    seed: int = 0
    num_tokens: int | None = None
    may_run_code: bool = False
    may_run_as_root: bool = False

    def sampling(self) -> sampling.Sampling:
        if self.num_samples == 1:
            return sampling.Sampling(temperature=0.0)
        return sampling.Sampling(temperature=self.temperature, top_p=0.95)


@dataclasses.dataclass(frozen=True)
class _Request:
    """An item with all that it asks of the model."""

    entry: loading.Prompted
    key: str
    # What is scored, or nothing.
    rows: tuple[requests.Row, ...] = ()
    # What is written on, or nothing.
    prompt: str = ""

    @property
    def length(self) -> int:
        return max((len(row.ids) for row in self.rows), default=len(self.prompt))

    def numbers(self, num_samples: int) -> list[int]:
        """Of the item's samples, whatever else is asked for; below 2^31."""
        first = int(self.key[:8], 16)
        return [(first + sample) % 2**31 for sample in range(num_samples)]


class Runner:
    """Scores benchmarks by one model, and keeps what it says to each item in a directory."""

    def __init__(self, model: model_lib.Model, directory: epath.Path, options: Options):
        """Raises UserError if nothing can be written to `directory`."""
        self._model = model
        self._options = options
        self._identity = model.trained.identity()
        self._directory = directory
        # By benchmark: what `check` has tokenized, until it is asked for.
        self._checked: dict[str, list[_Request]] = {}
        if distributed.is_lead():
            files.make_writable_directory(directory)

    def check(self, loaded: loading.Loaded) -> None:
        """Finds what cannot be scored, before hours are spent on what can.

        Raises:
          UserError: an item's answer does not fit into the model's positions, or the benchmark
            runs code, which was not asked for or cannot be done here.
        """
        if isinstance(loaded.task, task.Code):
            if not self._options.may_run_code:
                raise errors.UserError(
                    f"{loaded.task.name} runs programs that the model wrote: add --run_code to "
                    "allow that. They are confined (docs/tasks.md), but no confinement is perfect."
                )
            confinement.check(allow_root=self._options.may_run_as_root)
        if isinstance(loaded.task, task.Generated):
            num_tokens = self._num_tokens(loaded.task)
            if num_tokens >= self._model.max_length:
                raise errors.UserError(
                    f"{loaded.task.name}: answers of up to {num_tokens} tokens leave no room for a "
                    f"prompt in the {self._model.max_length} positions that the model knows: give "
                    "--num_tokens, or train with a longer train.seq_len."
                )
        self._checked[loaded.task.name] = [
            self._request(loaded.task, entry) for entry in loaded.items
        ]

    def run(
        self, loaded: loading.Loaded, on_progress: Callable[[int, int], None] = lambda *_: None
    ) -> results.Result | None:
        """The scores of a benchmark that was checked; None on processes other than the lead.

        Args:
          on_progress: is told how many items have been scored, of how many.
        """
        declared = loaded.task
        wanted = self._checked.pop(declared.name)
        store = kept.Kept(self._directory / f"{declared.name}.{loaded.num_shots}-shot.jsonl")
        found: dict[int, Any] = {
            place: store.get(request.key) for place, request in enumerate(wanted)
        }
        # All processes of a program must ask for the same.
        is_known = distributed.from_lead(*(line is not None for line in found.values()))
        pending = [place for place, known in enumerate(is_known) if not known]
        # The longest first: if memory is short, that is known at once.
        pending.sort(key=lambda place: -wanted[place].length)
        num_done = len(wanted) - len(pending)
        on_progress(num_done, len(wanted))
        for places in self._portions(declared, pending):
            lines = self._ask(declared, [wanted[place] for place in places])
            if distributed.is_lead():
                store.add(lines)
            found.update(zip(places, lines, strict=True))
            num_done += len(places)
            on_progress(num_done, len(wanted))
        if not distributed.is_lead():
            return None  # the file of what was known before is the lead's
        grades = [
            self._grade(declared, wanted[place], found[place]) for place in range(len(wanted))
        ]
        entries = [request.entry.item for request in wanted]
        return results.summarize(
            declared,
            loaded.num_shots,
            grades,
            [declared.chance(item) for item in entries],
            [item.subject for item in entries],
            sum(line["num_cut"] > 0 for line in found.values()),
        )

    def _request(self, declared: task.Task, entry: loading.Prompted) -> _Request:
        item = entry.item
        if isinstance(declared, task.Likelihood):
            pairs = declared.pairs(item, entry.prompt)
            model = self._model
            rows = requests.of_pairs(model.tokenizer, pairs, model.max_length, item.where)
            return _Request(entry, kept.key(self._identity, declared.name, pairs), rows=rows)
        assert isinstance(declared, task.Generated)
        assert isinstance(item, items.Question | items.Problem)
        prompt = entry.prompt + item.prompt
        how = dataclasses.asdict(self._options.sampling())
        if self._options.num_samples > 1:
            how |= {"seed": self._options.seed}
        num_tokens = self._num_tokens(declared)
        asked = [prompt, declared.stop, num_tokens, self._options.num_samples, how]
        if isinstance(declared, task.Code):
            assert isinstance(item, items.Problem)
            asked.append(declared.program(item, ""))  # whose verdict is kept
        return _Request(entry, kept.key(self._identity, declared.name, asked), prompt=prompt)

    def _num_tokens(self, declared: task.Generated) -> int:
        given = self._options.num_tokens
        return declared.num_tokens if given is None else given

    def _portions(self, declared: task.Task, pending: list[int]) -> Iterator[list[int]]:
        size = self._options.batch_size * _NUM_BATCHES_AT_ONCE
        if isinstance(declared, task.Generated):
            size = max(1, size // (_NUM_BATCHES_AT_ONCE * self._options.num_samples))
        for first in range(0, len(pending), size):
            yield pending[first : first + size]

    def _ask(self, declared: task.Task, wanted: Sequence[_Request]) -> list[dict[str, Any]]:
        """What the model says to some items, and how it is kept."""
        if isinstance(declared, task.Likelihood):
            lines = self._score(wanted)
        else:
            assert isinstance(declared, task.Generated)
            lines = self._generate(declared, wanted)
        return [
            {"key": request.key, "where": request.entry.item.where, **line}
            for request, line in zip(wanted, lines, strict=True)
        ]

    def _score(self, wanted: Sequence[_Request]) -> list[dict[str, Any]]:
        rows = [row for request in wanted for row in request.rows]
        scores = iter(self._model.scorer(self._options.batch_size)(rows))
        lines = []
        for request in wanted:
            own = [next(scores) for _ in request.rows]
            lines.append(
                {
                    "num_cut": max(score.num_cut for score in own),
                    "log_likelihoods": [score.log_likelihood for score in own],
                    "is_greedy": [score.is_greedy for score in own],
                }
            )
        return lines

    def _generate(
        self, declared: task.Generated, wanted: Sequence[_Request]
    ) -> list[dict[str, Any]]:
        num_samples = self._options.num_samples
        written = self._model.generate_timed(
            [request.prompt for request in wanted for _ in range(num_samples)],
            num_tokens=self._num_tokens(declared),
            how=self._options.sampling(),
            seed=self._options.seed,
            stop=declared.stop,
            batch_size=self._options.batch_size,
            cut_prompts=True,
            # An item's own: a second start draws for it what an uninterrupted one would have drawn.
            numbers=[number for request in wanted for number in request.numbers(num_samples)],
        )
        lines = []
        for place, request in enumerate(wanted):
            own = written.texts[place * num_samples : (place + 1) * num_samples]
            texts = [text.text for text in own]
            line: dict[str, Any] = {"num_cut": max(text.num_cut for text in own), "texts": texts}
            if isinstance(declared, task.Code) and distributed.is_lead():
                verdicts = [self._run_code(declared, request, text) for text in texts]
                line["passed"] = [verdict.passed for verdict in verdicts]
                line["reasons"] = [verdict.reason for verdict in verdicts]
            lines.append(line)
        return lines

    def _run_code(self, declared: task.Code, request: _Request, text: str) -> confinement.Verdict:
        item = request.entry.item
        assert isinstance(item, items.Problem)
        return confinement.run(
            declared.program(item, text), allow_root=self._options.may_run_as_root
        )

    def _grade(
        self, declared: task.Task, request: _Request, line: Mapping[str, Any]
    ) -> dict[str, float]:
        """The metrics of an item, from what was kept of it: computed anew each time."""
        item = request.entry.item
        if isinstance(declared, task.Likelihood):
            scores = [
                scoring.Score(log_likelihood, is_greedy, row.num_scored, row.num_cut)
                for log_likelihood, is_greedy, row in zip(
                    line["log_likelihoods"], line["is_greedy"], request.rows, strict=True
                )
            ]
            return declared.grade(item, scores)
        if isinstance(declared, task.Code):
            return declared.grade(line["passed"], _KS)
        assert isinstance(declared, task.ExactMatch) and isinstance(item, items.Question)
        return declared.grade(item, line["texts"])
