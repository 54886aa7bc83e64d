"""What a task makes, and what is given to others: a problem, and the example made of it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a task draws: a problem, and one text that states it.

    Attributes:
      content: what the problem is, apart from how it is stated; it alone decides the split, so all
        questions about one content are on the same side. It begins with the name of its kind, as
        two tasks may ask about the same content.
      question: what is asked about the content, where it leaves a choice. Problems with the same
        content and question are the same problem, and a split has it once.
      prompt: the text, ASCII; the answer follows it immediately.
      answer: begins with a space.
      choices: the answer and the others that it is chosen from, in an order that says nothing of
        it, none a prefix of another; empty if the answer is written freely.
    """

    content: str
    question: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of a suite: `prompt` and `answer` are the text, `choices` as in `Problem`."""

    task: str
    difficulty: int
    prompt: str
    answer: str
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt and the answer."""
        return self.prompt + self.answer
