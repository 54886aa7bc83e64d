"""A trained model for use from Python: `keel_jax.load(workdir)`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.data import chat_template
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.inference import requests, scoring
from keel_jax.model import lm, sampling
from keel_jax.training import checkpoint, trained


@dataclasses.dataclass(frozen=True)
class TextLoss:
    """The loss on one text; of an empty one, 0 / 0 is NaN."""

    # Sum of -log p over its tokens.
    nats: float
    num_tokens: int
    # Of the text in UTF-8.
    num_bytes: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens if self.num_tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


class Model:
    """The weights of a run, or of one of its trials, with its tokenizer.

    Every text that it reads begins a document: EOS is put before it, as in training.

    Attributes:
      trained: config, parameters, metadata and mesh.
      tokenizer: the run's own.
      max_length: positions that it knows, the length of the windows of its training.
    """

    def __init__(self, model: trained.Trained):
        """Raises UserError if the work directory's tokenizer is not the checkpoint's."""
        self.trained = model
        self.tokenizer: tokenizer_lib.Tokenizer = model.tokenizer()
        self.max_length = model.cfg.train.seq_len
        self._network = lm.LanguageModel(model.cfg.model)
        self._scorers: dict[int, scoring.Scorer] = {}

    def logits(self, text: str) -> Float[np.ndarray, "T V"]:
        """Logits of the token after EOS and after each token of `text`, float32 [T, V].

        T is the number of tokens and one more, V the tokenizer's vocabulary.

        Raises:
          UserError: the text is longer than `max_length` - 1 tokens.
        """
        ids = self._with_eos(text)
        # One program for all texts: what follows a token does not change it.
        tokens_BT = np.zeros((1, self.max_length), np.int32)
        tokens_BT[0, : len(ids)] = ids
        logits_BTV = self._logits(self.trained.params, tokens_BT)
        return np.asarray(logits_BTV[0, : len(ids), : self.tokenizer.vocab_size])

    def score(
        self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 16
    ) -> list[scoring.Score]:
        """The log-likelihood of each continuation after its context, from (context, continuation).

        A space between the two belongs to the continuation: ("The sky is", " blue"). Of a context
        that is too long, the end is read.

        Raises:
          UserError: a continuation is empty, or longer than `max_length` tokens.
        """
        rows = [
            requests.of_continuation(self.tokenizer, context, continuation, self.max_length)
            for context, continuation in pairs
        ]
        return self.scorer(batch_size)(rows)

    def loss(self, texts: Sequence[str], *, batch_size: int = 16) -> list[TextLoss]:
        """The loss on each whole text: every token counts once, and not the EOS after it.

        A text that is longer than a window is read in full windows, the first from its beginning.
        """
        per_text = [requests.of_text(self.tokenizer, text, self.max_length) for text in texts]
        scores = iter(self.scorer(batch_size)([row for rows in per_text for row in rows]))
        return [
            TextLoss(
                nats=-sum(next(scores).log_likelihood for _ in rows),
                num_tokens=sum(row.num_scored for row in rows),
                num_bytes=len(text.encode()),
            )
            for text, rows in zip(texts, per_text, strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        num_tokens: int,
        how: sampling.Sampling | None = None,
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each prompt, at most `num_tokens` tokens.

        Args:
          how: default: the most likely token each time.
          seed: the same prompts and seed give the same texts.

        Raises:
          UserError: `num_tokens` is below 1, or a prompt is longer than `max_length` tokens with
            its EOS.
        """
        limits.at_least("num_tokens", num_tokens, 1)
        if not prompts:
            return []
        rows = [self._with_eos(prompt) for prompt in prompts]
        prompt_BP = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for row, ids in zip(prompt_BP, rows, strict=True):
            row[: len(ids)] = ids
        tokens_BT = self._generate(
            self.trained.params,
            prompt_BP,
            np.array([len(row) for row in rows], np.int32),
            jax.random.key(seed),
            num_tokens=num_tokens,
            how=how or sampling.Sampling(temperature=0.0),
        )
        end = self.tokenizer.eos_id
        return [self.tokenizer.decode(_until(row, end)) for row in np.asarray(tokens_BT)]

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of the assistant's next message, in the template of the checkpoint.

        Args:
          messages: of {"role": "system", "user" or "assistant", "content": …}; the last one is not
            the assistant's.

        Raises:
          UserError: the model has learned no conversations, or a message is not of this form.
        """
        template = self.trained.chat_template()
        return template.prompt(chat_template.parse_messages(messages))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        num_tokens: int,
        how: sampling.Sampling | None = None,
        seed: int = 0,
    ) -> str:
        """The assistant's next message; the arguments are those of `chat_prompt` and `generate`."""
        prompt = self.chat_prompt(messages)
        return self.generate([prompt], num_tokens=num_tokens, how=how, seed=seed)[0]

    def scorer(self, batch_size: int) -> scoring.Scorer:
        """The scorer of that batch size, with the programs that it has compiled so far."""
        if batch_size not in self._scorers:
            self._scorers[batch_size] = scoring.Scorer(self.trained, batch_size)
        return self._scorers[batch_size]

    def _with_eos(self, text: str) -> np.ndarray:
        """EOS and the tokens of `text`, int32."""
        ids = np.concatenate([[self.tokenizer.eos_id], self.tokenizer.encode(text)])
        if len(ids) > self.max_length:
            raise errors.UserError(
                f"The prompt has {len(ids)} tokens (the EOS before it included), but the model was "
                f"trained on windows of {self.max_length}: it knows no later positions. Give its "
                "last part alone, or train with a longer train.seq_len."
            )
        return ids.astype(np.int32)

    @functools.cached_property
    def _logits(self) -> Callable:
        return jax.jit(lambda params, tokens: self._network.apply({"params": params}, tokens))

    @functools.cached_property
    def _generate(self) -> Callable:
        def draw(params, prompt_BP, length_B, key, num_tokens, how):
            return sampling.generate(
                self._network,
                params,
                prompt_BP,
                length_B,
                key,
                num_tokens=num_tokens,
                sampling=how,
                end_id=self.tokenizer.eos_id,
                num_ids=self.tokenizer.vocab_size,
            )

        return jax.jit(draw, static_argnames=("num_tokens", "how"))


def load(
    workdir: epath.PathLike,
    *,
    step: checkpoint.Step = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Model:
    """The model of `workdir`, the directory of a run or of one of its trials.

    Args:
      step: of the checkpoint: a number, "best", or None for the newest.
      mesh: where to load it; default: this process's first device.

    Raises:
      UserError: no run or checkpoint there, a directory of several trials, or another tokenizer.
    """
    return Model(trained.load(workdir, mesh or trained.one_device(), step))


def _until(ids: np.ndarray, end_id: int) -> np.ndarray:
    ends = np.flatnonzero(ids == end_id)
    return ids[: ends[0]] if ends.size else ids
