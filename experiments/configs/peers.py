"""The shape that docs/planning.md compares with other frameworks: 64, 512, 1024 blocks on v5e:4x4.

    python -m keel_jax.plan --config=experiments/configs/peers.py --topology=v5e:4x4 \
        --config.model.num_blocks=512

    blocks  width  FFN   heads    vocabulary  tokens a chip
    64      1024   2688  8 x 128  32768       4 x 2048

For the planner only, with the default optimizer and schedule. Float32 parameters and AdamW, fsdp
over all 16 chips; what the backward pass recomputes is the planner's choice (docs/recompute.md).
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 64
    cfg.model.d_model = 1024
    cfg.model.d_ffn = 2688
    cfg.model.num_heads = 8
    cfg.model.num_kv_heads = 8
    cfg.model.vocab_size = 32768
    cfg.train.batch_size = 64
    cfg.train.seq_len = 2048
    cfg.train.num_steps = 1000
    return cfg
