"""What a step takes, predicted by closed forms and without a compiler, to rank plans.

    shards        bytes of state and batch on a device: exact
    kept          what the backward pass finds of a block: JAX is asked; and the traffic it causes
    temporaries   bytes that a step makes and drops
    step_flops    FLOPs that a step executes
    advice        what may close a gap between what is needed and what the chip has

How far off the closed forms are: docs/recompute.md; tests/planning/test_cost_model.py holds them to
it.
"""

from keel_jax.planning.cost_model.advice import advise
from keel_jax.planning.cost_model.kept import kept_traffic
from keel_jax.planning.cost_model.shards import Shards, measure_shards
from keel_jax.planning.cost_model.step_flops import predict_flops
from keel_jax.planning.cost_model.temporaries import Temporaries, predict_temporaries

__all__ = [
    "Shards",
    "Temporaries",
    "advise",
    "kept_traffic",
    "measure_shards",
    "predict_flops",
    "predict_temporaries",
]
