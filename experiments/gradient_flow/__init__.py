"""Residual path, forward and backward sizes over depth, against the closed forms."""
