"""Starts runs on machines: a module a platform, `python -m launch.NAME --help` (docs/launch.md)."""
