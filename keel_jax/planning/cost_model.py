"""What needs no compiler: bytes of state and batch on a device, and closed forms of the rest.

How far they are off: docs/recompute.md; tests/planning/test_cost_model.py holds them to it.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from keel_jax import config
from keel_jax.model import lm, recompute, residual, reversible
from keel_jax.model.kernels import splash
from keel_jax.parallel import pipeline

# Blocks of which JAX is asked what it keeps: a size that nothing else has.
_FEW = 7
_ANY = config.RecomputeConfig()
# Products with scores that the backward passes of kernels compute which compute scores again, block
# by block (splash for dq and for dk and dv each); the others keep them, and compute four.
_BACKWARD_PRODUCTS = {"splash": 7, "ring": 5}
# What the backward pass of a block works with, in parts of what it keeps if it keeps all. A TPU's
# compiler (then the kernel is splash) fuses, and keeps much in VMEM: measured, v5e, 512 blocks of
# the peers' shape, 0.5 to 0.6; a CPU's holds values and gradients: 64 blocks, 2.
_AT_WORK = {True: 0.6, False: 2.0}


# Numbers in a row of a TPU's registers.
_LANES = 128


@dataclasses.dataclass(frozen=True)
class Shards:
    """Bytes that one device holds when a step begins."""

    parameters: int
    # Moments, counts, and the step's own scalars.
    optimizer: int
    batch: int
    # Shapes of the parameters' shards.
    param_shapes: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.batch


def shards(params, state, batch) -> Shards:
    """Adds up abstract arrays with shardings; `state` holds `params`."""
    of_params = sum(map(shard_bytes, jax.tree.leaves(params)))
    return Shards(
        parameters=of_params,
        optimizer=sum(map(shard_bytes, jax.tree.leaves(state))) - of_params,
        batch=sum(map(shard_bytes, jax.tree.leaves(batch))),
        param_shapes=tuple(
            leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)
        ),
    )


def shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an abstract array on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


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


def temporaries(cfg: config.Config, sizes: dict[str, int], parameter_bytes: int) -> Temporaries:
    """The step's temporaries on one device of a mesh with these axis sizes, to some tenths.

        kept     carries of the outermost level (blocks or segments), and, without segments, what
                 `save` names of every block; once a tick of the pipeline
        segment  carries of the levels within, and what `save` names of the innermost segment
        block    what a block keeps if it keeps all, times what a compiler makes of it; its
                 weights, gathered, and their gradients before they are scattered

    Args:
      cfg: resolved (`resolve.resolve`).
    """
    model, train, plan = cfg.model, cfg.train, cfg.model.recompute
    parts = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    rows = train.batch_size / train.accumulation_steps / sizes["data"] / sizes["fsdp"] / parts
    rows *= cfg.num_trials / sizes["trial"]
    num_blocks = model.num_blocks // sizes["stage"]
    save = "all" if plan.plan == "none" else plan.save
    carry, residuals, everything = (
        rows * _kept_a_row_here(cfg, sizes, name) for name in ("carry", save, "all")
    )

    segments = recompute.segment_sizes(plan, num_blocks)
    *outer, inner = recompute.kept_carries(segments, num_blocks)
    inside = inner * residuals
    kept, segment = (outer[0] * carry, sum(outer[1:]) * carry + inside) if outer else (inside, 0)
    if plan.plan == "reversible":
        segments, kept, segment = _reversible(plan, num_blocks, carry, model.d_model)
    host = (outer[0] if outer else inner) * carry if plan.offload else 0
    if plan.offload_saved:
        host = inner * residuals
    ticks = pipeline.num_ticks(sizes["stage"], parts)
    kept, host = ticks * (kept - host), ticks * host

    itemsize = jnp.dtype(model.compute_dtype).itemsize
    stacked = parameter_bytes * itemsize // 4
    segment += 2 * stacked * sum(segments) / num_blocks
    gathered = _block_params(model) / sizes["tensor"] * cfg.num_trials / sizes["trial"]
    block = _AT_WORK[model.attention == "splash"] * everything + gathered * (itemsize + 4)
    if plan.plan == "reversible":
        block += everything  # of a stretch's lowest block, which waits for the others
    chunk = min(train.loss_chunk or train.seq_len, train.seq_len / sizes["context"])
    table = model.d_model * model.vocab_size / sizes["tensor"] * cfg.num_trials / sizes["trial"]
    logits = rows * parts * chunk / sizes["stage"] * model.vocab_size / sizes["tensor"]
    return Temporaries(
        gradients=stacked + parameter_bytes * (train.accumulation_steps > 1),
        weights=stacked if itemsize < 4 else 0,
        kept=int(kept),
        segment=int(segment),
        block=int(block),
        loss=int(2 * 4 * logits + (4 + 2) * table),
        host=int(host),
    )


def _reversible(plan: config.RecomputeConfig, num_blocks: int, carry: float, width: int):
    """(Sizes of segments, kept, segment) of the plan "reversible", in bytes.

    Kept are the anchors, and a number a token and norm. The memory of the fall-back, of all blocks
    of a stretch but the lowest, is there whether it is taken or not; and z above the lowest, twice.
    """
    others = plan.anchor_blocks - 1
    inside = recompute.segment_sizes(reversible.fallback_plan(), others)
    kept = (reversible.num_stretches(plan, num_blocks) + num_blocks * 2 / width) * carry
    segment = (2 + sum(recompute.kept_carries(inside, others))) * carry
    return (plan.anchor_blocks, *inside), kept, segment


def kept_traffic(cfg: config.Config, sizes: dict[str, int]) -> float:
    """Bytes of HBM that a device moves in a step because they are kept: written, and read again."""
    plan, num_blocks = cfg.model.recompute, cfg.model.num_blocks // sizes["stage"]
    save = "all" if plan.plan == "none" else plan.save
    carry, residuals = (_kept_a_row_here(cfg, sizes, name) for name in ("carry", save))
    if plan.plan == "reversible":
        residuals = carry * 2 / cfg.model.d_model  # the norms' numbers; inputs are not kept
    segments = recompute.segment_sizes(plan, num_blocks)
    parts = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    rows = cfg.train.batch_size * cfg.num_trials / sizes["data"] / sizes["fsdp"] / sizes["trial"]
    rows *= pipeline.num_ticks(sizes["stage"], parts) / parts
    inputs = sum(num_blocks / size for size in segments)
    return 2 * rows * (inputs * carry + num_blocks * residuals)


def executed_flops(cfg: config.Config, sizes: dict[str, int]) -> float:
    """FLOPs of one step on one device, recomputation and a pipeline's idle ticks included.

    A forward pass multiplies every weight once and scores twice; the backward pass weights twice,
    and scores as often as the kernel does. Each level of segments adds one forward pass, and blocks
    that are computed again what `save` has not kept. The plan "reversible" is taken not to fall
    back.
    """
    model, plan = cfg.model, cfg.model.recompute
    seq_len, kernel = cfg.train.seq_len, model.attention
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    # FLOPs a token, a block.
    into_heads, out = 2 * model.d_model * (heads + 2 * kv_heads), 2 * model.d_model * heads
    into_ffn, down = 4 * model.d_model * model.d_ffn, 2 * model.d_model * model.d_ffn
    is_blockwise = kernel in _BACKWARD_PRODUCTS
    product = 2 * heads * seq_len * _causal_share(kernel, seq_len)
    # On a TPU (then the kernel is splash) RoPE is a product, whose gradient is the turn back.
    turn = 2 * model.head_dim * (heads + kv_heads) * (kernel == "splash")
    forward = into_heads + turn + out + into_ffn + down + 2 * product
    backward = 2 * (into_heads + out + into_ffn + down) + turn
    backward += _BACKWARD_PRODUCTS.get(kernel, 4) * product

    # A last product is computed again only for a norm that reads it: an outer norm that is put off
    # finds it in the carry.
    topology, rule = residual.topology(model), residual.rule(model)
    norms = [topology.has("branch_norm", residual.FFN)]
    norms += [topology.has("outer_norm", residual.FFN) and not rule.defers_outer_norm]
    again = {"mlp": out + down * any(norms)}
    again["attention"] = again["mlp"] + into_ffn
    if not is_blockwise:
        # The softmax is computed again, from queries and keys.
        again = {name: flops + product for name, flops in again.items()}
    again |= {"carry": forward - down * (not any(norms)), "all": 0}
    levels = len(recompute.segment_sizes(plan, model.num_blocks // sizes["stage"]))
    if plan.plan == "reversible":
        # The lowest block of each stretch, whole; others as often as they are evaluated.
        lowest = reversible.num_stretches(plan, model.num_blocks) / model.num_blocks
        a_block = forward * (1 + lowest + plan.fixed_point_iterations * (1 - lowest)) + backward
    else:
        again = again["all" if plan.plan == "none" else plan.save]
        a_block = forward * (1 + levels) + backward + again

    # Logits are computed again where they are computed in chunks.
    local = seq_len / sizes["context"] / sizes["stage"]
    logits = (4 if 0 < cfg.train.loss_chunk < local else 3) * 2 * model.d_model * model.vocab_size
    parts = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    idle = pipeline.num_ticks(sizes["stage"], parts) / parts
    tokens = cfg.train.tokens_per_step * cfg.num_trials / math.prod(sizes.values())
    return tokens * (a_block * model.num_blocks * idle + logits)


def _causal_share(kernel: str, seq_len: int) -> float:
    """The part of all scores that a kernel computes."""
    if kernel != "splash":
        return 1.0
    padded = splash.padded(seq_len)
    count = padded // splash.block_size(padded)
    return (padded / seq_len) ** 2 * (count + 1) / (2 * count)


def _kept_a_row_here(cfg: config.Config, sizes: dict[str, int], save: str) -> float:
    """`_kept_a_row` on one device of the mesh."""
    model = dataclasses.replace(cfg.model, recompute=_ANY, num_blocks=_FEW)
    return _kept_a_row(model, cfg.train.seq_len // sizes["context"], save) / sizes["tensor"]


@functools.cache
def _kept_a_row(model: config.ModelConfig, seq_len: int, save: str) -> int:
    """Bytes that the backward pass finds of each block for a row of tokens, its input included.

    Not a formula: JAX is asked what it keeps of a loop over a few blocks.
    """
    plan = config.RecomputeConfig(plan="none")
    if save != "all":
        plan = config.RecomputeConfig(plan="block", save=save)
    few = dataclasses.replace(model, num_blocks=_FEW, recompute=plan)
    module = lm.LanguageModel(few)

    def kept(params, tokens_BT):
        def hidden(params):
            return module.apply({"params": params}, tokens_BT, method="hidden")

        return jax.vjp(hidden, params)[1]

    params = jax.eval_shape(lambda: lm.init(module, jax.random.key(0)))
    leaves = jax.tree.leaves(
        jax.eval_shape(kept, params, jax.ShapeDtypeStruct((1, seq_len), jnp.int32))
    )
    # What the loop stacks, the weights that it read left out.
    weights = {leaf.shape for leaf in jax.tree.leaves(params)}
    stacked = [leaf for leaf in leaves if leaf.shape[:1] == (_FEW,) and leaf.shape not in weights]
    # On a TPU (then the kernel is splash) narrow heads fill whole registers.
    width = model.head_dim
    fill = max(1.0, _LANES / width) if model.attention == "splash" else 1.0
    return (
        int(
            sum(
                math.prod(leaf.shape)
                * leaf.dtype.itemsize
                * (fill if leaf.shape[-1] == width else 1.0)
                for leaf in stacked
            )
        )
        // _FEW
    )


@functools.cache
def _block_params(model: config.ModelConfig) -> int:
    """Weights of one block."""
    return (model.num_matmul_params - model.d_model * model.vocab_size) // model.num_blocks


def advice(
    cfg: config.Config,
    sizes: dict[str, int],
    shards: Shards,
    total: float,
    limit: float,
) -> str:
    """What may close the gap between `total` bytes, as compiled, and `limit`: estimated.

    Segments, or more micro-batches, if the closed form says that they free enough; else more
    devices.
    """
    rows = cfg.train.batch_size // (sizes["data"] * sizes["fsdp"])
    rows //= pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    now = temporaries(cfg, sizes, shards.parameters).total
    for levels in ((0,), (0, 0)):
        plan = config.RecomputeConfig(plan="segments", segment_blocks=levels)
        model = dataclasses.replace(cfg.model, recompute=plan)
        segmented = dataclasses.replace(cfg, model=model)
        freed = now - temporaries(segmented, sizes, shards.parameters).total
        if total - freed <= limit:
            return (
                "--config.model.recompute.plan=segments "
                f'--config.model.recompute.segment_blocks="{levels}" would free about '
                f"{freed / 2**30:.2f} GiB (estimated, not compiled)"
            )
    for parts in range(cfg.train.accumulation_steps + 1, rows + 1):
        if rows % parts:
            continue
        train = dataclasses.replace(cfg.train, accumulation_steps=parts)
        freed = (
            now - temporaries(dataclasses.replace(cfg, train=train), sizes, shards.parameters).total
        )
        if total - freed <= limit:
            return (
                f"--config.train.accumulation_steps={parts} would free about "
                f"{freed / 2**30:.2f} GiB (estimated, not compiled)"
            )
    devices = math.ceil(math.prod(sizes.values()) * total / limit)
    return (
        f"micro-batches alone do not close the gap: about {devices} devices would (estimated, not "
        "compiled), or --search for another mesh"
    )
