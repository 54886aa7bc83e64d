"""The smallest model that is still Keel: 8 sub-layers, 64 wide, for a CPU and for the tests.

    python -m keel_jax.prepare --input=embedded --output=runs/embedded --vocab_size=1024
    python -m keel_jax.train --config=experiments/configs/tiny.py --workdir=runs/tiny \
        --config.data.path=runs/embedded

Expected: 200 steps of 8 x 128 tokens, half a minute on two cores.
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 4
    cfg.model.d_model = 64
    cfg.model.d_ffn = 192
    cfg.model.num_heads = 4
    cfg.model.num_kv_heads = 2
    cfg.model.compute_dtype = "float32"
    cfg.model.recompute.plan = "none"
    cfg.optim.peak_lr = 1e-2
    cfg.optim.warmup_steps = 20
    cfg.train.num_steps = 200
    cfg.train.batch_size = 8
    cfg.train.seq_len = 128
    cfg.train.loss_chunk = 0
    return cfg
