"""What `make quickstart` trains: a Keel of 64 sub-layers on the embedded corpus, on two cores.

    make quickstart                      # prepares, trains, evaluates, samples, plots
    python -m keel_jax.train --config=experiments/configs/quickstart.py --workdir=runs/q \
        --config.data.path=runs/quickstart/data

The learning rate of 1e-2 is deliberate: a Post-LN model of this depth does not learn at it. The
schedule is warm-up-stable-decay, so a longer run has a longer plateau. If a finished run is
lengthened, its rate goes back up to the plateau after the decay, so it differs from a run that was
planned to have that length.
"""

from keel_jax import config


def get_config():
    cfg = config.default()
    cfg.model.num_blocks = 32
    cfg.model.d_model = 96
    cfg.model.d_ffn = 256
    cfg.model.num_heads = 4
    cfg.model.num_kv_heads = 2
    cfg.model.compute_dtype = "float32"
    cfg.model.recompute.plan = "none"
    cfg.optim.peak_lr = 1e-2
    cfg.optim.weight_decay = 0.1
    cfg.optim.schedule = "wsd"
    cfg.optim.warmup_steps = 40
    cfg.optim.wsd_decay_fraction = 0.3
    cfg.train.num_steps = 350
    cfg.train.batch_size = 16
    cfg.train.seq_len = 128
    cfg.train.loss_chunk = 0
    cfg.train.log_every_steps = 10
    cfg.train.eval_every_steps = 50
    cfg.train.eval_num_batches = 8
    cfg.train.checkpoint_every_steps = 25
    return cfg
