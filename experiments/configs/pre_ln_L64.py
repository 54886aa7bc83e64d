"""The Pre-LN twin of keel_L64.py: the same shape, data and recipe, another residual rule.

    python -m keel_jax.plan --config=experiments/configs/pre_ln_L64.py --topology=v5e:4x4
    python -m keel_jax.train --config=experiments/configs/pre_ln_L64.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    32      64          1024   3072  16     8         9e-3

Expected (arXiv:2601.19895, Table 3, 250 B tokens): 37.9 on average, Keel 39.6.
The plan's verdict: fits v5e:4x4, 7.66 of 15.75 GiB a chip, block inputs and the MLP's hidden
layers kept (docs/planning.md).
"""

from experiments.configs import keel_L64


def get_config():
    cfg = keel_L64.get_config()
    cfg.model.topology = "pre_ln"
    return cfg
