"""Which parts of a trained model can be done without (arXiv:2601.19895, App. A)."""
