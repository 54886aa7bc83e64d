"""Keel, wide instead of deep: 128 sub-layers, 2048 wide, the parameters of keel_L512.py (3.22 B).

    python -m keel_jax.plan --config=experiments/configs/wide.py --topology=v5e:4x4
    python -m keel_jax.train --config=experiments/configs/wide.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    64      128         2048   6144  16     8         6e-3

The entry that the paper's Table 5 (arXiv:2601.19895) lacks: deep Keel has 55.5 there, deep Pre-LN
52.3 and wide Pre-LN 52.2 (pre_ln_wide.py), but wide Keel was not run. It tells whether depth or
Keel makes the difference. Recipe: that of keel_L512.py; the paper does not state the wide model's
rate, 6e-3 is the deep one's. Expected: unknown; the authors say that gains shrink when the width is
large relative to the depth, and that a wider model may need a larger alpha.
The plan's verdict: fits v5e:4x4, 14.05 of 15.75 GiB a chip, block inputs and attention kept; 1.2 s
a step estimated.
"""

from experiments.configs import keel_L512


def get_config():
    cfg = keel_L512.get_config()
    cfg.model.num_blocks = 64
    cfg.model.d_model = 2048
    cfg.model.d_ffn = 6144
    return cfg
