"""The Pre-LN twin of fineweb_edu_40b.py: the same shape, data and recipe, with another residual
rule and the rate at which Pre-LN was best.

    python -m keel_jax.plan --config=experiments/configs/pre_ln_fineweb_edu_40b.py \
        --topology=v5e:8x8
    python -m keel_jax.train --config=experiments/configs/pre_ln_fineweb_edu_40b.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    256     512         1024   3072  16     8         1.5e-3

Expected (arXiv:2601.19895, Table 4): 66.7 on average, Keel 68.2; 1.5e-3 was the best of {1, 1.5, 3,
4.5}e-3 for Pre-LN.
The plan's verdict: fits v5e:8x8, 9.61 of 15.75 GiB a chip, block inputs kept; 3.36 s a step
estimated.
"""

from experiments.configs import fineweb_edu_40b


def get_config():
    cfg = fineweb_edu_40b.get_config()
    cfg.model.topology = "pre_ln"
    cfg.optim.peak_lr = 1.5e-3
    return cfg
