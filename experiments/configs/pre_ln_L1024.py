"""The Pre-LN twin of keel_L1024.py: the same shape and data, another residual rule, and the lower
peak rate that Pre-LN needed in the paper (its loss spiked at 4.5e-3).

    python -m keel_jax.plan --config=experiments/configs/pre_ln_L1024.py --topology=v5p:4x4x4
    python -m keel_jax.train --config=experiments/configs/pre_ln_L1024.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    512     1024        1024   3072  16     8         3e-3

Expected (arXiv:2601.19895, Table 3, 250 B tokens): 57.9 on average, Keel 60.9.
The plan's verdict: fits v5p:4x4x4, 62.24 of 95.74 GiB a chip, block inputs and attention kept
(docs/planning.md).
"""

from experiments.configs import keel_L1024


def get_config():
    cfg = keel_L1024.get_config()
    cfg.model.topology = "pre_ln"
    cfg.optim.peak_lr = 3e-3
    return cfg
