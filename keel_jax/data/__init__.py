"""The data room: text to tokenizer, token shards and deterministic batches."""
