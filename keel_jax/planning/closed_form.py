"""What needs no compiler: bytes of state and batch on a device, and a guess at the rest."""

import dataclasses
import math

import jax

from keel_jax import config
from keel_jax.model import streams
from keel_jax.parallel import pipeline


@dataclasses.dataclass(frozen=True)
class Shards:
    """Bytes that one device holds when a step begins."""

    parameters: int
    # Moments, counts, and the step's own scalars.
    optimiser: int
    batch: int
    # Shapes of the parameters' shards.
    param_shapes: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return self.parameters + self.optimiser + self.batch


def shards(params, state, batch) -> Shards:
    """Adds up abstract arrays with shardings; `state` holds `params`."""
    of_params = sum(map(shard_bytes, jax.tree.leaves(params)))
    return Shards(
        parameters=of_params,
        optimiser=sum(map(shard_bytes, jax.tree.leaves(state))) - of_params,
        batch=sum(map(shard_bytes, jax.tree.leaves(batch))),
        param_shapes=tuple(
            leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)
        ),
    )


def shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an abstract array on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def temporaries(
    cfg: config.Config, sizes: dict[str, int], parameter_bytes: int, kernel: str
) -> int:
    """A guess at the step's temporaries on one device of a mesh with these axis sizes.

    Gradients in float32, as large as the parameters; a bf16 copy of the weights; one carry per
    block (without recomputation about ten), of the pipeline's idle ticks too; scores of one block,
    if `kernel` (of attention) is the reference; logits of one chunk, twice.
    """
    model, train = cfg.model, cfg.train
    rows = train.batch_size / train.accumulation_steps / sizes["data"] / sizes["fsdp"]
    tokens = rows * train.seq_len / sizes["context"]
    stream = tokens / sizes["tensor"] * model.d_model * 4
    carry = stream * streams.rule(model).num_arrays(model)
    saved = carry * model.num_blocks / sizes["stage"] * (1 if model.remat == "block" else 10)
    parts = pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    saved *= pipeline.num_ticks(sizes["stage"], parts) / parts
    scores = tokens / parts * train.seq_len * model.num_heads / sizes["tensor"] * 4
    chunk = train.loss_chunk or train.seq_len
    chunk = min(chunk, train.seq_len / sizes["context"] / sizes["stage"])
    logits = 2 * rows * chunk * model.vocab_size / sizes["tensor"] * 4
    more = parameter_bytes if train.accumulation_steps > 1 else 0
    scores *= kernel == "reference"
    return int(1.5 * parameter_bytes + more + saved + scores + logits)


def advice(
    cfg: config.Config,
    sizes: dict[str, int],
    shards: Shards,
    kernel: str,
    total: float,
    limit: float,
) -> str:
    """What may close the gap between `total` bytes, as compiled, and `limit`: estimated.

    More micro-batches, if the closed form says that they free enough; else more devices.
    """
    rows = cfg.train.batch_size // (sizes["data"] * sizes["fsdp"])
    rows //= pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    now = temporaries(cfg, sizes, shards.parameters, kernel)
    for parts in range(cfg.train.accumulation_steps + 1, rows + 1):
        if rows % parts:
            continue
        train = dataclasses.replace(cfg.train, accumulation_steps=parts)
        freed = now - temporaries(
            dataclasses.replace(cfg, train=train), sizes, shards.parameters, kernel
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
