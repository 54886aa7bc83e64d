"""The model of the experiments at size "micro": 64 sub-layers that two cores train in seconds.

    python -m keel_jax.prepare --input=embedded --output=runs/data/embedded_384 --vocab_size=384 \
        --validation_fraction=0.05
    python -m keel_jax.train --config=experiments/configs/micro.py --workdir=runs/micro \
        --config.data.path=runs/data/embedded_384

    blocks  sub-layers  width  FFN  heads  kv heads  batch
    32      64          32     96   1      1         8 x 32

The vocabulary is little more than bytes, so that a run reaches the unigram plateau, on which one
that does not learn ends, within tens of steps. Validation reads the same 16 384 tokens every time.
One head and short windows, as attention's softmax is most of a step's time at this width. Expected:
3.5 nats a token at 1e-2 on the former embedded corpus (docs/data.md), where Post-LN stays on the
plateau; 40 ms of one core a step (AMD EPYC).
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 32
    cfg.model.d_model = 32
    cfg.model.d_ffn = 96
    cfg.model.num_heads = 1
    cfg.model.num_kv_heads = 1
    cfg.model.compute_dtype = "float32"
    cfg.model.recompute.plan = "none"
    cfg.optim.peak_lr = 1e-2
    cfg.optim.weight_decay = 0.1
    cfg.optim.warmup_steps = 40
    cfg.train.num_steps = 200
    cfg.train.batch_size = 8
    cfg.train.seq_len = 32
    cfg.train.loss_chunk = 0
    cfg.train.log_every_steps = 1
    cfg.train.eval_num_batches = 64
    # Checkpoints only serve to go on after an interruption: a run takes minutes.
    cfg.train.checkpoint_every_steps = 40
    cfg.train.keep_checkpoints = 1
    cfg.data.num_threads = 0
    cfg.data.verify_checksums = False
    cfg.telemetry.every_steps = 0
    return cfg
