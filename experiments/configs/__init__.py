"""Config files: one complete run each, with its command and what is expected of it."""
