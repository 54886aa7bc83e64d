"""What a trained model is used for: log-likelihoods of texts, and texts."""
