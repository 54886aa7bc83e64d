"""Attention kernels; each computes what `reference` does. `model.attention` chooses among them."""
