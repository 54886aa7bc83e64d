"""What a benchmark asks, one item at a time."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """What all kinds have.

    Attributes:
      where: file and line.
      subject: the part of the benchmark that it belongs to; "" if there are no parts.
    """

    where: str
    subject: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices(Item):
    """A question with several continuations, of which some are right.

    Attributes:
      contexts: one that all choices follow, or one for each.
      choices: the continuations, without the delimiter in front of them.
      right: the places of the right ones; one in most benchmarks.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    right: frozenset[int]

    def __post_init__(self):
        assert len(self.contexts) in (1, len(self.choices)), self.contexts

    def context(self, place: int) -> str:
        return self.contexts[place if len(self.contexts) > 1 else 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastWords(Item):
    """A text whose end is to be predicted."""

    context: str
    continuation: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question(Item):
    """A question that is answered by a generated text.

    Attributes:
      solution: the whole text of a right answer, for few-shot prompts.
      answer: what of an answer is compared.
      chance: what a guess would score.
    """

    prompt: str
    solution: str
    answer: str
    chance: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem(Item):
    """A problem that is solved by a generated program.

    Attributes:
      solution: a right one, for few-shot prompts.
      before: what stands before the generated text in the program that is run.
      tests: what stands after it; it raises an exception unless the solution is right.
    """

    prompt: str
    solution: str
    before: str
    tests: str
