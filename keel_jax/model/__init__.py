"""The decoder: residual topologies, layers, attention, the scan over depth, the language model."""
