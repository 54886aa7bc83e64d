"""FLOPs that a step executes, recomputation and a pipeline's idle ticks included.

A forward pass multiplies every weight once and scores twice; the backward pass weights twice, and
scores as often as the kernel does. Each level of segments adds one forward pass, and blocks that
are computed again add what `save` has not kept. The plan "reversible" is assumed not to fall back.
"""

import dataclasses
import math
from collections.abc import Mapping

from keel_jax import config
from keel_jax.model import recompute, residual, reversible
from keel_jax.model.kernels import splash
from keel_jax.parallel import pipeline
from keel_jax.planning.cost_model import kept

# Products with scores in the backward passes of the kernels that compute scores again, block by
# block (splash for dq and for dk and dv each); the others keep them, and compute four.
_BACKWARD_PRODUCTS = {"splash": 7, "cudnn": 5, "ring": 5}


@dataclasses.dataclass(frozen=True)
class _Block:
    """FLOPs a token of one block's products, forward."""

    # Queries, keys and values; attention's output; gate and up; down.
    into_heads: int
    out: int
    into_ffn: int
    down: int
    # RoPE, where it is a product (on a TPU).
    rope: int
    # One product with scores, of the two.
    scores: float

    @property
    def forward(self) -> float:
        weights = self.into_heads + self.rope + self.out + self.into_ffn + self.down
        return weights + 2 * self.scores

    def backward(self, kernel: str) -> float:
        """Each weight twice; the derivative of RoPE is one rotation back."""
        weights = 2 * (self.into_heads + self.out + self.into_ffn + self.down) + self.rope
        return weights + _BACKWARD_PRODUCTS.get(kernel, 4) * self.scores


def predict_flops(cfg: config.Config, sizes: Mapping[str, int]) -> float:
    """FLOPs of one step on one device of a mesh with these axis sizes.

    Args:
      cfg: resolved (`resolve.resolve`).
    """
    model, plan = cfg.model, cfg.model.recompute
    block = _block(model, cfg.train.seq_len)
    forward, backward = block.forward, block.backward(model.attention)
    if plan.plan == "reversible":
        # The lowest block of each stretch once more, whole; others once an iteration.
        lowest = reversible.num_stretches(plan, model.num_blocks) / model.num_blocks
        passes = 1 + lowest + plan.fixed_point_iterations * (1 - lowest)
        per_block = forward * passes + backward
    else:
        levels = len(recompute.segment_sizes(plan, model.num_blocks // sizes["stage"]))
        again = _recomputed(block, model, kept.save_of(plan))
        per_block = forward * (1 + levels) + backward + again

    # Logits are computed again where they are computed in chunks.
    local = cfg.train.seq_len / sizes["context"] / sizes["stage"]
    products = 4 if 0 < cfg.train.loss_chunk < local else 3
    logits = products * 2 * model.d_model * model.vocab_size
    microbatches = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    idle = pipeline.num_ticks(sizes["stage"], microbatches) / microbatches
    tokens = cfg.train.tokens_per_step * cfg.num_trials / math.prod(sizes.values())
    return tokens * (per_block * model.num_blocks * idle + logits)


def _block(model: config.ModelConfig, seq_len: int) -> _Block:
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    is_tpu = model.attention == "splash"
    return _Block(
        into_heads=2 * model.d_model * (heads + 2 * kv_heads),
        out=2 * model.d_model * heads,
        into_ffn=4 * model.d_model * model.d_ffn,
        down=2 * model.d_model * model.d_ffn,
        rope=2 * model.head_dim * (heads + kv_heads) * is_tpu,
        scores=2 * heads * seq_len * _computed_scores(model.attention, seq_len),
    )


def _recomputed(block: _Block, model: config.ModelConfig, save: str) -> float:
    """FLOPs a token that a block computes again for its gradients."""
    # A last product is computed again only for a norm that reads it: an outer norm that is
    # deferred finds it in the carry.
    topology, rule = residual.topology(model), residual.rule(model)
    has_norm_after_ffn = topology.has("branch_norm", residual.FFN) or (
        topology.has("outer_norm", residual.FFN) and not rule.defers_outer_norm
    )
    last = block.down if has_norm_after_ffn else 0
    if save == "all":
        return 0
    if save == "carry":
        return block.forward - (block.down - last)
    again = block.out + last
    if save == "attention":
        again += block.into_ffn
    if model.attention == "cudnn":
        again += 2 * block.scores  # for the log-sum-exp, which has no name to be kept under
    elif model.attention not in _BACKWARD_PRODUCTS:
        # The softmax is computed again, from queries and keys.
        again += block.scores
    return again


def _computed_scores(kernel: str, seq_len: int) -> float:
    """The part of all scores that a kernel computes."""
    if kernel == "cudnn":
        return 0.5  # as planning/library_calls.py counts
    if kernel != "splash":
        return 1.0
    padded = splash.padded(seq_len)
    count = padded // splash.block_size(padded)
    return (padded / seq_len) ** 2 * (count + 1) / (2 * count)
