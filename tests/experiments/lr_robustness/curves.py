"""Loss curves whose faults are known, and thresholds for them."""

import numpy as np

from experiments.lr_robustness import divergence

THRESHOLDS = divergence.Thresholds(window_steps=1, patience_steps=20)
UNIGRAM = np.full(200, 4.0)


def learning(num_steps: int = 200, end: float = 3.0) -> np.ndarray:
    """A loss from 6 nats down to `end` within 100 steps, then flat."""
    return 6.0 + (end - 6.0) * np.minimum(1.0, np.arange(num_steps) / 100)
