"""What reaches the first blocks: residual path, sizes and gradients, against the closed forms."""
