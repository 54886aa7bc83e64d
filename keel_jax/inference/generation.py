"""Texts from rows of tokens, in batches of similar length, over the devices of a mesh.

Rows are sorted by length and cut into batches; each batch is padded to one of a few lengths, one
compiled program each. A prompt is read in one pass. Then tokens are drawn in chunks, a loop on the
device that keeps the cache there and ends when every row of the batch has. A stop string is a
property of the text and not of its tokens: it may span several, or begin in the middle of one. So
the host looks for it in the decoded text, once a chunk, and marks the row as ended. A row draws at
most a chunk of tokens in vain, and the device waits for the host once a chunk.

Every row is drawn with keys of its own. What else is in the batch, and the batch size, changes a
row's logits by no more than the rounding of sums over another number of rows or cache slots.

Dimension letters: R rows of a call, B rows of a batch, P prompt time, S cache slots, T drawn
tokens.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from keel_jax import config
from keel_jax.config import limits
from keel_jax.inference import requests
from keel_jax.model import lm, sampling
from keel_jax.parallel import sharding
from keel_jax.runtime import compiler_options
from keel_jax.training import trained

# Tokens between two looks of the host.
_CHUNK = 32
_CACHE_AXES = ("scalar", "batch", "scalar", "kv_heads", "head_dim")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The tokens of one row, without the one that ended it."""

    ids: np.ndarray
    # Tokens of the prompt that were cut off in front.
    num_cut: int


@dataclasses.dataclass(frozen=True)
class Text:
    """What the model wrote after one prompt."""

    text: str
    # Drawn until the text was complete; the EOS or the stop string that ended it included.
    num_tokens: int
    # Tokens of the prompt that were cut off in front.
    num_cut: int


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the model wrote after several prompts, in their order."""

    texts: list[Text]
    # Without compilation.
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(text.num_tokens for text in self.texts)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


class Generator:
    """The compiled programs of one model and one way to sample, made as they are needed."""

    def __init__(
        self,
        model: trained.Trained,
        how: sampling.Sampling,
        *,
        batch_size: int,
        end_id: int,
        num_ids: int,
    ):
        """`batch_size` is rounded up to a multiple of the mesh's shards.

        Args:
          end_id: nothing is drawn after this id; -1: there is no such id.
          num_ids: ids from this one on are never drawn.

        Raises:
          UserError: `batch_size` is below 1.
        """
        limits.at_least("batch_size", batch_size, 1)
        self._num_shards = sharding.num_shards("batch", model.mesh.shape)
        self._batch_size = batch_size
        self._model, self._end_id = model, end_id
        # There is no backward pass, so nothing is saved or recomputed.
        options = dataclasses.replace(
            model.cfg.model, recompute=config.RecomputeConfig(plan="none")
        )
        self._sampler = sampling.Sampler(lm.LanguageModel(options), how, end_id, num_ids)
        self._lengths = requests.lengths(model.cfg.train.seq_len, 1)
        self._programs: dict[tuple[int, int, int], tuple[Callable, Callable]] = {}

    def __call__(
        self,
        rows: Sequence[requests.Row],
        *,
        num_tokens: int,
        seed: int,
        numbers: Sequence[int] | None = None,
        is_over: Callable[[np.ndarray], bool] | None = None,
    ) -> tuple[list[Drawn], float]:
        """What is drawn after each row, in order, and the seconds without compilation.

        Args:
          seed, numbers: row i is drawn with the keys of (seed, numbers[i]); default: (seed, i).
          is_over: tells from the tokens of a row whether it has ended; asked once a chunk.
        """
        drawn, seconds = {}, 0.0
        index_R = np.arange(len(rows)) if numbers is None else np.asarray(numbers)
        size = min(self._batch_size, max(1, len(rows)))
        size = -(-size // self._num_shards) * self._num_shards
        for length, members in self._batches(rows, size):
            programs = self._program(size, length, num_tokens)
            begin = time.perf_counter()
            ids = self._run(
                programs, rows, index_R, members, size, length, num_tokens, seed, is_over
            )
            seconds += time.perf_counter() - begin
            drawn |= {
                member: Drawn(_until(row, self._end_id), rows[member].num_cut)
                for member, row in zip(members, ids, strict=False)
            }
        return [drawn[member] for member in range(len(rows))], seconds

    def _batches(
        self, rows: Sequence[requests.Row], size: int
    ) -> Iterator[tuple[int, Sequence[int]]]:
        """(P, indices of rows), the longest first: if memory is short, that is known at once."""
        members = sorted(range(len(rows)), key=lambda member: -len(rows[member].ids))
        for first in range(0, len(members), size):
            longest = len(rows[members[first]].ids)
            length = next(length for length in self._lengths if length >= longest)
            yield length, members[first : first + size]

    def _run(
        self, programs, rows, index_R, members, size, length, num_tokens, seed, is_over
    ) -> np.ndarray:
        """The tokens of one batch, int32 [B, T], `end_id` once a row has ended."""
        prompt_BP = np.zeros((size, length), np.int32)
        length_B = np.ones(size, np.int32)
        index_B = np.zeros(size, np.int32)
        for place, member in enumerate(members):
            ids = rows[member].ids
            prompt_BP[place, : len(ids)] = ids
            length_B[place], index_B[place] = len(ids), index_R[member]
        begin, go_on = programs
        params, put = self._model.params, self._put
        prompt_BP, length_B, index_B = put(prompt_BP), put(length_B), put(index_B)
        seed = np.uint32(seed % 2**32)
        is_padding_B = put(np.arange(size) >= len(members))
        state, first_B, ended_B = begin(params, prompt_BP, length_B, index_B, is_padding_B, seed)
        drawn = [np.asarray(first_B)[:, None]]
        limit, ended_B = np.int32(num_tokens), np.array(ended_B)
        for _ in range(1, num_tokens, _CHUNK):
            if is_over is not None:
                ids_BT = np.concatenate(drawn, axis=1)
                for place in np.flatnonzero(~ended_B):
                    ended_B[place] = is_over(ids_BT[place])
            if ended_B.all():
                break
            state, tokens_BT, ended_B = go_on(
                params, state, put(ended_B), length_B, index_B, seed, limit
            )
            tokens_BT, ended_B = np.asarray(tokens_BT), np.array(ended_B)
            drawn.append(tokens_BT)
        return np.concatenate(drawn, axis=1)[:, :num_tokens]

    def _put(self, array: np.ndarray) -> jax.Array:
        axes = ("batch", *("scalar",) * (array.ndim - 1))
        return jax.device_put(array, sharding.sharding(self._model.mesh, axes, array.shape))

    def _program(self, size: int, length: int, num_tokens: int) -> tuple[Callable, Callable]:
        """The compiled (begin, go_on) of B rows, prompts of P tokens, and `num_tokens`, rounded."""
        slots = length + -(-num_tokens // _CHUNK) * _CHUNK
        key = size, length, slots
        if key not in self._programs:
            self._programs[key] = self._compile(*key)
        return self._programs[key]

    def _compile(self, size: int, length: int, slots: int) -> tuple[Callable, Callable]:
        mesh, params = self._model.mesh, self._model.params

        def keys(index_B, seed):
            fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
            return fold_in(jax.random.key(seed), index_B)

        def begin(params, prompt_BP, length_B, index_B, is_padding_B, seed):
            key_B = keys(index_B, seed)
            state = self._sampler.begin(params, prompt_BP, length_B, key_B, cache_size=slots)
            state = dataclasses.replace(state, ended_B=state.ended_B | is_padding_B)
            return state, state.token_B, state.ended_B

        def go_on(params, state, ended_B, length_B, index_B, seed, limit):
            state = dataclasses.replace(state, ended_B=ended_B)
            state, drawn_BT = self._sampler.go_on(
                params, state, length_B, keys(index_B, seed), limit, num_tokens=_CHUNK
            )
            return state, drawn_BT, state.ended_B

        def abstract(shape, dtype, axes) -> Any:
            place = sharding.sharding(mesh, axes, shape)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        row = abstract((size,), np.int32, ("batch",))
        flag = abstract((size,), bool, ("batch",))
        prompt = abstract((size, length), np.int32, ("batch", "scalar"))
        number, seed = abstract((), np.int32, ()), abstract((), np.uint32, ())
        cache = jax.eval_shape(lambda: lm.empty_cache(self._sampler.model.model, size, slots))
        cache = jax.tree.map(lambda x: abstract(x.shape, x.dtype, _CACHE_AXES), cache)
        state = sampling.State(token_B=row, ended_B=flag, num_drawn=number, cache=cache)
        places = jax.tree.map(lambda x: x.sharding, state)
        everywhere = sharding.replicated(mesh)
        out = places, everywhere, everywhere
        with _constraints(mesh):
            lowered = (
                jax.jit(begin, out_shardings=out).lower(params, prompt, row, row, flag, seed),
                jax.jit(go_on, out_shardings=out, donate_argnums=1).lower(
                    params, state, flag, row, row, seed, number
                ),
            )
        options = compiler_options.options(mesh.devices.flat[0])
        begin, go_on = (program.compile(compiler_options=options) for program in lowered)
        return begin, go_on


def of_drawn(
    drawn: Drawn, decode: Callable[[np.ndarray], str], stop: Sequence[str], num_tokens: int
) -> Text:
    """The text of the tokens, up to the first of the `stop` strings in it.

    Args:
      num_tokens: that were asked for.
    """
    ids = drawn.ids
    text = decode(ids)
    end = first_stop(text, stop)
    if end is None:
        return Text(text, min(len(ids) + 1, num_tokens), drawn.num_cut)
    low, high = 1, len(ids)  # the least number of tokens whose text has a stop string
    while low < high:
        middle = (low + high) // 2
        if first_stop(decode(ids[:middle]), stop) is None:
            low = middle + 1
        else:
            high = middle
    return Text(text[:end], low, drawn.num_cut)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the string begins that is the first to be complete in `text`; None: none is.

    Not the one that begins first: what follows the text then cannot change the answer.
    """
    found = [(place + len(string), place) for string in stop if (place := text.find(string)) >= 0]
    return min(found)[1] if found else None


def _constraints(mesh: jax.sharding.Mesh) -> Any:
    """The mesh by whose table the model constrains its arrays, where single tokens allow it.

    A single token is not divided along time or depth, so on a mesh with such axes the partitioner
    alone shards the programs.
    """
    rows = sharding.num_shards("batch", mesh.shape)
    return jax.set_mesh(mesh) if rows == mesh.size else contextlib.nullcontext()


def _until(ids: np.ndarray, end_id: int) -> np.ndarray:
    ends = np.flatnonzero(ids == end_id)
    return ids[: ends[0]] if ends.size else ids
