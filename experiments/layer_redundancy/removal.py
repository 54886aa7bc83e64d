"""The loss of a trained model without each sub-layer, each block, and sets of blocks.

What "removed" means, in x' = outer(alpha x + F(inner(x))):

  branch    F is 0: x' = outer(alpha x). The outer norm stays, as the sub-layers above were trained
            to read its output.
  identity  x' = x: the sub-layer is deleted, its outer norm and the norm's gain with it.

Without an outer norm (Pre-LN) the two are the same. In Keel they differ by a gain, except in block
0, whose outer norm lifts the embedding to RMS 1: there, "identity" would measure what that norm is
worth. So the results are about "branch", and "identity" is reported beside it.

Masks are data: one compiled program computes every loss of a model, and of all models that differ
in their weights alone.

Dimension letters: N blocks, B batch, T time.
"""

import dataclasses
import functools
import pathlib
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from keel_jax import config, errors
from keel_jax.data import loader
from keel_jax.model import instruments, intervention, lm, telemetry
from keel_jax.training import loss, trained

BRANCH, IDENTITY = "branch", "identity"
KINDS = (BRANCH, IDENTITY)
# Some of their sub-layers store earlier outputs in the carry, which the identity would lose.
_NO_IDENTITY = ("attention_residuals",)


class Removable(Protocol):
    """A model whose loss without some of its parts can be computed."""

    @property
    def num_blocks(self) -> int: ...

    def loss(self, removed_N2: np.ndarray, kind: str = BRANCH) -> float:
        """Nats a token without the sub-layers that `removed` [N, 2] marks."""
        ...


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model on one device, and the tokens that it is measured on."""

    cfg: config.Config
    params: dict
    # "inputs", "targets", "segment_ids", "loss_weights" [B, T].
    batch: dict
    # Optimizer steps that it was trained for.
    step: int
    seed: int
    peak_lr: float

    @property
    def num_blocks(self) -> int:
        return self.cfg.model.num_blocks

    def loss(self, removed_N2: np.ndarray, kind: str = BRANCH) -> float:
        """Nats a token without the sub-layers that `removed` [N, 2] marks."""
        without = removal_of(removed_N2, kind)
        return float(loss_program(self.cfg)(self.params, self.batch, without))

    def rotation_radians(self) -> np.ndarray:
        """The angle by which each sub-layer rotates the stream, mean over tokens; [L]."""
        return np.asarray(_rotation_program(self.cfg)(self.params, self.batch), np.float64).reshape(
            -1
        )


def load(workdir: pathlib.Path, num_sequences: int, data_path: str | None = None) -> Model:
    """The model of a run, or of one of its trials.

    Args:
      num_sequences: windows of the validation split, from its beginning.
      data_path: where the run's token shards lie now, if elsewhere than in its config.

    Raises:
      UserError: no such run, no checkpoint, several trials, or data of another tokenizer.
    """
    model = trained.load(workdir, trained.one_device())
    cfg = model.cfg
    [batch] = loader.validation_batches(
        model.open_data(data_path).first,
        seq_len=cfg.train.seq_len,
        batch_size=num_sequences,
        mask_documents=cfg.data.mask_documents,
        num_batches=1,
    )
    # The programs are cached by their config. What they do not depend on is left out of it, so that
    # models of several seeds and rates share them.
    program_cfg = dataclasses.replace(
        cfg, data=config.DataConfig(), seed=0, optim=dataclasses.replace(cfg.optim, peak_lr=1.0)
    )
    return Model(
        program_cfg,
        model.params,
        jax.device_put(batch),
        model.meta.step,
        cfg.seed,
        cfg.optim.peak_lr,
    )


def removal_of(removed_N2: np.ndarray, kind: str) -> intervention.Intervention:
    """The intervention that removes the marked sub-layers."""
    is_removed_N2 = jnp.asarray(removed_N2, bool)
    none = intervention.none(len(removed_N2))
    if kind == BRANCH:
        scale_N2 = 1 - is_removed_N2.astype(jnp.float32)
        return dataclasses.replace(none, branch_scale=scale_N2)
    return dataclasses.replace(none, is_skipped=is_removed_N2)


@functools.cache
def loss_program(cfg: config.Config) -> jax.stages.Wrapped:
    """(params, batch, intervention) -> nats a token; compiled once for all models of one config."""

    @jax.jit
    def nats_per_token(params, batch, change):
        h_BTD, _ = _hidden(cfg, params, batch, instruments.Instruments(intervention=change))
        sums = loss.cross_entropy_sums(
            h_BTD,
            lm.output_matrix(params, cfg.model),
            batch["targets"],
            batch["loss_weights"],
            chunk=cfg.train.loss_chunk,
        )
        return sums["nats"] / sums["weight"]

    return nats_per_token


@functools.cache
def _rotation_program(cfg: config.Config) -> jax.stages.Wrapped:
    """(params, batch) -> radians [N, 2], from the model's telemetry."""

    @jax.jit
    def rotations(params, batch):
        probes = instruments.Instruments(probes=telemetry.probes(cfg.model.num_blocks))
        return _hidden(cfg, params, batch, probes)[1]["rotation_radians"]

    return rotations


def _hidden(cfg: config.Config, params, batch, measured: instruments.Instruments):
    """The hidden states [B, T, D] and the statistics of a pass with instruments."""
    return lm.LanguageModel(cfg.model).apply(
        {"params": params},
        batch["inputs"],
        context=lm.ordered_context(batch["segment_ids"]),
        measured=measured,
        method="hidden_and_stats",
    )


def has_identity(model: Model) -> bool:
    """Whether a sub-layer of the model's topology can be the identity."""
    return model.cfg.model.topology not in _NO_IDENTITY


def without_each_sublayer(model: Model, kind: str = BRANCH) -> np.ndarray:
    """The loss without each sub-layer, one at a time; [L].

    Raises:
      UserError: `kind` is not defined for the model's topology.
    """
    if kind == IDENTITY and not has_identity(model):
        raise errors.UserError(
            f"The sub-layers of {model.cfg.model.topology} store what came before them, so that "
            "none can be the identity: remove branches."
        )
    masks = np.eye(2 * model.num_blocks, dtype=bool).reshape(-1, model.num_blocks, 2)
    return np.array([model.loss(mask, kind) for mask in masks])


def without_each_block(model: Removable) -> np.ndarray:
    """The loss without both branches of each block, one block at a time; [N]."""
    return np.array(
        [model.loss(_blocks([block], model.num_blocks)) for block in range(model.num_blocks)]
    )


def greedy(
    model: Removable, single_N: np.ndarray, num_candidates: int, most_loss: float
) -> tuple[list[int], list[float]]:
    """Removes block after block, each time the one whose removal leaves the lowest loss.

    At each step it tries the `num_candidates` remaining blocks whose removal alone costs least.

    Args:
      single_N: the loss without each block alone.
      most_loss: the search ends at the first loss above it.

    Returns:
      The blocks in the order of their removal, and the loss after each; the last loss may be above
      `most_loss`.
    """
    removed: list[int] = []
    losses: list[float] = []
    while len(removed) < model.num_blocks and (not losses or losses[-1] <= most_loss):
        rest = [block for block in np.argsort(single_N).tolist() if block not in removed]
        loss_without = {
            block: model.loss(_blocks([*removed, block], model.num_blocks))
            for block in rest[:num_candidates]
        }
        best = min(loss_without, key=loss_without.__getitem__)
        removed.append(best)
        losses.append(loss_without[best])
    return removed, losses


def _blocks(blocks: list[int], num_blocks: int) -> np.ndarray:
    """The mask [N, 2] of whole blocks."""
    mask = np.zeros((num_blocks, 2), bool)
    mask[blocks] = True
    return mask
