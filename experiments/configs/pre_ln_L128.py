"""The Pre-LN twin of keel_L128.py: the same shape, data and recipe, another residual rule.

    python -m keel_jax.plan --config=experiments/configs/pre_ln_L128.py --topology=v5e:4x4
    python -m keel_jax.train --config=experiments/configs/pre_ln_L128.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    64      128         1024   3072  16     8         9e-3

Expected (arXiv:2601.19895, Table 3, 250 B tokens): 45.3 on average, Keel 46.5.
The plan's verdict: fits v5e:4x4, 14.77 of 15.75 GiB a chip, block inputs and the MLP's hidden
layers kept (docs/planning.md).
"""

from experiments.configs import keel_L128


def get_config():
    cfg = keel_L128.get_config()
    cfg.model.topology = "pre_ln"
    return cfg
