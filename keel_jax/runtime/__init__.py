"""What a long run needs from its machine: stop signals, exit codes, files, clocks, caches."""
