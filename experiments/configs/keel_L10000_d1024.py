"""Keel of 10 000 sub-layers (5000 blocks) at the paper's width, for the planner: v5e:16x16.

    python -m keel_jax.plan --config=experiments/configs/keel_L10000_d1024.py --topology=v5e:16x16

    blocks  sub-layers  width  FFN   heads  kv heads  parameters  tokens a chip
    5000    10000       1024   3072  16     8         63 B        256

63 B float32 parameters with AdamW's two moments are 2.8 GiB a chip on 256 chips. One float32 carry
a block limits the batch: with 256 tokens a chip, 5000 carries of 1 MiB. Sequences are split over 8
chips, so that 32 sequences of 2048 tokens make a batch of 256 tokens a chip. The plan:
docs/ten_thousand.md.
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 5000
    cfg.model.d_model = 1024
    cfg.model.d_ffn = 3072
    cfg.model.num_heads = 16
    cfg.model.num_kv_heads = 8
    cfg.model.vocab_size = 32768
    cfg.mesh.fsdp = 32
    cfg.mesh.context = 8
    cfg.optim.peak_lr = 1e-3
    cfg.optim.warmup_steps = 2000
    cfg.train.batch_size = 32
    cfg.train.seq_len = 2048
    cfg.train.num_tokens = 10_000_000_000
    return cfg
