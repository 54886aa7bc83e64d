"""The token shards of a run: opens them, checks them, and makes batches of them."""

import collections.abc
import dataclasses
import hashlib
import os
import shlex

import jax
import numpy as np
from etils import epath

from keel_jax import config, errors
from keel_jax.data import chat_template, loader, shards
from keel_jax.runtime import agreement
from keel_jax.training import checkpoint_meta, transfer
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The token sets of a run; the validation split is that of the first one."""

    token_sets: tuple[shards.TokenSet, ...]

    @property
    def first(self) -> shards.TokenSet:
        return self.token_sets[0]

    @property
    def fingerprint(self) -> str:
        """Identity of all tokens read, in the order of the sets."""
        joined = "+".join(token_set.fingerprint for token_set in self.token_sets)
        return joined if len(self.token_sets) == 1 else hashlib.sha256(joined.encode()).hexdigest()

    @property
    def chat_template(self) -> chat_template.ChatTemplate | None:
        """In which the conversations are written; None if no set holds conversations."""
        templates = [token_set.chat_template for token_set in self.token_sets]
        return next(filter(None, templates), None)

    @property
    def bytes_per_token(self) -> tuple[float, float]:
        """Bytes per token, both weighted by the loss weights: of training and of validation."""
        splits = [token_set.split("train") for token_set in self.token_sets]
        num_bytes = sum(split.num_loss_bytes for split in splits)
        weight = sum(split.total_target_weight for split in splits)
        return num_bytes / weight, self.first.split("validation").loss_bytes_per_token


def open_inputs(data: config.DataConfig) -> Inputs:
    """Opens every set of `data.path`; in several processes a collective.

    Raises:
      UserError: no path, a directory that is no complete set, sets of different tokenizers or
        chat templates, or other sets than those of another process.
    """
    if not data.paths:
        raise errors.UserError(
            "data.path is empty: name a directory written by python -m keel_jax.prepare, as in "
            "--config.data.path=DIR."
        )
    token_sets = tuple(_open(path, data) for path in data.paths)
    for other in token_sets[1:]:
        if other.tokenizer_fingerprint != token_sets[0].tokenizer_fingerprint:
            raise errors.UserError(
                f"{other.path} was made with tokenizer {other.tokenizer_fingerprint[:12]}, "
                f"{token_sets[0].path} with {token_sets[0].tokenizer_fingerprint[:12]}: prepare "
                "one of them again with the other's tokenizer.model."
            )
    _check_templates(token_sets)
    opened = Inputs(token_sets)
    fingerprints = {
        "the data's fingerprint": opened.fingerprint[:12],
        "the tokenizer's fingerprint": opened.first.tokenizer_fingerprint[:12],
    }
    remedy = f"This one reads {data.path}: give every machine a copy of the same token shards"
    agreement.check(fingerprints, "on different data", remedy)
    return opened


def _open(path: str, data: config.DataConfig) -> shards.TokenSet:
    whole = data.path.strip()
    if path != whole and not epath.Path(path).exists() and epath.Path(whole).exists():
        raise errors.UserError(
            f"data.path={data.path!r} names the directories {', '.join(data.paths)}, of which "
            f"{path} does not exist, but there is one directory of that whole name: a comma in a "
            f"name is written with a backslash, as in --config.data.path="
            f"{shlex.quote(config.join_paths([whole]))}."
        )
    return shards.open_set(path, verify=data.verify_checksums)


def _check_templates(token_sets: collections.abc.Sequence[shards.TokenSet]) -> None:
    """Those that hold conversations have one template; others may be mixed in."""
    named = [(s.path, s.chat_template) for s in token_sets if s.chat_template is not None]
    for path, template in named[1:]:
        first_path, first = named[0]
        if template.digest != first.digest:
            raise errors.UserError(
                f"{path} has its conversations in the chat template {template.name!r} "
                f"({template.digest[:12]}), {first_path} in {first.name!r} ({first.digest[:12]}), "
                "but a checkpoint has one: prepare one of them again with the other's "
                "--chat_template."
            )


def complete(cfg: config.Config, inputs: Inputs) -> config.Config:
    """`cfg` with the tokenizer's vocabulary size, unless a larger one is set, absolute paths, and
    the steps of a length in epochs.

    Raises:
      UserError: the model's vocabulary is smaller than the tokenizer's; or the length in epochs
        contradicts one in steps, or is of a mixture.
    """
    pieces, wanted = inputs.first.vocab_size, cfg.model.vocab_size
    if wanted and wanted < pieces:
        raise errors.UserError(
            f"model.vocab_size={wanted} is smaller than the {pieces} pieces of the tokenizer in "
            f"{inputs.first.path}; unset it to use the tokenizer's."
        )
    paths = [path if "://" in path else os.path.abspath(path) for path in cfg.data.paths]
    if cfg.train.num_epochs:
        given, cfg = cfg, cfg.in_steps(_steps_per_epoch(cfg, inputs))
        for name, was, now in (
            ("train.num_steps", given.train.num_steps, cfg.train.num_steps),
            ("trials.num_steps", given.trials.num_steps, cfg.trials.num_steps),
        ):
            if was and was != now:
                raise errors.UserError(
                    f"Give the length of the run once: {name}={was}, but the epochs of these data "
                    f"are {now} steps. Unset one of the two."
                )
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, vocab_size=wanted or pieces),
        data=dataclasses.replace(cfg.data, path=config.join_paths(paths)),
    )


def _steps_per_epoch(cfg: config.Config, inputs: Inputs) -> float:
    """Steps in which each window of the training split is read once."""
    if len(inputs.token_sets) > 1:
        raise errors.UserError(
            f"train.num_epochs={cfg.train.num_epochs} is not defined for the mixture of "
            f"{len(inputs.token_sets)} sets in data.path: give train.num_steps."
        )
    num_windows = loader.num_windows(inputs.first, seq_len=cfg.train.seq_len)
    return num_windows / cfg.train.batch_size


def check_sizes(cfg: config.Config, inputs: Inputs, mesh: jax.sharding.Mesh) -> None:
    """Checks that the model, the batch, the data and the mesh fit each other.

    Raises:
      UserError: they do not; both numbers are named.
    """
    state_lib.shardings(cfg, mesh)
    # Made only because this checks the windows, the weights and the rows.
    train_batches(cfg, inputs, mesh, start_step=0).close()
    inputs.first.split("validation")


def meta(cfg: config.Config, inputs: Inputs) -> checkpoint_meta.Meta:
    """The metadata of the run `cfg`, completed and not resolved, on these sets, at step 0."""
    return checkpoint_meta.Meta(
        step=0,
        data_fingerprint=inputs.fingerprint,
        tokenizer_fingerprint=inputs.first.tokenizer_fingerprint,
        model=config.model_options(cfg),
        chat_template=inputs.chat_template.to_json() if inputs.chat_template else None,
    )


def train_batches(
    cfg: config.Config, inputs: Inputs, mesh: jax.sharding.Mesh, start_step: int
) -> collections.abc.Generator[dict[str, jax.Array]]:
    """Global batches from `start_step` on; trials with equal seeds share their rows.

    Raises:
      UserError: immediately, if the sets, their weights or the sizes do not fit.
    """
    seeds = [seed for _, seed in cfg.trial_settings]
    abstract = step_lib.abstract_batch(cfg, mesh)
    rows = transfer.rows_of(abstract["inputs"])
    streams = {
        seed: loader.train_batches(
            inputs.token_sets,
            weights=cfg.data.weights,
            seq_len=cfg.train.seq_len,
            batch_size=cfg.train.batch_size,
            seed=seed,
            start_step=start_step,
            mask_documents=cfg.data.mask_documents,
            rank=rows.rank,
            world_size=rows.world_size,
            num_threads=cfg.data.num_threads,
            prefetch_batches=cfg.data.prefetch_batches,
        )
        for seed in dict.fromkeys(seeds)
    }

    def batches() -> collections.abc.Generator[dict[str, jax.Array]]:
        while True:
            by_seed = {seed: next(stream) for seed, stream in streams.items()}
            batch = by_seed[seeds[0]]
            if cfg.num_trials > 1:
                batch = {key: np.stack([by_seed[seed][key] for seed in seeds]) for key in batch}
            yield transfer.put_batch(batch, abstract, rows)

    return batches()
