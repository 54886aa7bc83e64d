"""Token shards, and deterministic batches of them."""
