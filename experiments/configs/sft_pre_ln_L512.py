"""The Pre-LN twin of sft_keel_L512.py: the same grid and recipe, from a run of pre_ln_L512.py.

    python -m keel_jax.train --config=experiments/configs/sft_pre_ln_L512.py --workdir=DIR \
        --config.data.path=DATA --config.train.init_from=PRETRAINED

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR            epochs
    256     512         1024   3072  16     8         1e-6, 2e-6, 3e-6   1, 2, 3

Expected (arXiv:2601.19895, Table 7): an average over eight tasks of 49.3, Keel 54.8.
"""

from experiments.configs import sft_keel_L512


def get_config():
    cfg = sft_keel_L512.get_config()
    cfg.model.topology = "pre_ln"
    return cfg
