"""Starts runs on machines, a module per platform: python -m launch.NAME --help (docs/launch.md)."""
