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
in each of their matrices. Sizes, batch and validation are those of micro.py.
"""

import math

from experiments.configs import micro


def get_config():
    cfg = micro.get_config()
    cfg.model.num_blocks = 128
    cfg.model.init_std = 0.02 * math.sqrt(1024 / cfg.model.d_model)
    # At this width a step waits for memory, and recomputation seems to take less time than keeping
    # all activations: 4.2 and 5.4 s a step of 4 trials at 1024 sub-layers, one after the other on
    # busy cores, which is no careful comparison. It needs 1.3 GB, and the other 3.1.
    cfg.model.recompute.plan = "block"
    cfg.optim.peak_lr = 3e-3
    cfg.optim.weight_decay = 0.01
    cfg.optim.clip_norm = 1.0
    cfg.optim.warmup_steps = 60
    cfg.train.num_steps = 600
    cfg.train.checkpoint_every_steps = 50
    return cfg
