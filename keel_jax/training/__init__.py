"""One run: loss, optimizer, state, step, loop, checkpoints, metrics."""
