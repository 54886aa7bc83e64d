"""Keel of 10 000 sub-layers (5000 blocks), 16 wide, on a machine of two cores.

    python -m keel_jax.prepare --input=embedded --output=runs/embedded_384 --vocab_size=384
    python -m keel_jax.train --config=experiments/configs/keel_L10000.py \
        --workdir=runs/keel_L10000 --config.data.path=runs/embedded_384

    blocks  sub-layers  width  FFN  heads  kv heads  batch      peak LR
    5000    10000       16     48   2      1         4 x 64     1e-2

Expected: docs/ten_thousand.md. `init_std` is the paper's 0.02 carried over from width 1024 to 16,
so that a matrix has the gain that it has there, 0.02 sqrt(1024) = 0.64. With 0.02 itself the FFN's
branch would begin at 4e-4, and 4e-4 / alpha = 4e-8 of the stream is less than float32 resolves.
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 5000
    cfg.model.d_model = 16
    cfg.model.d_ffn = 48
    cfg.model.num_heads = 2
    cfg.model.num_kv_heads = 1
    cfg.model.init_std = 0.16
    cfg.model.compute_dtype = "float32"
    cfg.optim.peak_lr = 1e-2
    cfg.optim.warmup_steps = 20
    cfg.train.num_steps = 150
    cfg.train.batch_size = 4
    cfg.train.seq_len = 64
    cfg.train.loss_chunk = 0
    cfg.train.log_every_steps = 5
    cfg.train.eval_num_batches = 20
    cfg.train.checkpoint_every_steps = 50
    cfg.train.keep_checkpoints = 1
    return cfg
