"""Benchmarks: commands that print what was measured side by side, never timed tests."""
