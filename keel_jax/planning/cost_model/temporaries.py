"""Bytes that a step makes and drops on one device, to some tenths.

kept      carries of the outermost level (blocks or segments), and, without segments, what
          `save` names of every block; once a tick of the pipeline
segment   carries of the levels within, and what `save` names of the innermost segment
block     what a block keeps if it keeps all, times what a compiler makes of it; its weights,
          gathered, and their gradients before they are scattered
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import recompute, reversible
from keel_jax.parallel import pipeline
from keel_jax.planning.cost_model import kept as kept_lib

# What the backward pass of a block works with, in parts of what it keeps if it keeps all. A TPU's
# compiler (then the kernel is splash) fuses, and keeps much in VMEM: measured, v5e, 512 blocks of
# the peers' shape, 0.5 to 0.6; a GPU's (the kernel is cudnn), h100:8, 4 and 8 blocks of that shape,
# 1.4 to 1.5; a CPU's holds values and gradients: 64 blocks, 2.
_WORKING_SETS, _CPU_WORKING_SET = {"splash": 0.6, "cudnn": 1.5}, 2.0


@dataclasses.dataclass(frozen=True)
class Temporaries:
    """Bytes that a step makes and drops on one device, by what they are."""

    # In the dtype in which they are multiplied; with several micro-batches, their sum in float32.
    gradients: int
    # The matrices in that dtype, unless it is their own.
    weights: int
    # What the plan of recomputation keeps of all blocks.
    kept: int
    # What it keeps of the segment at work, and that segment's weights and gradients, sliced out.
    segment: int
    # What the backward pass of one block works with.
    block: int
    # Logits of a chunk and their gradient, and the logits' weights gathered, with their gradient.
    loss: int
    # What of `kept` waits in the host's memory, not in HBM.
    host: int

    @property
    def total(self) -> int:
        """Of HBM: the loss comes before the first segment is worked on."""
        return self.gradients + self.weights + self.kept + max(self.segment + self.block, self.loss)


class _Kept(NamedTuple):
    """What a plan of recomputation keeps, in bytes."""

    # Throughout, on the device and on its host.
    device: float
    host: float
    # Of the segment at work, without its weights.
    segment: float
    # Blocks whose weights the segments at work hold, over all levels.
    segment_blocks: int


def predict_temporaries(
    cfg: config.Config, sizes: Mapping[str, int], parameter_bytes: int
) -> Temporaries:
    """The step's temporaries on one device of a mesh with these axis sizes.

    Args:
      cfg: resolved (`resolve.resolve`).
      parameter_bytes: of the device's parameters, in float32.
    """
    model, train = cfg.model, cfg.train
    num_blocks = model.num_blocks // sizes["stage"]
    rows = _microbatch_rows(cfg, sizes)
    itemsize = jnp.dtype(model.compute_dtype).itemsize
    stacked = parameter_bytes * itemsize // 4

    kept = _kept(cfg, sizes)
    segment = kept.segment + 2 * stacked * kept.segment_blocks / num_blocks

    everything = rows * kept_lib.kept_bytes(cfg, sizes, "all")
    gathered = _block_params(model) / sizes["tensor"] * cfg.num_trials / sizes["trial"]
    working_set = _WORKING_SETS.get(model.attention, _CPU_WORKING_SET)
    block = working_set * everything + gathered * (itemsize + 4)
    if model.recompute.plan == "reversible":
        block += everything  # of a stretch's lowest block, which waits for the others

    microbatches = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    chunk = min(train.loss_chunk or train.seq_len, train.seq_len / sizes["context"])
    table = model.d_model * model.vocab_size / sizes["tensor"] * cfg.num_trials / sizes["trial"]
    logits = rows * microbatches * chunk / sizes["stage"] * model.vocab_size / sizes["tensor"]
    return Temporaries(
        gradients=stacked + parameter_bytes * (train.accumulation_steps > 1),
        weights=stacked if itemsize < 4 else 0,
        kept=int(kept.device),
        segment=int(segment),
        block=int(block),
        # float32 logits and their gradient; float32 and bf16 of the matrix.
        loss=int(2 * 4 * logits + (4 + 2) * table),
        host=int(kept.host),
    )


def _microbatch_rows(cfg: config.Config, sizes: Mapping[str, int]) -> float:
    """Rows of tokens that a device works on at a time, over all of its trials."""
    microbatches = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    rows = cfg.train.batch_size / cfg.train.accumulation_steps
    rows = rows / sizes["data"] / sizes["fsdp"] / microbatches
    return rows * (cfg.num_trials / sizes["trial"])


def _kept(cfg: config.Config, sizes: Mapping[str, int]) -> _Kept:
    model, plan = cfg.model, cfg.model.recompute
    num_blocks = model.num_blocks // sizes["stage"]
    rows = _microbatch_rows(cfg, sizes)
    carry, saved = (
        rows * kept_lib.kept_bytes(cfg, sizes, save) for save in ("carry", kept_lib.save_of(plan))
    )
    segments = recompute.segment_sizes(plan, num_blocks)
    *outer, inner = recompute.kept_carries(segments, num_blocks)
    inside = inner * saved
    kept, segment = (outer[0] * carry, sum(outer[1:]) * carry + inside) if outer else (inside, 0.0)
    if plan.plan == "reversible":
        segments, kept, segment = _kept_reversible(plan, num_blocks, carry, model.d_model)
    host = (outer[0] if outer else inner) * carry if plan.offload else 0.0
    if plan.offload_saved:
        host = inner * saved
    microbatches = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    ticks = pipeline.num_ticks(sizes["stage"], microbatches)
    return _Kept(ticks * (kept - host), ticks * host, segment, sum(segments))


def _kept_reversible(
    plan: config.RecomputeConfig, num_blocks: int, carry: float, width: int
) -> tuple[tuple[int, ...], float, float]:
    """(Sizes of segments, kept throughout, of the segment) of the plan "reversible", in bytes.

    Kept are the anchors, and a number a token and norm. The memory of the fallback, of all blocks
    of a stretch but the lowest, is assigned whether it is taken or not; and z above the lowest,
    twice.
    """
    others = plan.anchor_blocks - 1
    inside = recompute.segment_sizes(reversible.fallback_plan(), others)
    kept = (reversible.num_stretches(plan, num_blocks) + num_blocks * 2 / width) * carry
    segment = (2 + sum(recompute.kept_carries(inside, others))) * carry
    return (plan.anchor_blocks, *inside), kept, segment


def _block_params(model: config.ModelConfig) -> int:
    """Weights of one block."""
    return (model.num_matmul_params - model.d_model * model.vocab_size) // model.num_blocks
