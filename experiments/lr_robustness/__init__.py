"""Which learning rates each residual topology tolerates."""
