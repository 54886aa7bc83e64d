"""Text from the model, one token at a time, with the keys and values of all blocks cached.

Dimension letters: B batch, P prompt time, T time, V vocabulary.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from keel_jax import errors
from keel_jax.model import layers, lm
from keel_jax.model.arrays import Array, Leaf

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


@flax.struct.dataclass
class State:
    """Rows of which `num_drawn` tokens each are drawn."""

    # The last token of each row, int32 [B]: not in the cache yet.
    token_B: Leaf
    # Whether nothing more is to be drawn, bool [B].
    ended_B: Leaf
    # int32 [].
    num_drawn: Leaf
    cache: layers.Cache


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws tokens for a batch of rows, each from its own keys."""

    model: lm.LanguageModel
    sampling: Sampling
    # Nothing is drawn after this id. -1: there is no such id.
    end_id: int
    # Ids from this one on are padding of the vocabulary and never drawn.
    num_ids: int

    def begin(
        self,
        params: Any,
        prompt_BP: Int[Array, "B P"],
        length_B: Int[Array, " B"],
        key_B: Array,
        *,
        cache_size: int,
    ) -> State:
        """The first token after each prompt; the whole prompts are read at once.

        Args:
          prompt_BP: int32 ids; the first length_B[b] of row b are its prompt, the rest is ignored.
          key_B: a PRNG key for each row; the row's tokens are a pure function of it.
          cache_size: slots of the cache, at least P.
        """
        batch_size, prompt_size = prompt_BP.shape
        # Slots after a short prompt are meaningless, but they are in the future of every query
        # until a drawn token overwrites them.
        cache = lm.empty_cache(self.model.model, batch_size, prompt_size)
        start_B = jnp.zeros_like(length_B)
        logits_BV, cache = self._logits(params, prompt_BP, start_B, cache, length_B - 1)
        # Queries of the prompt are compared with its keys alone; the rest of the cache comes later.
        more = [(0, 0), (0, 0), (0, cache_size - prompt_size), (0, 0), (0, 0)]
        num_drawn = jnp.zeros((), jnp.int32)
        token_B = self._draw(logits_BV, key_B, num_drawn, jnp.zeros(batch_size, bool))
        return State(
            token_B=token_B,
            ended_B=token_B == self.end_id,
            num_drawn=num_drawn + 1,
            cache=jax.tree.map(lambda x: jnp.pad(x, more), cache),
        )

    def go_on(
        self,
        params: Any,
        state: State,
        length_B: Int[Array, " B"],
        key_B: Array,
        limit: Int[Array, ""],
        *,
        num_tokens: int,
    ) -> tuple[State, Int[Array, "B {num_tokens}"]]:
        """Up to `num_tokens` more tokens: until all rows have ended, or have `limit` tokens.

        Returns:
          the state, and the tokens drawn, int32 [B, num_tokens], `end_id` once ended.
        """
        first = state.num_drawn

        def wants_more(carry):
            state, _ = carry
            stop = jnp.minimum(limit, first + num_tokens)
            return (state.num_drawn < stop) & ~state.ended_B.all()

        def one_more(carry):
            state, drawn_BT = carry
            logits_BV, cache = self._logits(
                params, state.token_B[:, None], length_B + state.num_drawn - 1, state.cache
            )
            token_B = self._draw(logits_BV, key_B, state.num_drawn, state.ended_B)
            drawn_BT = drawn_BT.at[:, state.num_drawn - first].set(token_B)
            ended_B = state.ended_B | (token_B == self.end_id)
            return State(token_B, ended_B, state.num_drawn + 1, cache), drawn_BT

        drawn_BT = jnp.full((len(length_B), num_tokens), self.end_id, jnp.int32)
        return jax.lax.while_loop(wants_more, one_more, (state, drawn_BT))

    def _logits(self, params, tokens_BT, start_B, cache, last_B=None) -> tuple[Array, layers.Cache]:
        """Logits after each row's last token, [B, V], and the cache."""
        result: Any = self.model.apply(
            {"params": params}, tokens_BT, start_B, cache, last_B, method="decode"
        )
        logits_B1V, cache = result
        return logits_B1V[:, 0, : self.num_ids], cache

    def _draw(self, logits_BV, key_B, number, ended_B):
        key_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(key_B)
        return jnp.where(ended_B, self.end_id, sample(logits_BV, key_B, self.sampling))


def sample(logits_BV: Float[Array, "B V"], key_B: Array, sampling: Sampling) -> Int[Array, " B"]:
    """One token id per row, each drawn with its own key; int32 [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = _cut(logits_BV / sampling.temperature, sampling)
    return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)


def _cut(logits_BV, sampling: Sampling):
    """-inf for every token outside of top_k and top_p."""
    if sampling.top_p == 1 and not 0 < sampling.top_k < logits_BV.shape[-1]:
        return logits_BV
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        sorted_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < sampling.top_k, sorted_BV, -jnp.inf)
    probability_BV = jax.nn.softmax(sorted_BV)
    # A token is kept if the more likely ones have less than top_p: the most likely one always is.
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    stays_BV = (before_BV < sampling.top_p) & (sorted_BV > -jnp.inf)
    least_B1 = jnp.where(stays_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
