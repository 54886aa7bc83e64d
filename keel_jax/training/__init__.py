"""One run: loss, optimiser, state, step, loop, checkpoints, metrics."""
