"""What may close the gap between what a step needs and what its chip has."""

import dataclasses
import math
from collections.abc import Mapping

from keel_jax import config
from keel_jax.parallel import pipeline
from keel_jax.planning.cost_model import shards as shards_lib
from keel_jax.planning.cost_model import temporaries


def advise(
    cfg: config.Config,
    sizes: Mapping[str, int],
    shards: shards_lib.Shards,
    total_bytes: float,
    limit_bytes: float,
) -> str:
    """What may close the gap between `total_bytes`, as compiled, and `limit_bytes`: estimated.

    Segments, or more micro-batches, if the cost model says that they free enough; else more
    devices.
    """
    now = temporaries.predict_temporaries(cfg, sizes, shards.parameters).total

    def freed_by(changed: config.Config) -> int:
        return now - temporaries.predict_temporaries(changed, sizes, shards.parameters).total

    for levels in ((0,), (0, 0)):
        plan = config.RecomputeConfig(plan="segments", segment_blocks=levels)
        model = dataclasses.replace(cfg.model, recompute=plan)
        freed = freed_by(dataclasses.replace(cfg, model=model))
        if total_bytes - freed <= limit_bytes:
            return (
                "--config.model.recompute.plan=segments "
                f'--config.model.recompute.segment_blocks="{levels}" would free about '
                f"{freed / 2**30:.2f} GiB (estimated, not compiled)"
            )
    rows = cfg.train.batch_size // (sizes["data"] * sizes["fsdp"])
    rows //= pipeline.num_microbatches(cfg.mesh.stage_microbatches, sizes["stage"])
    for parts in range(cfg.train.accumulation_steps + 1, rows + 1):
        if rows % parts:
            continue
        train = dataclasses.replace(cfg.train, accumulation_steps=parts)
        freed = freed_by(dataclasses.replace(cfg, train=train))
        if total_bytes - freed <= limit_bytes:
            return (
                f"--config.train.accumulation_steps={parts} would free about "
                f"{freed / 2**30:.2f} GiB (estimated, not compiled)"
            )
    devices = math.ceil(math.prod(sizes.values()) * total_bytes / limit_bytes)
    return (
        f"micro-batches alone do not close the gap: about {devices} devices would (estimated, not "
        "compiled), or --search for another mesh"
    )
