"""Starts a run on machines: one module a platform, `python -m launch.NAME --help` (docs/launch.md)."""
