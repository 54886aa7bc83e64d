"""From text to a tokenizer and token shards: the offline part, which `keel_jax.prepare` runs."""
