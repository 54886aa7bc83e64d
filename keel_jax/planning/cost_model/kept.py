"""What the backward pass finds of each block, and the traffic that keeping it causes.

No formula says what a block keeps: JAX is asked what it keeps of a loop over a few blocks, so a new
topology or kernel needs no entry here.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import lm, recompute
from keel_jax.parallel import pipeline, tensor_parallel

# Blocks of the loop that JAX is asked about: a size that no other dimension has.
_FEW = 7
# Stands for every plan in the key of the cache: what is asked for does not depend on the model's.
_NO_PLAN = config.RecomputeConfig()


def save_of(plan: config.RecomputeConfig) -> str:
    """What is kept of a block whose inputs are kept: `save`, or "all" where all is kept."""
    return "all" if plan.plan == "none" else plan.save


def kept_bytes(cfg: config.Config, sizes: Mapping[str, int], save: str) -> float:
    """Bytes that one device of the mesh keeps of each block for a row of tokens, input included."""
    model = dataclasses.replace(cfg.model, recompute=_NO_PLAN, num_blocks=_FEW)
    return _row_bytes(model, cfg.train.seq_len // sizes["context"], save) / sizes["tensor"]


def kept_traffic(cfg: config.Config, sizes: Mapping[str, int]) -> float:
    """Bytes of HBM that a device moves in a step because they are kept: written, and read again."""
    plan, num_blocks = cfg.model.recompute, cfg.model.num_blocks // sizes["stage"]
    carry, saved = (kept_bytes(cfg, sizes, save) for save in ("carry", save_of(plan)))
    if plan.plan == "reversible":
        saved = carry * 2 / cfg.model.d_model  # the norms' numbers; inputs are not kept
    segments = recompute.segment_sizes(plan, num_blocks)
    microbatches = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    rows = cfg.train.batch_size * cfg.num_trials / sizes["data"] / sizes["fsdp"] / sizes["trial"]
    rows *= pipeline.num_ticks(sizes["stage"], microbatches) / microbatches
    inputs = sum(num_blocks / size for size in segments)
    return 2 * rows * (inputs * carry + num_blocks * saved)


@functools.cache
def _row_bytes(model: config.ModelConfig, seq_len: int, save: str) -> int:
    """Bytes that are kept of each block for a row of `seq_len` tokens, all on one device."""
    plan = config.RecomputeConfig(plan="none")
    if save != "all":
        plan = config.RecomputeConfig(plan="block", save=save)
    module = lm.LanguageModel(dataclasses.replace(model, num_blocks=_FEW, recompute=plan))

    def kept(params, tokens_BT):
        def hidden(params):
            return module.apply({"params": params}, tokens_BT, method="hidden")

        return jax.vjp(hidden, params)[1]

    params = jax.eval_shape(lambda: lm.init(module, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)
    leaves = jax.tree.leaves(jax.eval_shape(kept, params, tokens))
    # What the loop stacks, the weights that it reads left out.
    weights = {leaf.shape for leaf in jax.tree.leaves(params)}
    stacked = [leaf for leaf in leaves if leaf.shape[:1] == (_FEW,) and leaf.shape not in weights]
    # On a TPU (then the kernel is splash) narrow heads are padded to whole registers.
    is_tpu = model.attention == "splash"
    padding = max(1.0, tensor_parallel.LANES / model.head_dim) if is_tpu else 1.0
    total = sum(
        math.prod(leaf.shape)
        * leaf.dtype.itemsize
        * (padding if leaf.shape[-1] == model.head_dim else 1.0)
        for leaf in stacked
    )
    return int(total) // _FEW
