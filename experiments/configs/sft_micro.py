"""Fine-tuning on two cores: a grid of rates and epochs, early stopping, the best on validation.

    python -m keel_jax.prepare --input=conversations.jsonl --output=DATA --chat_template=turns \
        --tokenizer=PRETRAINED/tokenizer.model --pack_tokens=128
    python -m keel_jax.train --config=experiments/configs/sft_micro.py --workdir=DIR \
        --config.data.path=DATA --config.train.init_from=PRETRAINED
    python -m keel_jax.evaluate --workdir=DIR --step=best --before=PRETRAINED

    blocks  sub-layers  width  FFN  heads  kv heads  peak LR      epochs  batch
    4       8           64     192  4      2         1e-3, 3e-3   2, 4    8 x 128

The model is tiny.py's, whose run is PRETRAINED. Rates and epochs are guesses for a model that is
50 000 times smaller than the paper's, whose grid sft_keel_L512.py has; the rates are a third and a
tenth of those of its pretraining. Expected: `python -m experiments.benchmarks.sft_check`, which
pretrains, prepares, fine-tunes with this file and a control, and prints the numbers.
"""

import itertools

from experiments.configs import tiny

PEAK_LRS = (1e-3, 3e-3)
EPOCHS = (2.0, 4.0)


def get_config():
    cfg = tiny.get_config()
    rates, epochs = zip(*itertools.product(PEAK_LRS, EPOCHS), strict=True)
    cfg.trials.peak_lr, cfg.trials.num_epochs = rates, epochs
    cfg.optim.peak_lr = max(PEAK_LRS)
    cfg.optim.warmup_steps = 10
    cfg.optim.final_lr_fraction = 0.0
    cfg.train.num_steps = 0
    cfg.train.num_epochs = max(EPOCHS)
    cfg.train.eval_every_steps = 25
    cfg.train.early_stopping_validations = 4
    cfg.train.keep_best = 1
    cfg.train.keep_checkpoints = 1
    cfg.telemetry.every_steps = 0
    return cfg
