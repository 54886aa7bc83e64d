"""Fine-tuning keel_L512.py on conversations: the paper's grid as nine trials of one program.

    python -m keel_jax.prepare --input='sft/*.jsonl' --output=DATA --chat_template=turns \
        --tokenizer=PRETRAINED/tokenizer.model --pack_tokens=2048
    python -m keel_jax.train --config=experiments/configs/sft_keel_L512.py --workdir=DIR \
        --config.data.path=DATA --config.train.init_from=PRETRAINED
    python -m keel_jax.evaluate --workdir=DIR --step=best --before=PRETRAINED

    blocks  sub-layers  width  FFN   heads  kv heads  peak LR            epochs
    256     512         1024   3072  16     8         1e-6, 2e-6, 3e-6   1, 2, 3

From the paper (arXiv:2601.19895): the rates and the lengths, of which the best is taken. Guesses,
as it does not state them: 64 windows of 2048 tokens a step, 3 % of the shortest trial as warm-up
(30 steps of at least 1000), cosine to 0, decay 0.01 and clipping at 1 as in pretraining, nothing
frozen. The best is taken on validation loss. Expected (Table 7, 3 B parameters after 1 T tokens):
an average over eight tasks of 54.8, Pre-LN 49.3.

Nine trials are nine train states: 12 bytes of each parameter and trial, 350 GB before activations.
With fewer chips run one trial after the other: --config.trials.peak_lr="(2e-6,)" and
--config.trials.num_epochs="(3.0,)".
"""

import itertools

from experiments.configs import keel_L512

PEAK_LRS = (1e-6, 2e-6, 3e-6)
EPOCHS = (1.0, 2.0, 3.0)


def get_config():
    cfg = keel_L512.get_config()
    rates, epochs = zip(*itertools.product(PEAK_LRS, EPOCHS), strict=True)
    cfg.trials.peak_lr, cfg.trials.num_epochs = rates, epochs
    cfg.optim.peak_lr = max(PEAK_LRS)
    cfg.optim.warmup_steps = 30
    cfg.train.num_tokens = 0
    cfg.train.num_epochs = max(EPOCHS)
    cfg.train.eval_every_steps = 100
    cfg.train.checkpoint_every_steps = 500
    cfg.train.keep_checkpoints = 1
    cfg.train.keep_best = 1
    return cfg
