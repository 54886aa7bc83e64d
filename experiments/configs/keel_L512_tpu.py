"""keel_L512.py with heads of 128: 8 query and 4 key/value heads, the same parameters and FLOPs.

    python -m keel_jax.plan --config=experiments/configs/keel_L512_tpu.py --topology=v5e:4x4
    python -m keel_jax.train --config=experiments/configs/keel_L512_tpu.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads    kv heads  peak LR
    256     512         1024   3072  8 x 128  4 x 128   6e-3

A TPU's registers are 128 wide, and so is one pass of its matrix unit. Heads of 64, which the
paper's sizes imply (16 query heads at d = 1024), fill half of either in attention, and their
projections must be laid out anew before it. This file is for runs on a TPU that need not have the
paper's shape; keel_L512.py is for those that must. The compiler's numbers for both:
docs/performance.md.
"""

from experiments.configs import keel_L512


def get_config():
    cfg = keel_L512.get_config()
    cfg.model.num_heads = 8
    cfg.model.num_kv_heads = 4
    return cfg
