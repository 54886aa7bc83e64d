"""keel_jax: very deep language models on JAX, built around Keel (arXiv:2601.19895)."""

__version__ = "0.1.0"
