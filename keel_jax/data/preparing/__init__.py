"""Text to tokenizer and token shards: what `prepare` does, offline."""
