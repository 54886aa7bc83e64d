"""Handing a model over to transformers, and taking one over from there."""
