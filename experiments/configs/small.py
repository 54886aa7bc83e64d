"""The model of the experiments at size "small": 128 wide, for one accelerator.

    python -m keel_jax.train --config=experiments/configs/small.py --workdir=runs/small \
        --config.data.path=DIR

    blocks  sub-layers  width  FFN  heads  kv heads  batch
    32      64          128    384  4      2         32 x 256
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 32
    cfg.model.d_model = 128
    cfg.model.d_ffn = 384
    cfg.model.num_heads = 4
    cfg.model.num_kv_heads = 2
    cfg.optim.weight_decay = 0.1
    cfg.optim.warmup_steps = 150
    cfg.train.num_steps = 1500
    cfg.train.batch_size = 32
    cfg.train.seq_len = 256
    cfg.train.log_every_steps = 1
    cfg.train.eval_num_batches = 32
    cfg.train.checkpoint_every_steps = 500
    cfg.train.keep_checkpoints = 1
    cfg.telemetry.every_steps = 0
    return cfg
