"""Text from the model, one token at a time, with the keys and values of all blocks cached.

Dimension letters: B batch, P prompt time, T time, V vocabulary.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from keel_jax import errors
from keel_jax.model import lm
from keel_jax.model.arrays import Array

_LEAST_TEMPERATURE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    The logits are divided by `temperature`, restricted to the `top_k` most likely tokens, then to
    the smallest set of most likely tokens that has `top_p` of the remaining probability (nucleus
    sampling, 1904.09751).
    """

    # 0: always the most likely token.
    temperature: float = 1.0
    # 0: no limit.
    top_k: int = 0
    # 1: no limit.
    top_p: float = 1.0

    def __post_init__(self):
        # NaN fails too. Divided by less, logits would overflow.
        if self.temperature != 0 and not _LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise errors.UserError(
                f"temperature={self.temperature} must be a finite number of at least "
                f"{_LEAST_TEMPERATURE:g}, or 0, which takes the most likely token."
            )
        if self.top_k < 0:
            raise errors.UserError(f"top_k={self.top_k} is negative.")
        if not 0 < self.top_p <= 1:
            raise errors.UserError(f"top_p={self.top_p} must lie in (0, 1].")


def generate(
    model: lm.LanguageModel,
    params: Any,
    prompt_BP: Int[Array, "B P"],
    length_B: Int[Array, " B"],
    key: Array,
    *,
    num_tokens: int,
    sampling: Sampling,
    end_id: int,
    num_ids: int,
) -> Int[Array, "B {num_tokens}"]:
    """Draws `num_tokens` tokens after each prompt; int32 [B, num_tokens], `end_id` once ended.

    Args:
      prompt_BP: int32 ids; the first length_B[b] of row b are its prompt, the rest is ignored.
      key: a PRNG key; the tokens are a pure function of it.
      num_ids: ids from this one on are padding of the vocabulary and never drawn.
    """
    batch_size, prompt_size = prompt_BP.shape
    cache = lm.empty_cache(model.model, batch_size, prompt_size + num_tokens)

    def next_logits(tokens_BT, start_B, last_B, cache):
        logits_BTV, cache = model.apply(
            {"params": params}, tokens_BT, start_B, cache, method="decode"
        )
        return jnp.take_along_axis(logits_BTV, last_B[:, None, None], axis=1)[:, 0], cache

    def draw(logits_BV, key, ended_B):
        tokens_B = sample(logits_BV[:, :num_ids], key, sampling)
        return jnp.where(ended_B, end_id, tokens_B)

    def one_more(carry, index):
        tokens_B, ended_B, cache = carry
        zeros = jnp.zeros_like(length_B)
        logits_BV, cache = next_logits(tokens_B[:, None], length_B + index, zeros, cache)
        tokens_B = draw(logits_BV, jax.random.fold_in(key, index + 1), ended_B)
        return (tokens_B, ended_B | (tokens_B == end_id), cache), tokens_B

    # The whole prompt at once. Slots after a short prompt are meaningless, but they are in the
    # future of every query until a drawn token overwrites them.
    logits_BV, cache = next_logits(prompt_BP, jnp.zeros_like(length_B), length_B - 1, cache)
    first_B = draw(logits_BV, jax.random.fold_in(key, 0), jnp.zeros(batch_size, bool))
    carry = (first_B, first_B == end_id, cache)
    _, tokens_TB = jax.lax.scan(one_more, carry, jnp.arange(num_tokens - 1))
    return jnp.concatenate([first_B[None], tokens_TB]).T


def sample(logits_BV: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, " B"]:
    """One token id per row; int32 [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = _cut(logits_BV / sampling.temperature, sampling)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def _cut(logits_BV, sampling: Sampling):
    """-inf for every token outside of top_k and top_p."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        sorted_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < sampling.top_k, sorted_BV, -jnp.inf)
    probability_BV = jax.nn.softmax(sorted_BV)
    # A token is kept if the more likely ones have less than top_p: the most likely one always is.
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    stays_BV = (before_BV < sampling.top_p) & (sorted_BV > -jnp.inf)
    least_B1 = jnp.where(stays_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
