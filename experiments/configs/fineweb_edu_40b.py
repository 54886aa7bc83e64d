"""Keel of 512 sub-layers on 40 B tokens of FineWeb-Edu, in windows of 4096.

    python -m keel_jax.prepare --input='fineweb-edu/sample/100BT/*.parquet' --output=DIR \
        --vocab_size=32768
    python -m keel_jax.plan --config=experiments/configs/fineweb_edu_40b.py --topology=v5e:8x8
    python -m keel_jax.train --config=experiments/configs/fineweb_edu_40b.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  batch       peak LR
    256     512         1024   3072  16     8         256 x 4096  3e-3

Expected (arXiv:2601.19895, Table 4): 68.2, Pre-LN 66.7 (pre_ln_fineweb_edu_40b.py). Two
micro-batches of 2 x 4096 tokens a chip keep the memory at that of fineweb_edu_10b.py; the rest of
the recipe is that file's.
The plan's verdict: fits v5e:8x8, 9.62 of 15.75 GiB a chip, block inputs kept; 3.36 s a step
estimated, 36 hours for the 38 147 steps.
"""

from experiments.configs import fineweb_edu_10b


def get_config():
    cfg = fineweb_edu_10b.get_config()
    cfg.train.seq_len = 4096
    cfg.train.accumulation_steps = 2
    cfg.train.num_tokens = 40_000_000_000
    return cfg
