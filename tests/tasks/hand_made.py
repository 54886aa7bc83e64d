"""A model whose probabilities are known: of the next letter, by the last one alone."""

import numpy as np

from keel_jax.inference import generation, requests, scoring

EOS = 0
_LETTERS = [chr(code) for code in range(9, 127)] + list("问题选项答案甲是什么从我们应择")


class Letters:
    """A tokenizer of one id a letter; letters that it does not know are one id together."""

    eos_id = EOS

    def encode(self, text):
        return np.array([self._id(letter) for letter in text], np.int32)

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def _id(self, letter):
        return _LETTERS.index(letter) + 1 if letter in _LETTERS else len(_LETTERS) + 1


class HandMade:
    """log p of a letter after another is minus an integer over 8: sums are exact in float64.

    It is a model's interface as `tasks.running` uses it. `answers` are what it writes after prompts
    that end in their keys.
    """

    def __init__(self, answers=None, identity="a", max_length=4000):
        self.tokenizer = Letters()
        self.max_length = max_length
        self.trained = self
        self.num_scored = 0
        self.num_written = 0
        self.numbers = []
        self._answers = answers or {}
        self._identity = identity

    def identity(self):
        return self._identity

    def scorer(self, batch_size):
        assert batch_size > 0
        return self._score

    def _score(self, rows):
        self.num_scored += len(rows)
        return [self.score_row(row) for row in rows]

    def score_row(self, row: requests.Row) -> scoring.Score:
        ids = row.ids[len(row.ids) - row.num_scored - 1 :].astype(int)
        steps = [after_log_p(one, other) for one, other in zip(ids[:-1], ids[1:], strict=True)]
        return scoring.Score(
            sum(steps), all(step == 0.0 for step in steps), row.num_scored, row.num_cut
        )

    def generate_timed(self, prompts, *, numbers, stop, num_tokens, **_):
        assert len(numbers) == len(prompts) and num_tokens > 0
        self.num_written += len(prompts)
        self.numbers += numbers
        texts = []
        for prompt in prompts:
            text = next(
                answer for end, answer in self._answers.items() if prompt.rstrip().endswith(end)
            )
            texts.append(generation.Text(min((text.split(s)[0] for s in stop), key=len), 1, 0))
        return generation.Texts(texts, 1.0)


def after_log_p(one: int, other: int) -> float:
    return -((7 * one + 3 * other) % 5) / 8
