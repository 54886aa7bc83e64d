"""Keel of 128 sub-layers (64 blocks, 0.81 B parameters in them), after "Post-LayerNorm Is Back".

    python -m keel_jax.plan --config=experiments/configs/keel_L128.py --topology=v5e:4x4
    python -m keel_jax.train --config=experiments/configs/keel_L128.py --workdir=DIR \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR
    64      128         1024   3072  16     8         9e-3

The paper's depth scaling (arXiv:2601.19895, Table 3: 250 B private tokens, batch 1024 x 4096):
average of its benchmarks 46.5, Pre-LN 45.3. Recipe here: Table 3's peak rate, the public-data
protocol's warm-up of 2000 steps and cosine, windows of 2048 tokens, 10 B tokens. The batch is 4 x
2048 tokens a chip on v5e:4x4; the protocol's own is 256 x 2048: --config.train.batch_size=256,
with --config.train.accumulation_steps where it must fit fewer chips. The paper does not state its
vocabulary; 32768 is ours, and `data.path` must be prepared with at most that.
The plan's verdict: fits v5e:4x4, 13.73 of 15.75 GiB a chip, block inputs kept in the host's memory,
the MLP's hidden layers in the chip's (docs/planning.md).
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 64
    cfg.model.d_model = 1024
    cfg.model.d_ffn = 3072
    cfg.model.num_heads = 16
    cfg.model.num_kv_heads = 8
    cfg.model.vocab_size = 32768
    cfg.optim.peak_lr = 9e-3
    cfg.optim.weight_decay = 0.01
    cfg.optim.warmup_steps = 2000
    cfg.optim.final_lr_fraction = 0.0
    cfg.train.batch_size = 64
    cfg.train.seq_len = 2048
    cfg.train.num_tokens = 10_000_000_000
    return cfg
