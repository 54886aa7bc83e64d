"""The machine side of a long run: stop signals, exit codes, files, clocks, caches, processes."""
