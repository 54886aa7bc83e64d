"""The Pre-LN twin of wide.py: the same shape, data and recipe, another residual rule.

    python -m keel_jax.plan --config=experiments/configs/pre_ln_wide.py --topology=v5e:4x4
    python -m keel_jax.train --config=experiments/configs/pre_ln_wide.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    64      128         2048   6144  16     8         6e-3

Expected (arXiv:2601.19895, Table 5, 3 B parameters): 52.2 on average, against 52.3 of the deep
Pre-LN (pre_ln_L512.py), at a lower training loss.
The plan's verdict: fits v5e:4x4, 14.01 of 15.75 GiB a chip, block inputs and attention kept; 1.2 s
a step estimated.
"""

from experiments.configs import wide


def get_config():
    cfg = wide.get_config()
    cfg.model.topology = "pre_ln"
    return cfg
