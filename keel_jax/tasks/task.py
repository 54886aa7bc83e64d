"""What a benchmark is: a declaration of a few lines in `tasks/catalogue/`, of one of four kinds.

The conventions (what follows what, what is compared, how many examples are shown) are those of
EleutherAI's lm-evaluation-harness, whose files the declarations name, so that numbers can be laid
beside published ones.
"""

import abc
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from keel_jax.inference import scoring
from keel_jax.tasks import items, locating, pass_at_k, records

MULTILINGUAL = "multilingual"
KNOWLEDGE = "knowledge and common sense"
MATHEMATICS = "mathematics and code"
DEPTH = "depth"
DOMAINS = (MULTILINGUAL, KNOWLEDGE, MATHEMATICS, DEPTH)

Reader = Callable[[locating.Source, locating.Files], Iterable[records.Record]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """What all kinds have.

    Attributes:
      name: what `--tasks` calls it; also its folder's name.
      source: the paper, and the harness's file that it follows.
      domain: one of `DOMAINS`.
      files: where its items are.
      item: makes an item of a record; raises UserError if it cannot.
      metrics: names of the numbers; the first one is averaged with other benchmarks'.
      num_shots: examples in the prompt, unless the user says otherwise.
      are_shots_first: whether they are the first ones of their file, and not drawn.
      description: the beginning of every prompt of a subject.
      num_described: examples that the description itself shows.
      delimiter: between a question and its answer.
    """

    name: str
    source: str
    domain: str
    files: locating.Files
    item: Callable[[records.Record], items.Item]
    metrics: tuple[str, ...]
    num_shots: int = 0
    are_shots_first: bool = False
    description: Callable[[pathlib.Path, str], str] = lambda task_data, subject: ""
    num_described: int = 0
    delimiter: str = " "
    # How the records of a file are read, if not one by one as they are there.
    reader: Reader = locating.read
    # The same for examples in the prompt; None: as `reader`.
    shot_reader: Reader | None = None

    @abc.abstractmethod
    def solved(self, item: items.Item) -> str:
        """The item with its answer, as an example in a prompt shows it."""

    @abc.abstractmethod
    def chance(self, item: items.Item) -> float:
        """What a guess would score on the item."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(Task):
    """A benchmark that is scored by log-likelihoods of given texts."""

    @abc.abstractmethod
    def pairs(self, item: items.Item, prompt: str) -> list[tuple[str, str]]:
        """(context, continuation) of everything that is scored; `prompt` comes before the item."""

    @abc.abstractmethod
    def grade(self, item: items.Item, scores: Sequence[scoring.Score]) -> dict[str, float]:
        """The item's metrics, from the scores of its pairs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(Likelihood):
    """The most likely choice is the answer; `acc_norm` divides by the choices' letters."""

    item: Callable[[records.Record], items.Choices]
    metrics: tuple[str, ...] = ("acc", "acc_norm")

    def solved(self, item: items.Choices) -> str:
        place = min(item.right)
        return item.context(place) + self.delimiter + item.choices[place]

    def chance(self, item: items.Choices) -> float:
        return len(item.right) / len(item.choices)

    def pairs(self, item: items.Choices, prompt: str) -> list[tuple[str, str]]:
        return [
            (prompt + item.context(place), self.delimiter + choice)
            for place, choice in enumerate(item.choices)
        ]

    def grade(self, item: items.Choices, scores: Sequence[scoring.Score]) -> dict[str, float]:
        likelihoods = [score.log_likelihood for score in scores]
        per_letter = [
            likelihood / len(choice)
            for likelihood, choice in zip(likelihoods, item.choices, strict=True)
        ]
        grades = {
            "acc": float(_first_largest(likelihoods) in item.right),
            "acc_norm": float(_first_largest(per_letter) in item.right),
        }
        return {name: grades[name] for name in self.metrics}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastWords(Likelihood):
    """Whether greedy decoding would write the end of a text, and how likely that is."""

    item: Callable[[records.Record], items.LastWords]
    metrics: tuple[str, ...] = ("acc", "nats")
    # Without a delimiter: the continuation begins with its own space.
    delimiter: str = ""

    def solved(self, item: items.LastWords) -> str:
        return item.context + self.delimiter + item.continuation

    def chance(self, item: items.LastWords) -> float:
        return 0.0

    def pairs(self, item: items.LastWords, prompt: str) -> list[tuple[str, str]]:
        return [(prompt + item.context, self.delimiter + item.continuation)]

    def grade(self, item: items.LastWords, scores: Sequence[scoring.Score]) -> dict[str, float]:
        [score] = scores
        return {"acc": float(score.is_greedy), "nats": -score.log_likelihood}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortAnswer(Likelihood):
    """A few words: `exact_match` if greedy decoding writes them, `acc` if they are the most likely.

    Of an answer without alternatives, `acc` is `exact_match`.
    """

    item: Callable[[records.Record], items.Choices]
    metrics: tuple[str, ...] = ("acc", "exact_match")
    # The answers begin with their own space.
    delimiter: str = ""

    def solved(self, item: items.Choices) -> str:
        return item.context(0) + self.delimiter + item.choices[min(item.right)]

    def chance(self, item: items.Choices) -> float:
        # One choice alone is no choice: the answer is written freely.
        return 1 / len(item.choices) if len(item.choices) > 1 else 0.0

    def pairs(self, item: items.Choices, prompt: str) -> list[tuple[str, str]]:
        return [(prompt + item.context(0), self.delimiter + choice) for choice in item.choices]

    def grade(self, item: items.Choices, scores: Sequence[scoring.Score]) -> dict[str, float]:
        [right] = item.right
        exact = float(scores[right].is_greedy)
        best = _first_largest([score.log_likelihood for score in scores])
        return {"acc": float(best == right) if len(scores) > 1 else exact, "exact_match": exact}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated(Task):
    """A benchmark whose answers are generated.

    Attributes:
      stop: strings before which an answer ends.
      num_tokens: the most that an answer may have.
    """

    stop: tuple[str, ...]
    num_tokens: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch(Generated):
    """What is extracted from the generated text must be the answer.

    Attributes:
      extract: of each metric, what finds the answer in a generated text, or None.
    """

    item: Callable[[records.Record], items.Question]
    metrics: tuple[str, ...] = ("exact_match",)
    extract: Mapping[str, Callable[[str], str | None]]

    def solved(self, item: items.Question) -> str:
        return item.prompt + self.delimiter + item.solution

    def chance(self, item: items.Question) -> float:
        return item.chance

    def grade(self, item: items.Question, texts: Sequence[str]) -> dict[str, float]:
        """The share of the texts that hold the answer."""
        return {
            name: sum(self.extract[name](text) == item.answer for text in texts) / len(texts)
            for name in self.metrics
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code(Generated):
    """The generated program must pass the problem's tests."""

    item: Callable[[records.Record], items.Problem]
    metrics: tuple[str, ...] = ("pass@1",)
    delimiter: str = ""
    num_tokens: int = 512

    def solved(self, item: items.Problem) -> str:
        return item.prompt + self.delimiter + item.solution

    def chance(self, item: items.Problem) -> float:
        return 0.0

    def program(self, item: items.Problem, text: str) -> str:
        """What is run."""
        return item.before + text + "\n" + item.tests + "\n"

    def grade(self, passed: Sequence[bool], ks: Sequence[int] = (1,)) -> dict[str, float]:
        """pass@k from whether each sample passed (Chen et al. 2021, 2107.03374, equation 1)."""
        return {
            f"pass@{k}": pass_at_k.pass_at_k(len(passed), sum(passed), k)
            for k in ks
            if k <= len(passed)
        }


def last_group(pattern: str) -> Callable[[str], str | None]:
    """An extractor: the last match's last group that is not empty."""
    compiled = re.compile(pattern)

    def extract(text: str) -> str | None:
        found = [match for match in compiled.finditer(text) if match.group()]
        if not found:
            return None
        groups = [group for group in found[-1].groups() if group]
        return groups[-1] if groups else found[-1].group()

    return extract


def first_group(pattern: str) -> Callable[[str], str | None]:
    """An extractor: the first group of the first match."""
    compiled = re.compile(pattern)

    def extract(text: str) -> str | None:
        match = compiled.search(text)
        return match and match.group(1)

    return extract


def _first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: (values[place], -place))
