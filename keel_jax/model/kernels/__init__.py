"""Attention kernels; each computes the same as `reference`. `model.attention` chooses one."""
