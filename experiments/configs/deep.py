"""The model of the experiments at depth: 64 to 1024 sub-layers that two cores train.

    python -m keel_jax.prepare --input=embedded --output=runs/data/embedded_384 --vocab_size=384 \
        --validation_fraction=0.05
    python -m keel_jax.train --config=experiments/configs/deep.py --workdir=runs/deep \
        --config.data.path=runs/data/embedded_384

    blocks  sub-layers  width  FFN  heads  kv heads  batch
    128     256         32     96   1      1         8 x 32

The recipe is the paper's (weight decay 0.01, gradients clipped at 1), carried over to the width: a
matrix of N(0, s^2) multiplies a stream of unit variance by s sqrt(d), which is 0.64 for the paper's
0.02 at 1024, so s = 0.02 sqrt(1024 / d) here. With 0.02 itself branches would begin 6 times smaller
in each of their matrices.
"""

import math

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 128
    cfg.model.d_model = 32
    cfg.model.d_ffn = 96
    cfg.model.num_heads = 1
    cfg.model.num_kv_heads = 1
    cfg.model.init_std = 0.02 * math.sqrt(1024 / 32)
    cfg.model.compute_dtype = "float32"
    # At this width memory is what a step waits for: recomputation takes less time than keeping all
    # activations (1.05 to 1.3 ms a sub-layer, trial and step at 1024 sub-layers, two cores).
    cfg.model.recompute.plan = "block"
    cfg.optim.peak_lr = 3e-3
    cfg.optim.weight_decay = 0.01
    cfg.optim.clip_norm = 1.0
    cfg.optim.warmup_steps = 60
    cfg.train.num_steps = 600
    cfg.train.batch_size = 8
    cfg.train.seq_len = 32
    cfg.train.loss_chunk = 0
    cfg.train.log_every_steps = 1
    cfg.train.eval_num_batches = 64
    # Checkpoints only serve to go on after an interruption.
    cfg.train.checkpoint_every_steps = 50
    cfg.train.keep_checkpoints = 1
    cfg.data.num_threads = 0
    cfg.data.verify_checksums = False
    cfg.telemetry.every_steps = 0
    return cfg
