"""Experiments: configs, sweeps and benchmarks on top of keel_jax."""
