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
from keel_jax.inference import generation, requests, scoring
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
        self._generators: dict[tuple[int, sampling.Sampling], generation.Generator] = {}

    def logits(self, text: str) -> Float[np.ndarray, "T V"]:
        """Logits of the token after EOS and after each token of `text`, float32 [T, V].

        T is the number of tokens and one more, V the tokenizer's vocabulary.

        Raises:
          UserError: the text is longer than `max_length` - 1 tokens.
        """
        ids = requests.of_prompt(self.tokenizer, text, self.max_length).ids
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
        stop: Sequence[str] = (),
        batch_size: int = 16,
        cut_prompts: bool = False,
    ) -> list[str]:
        """What the model writes after each prompt, at most `num_tokens` tokens.

        Args:
          how: default: the most likely token each time.
          seed: prompt i is written on with the keys of (seed, i), whatever the batches are.
          stop: a text ends before the first of these strings.
          cut_prompts: of a prompt that leaves less room than `num_tokens` in `max_length`, keep the
            end (the harness's left truncation).

        Raises:
          UserError: `num_tokens` or `batch_size` is below 1, a `stop` string is empty, or a prompt
            is longer than `max_length` tokens with its EOS; with `cut_prompts`, if `num_tokens`
            leaves no room for any.
        """
        written = self.generate_timed(
            prompts,
            num_tokens=num_tokens,
            how=how,
            seed=seed,
            stop=stop,
            batch_size=batch_size,
            cut_prompts=cut_prompts,
        )
        return [text.text for text in written.texts]

    def generate_timed(
        self,
        prompts: Sequence[str],
        *,
        num_tokens: int,
        how: sampling.Sampling | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        batch_size: int = 16,
        cut_prompts: bool = False,
    ) -> generation.Texts:
        """As `generate`, with the numbers of tokens and the seconds that it took.

        Args:
          numbers: prompt i is written on with the keys of (seed, numbers[i]), so that a part of
            some prompts gets the texts that all of them would have got; each in [0, 2^31).
        """
        limits.at_least("num_tokens", num_tokens, 1)
        if isinstance(stop, str) or not all(stop):
            raise errors.UserError(f"stop={stop!r} must be a list of strings that are not empty.")
        room = self.max_length - num_tokens if cut_prompts else None
        if room is not None and room < 1:
            raise errors.UserError(
                f"num_tokens={num_tokens} leaves no room for a prompt in the {self.max_length} "
                "positions that the model knows: ask for fewer tokens."
            )
        generator = self._generator(batch_size, how or sampling.Sampling(temperature=0.0))
        rows = [
            requests.of_prompt(self.tokenizer, prompt, self.max_length, room) for prompt in prompts
        ]
        decode = self.tokenizer.decode

        def has_stop(ids: np.ndarray) -> bool:
            return generation.first_stop(decode(ids), stop) is not None

        drawn, seconds = generator(
            rows,
            num_tokens=num_tokens,
            seed=seed,
            numbers=numbers,
            is_over=has_stop if stop else None,
        )
        texts = [generation.of_drawn(each, decode, stop, num_tokens) for each in drawn]
        return generation.Texts(texts, seconds)

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
            model = self.trained
            self._scorers[batch_size] = scoring.Scorer(
                model.cfg, model.mesh, model.params, batch_size
            )
        return self._scorers[batch_size]

    def _generator(self, batch_size: int, how: sampling.Sampling) -> generation.Generator:
        """The generator of that batch size and sampling, with the programs compiled so far."""
        key = batch_size, how
        if key not in self._generators:
            self._generators[key] = generation.Generator(
                self.trained,
                how,
                batch_size=batch_size,
                end_id=self.tokenizer.eos_id,
                num_ids=self.tokenizer.vocab_size,
            )
        return self._generators[key]

    @functools.cached_property
    def _logits(self) -> Callable:
        return jax.jit(lambda params, tokens: self._network.apply({"params": params}, tokens))


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
