"""Log-likelihoods of rows of tokens, in batches of equal length, over the devices of a mesh.

A row is padded to one of a few lengths, which depends on its own length alone: each is one
compiled program, and what else is scored with a row changes its score by no more than the rounding
of sums over another number of rows. Padding is at the end, where causal attention does not see it.

Dimension letters: B rows, T time.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np

from keel_jax import config, errors
from keel_jax.config import limits
from keel_jax.inference import requests
from keel_jax.model import lm
from keel_jax.parallel import sharding
from keel_jax.runtime import compiler_options
from keel_jax.training import loss

_AXES = ("batch", "time")


@dataclasses.dataclass(frozen=True)
class Score:
    """What the model says of the scored tokens of a row."""

    # Sum of log p, in nats.
    log_likelihood: float
    # Whether greedy decoding would have written exactly these tokens.
    is_greedy: bool
    num_tokens: int
    # Tokens of the context that did not fit in front of them, and were not read.
    num_cut: int = 0


class Scorer:
    """The compiled programs of one model, made as they are needed."""

    def __init__(
        self, cfg: config.Config, mesh: jax.sharding.Mesh, params: Any, batch_size: int = 16
    ):
        """`batch_size` is rounded up to a multiple of the mesh's shards.

        Args:
          cfg: with the attention kernel resolved for `mesh`.
          params: of one model, on `mesh`.

        Raises:
          UserError: `batch_size` is below 1, or the mesh splits sequences or the depth.
        """
        limits.at_least("batch_size", batch_size, 1)
        sizes = mesh.shape
        if sizes["context"] * sizes["stage"] > 1:
            raise errors.UserError(
                f"A mesh with context={sizes['context']} and stage={sizes['stage']} cannot score "
                "single tokens: load the model on one with data, fsdp and tensor alone."
            )
        num_shards = sharding.num_shards("batch", sizes)
        self.batch_size = -(-batch_size // num_shards) * num_shards
        self.max_length = cfg.train.seq_len
        self._cfg, self._mesh, self._params = cfg, mesh, params
        self._lengths = requests.lengths(self.max_length, sharding.num_shards("stream_time", sizes))
        self._programs: dict[int, Callable] = {}

    def of(self, params: Any) -> "Scorer":
        """The scorer of other weights of the same model, with the programs compiled so far."""
        other = copy.copy(self)
        other._params = params
        return other

    def __call__(self, rows: Sequence[requests.Row]) -> list[Score]:
        """The score of every row, in order."""
        scores: dict[int, Score] = {}
        for length, members in self._batches(rows):
            log_p_BT, is_first_BT = self._run(length, [rows[member] for member in members])
            for place, member in enumerate(members):
                end = len(rows[member].ids) - 1
                scored = slice(end - rows[member].num_scored, end)
                scores[member] = Score(
                    float(log_p_BT[place, scored].sum(dtype=np.float64)),
                    bool(is_first_BT[place, scored].all()),
                    rows[member].num_scored,
                    rows[member].num_cut,
                )
        return [scores[member] for member in range(len(rows))]

    def _batches(self, rows: Sequence[requests.Row]) -> Iterator[tuple[int, Sequence[int]]]:
        """The longest first: if memory is short, that is known at once."""
        for length, members in reversed(list(requests.by_length(rows, self._lengths))):
            for first in range(0, len(members), self.batch_size):
                yield length, members[first : first + self.batch_size]

    def _run(self, length: int, rows: Sequence[requests.Row]) -> tuple[np.ndarray, np.ndarray]:
        """log p of each next token, and whether it is the most likely one; [B, T] each."""
        ids = np.zeros((self.batch_size, length + 1), np.int32)
        for row, out in zip(rows, ids, strict=False):
            out[: len(row.ids)] = row.ids
        if length not in self._programs:
            self._programs[length] = self._compile(length)
        place = sharding.sharding(self._mesh, _AXES, (self.batch_size, length))
        inputs, targets = jax.device_put((ids[:, :-1], ids[:, 1:]), place)
        return jax.device_get(self._programs[length](self._params, inputs, targets))

    def _compile(self, length: int) -> Callable[..., Any]:
        """The program (params, inputs [B, T], targets [B, T]) -> `loss.token_scores`."""
        model, mesh = self._cfg.model, self._mesh
        # There is no backward pass, so nothing is saved or recomputed.
        options = dataclasses.replace(model, recompute=config.RecomputeConfig(plan="none"))
        network = lm.LanguageModel(options)

        def scores(params, inputs_BT, targets_BT):
            h_BTD = cast(jax.Array, network.apply({"params": params}, inputs_BT, method="hidden"))
            w_DV = lm.output_matrix(params, options)
            return loss.token_scores(h_BTD, w_DV, targets_BT, chunk=self._cfg.train.loss_chunk)

        tokens = jax.ShapeDtypeStruct(
            (self.batch_size, length),
            np.int32,
            sharding=sharding.sharding(mesh, _AXES, (self.batch_size, length)),
        )
        with jax.set_mesh(mesh):
            everywhere = sharding.replicated(mesh)
            lowered = jax.jit(scores, out_shardings=everywhere).lower(self._params, tokens, tokens)
        return lowered.compile(compiler_options=compiler_options.options(mesh.devices.flat[0]))
