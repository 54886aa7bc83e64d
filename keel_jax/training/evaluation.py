"""Validation loss over a split: every target once, summed before dividing."""

import collections.abc
import itertools
from typing import Any

import jax
import numpy as np

from keel_jax import config
from keel_jax.data import loader, shards
from keel_jax.parallel import pipeline, sharding
from keel_jax.training import step as step_lib
from keel_jax.training import transfer


class Evaluator:
    """The compiled evaluation step and the split that it reads."""

    def __init__(self, cfg: config.Config, mesh: jax.sharding.Mesh, token_set: shards.TokenSet):
        """Compiles the step for `cfg.train.batch_size`, rounded up to a multiple of the shards."""
        self._cfg, self._mesh, self._token_set = cfg, mesh, token_set
        rows = sharding.num_shards("batch", mesh.shape) * pipeline.num_microbatches(
            cfg.mesh.stage_microbatches, mesh.shape[pipeline.AXIS]
        )
        self._batch_size = -(-cfg.train.batch_size // rows) * rows
        self._step = step_lib.compile_eval_step(cfg, mesh, self._batch_size)
        self._abstract = step_lib.abstract_eval_batch(cfg, mesh, self._batch_size)
        self._rows = transfer.rows_of(self._abstract["inputs"])

    @property
    def num_batches(self) -> int:
        """Batches that cover the whole split."""
        return loader.num_validation_batches(
            self._token_set, seq_len=self._cfg.train.seq_len, batch_size=self._batch_size
        )

    def run(
        self,
        params: Any,
        num_batches: int = 0,
        *,
        with_progress: collections.abc.Callable = iter,
        stop_asked: collections.abc.Callable[[], bool] = lambda: False,
    ) -> list[dict[str, float]] | None:
        """The loss sums of each trial over the first `num_batches` batches (0: the whole split).

        Args:
          with_progress: wraps the iterator of batches, to show progress.
          stop_asked: called before each batch; once it returns True, None is returned.
        """
        batches = loader.validation_batches(
            self._token_set,
            seq_len=self._cfg.train.seq_len,
            batch_size=self._batch_size,
            mask_documents=self._cfg.data.mask_documents,
            rank=self._rows.rank,
            world_size=self._rows.world_size,
        )
        total: dict[str, Any] = {}
        waiting = None
        for batch in with_progress(itertools.islice(batches, num_batches or None)):
            if stop_asked():
                return None
            sums = self._step(params, transfer.put_batch(batch, self._abstract, self._rows))
            # The previous batch's sums are read while this one is computed. Added up in float64.
            total, waiting = _add(total, waiting), sums
        return transfer.per_trial(_add(total, waiting), self._cfg.num_trials)


def _add(total: dict[str, Any], sums: dict | None) -> dict[str, Any]:
    if sums is None:
        return total
    host = {key: np.float64(value) for key, value in jax.device_get(sums).items()}
    return {key: value + total.get(key, 0.0) for key, value in host.items()}
