"""The token shards of a run: opened, checked against each other and the model, made batches."""

import collections.abc
import dataclasses

import jax
import numpy as np

from keel_jax import config
from keel_jax.data import loader, shards
from keel_jax.training import evaluation
from keel_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The sets of a run; the first one's validation split is the run's."""

    token_sets: tuple[shards.TokenSet, ...]

    @property
    def first(self) -> shards.TokenSet:
        return self.token_sets[0]

    @property
    def fingerprint(self) -> str:
        """Identity of all tokens read."""
        return "+".join(token_set.fingerprint for token_set in self.token_sets)

    @property
    def bytes_per_token(self) -> tuple[float, float]:
        """Of the training splits together, and of the validation split."""
        splits = [token_set.split("train") for token_set in self.token_sets]
        num_bytes = sum(split.num_bytes for split in splits)
        num_tokens = sum(split.num_tokens for split in splits)
        return num_bytes / num_tokens, self.first.split("validation").bytes_per_token


def open_inputs(data: config.DataConfig) -> Inputs:
    """Opens every set of `data.path`.

    Raises:
      ValueError: no path, an incomplete or foreign set, or sets of different tokenizers.
    """
    if not data.paths:
        raise ValueError(
            "data.path is empty: name a directory written by python -m keel_jax.prepare, as in "
            "--config.data.path=DIR."
        )
    token_sets = tuple(shards.open_set(path) for path in data.paths)
    for other in token_sets[1:]:
        if other.tokenizer_fingerprint != token_sets[0].tokenizer_fingerprint:
            raise ValueError(
                f"{other.path} was made with tokenizer {other.tokenizer_fingerprint[:12]}, "
                f"{token_sets[0].path} with {token_sets[0].tokenizer_fingerprint[:12]}: prepare "
                "one of them again with the other's tokenizer.model."
            )
    return Inputs(token_sets)


def with_vocab_size(cfg: config.Config, inputs: Inputs) -> config.Config:
    """`cfg` with the tokenizer's vocabulary, unless it has a larger one of its own.

    Raises:
      ValueError: the model's vocabulary is smaller than the tokenizer's.
    """
    there, wanted = inputs.first.vocab_size, cfg.model.vocab_size
    if wanted is not None and wanted < there:
        raise ValueError(
            f"model.vocab_size={wanted} is smaller than the {there} pieces of the tokenizer in "
            f"{inputs.first.path}; unset it to take the tokenizer's."
        )
    model = dataclasses.replace(cfg.model, vocab_size=wanted or there)
    return dataclasses.replace(cfg, model=model)


def train_batches(
    cfg: config.Config, inputs: Inputs, mesh: jax.sharding.Mesh, start_step: int
) -> collections.abc.Iterator[dict[str, jax.Array]]:
    """Global batches from `start_step` on; lanes of equal seed share their rows."""
    seeds = [seed for _, seed in cfg.lane_settings]
    streams = {
        seed: loader.train_batches(
            inputs.token_sets,
            weights=cfg.data.weights,
            seq_len=cfg.train.seq_len,
            batch_size=cfg.train.batch_size,
            seed=seed,
            start_step=start_step,
            mask_documents=cfg.data.mask_documents,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=cfg.data.num_threads,
            prefetch_batches=cfg.data.prefetch_batches,
        )
        for seed in dict.fromkeys(seeds)
    }
    abstract = step_lib.abstract_batch(cfg, mesh)
    while True:
        rows = {seed: next(stream) for seed, stream in streams.items()}
        if cfg.num_lanes == 1:
            batch = rows[seeds[0]]
        else:
            batch = {
                key: np.stack([rows[seed][key] for seed in seeds]) for key in step_lib.BATCH_KEYS
            }
        yield evaluation.put_batch(batch, abstract)
